"""Sizes that are computed by hand, from the words TensorRT uses for its layouts."""

from __future__ import annotations

import pytest

from reptrt.engines.inspection.kernel import Kernel, Product, Tensor, convolution


@pytest.mark.parametrize(
    ("layout", "channels"),
    [
        ("Row major linear FP16 format", 3),
        ("Channel major FP16 format", 3),
        ("Two wide channel vectorized row major FP16 format", 4),
        ("Channel major FP16 format where channel % 4 == 0", 4),
        ("Channel major FP16 format where channel % 16 == 0 (kDHWC16)", 16),
        ("Thirty-two wide channel vectorized row major Int8 format (kCHW32)", 32),
        ("NC/32HW32", 32),
        ("Linear", 3),
    ],
)
def test_a_layout_pads_the_channels_that_it_says(layout, channels):
    assert Tensor("x", "Half", (2, 3, 5, 7), format=layout).bytes == 2 * channels * 5 * 7 * 2


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("Float", 4),
        ("Half", 2),
        ("BFloat16", 2),
        ("Int8", 1),
        ("FP8", 1),
        ("Int4", 0.5),
        ("Int64", 8),
    ],
)
def test_a_type_has_its_size(dtype, size):
    assert Tensor("x", dtype, (4, 10)).bytes == 40 * size


def test_dense_strides_move_every_value_once_however_they_are_permuted():
    assert Tensor("x", "Half", (3, 197, 64), (64, 192, 1)).bytes == 3 * 197 * 64 * 2
    assert Tensor("x", "Half", (1, 32, 1, 1), (32, 1, 32, 32)).bytes == 64


def test_a_slice_of_a_wider_tensor_moves_the_slice_alone():
    half_of_the_channels = Tensor("x", "Half", (1, 32, 10, 10), (6400, 1, 640, 64))
    assert half_of_the_channels.bytes == 32 * 100 * 2


def test_a_run_shorter_than_a_sector_of_32_bytes_moves_the_sector():
    eight_of_64 = Tensor("x", "Int8", (1, 8, 10, 10), (6400, 1, 640, 64))
    three_of_four = Tensor("x", "Int8", (1, 3, 10, 10), (400, 1, 40, 4))
    assert eight_of_64.bytes == 32 * 100
    assert three_of_four.bytes == 4 * 100


def test_a_repeated_side_is_read_once():
    assert Tensor("x", "Float", (8, 16), (0, 1)).bytes == 64


def test_an_open_side_counts_once_and_says_so():
    batch = Tensor("x", "Int8", (-1, 4, 8, 8), (256, 1, 32, 4))
    assert (batch.is_open, batch.elements, batch.bytes) == (True, 256, 256)


def test_a_convolution_multiplies_every_output_by_its_window_and_its_groups_inputs():
    dense = convolution((2, 64, 56, 56), (2, 128, 28, 28), (3, 3), stride=(2, 2))
    assert dense == Product(2 * 28 * 28, 128, 64 * 9, 1, (3, 3), (2, 2))
    assert dense.operations == 2 * (2 * 128 * 28 * 28) * 9 * 64
    grouped = convolution((1, 64, 8, 8), (1, 32, 8, 8), (3, 3), groups=4)
    assert grouped.operations == 2 * (32 * 64) * 9 * 64 // 4


def test_a_transposed_convolution_multiplies_every_input_by_the_window():
    up = convolution((1, 16, 10, 10), (1, 8, 20, 20), (2, 2), transposed=True)
    assert up.operations == 2 * (16 * 100) * (8 * 4)


def test_a_kernel_sums_what_it_reads_and_writes():
    image = Tensor("x", "Int8", (1, 4, 8, 8))
    kernel = Kernel(
        "k", "correlation", (image, image), (Tensor("w", "Int8", (8, 4, 1, 1)), Tensor("s", "Float", (8,))),
        (Tensor("y", "Half", (1, 8, 8, 8)),), (), product=Product(64, 8, 4),
    )  # fmt: skip
    assert (kernel.bytes_in, kernel.bytes_constant, kernel.bytes_out) == (512, 64, 1024)
    assert (kernel.operations, kernel.product_dtype, kernel.has_shapes) == (4096, "Int8", True)


def test_a_kernel_of_float_weights_multiplies_in_their_type():
    kernel = Kernel(
        "k", "correlation", (Tensor("x", "Half", (1, 4)),), (Tensor("w", "Half", (4, 4)),), (), (),
        product=Product(1, 4, 4),
    )  # fmt: skip
    assert kernel.product_dtype == "Half"
