"""Graph surgery: from any Q/DQ ONNX file to one that every TensorRT from 10.3 on parses well.

One pass per file, all with the contract of `base.Pass`. `clean` runs `DEFAULT_PASSES` on a file.
A file that this project exported comes through with its int8 codes unchanged.
"""

from __future__ import annotations

from pathlib import Path

from reptrt.engines.surgery.absorb_shifts import AbsorbShifts
from reptrt.engines.surgery.add_bias_behind_heads import AddBiasBehindHeads
from reptrt.engines.surgery.base import Pass, SurgeryError, run_passes
from reptrt.engines.surgery.clean_file import clean_file
from reptrt.engines.surgery.dequantize_bias import DequantizeBias
from reptrt.engines.surgery.drop_no_ops import DropNoOps
from reptrt.engines.surgery.drop_output_qdq import DropOutputQdq
from reptrt.engines.surgery.floor_scales import FloorScales
from reptrt.engines.surgery.fold_constants import FoldConstants
from reptrt.engines.surgery.forms import Form, form_for, form_passes
from reptrt.engines.surgery.fuse_pad_into_conv import FusePadIntoConv
from reptrt.engines.surgery.quantize_bias import QuantizeBias
from reptrt.engines.surgery.quantize_weights import QuantizeWeights
from reptrt.engines.surgery.recentre_activations import RecentreActivations
from reptrt.engines.surgery.recentre_weights import RecentreWeights
from reptrt.engines.surgery.requantize_selections import RequantizeSelections
from reptrt.engines.surgery.shift_to_uint8 import ShiftToUint8
from reptrt.engines.surgery.state_zero_points import StateZeroPoints
from reptrt.engines.surgery.strip_dead_nodes import StripDeadNodes
from reptrt.engines.surgery.tie_concat_scales import TieConcatScales

__all__ = [
    "CPU_PASSES",
    "DEFAULT_PASSES",
    "Form",
    "Pass",
    "SurgeryError",
    "clean",
    "form_for",
    "rewrite_for_cpu",
    "run_passes",
]

DEFAULT_PASSES: tuple[Pass, ...] = (
    FoldConstants(),  # first: the others look for constants, not for what computes them
    StateZeroPoints(),  # then every node says its type and zero
    QuantizeWeights(),
    DequantizeBias(),  # before the floor: the tiny scales of int32 biases are healthy
    FloorScales(),  # before recentring, which multiplies scales
    RecentreWeights(),
    DropOutputQdq(),  # leaves casts back to back, which DropNoOps drops
    RecentreActivations(),
    AbsorbShifts(),
    DropNoOps(),  # before the three that match chains of nodes
    FusePadIntoConv(),
    AddBiasBehindHeads(),
    TieConcatScales(),
    StripDeadNodes(),
)

CPU_PASSES: tuple[Pass, ...] = (
    RequantizeSelections(),
    ShiftToUint8(),
    QuantizeBias(),
    StripDeadNodes(),
)


def clean(
    qdq_path: Path,
    trt_path: Path,
    form: Form = "channel-scales",
    *,
    float_depthwise: bool = True,
) -> dict[str, int]:
    """Run `DEFAULT_PASSES` on `qdq_path` and write `trt_path` in `form`; return changed sites per pass.

    Args:
        qdq_path: any Q/DQ ONNX file with scales per channel.
        trt_path: file to write, atomically.
        form: how its scales are written; `form_for` says which suits a target.
        float_depthwise: as for `form_passes`.

    Raises:
        SurgeryError: the file is no valid ONNX model up to 2 GB, or holds what no pass can repair.
    """
    passes = (*DEFAULT_PASSES, *form_passes(form, float_depthwise=float_depthwise))
    return clean_file(qdq_path, trt_path, passes, form)


def rewrite_for_cpu(trt_path: Path, cpu_path: Path) -> dict[str, int]:
    """Run `CPU_PASSES`: the codes of `trt_path` in the form that ONNX Runtime fuses on CPUs.

    Raises:
        SurgeryError: as `clean`.
    """
    return clean_file(trt_path, cpu_path, CPU_PASSES)
