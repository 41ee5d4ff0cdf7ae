"""Graph surgery: from any Q/DQ ONNX file to one that every TensorRT from 10.3 on parses well.

One pass per file, all with the contract of `base.Pass`. `clean` runs `DEFAULT_PASSES` on a file.
A file that this project exported comes through with its int8 codes unchanged. `FORM_PASSES` then write its
scales as one compiler likes them.
"""

from __future__ import annotations

from pathlib import Path

from reptrt.engines.form import Form
from reptrt.engines.surgery.base import Pass, SurgeryError, run_passes
from reptrt.engines.surgery.clean_file import clean_file
from reptrt.engines.surgery.cpu.quantize_bias import QuantizeBias
from reptrt.engines.surgery.cpu.requantize_selections import RequantizeSelections
from reptrt.engines.surgery.cpu.shift_to_uint8 import ShiftToUint8
from reptrt.engines.surgery.dialects.expand_operators import ExpandOperators
from reptrt.engines.surgery.dialects.imply_float import ImplyFloat, UndoDynamic
from reptrt.engines.surgery.dialects.lift_codes import LiftCodes
from reptrt.engines.surgery.dialects.quantize_arithmetic import ROUND, QuantizeArithmetic
from reptrt.engines.surgery.dialects.quantize_grid_weights import QuantizeGridWeights
from reptrt.engines.surgery.dialects.write_contributed import WriteContributed
from reptrt.engines.surgery.forms.float_depthwise import FloatDepthwise
from reptrt.engines.surgery.forms.fold_factors import FoldFactors
from reptrt.engines.surgery.forms.halve_scales import HalveScales
from reptrt.engines.surgery.forms.scale_behind_product import ScaleBehindProduct
from reptrt.engines.surgery.repair.absorb_shifts import AbsorbShifts
from reptrt.engines.surgery.repair.add_bias_behind_heads import AddBiasBehindHeads
from reptrt.engines.surgery.repair.dequantize_bias import DequantizeBias
from reptrt.engines.surgery.repair.drop_no_ops import DropNoOps
from reptrt.engines.surgery.repair.drop_output_qdq import DropOutputQdq
from reptrt.engines.surgery.repair.floor_scales import FloorScales
from reptrt.engines.surgery.repair.fold_constants import FoldConstants
from reptrt.engines.surgery.repair.fuse_pad_into_conv import FusePadIntoConv
from reptrt.engines.surgery.repair.quantize_weights import QuantizeWeights
from reptrt.engines.surgery.repair.recentre_activations import RecentreActivations
from reptrt.engines.surgery.repair.recentre_weights import RecentreWeights
from reptrt.engines.surgery.repair.state_zero_points import StateZeroPoints
from reptrt.engines.surgery.repair.strip_dead_nodes import StripDeadNodes
from reptrt.engines.surgery.repair.tie_concat_scales import TieConcatScales

__all__ = [
    "AS_PAIRS",
    "CPU_PASSES",
    "DEFAULT_PASSES",
    "FLOAT_PASSES",
    "FORM_PASSES",
    "Pass",
    "SurgeryError",
    "clean",
    "rewrite_for_cpu",
    "run_passes",
]

AS_PAIRS: tuple[Pass, ...] = (
    FoldConstants(
        kept=(ROUND,)
    ),  # first: the others look for constants, not for what computes them
    WriteContributed(),
    ExpandOperators(),
    StateZeroPoints(),  # then every node says its type and zero
    LiftCodes(),
    QuantizeArithmetic(),  # folds the rest
    QuantizeGridWeights(),
)
"""What writes any spelling of quantization as Q/DQ pairs."""

FLOAT_PASSES: tuple[Pass, ...] = (
    FoldConstants(kept=(ROUND,)),
    UndoDynamic(),  # what is left of it is refused
    *AS_PAIRS[1:],
    ImplyFloat(),
    StripDeadNodes(),
)
"""What makes the float network that a quantized one implies."""

DEFAULT_PASSES: tuple[Pass, ...] = (
    *AS_PAIRS,
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

FORM_PASSES: dict[Form, tuple[Pass, ...]] = {
    "channel-scales": (),
    "half-scales": (HalveScales(), StripDeadNodes()),
    "multiplier": (
        FloatDepthwise(),  # before the factors: it reads and takes some
        ScaleBehindProduct(),
        FoldFactors(),
        StripDeadNodes(),
    ),
}
"""What brings a graph with scales per channel into a form."""

CPU_PASSES: tuple[Pass, ...] = (
    RequantizeSelections(),
    ShiftToUint8(),
    QuantizeBias(),
    StripDeadNodes(),
)


def clean(
    qdq_path: Path, trt_path: Path, form: Form | None = None, *, float_depthwise: bool = True
) -> dict[str, int]:
    """Run `DEFAULT_PASSES` on `qdq_path` and write `trt_path`; return changed sites per pass.

    Args:
        qdq_path: any ONNX file; its weights have scales per channel.
        trt_path: file to write, atomically.
        form: how scales are written in it (`reptrt.engines.form`); None leaves them.
        float_depthwise: whether the multiplier form has depthwise convolutions in FP16.

    Raises:
        SurgeryError: the file is no valid ONNX model up to 2 GB, or holds what no pass can repair.
    """
    kept_int8 = () if float_depthwise else (FloatDepthwise,)
    chosen = () if form is None else FORM_PASSES[form]
    chosen = tuple(one for one in chosen if not isinstance(one, kept_int8))
    return clean_file(qdq_path, trt_path, (*DEFAULT_PASSES, *chosen), form)


def rewrite_for_cpu(trt_path: Path, cpu_path: Path) -> dict[str, int]:
    """Run `CPU_PASSES`: the codes of `trt_path` in the form that ONNX Runtime fuses on CPUs.

    Raises:
        SurgeryError: as `clean`.
    """
    return clean_file(trt_path, cpu_path, CPU_PASSES)
