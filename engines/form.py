"""The form of a Q/DQ graph: how its scales are written, which differs by compiler; the codes do not.

channel-scales: one FP32 scale per output channel of a weight, and Casts around FP16. Export writes it,
    and ONNX Runtime and every compiler read it.
half-scales: the same with FP16 scales and without the Casts, for classic TensorRT. That it runs faster
    there, no GPU has confirmed.
multiplier: one scale per weight, factors behind the product, FP16 depthwise convolutions, for
    TensorRT-RTX: fewer bytes in its build log.

A file says its form in its metadata.
"""

from __future__ import annotations

from typing import Literal, get_args

import onnx

from reptrt.engines.target_table import Backend

Form = Literal["channel-scales", "half-scales", "multiplier"]

COMPILERS: dict[Form, Backend] = {"half-scales": "tensorrt", "multiplier": "tensorrt_rtx"}
"""Form -> the only compiler that it is made for; the others suit all."""

_KEY = "reptrt.form"


def form_for(backend: Backend, *, half: bool) -> Form:
    """The form that suits what `backend` compiles.

    Args:
        backend: module that builds for the target.
        half: whether what is not INT8 is FP16; in FP32 no form saves anything.
    """
    suiting = [form for form, compiler in COMPILERS.items() if compiler == backend]
    return suiting[0] if suiting and half else "channel-scales"


def read_form(model: onnx.ModelProto) -> Form:
    """The form that the metadata of `model` names; scales per channel where it names none."""
    named = {entry.key: entry.value for entry in model.metadata_props}.get(_KEY)
    return next((form for form in get_args(Form) if form == named), "channel-scales")


def write_form(model: onnx.ModelProto, form: Form) -> None:
    """Name `form` in the metadata of `model`, in place."""
    kept = [entry for entry in model.metadata_props if entry.key != _KEY]
    del model.metadata_props[:]
    model.metadata_props.extend([*kept, onnx.StringStringEntryProto(key=_KEY, value=form)])
