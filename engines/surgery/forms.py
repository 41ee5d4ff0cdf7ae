"""The form of a Q/DQ graph: how its scales are written, which differs by compiler; the codes do not.

channel-scales: one FP32 scale per output channel of a weight, and Casts around FP16. Export writes it,
    and ONNX Runtime and every compiler read it.
half-scales: the same with FP16 scales and without the Casts: classic TensorRT.
multiplier: one scale per weight and factors behind the product: TensorRT-RTX.

A file says its form in its metadata. The two forms for compilers are chosen by what their builders were
seen or documented to do; that classic TensorRT runs half-scales faster, no GPU has confirmed.
"""

from __future__ import annotations

from typing import Literal, get_args

import onnx

from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.float_depthwise import FloatDepthwise
from reptrt.engines.surgery.fold_factors import FoldFactors
from reptrt.engines.surgery.halve_scales import HalveScales
from reptrt.engines.surgery.scale_behind_product import ScaleBehindProduct
from reptrt.engines.surgery.strip_dead_nodes import StripDeadNodes
from reptrt.engines.target_table import Backend

Form = Literal["channel-scales", "half-scales", "multiplier"]

BUILDERS: dict[Form, Backend | None] = {
    "channel-scales": None,
    "half-scales": "tensorrt",
    "multiplier": "tensorrt_rtx",
}
"""Form -> the only module that should build it; None where any may."""

_KEY = "reptrt.form"


def form_for(backend: Backend) -> Form:
    """The form that suits what `backend` compiles."""
    return next(
        (form for form, builder in BUILDERS.items() if builder == backend), "channel-scales"
    )


def form_passes(form: Form, *, float_depthwise: bool = True) -> tuple[Pass, ...]:
    """What brings a graph with scales per channel into `form`.

    Args:
        form: of the result.
        float_depthwise: whether depthwise convolutions become FP16 in the multiplier form.
    """
    if form == "multiplier":
        depthwise = (FloatDepthwise(),) if float_depthwise else ()
        return (*depthwise, ScaleBehindProduct(), FoldFactors(), StripDeadNodes())
    return (HalveScales(), StripDeadNodes()) if form == "half-scales" else ()


def read_form(model: onnx.ModelProto) -> Form:
    """The form that the metadata of `model` names; scales per channel where it names none."""
    named = {entry.key: entry.value for entry in model.metadata_props}.get(_KEY)
    return next((form for form in get_args(Form) if form == named), "channel-scales")


def write_form(model: onnx.ModelProto, form: Form) -> None:
    """Name `form` in the metadata of `model`, in place."""
    kept = [entry for entry in model.metadata_props if entry.key != _KEY]
    del model.metadata_props[:]
    model.metadata_props.extend([*kept, onnx.StringStringEntryProto(key=_KEY, value=form)])
