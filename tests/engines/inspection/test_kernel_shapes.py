"""Shapes and products as the sources of layer lists give them."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from reptrt.engines.inspection.kernel_record import read_kernel_entry
from reptrt.engines.inspection.kernels import LayerListError, Product, parse_kernels
from reptrt.engines.inspection.rtx_log import matrix_product

RTX_LOG = Path(__file__).parents[1] / "data" / "rtx_1_7_1_layers.txt"
CONVOLUTION = {
    "Name": "conv1",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "x", "Dimensions": [2, 3, 9, 9],
            "Format/Datatype": "Four wide channel vectorized row major Int8 format",
        }
    ],
    "Outputs": [
        {"Name": "y", "Dimensions": [2, 8, 5, 5], "Format/Datatype": "Row major linear FP16 format"}
    ],
    "ParameterType": "Convolution", "Kernel": [3, 3], "Stride": [2, 2], "OutMaps": 8, "Groups": 1,
    "Weights": {"Type": "Int8", "Count": 216}, "Bias": {"Type": "Float", "Count": 8},
}  # fmt: skip


def read(**changes: object):
    (kernel,) = parse_kernels(json.dumps({"Layers": [{**copy.deepcopy(CONVOLUTION), **changes}]}))
    return kernel


def test_the_rtx_log_gives_the_shapes_of_every_tensor():
    kernels = {kernel.name: kernel for kernel in parse_kernels(RTX_LOG.read_text())}
    body = kernels["body_myl0_3"]
    assert body.inputs[0].dims == (1, 32, 16, 16)
    assert body.inputs[0].strides == (8192, 1, 512, 32)
    assert body.product == Product(256, 32, 32 * 9, 1, (3, 3), (1, 1))
    assert body.bytes_in == 8192  # Int8
    assert body.bytes_constant == 32 * 32 * 9 + 2 * 32 * 4
    assert body.bytes_out == 4 * 8192  # Float: a scale per channel
    assert all(kernel.has_shapes for kernel in kernels.values())
    assert sum(kernel.product is not None for kernel in kernels.values()) == 3


def test_the_rtx_log_gives_matrix_products_and_both_of_an_attention():
    dense = ", Strides: [1], StrideOrder: [0], Datatype: Half, Format: (Linear) Row }"
    tensor = "{{ Name: {}, Dimensions: [{}]" + dense.replace("}", "}}")
    lines = [
        "Name: fc, LayerType: gemm, Inputs: [ " + tensor.format("x", "1,197,192")
        + "], Constants: [ " + tensor.format("w", "1,192,576") + ", " + tensor.format("alpha", "1")
        + "], Outputs: [ " + tensor.format("y", "1,197,576"),
        "Name: _gemm_mha_v2_1, LayerType: kgen, Inputs: [ " + tensor.format("q", "3,197,64") + ", "
        + tensor.format("k", "3,64,197") + ", " + tensor.format("v", "3,197,64")
        + "], Constants: [], Outputs: [ " + tensor.format("z", "3,197,64"),
    ]  # fmt: skip
    text = "\n".join(f"{line}], TacticName: t, StreamId: 0, Metadata: " for line in lines)
    fc, attention = parse_kernels(f"Layers:\n{text}")
    assert fc.product == Product(197, 576, 192)
    assert attention.product == Product(197, 197, 128, 3)
    assert attention.operations == 2 * 2 * 3 * 197 * 197 * 64


def test_the_inspector_gives_window_stride_and_padded_channels():
    kernel = read()
    assert kernel.product == Product(2 * 25, 8, 27, 1, (3, 3), (2, 2))
    assert kernel.bytes_in == 2 * 4 * 81
    assert kernel.bytes_constant == 216 + 32
    assert kernel.bytes_out == 2 * 8 * 25 * 2
    assert kernel.product_dtype == "Int8"


def test_version_11_splits_format_and_datatype():
    kernel = read(
        Inputs=[
            {"Name": "x", "Dimensions": [2, 3, 9, 9], "Format": "Row major", "Datatype": "INT8"}
        ]
    )
    assert (kernel.inputs[0].dtype, kernel.bytes_in) == ("Int8", 2 * 3 * 81)


def test_a_convolution_that_pools_counts_its_own_outputs_not_the_pooled_ones():
    changes = {f"Conv{key}": CONVOLUTION[key] for key in ("Kernel", "Stride", "OutMaps", "Groups")}
    changes |= {"ConvPrePadding": [1, 1], "ConvPostPadding": [1, 1], "ConvDilation": [1, 1]}
    kernel = read(LayerType="ConvActPool", **changes)
    assert kernel.product == read().product  # of 5 x 5 outputs


@pytest.mark.parametrize(
    "changes",
    [
        {"Groups": 0}, {"Groups": "1"}, {"Kernel": [3]}, {"Kernel": "3"}, {"Stride": [0, 1]},
        {"Inputs": [{"Name": "x", "Dimensions": [1.5, 3]}]}, {"Inputs": ["x"]},
        {"Inputs": [{"Name": "x", "Dimensions": [1] * 9}]},
        {"Inputs": [{"Name": "x", "Dimensions": [2**40]}]}, {"Weights": {"Type": "Int8", "Count": "a"}},
    ],
)  # fmt: skip
def test_a_layer_that_makes_no_sense_is_named(changes):
    with pytest.raises(LayerListError, match="layer 'conv1'"):
        read(**changes)


@pytest.mark.parametrize("text", ["{", "{}", '{"Layers": 1}', '{"Layers": [[]]}', '{"a":' * 9999])
def test_what_is_no_inspector_json_is_refused(text):
    with pytest.raises(LayerListError, match="no inspector JSON"):
        parse_kernels(text)


@pytest.mark.parametrize("source", [RTX_LOG.read_text(), json.dumps({"Layers": [CONVOLUTION]})])
def test_an_entry_of_fusion_json_gives_the_kernel_back(source):
    for kernel in parse_kernels(source):
        assert read_kernel_entry(json.loads(json.dumps(asdict(kernel)))) == kernel


def test_an_entry_of_an_older_version_has_no_shapes():
    kernel = read_kernel_entry({"name": "k", "kind": "gemm", "inputs": [["x", "Int8"]]})
    assert (kernel.inputs[0].dtype, kernel.has_shapes) == ("Int8", False)


@pytest.mark.parametrize(
    "entry",
    [
        {"inputs": 1}, {"inputs": [1]}, {"inputs": [{"name": "x"}]}, {"product": 3},
        {"inputs": [{"name": "x", "dtype": "Int8", "dims": ["a"]}]}, {"product": {"rows": 0}},
    ],
)  # fmt: skip
def test_an_entry_of_another_form_is_refused(entry):
    with pytest.raises(LayerListError, match=r"no entry of fusion\.json"):
        read_kernel_entry({"name": "k", **entry})


def test_a_1x1_convolution_that_became_a_product_multiplies_from_the_left() -> None:
    product = matrix_product((1, 256, 196), (1, 512, 196), 512 * 256)
    assert product == Product(rows=196, columns=512, depth=256)
    assert matrix_product((8, 1024), (8, 1000), 1024 * 1000) == Product(8, 1000, 1024)
