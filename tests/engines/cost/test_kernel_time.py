"""Times computed by hand: a GPU of 100 SMs at 1 GHz with 10^12 bytes a second and no cache."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reptrt.engines.cost.constants import Constants
from reptrt.engines.cost.kernel_time import kernel_time, work_of
from reptrt.engines.data_sheet import DataSheet
from reptrt.engines.inspection.kernel import Kernel, Product, Tensor

GPU = DataSheet("round", (8, 0), 100, 1.0, 1000, 1e-9)  # FP16: 204.8e12 a second, INT8: twice
ALL = Constants(
    product_us=2, move_us=1, compute=1, compute_int8=1, image=1, depthwise=1, memory=1, move=1,
    reformat=1, image_pixels=1, overlap=1,
)  # fmt: skip
ONE_WAVE = Product(12_800, 64, 125)  # 100 tiles of 128 x 64, 204.8e6 operations
TINY = Tensor("x", "Half", (1, 8, 8, 8))
MEGABYTE = Tensor("x", "Int8", (1, 100, 100, 100))


def kernel(kind: str = "CaskConvolution", product: Product | None = None, **changes) -> Kernel:
    base = Kernel("k", kind, (TINY,), (), (TINY,), (), product=product)
    return replace(base, **changes)


def time(one: Kernel, constants: Constants = ALL, gpu: DataSheet = GPU) -> float:
    return kernel_time(one, gpu, constants).microseconds


def test_one_wave_of_tiles_takes_its_operations_over_the_peak():
    assert time(kernel(product=ONE_WAVE)) == pytest.approx(2 + 1, abs=0.01)
    assert kernel_time(kernel(product=ONE_WAVE), GPU, ALL).bound == "launch"


def test_one_row_more_takes_a_second_wave():
    assert time(kernel(product=replace(ONE_WAVE, rows=12_801))) == pytest.approx(2 + 2, abs=0.01)


def test_a_narrow_product_takes_as_long_as_a_tile_is_wide():
    assert time(kernel(product=replace(ONE_WAVE, columns=1))) == pytest.approx(3, abs=0.01)


def test_int8_multiplies_twice_as_fast():
    codes = replace(TINY, dtype="Int8")
    int8 = kernel(product=replace(ONE_WAVE, depth=1250), inputs=(codes,), outputs=(codes,))
    half = kernel(product=replace(ONE_WAVE, depth=1250))
    assert (time(half), time(int8)) == (pytest.approx(12, abs=0.01), pytest.approx(7, abs=0.01))
    assert kernel_time(int8, GPU, ALL).bound == "compute"


def test_a_limited_clock_slows_products_and_leaves_memory():
    throttled = replace(GPU, sustained=0.5)
    assert time(kernel(product=ONE_WAVE), gpu=throttled) == pytest.approx(4, abs=0.01)
    pooling = kernel("Pooling", inputs=(MEGABYTE,))
    assert time(pooling, gpu=throttled) == time(pooling)


def test_a_kernel_that_only_moves_takes_its_bytes_over_the_bandwidth():
    both = kernel("kgen", inputs=(MEGABYTE,), outputs=(MEGABYTE,), weights=(MEGABYTE,))
    assert time(both) == pytest.approx(1 + 3)
    assert time(both, replace(ALL, move=0.5)) == pytest.approx(1 + 6)
    assert kernel_time(both, GPU, ALL).bound == "memory"


def test_a_reformat_has_a_share_of_its_own():
    reformat = kernel("Reformat", inputs=(MEGABYTE,), outputs=(MEGABYTE,))
    assert time(reformat, replace(ALL, reformat=0.5)) == pytest.approx(1 + 4)


def test_bytes_that_fit_into_the_cache_come_from_there():
    cached = replace(GPU, l2_mb=4)  # 3200 GB/s; half of it is full
    both = kernel("kgen", inputs=(MEGABYTE,), outputs=(MEGABYTE,))
    assert time(both, gpu=cached) == pytest.approx(1 + 1 + 1 / 3.2)


def test_a_depthwise_convolution_runs_on_ordinary_cores():
    product = Product(10_000, 1, 9, 64, (3, 3))  # 11.52e6 operations of 12.8e12 a second
    assert time(kernel(product=product)) == pytest.approx(1 + 0.9, abs=0.01)
    assert work_of(kernel(product=product)) == "depthwise"


@pytest.mark.parametrize(
    ("dtype", "kind", "operations", "peak"),
    [
        ("Half", "CaskConvolution", 4 / 3, 204.8e12),
        ("Float", "CaskConvolution", 1, 12.8e12),  # ordinary cores
        ("Int8", "CaskConvolution", 4 / 3, 51.2e12),  # their dot products of 4 bytes
        ("Int8", "ConvActPool", 4 / 3, 204.8e12),
    ],
)
def test_the_first_convolution_pads_its_3_channels_to_4_and_seldom_has_tensor_cores(
    dtype, kind, operations, peak
):
    product = Product(256_000, 64, 27, 1, (3, 3))  # 0.884736e9 operations
    image = Tensor("x", dtype, (1, 3, 1000, 512))
    found = time(
        kernel(kind, product, inputs=(image,), outputs=(image,)),
        gpu=replace(GPU, bandwidth_gbs=1e9),
    )
    assert found == pytest.approx(2 + 0.884736e15 * operations / peak, rel=1e-3)


def test_an_image_changes_its_layout_pixel_by_pixel():
    image = Tensor("x", "Float", (1, 3, 1000, 100))
    reformat = kernel("Reformat", inputs=(image,))
    assert work_of(reformat) == "image reformat"
    assert time(reformat) == pytest.approx(1 + 1)  # 100,000 pixels, one per SM and clock


@pytest.mark.parametrize("kind", ["NoOp", "Constant", "signal", "wait", "shape_call"])
def test_a_view_takes_no_time(kind):
    found = kernel_time(kernel(kind), GPU, ALL)
    assert (found.microseconds, found.bound) == (0, "nothing")


def test_overlap_lets_memory_and_products_hide_each_other():
    one = kernel(product=ONE_WAVE, inputs=(Tensor("x", "Half", (1, 50, 100, 100)),))
    assert time(one) == pytest.approx(2 + 1 + 1, abs=0.01)
    assert time(one, replace(ALL, overlap=2)) == pytest.approx(2 + 2**0.5, abs=0.01)
