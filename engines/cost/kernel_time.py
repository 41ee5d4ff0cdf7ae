"""Time of one kernel: what it moves, what it multiplies, in tiles and waves.

    t = t0 + (c^a + m^a)^(1/a)
    m = bytes / (bandwidth x reached)
    c = 2 R C depth ceil(tiles / SMs) SMs / (peak of the type x reached)
    tiles = ceil(rows / R) ceil(columns / C) groups

A wave is one tile of R x C on every SM; a last wave that is half empty takes as long as a full one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from reptrt.engines.cost.constants import Constants
from reptrt.engines.cost.records import Bound
from reptrt.engines.data_sheet import DataSheet
from reptrt.engines.inspection.kernel import Kernel, Product
from reptrt.engines.inspection.traffic import has_work

Work = Literal[
    "none", "product", "image product", "depthwise", "move", "reformat", "image reformat"
]

_REFORMATS = ("reformat", "copy", "shuffle", "transpose")
_IMAGE_CHANNELS = 4
_TILE = (128, 64)
"""Rows and columns of the output that one block of threads computes. TensorRT times many tiles; this one
explains the V100's INT8 convolutions and the A100's best (docs/cost.md)."""
_MICROSECONDS = 1e6


@dataclass(frozen=True)
class KernelTime:
    """What a kernel takes, and what of its parts is the longest."""

    microseconds: float
    bound: Bound


def kernel_time(kernel: Kernel, sheet: DataSheet, constants: Constants) -> KernelTime:
    """Predict the time of `kernel` on the GPU of `sheet`, inside a CUDA graph."""
    work = work_of(kernel)
    if work == "none":
        return KernelTime(0.0, "nothing")
    on_tensor_cores = work in ("product", "image product")
    start = constants.product_us if on_tensor_cores else constants.move_us
    memory = _memory_us(kernel, sheet, work, constants)
    compute = 0.0 if kernel.product is None else _compute_us(kernel, work, sheet, constants)
    a = constants.overlap
    longest = max((start, "launch"), (compute, "compute"), (memory, "memory"))
    total = start + (compute**a + memory**a) ** (1 / a)
    return KernelTime(total, longest[1])  # type: ignore[arg-type]


def work_of(kernel: Kernel) -> Work:
    """Class of the kernel: each has its own share of the data sheet."""
    if not has_work(kernel):
        return "none"
    kind = kernel.kind.lower()
    is_image = bool(kernel.inputs) and _is_image(kernel.inputs[0].dims)
    if kernel.product is not None:
        if kernel.product.is_depthwise:
            return "depthwise"
        return "image product" if is_image and kernel.product.window else "product"
    if any(word in kind for word in _REFORMATS):
        return "image reformat" if is_image else "reformat"
    return "image reformat" if is_image and _changes_layout(kernel) else "move"


def _is_image(dims: tuple[int, ...]) -> bool:
    return len(dims) == 4 and 1 <= dims[1] <= _IMAGE_CHANNELS < dims[2]


def _changes_layout(kernel: Kernel) -> bool:
    """Whether planes of an image become pixels of channels."""
    if not kernel.outputs or not kernel.outputs[0].strides or not kernel.inputs[0].strides:
        return False
    return kernel.inputs[0].strides[-1] == 1 and kernel.outputs[0].strides[-1] != 1


def _memory_us(kernel: Kernel, sheet: DataSheet, work: Work, constants: Constants) -> float:
    """Time to move its bytes; those that fit beside each other into L2 come from there.

    A reformat gains nothing from L2: its writes are scattered.
    """
    if work == "image reformat":
        return _image_reformat_us(kernel, sheet, constants)
    reached = {"move": constants.move, "reformat": constants.reformat}.get(work, constants.memory)
    moved = kernel.bytes_in + kernel.bytes_constant + kernel.bytes_out
    cached = 0.0 if work == "reformat" else max(0.0, 1 - moved / (sheet.l2_mb * 1e6))
    seconds = moved * (
        cached / max(sheet.l2_bandwidth, sheet.bandwidth_gbs * 1e9)
        + (1 - cached) / (sheet.bandwidth_gbs * 1e9)
    )
    return _MICROSECONDS * seconds / reached


def _image_reformat_us(kernel: Kernel, sheet: DataSheet, constants: Constants) -> float:
    """Pixel by pixel: the SMs are slower than the memory."""
    image = kernel.inputs[0]
    pixels = image.elements / image.dims[1]
    return _MICROSECONDS * pixels / (sheet.sms * sheet.clock_ghz * 1e9 * constants.image_pixels)


def _compute_us(kernel: Kernel, work: Work, sheet: DataSheet, constants: Constants) -> float:
    product = kernel.product
    assert product is not None  # work_of said so
    if work == "depthwise":
        return _MICROSECONDS * product.operations / (sheet.core_peak * constants.depthwise)
    sustained = sheet.sustained
    if work == "image product":
        return _image_us(kernel, product, sheet, constants) / sustained
    rows, columns = _TILE
    tiles = math.ceil(product.rows / rows) * math.ceil(product.columns / columns) * product.groups
    waves = math.ceil(tiles / sheet.sms)
    operations = 2 * rows * columns * product.depth * waves * sheet.sms
    is_int8 = kernel.product_dtype in ("Int8", "UInt8")
    reached = constants.compute_int8 if is_int8 else constants.compute
    return _MICROSECONDS * operations / (sheet.peak(kernel.product_dtype) * reached * sustained)


def _image_us(kernel: Kernel, product: Product, sheet: DataSheet, constants: Constants) -> float:
    """The first convolution, whose few channels are padded to 4.

    In FP32 it runs on ordinary cores, in INT8 on their dot products of 4 bytes, unless a pooling is fused
    into it; what uses tensor cores reaches little of them.
    """
    channels = max(1, product.depth // math.prod(product.window))
    padded = product.operations / channels * _IMAGE_CHANNELS
    if kernel.product_dtype == "Float":
        return _MICROSECONDS * product.operations / (sheet.core_peak * constants.compute)
    if kernel.product_dtype in ("Int8", "UInt8") and "pool" not in kernel.kind.lower():
        return _MICROSECONDS * padded / (sheet.dot_peak * constants.compute)
    return _MICROSECONDS * padded / (sheet.peak("Half") * constants.image)
