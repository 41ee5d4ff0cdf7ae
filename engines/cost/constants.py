"""The constants of the cost model: few, physical, fitted once.

    python benchmarks/fit_cost.py --data $REPTRT_DATA

prints these lines anew, and what each engine's time is when the fit never saw it (docs/cost.md).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """How much of a data sheet kernels reach.

    Attributes:
        product_us: start and end of a kernel on tensor cores, in a CUDA graph.
        move_us: the same of one that moves, computes pointwise, or convolves each channel alone.
        compute: part of the tensor cores' peak that full waves of tiles reach in floats.
        compute_int8: the same in INT8: twice as fast, they wait for operands more often.
        image: part of FP16's that the first convolution reaches, whose 3 channels are padded to 4.
        depthwise: part of the FP32 cores' peak that a depthwise convolution reaches.
        memory: part of the bandwidth that a product reaches.
        move: the same of pooling and pointwise kernels.
        reformat: the same where the type or the layout changes.
        image_pixels: pixels of an image of at most 4 channels that an SM changes the layout of, per clock.
        overlap: exponent a of (compute^a + memory^a)^(1/a): 1 adds the two, infinity hides one.
    """

    product_us: float
    move_us: float
    compute: float
    compute_int8: float
    image: float
    depthwise: float
    memory: float
    move: float
    reformat: float
    image_pixels: float
    overlap: float = 1.5


FITTED = Constants(
    product_us=4.71, move_us=2.90, compute=0.776, compute_int8=0.764, image=0.393, depthwise=0.230,
    memory=0.969, move=0.778, reformat=0.614, image_pixels=0.147,
)  # fmt: skip

SPREAD = 0.45
"""Of a whole engine's time, 95 %, from engines that the fit never saw: milliseconds / 1.45 to x 1.45."""
