from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from reptrt.calibrators.histogram.methods import (
    MinMaxCalibrator,
    observe_activations,
    scale_weights,
)
from reptrt.calibrators.quantized.biases import round_biases
from reptrt.calibrators.reconstruction.baseline_guard import use_all_codes
from reptrt.calibrators.registry import create_calibrator
from reptrt.engines.form import write_form
from reptrt.engines.report_schema import OutputNumerics
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from reptrt.engines.surgery import clean
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.export.export import Precision, export_float, export_qdq
from reptrt.pipeline.validation.compare_outputs import compare_layers, compare_outputs
from reptrt.pipeline.validation.layer_factors import behind_factors
from tests.tiny_networks import SIZE, quantized, smooth_images, traced
from tests.tiny_transformers import TRANSFORMERS, float_network, images_for, transformer

PREPROCESS = Preprocess((SIZE, SIZE), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
CARD = ModelCard("toy", "classification", PREPROCESS, 10, None, ("logits",))

FEEDS = [
    {"images": np.random.default_rng(seed).standard_normal((2, 1, 2, 2)).astype(np.float32)}
    for seed in (0, 1, 2)
]


def network(path: Path, first: float, second: float, head: str = "head") -> Path:
    """Two 1 x 1 convolutions, `stem` and `head`, that multiply by `first` and `second`."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["": 19]>
        toy (float[N,1,2,2] images) => (float[N,1,2,2] half, float[N,1,2,2] logits)
        <float[1,1,1,1] a = {{{first}}}, float[1,1,1,1] b = {{{second}}}> {{
            half = Conv(images, a)
            r = Abs(half)
            logits = Conv(r, b)
        }}""")
    model.graph.node[0].name, model.graph.node[2].name = "stem", head
    onnx.save(model, path)
    return path


def outputs(reference: Path, test: Path) -> dict[str, dict[str, float | None]]:
    runners = [
        OnnxRuntimeRunner(path, optimize=False, name=path.stem) for path in (reference, test)
    ]
    (found,) = compare_outputs(runners, [(0, 1)], FEEDS)
    return found


def test_an_error_of_a_tenth_is_twenty_decibels(tmp_path: Path) -> None:
    reference = network(tmp_path / "fp32.onnx", 2.0, 1.0)
    found = outputs(reference, network(tmp_path / "int8.onnx", 2.0, 1.1))
    assert found["logits"].snr_db == pytest.approx(20.0, abs=1e-3)
    assert found["logits"].cosine == pytest.approx(1.0, abs=1e-4)


def test_opposite_outputs_have_cosine_minus_one(tmp_path: Path) -> None:
    reference = network(tmp_path / "fp32.onnx", 2.0, 1.0)
    found = outputs(reference, network(tmp_path / "int8.onnx", 2.0, -1.0))
    assert found["logits"].snr_db == pytest.approx(-6.0206, abs=1e-3)  # error of twice the signal
    assert found["logits"].cosine == pytest.approx(-1.0, abs=1e-4)


def test_equal_outputs_have_no_number_of_decibels(tmp_path: Path) -> None:
    path = network(tmp_path / "fp32.onnx", 2.0, 1.0)
    found = outputs(path, network(tmp_path / "int8.onnx", 2.0, 1.0))
    assert found["logits"] == OutputNumerics(None, 1.0)
    assert list(found) == ["half", "logits"]


def test_layers_are_compared_by_name_in_the_order_of_the_graph(tmp_path: Path) -> None:
    reference = network(tmp_path / "fp32.onnx", 2.0, 1.0)
    test = network(tmp_path / "int8.onnx", 2.2, 1.0)
    rows = compare_layers(reference, test, FEEDS)
    assert [(row.layer, row.op) for row in rows] == [("stem", "Conv"), ("head", "Conv")]
    assert [row.snr_db for row in rows] == pytest.approx([20.0, 20.0], abs=1e-3)


def test_an_error_in_the_head_does_not_blame_the_stem(tmp_path: Path) -> None:
    reference = network(tmp_path / "fp32.onnx", 2.0, 1.0)
    stem, head = compare_layers(reference, network(tmp_path / "int8.onnx", 2.0, 1.01), FEEDS)
    assert stem.snr_db is None  # no error at all
    assert head.snr_db == pytest.approx(40.0, abs=1e-2)


def test_a_layer_that_only_one_model_has_is_left_out(tmp_path: Path) -> None:
    reference = network(tmp_path / "fp32.onnx", 2.0, 1.0)
    test = network(tmp_path / "int8.onnx", 2.2, 1.0, head="other")
    assert [row.layer for row in compare_layers(reference, test, FEEDS)] == ["stem"]


def test_comparing_layers_leaves_the_files_as_they_were(tmp_path: Path) -> None:
    paths = [network(tmp_path / name, 2.0, 1.0) for name in ("fp32.onnx", "int8.onnx")]
    before = [path.read_bytes() for path in paths]
    compare_layers(*paths, FEEDS)
    assert [path.read_bytes() for path in paths] == before
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def snr_of_layers(folder: Path, precision: Precision, *, wide: bool) -> dict[str, float]:
    """Of a depthwise + pointwise network; `wide` gives a tensor behind a ReLU 256 codes, not 128."""
    module, images = traced("reparameterized"), smooth_images(32, seed=1)
    export_float(module, folder / "fp32.onnx", CARD)
    model = quantized(module)
    observers = observe_activations(model, [images])
    if wide:
        use_all_codes(model)
    scale_weights(model)
    MinMaxCalibrator().scale_activations(model, observers)
    round_biases(model)
    export_qdq(model, folder / "qdq.onnx", CARD, precision=precision)
    clean(folder / "qdq.onnx", folder / "trt.onnx")
    feeds = [{"images": images.numpy()}]
    rows = compare_layers(folder / "fp32.onnx", folder / "trt.onnx", feeds)
    return {row.layer: row.snr_db for row in rows}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_relu_that_int8_saturation_replaces_does_not_count_as_noise(
    precision: Precision, tmp_path: Path
) -> None:
    plain, wide = (snr_of_layers(tmp_path, precision, wide=wide) for wide in (False, True))
    assert len(plain) == 5
    shifted, reader = "2.reparam_conv", "3.reparam_conv"
    assert wide[shifted] == pytest.approx(plain[shifted], abs=0.1)
    assert wide[reader] > plain[reader]


def test_layers_are_compared_with_what_their_bias_gives_back(tmp_path: Path) -> None:
    model = transformer("vit", (8, 8))
    images = images_for("vit", 8)
    card = replace(CARD, preprocess=replace(PREPROCESS, image_size=TRANSFORMERS["vit"][1]))
    export_float(float_network("vit"), tmp_path / "fp32.onnx", card)
    create_calibrator("repq-vit").calibrate(model, [images])
    export_qdq(model, tmp_path / "qdq.onnx", card)
    clean(tmp_path / "qdq.onnx", tmp_path / "trt.onnx")
    feeds = [{"images": images.numpy()}]
    rows = compare_layers(tmp_path / "fp32.onnx", tmp_path / "trt.onnx", feeds)
    assert len(rows) == 10
    assert min(row.snr_db for row in rows) > 20


def test_channels_that_are_divided_behind_a_float_layer_are_no_factors_of_it(
    tmp_path: Path,
) -> None:
    reference, divided = network(tmp_path / "fp32.onnx", 0.5, 2.0), tmp_path / "qdq.onnx"
    model = onnx.load(network(divided, 0.5, 20.0))
    model.graph.node[1].input[0] = "small"
    product = onnx.helper.make_node("Mul", ["half", "tenth"], ["small"])
    model.graph.node.insert(1, product)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "tenth"))
    write_form(model, "multiplier")
    onnx.save(model, divided)
    found = compare_layers(reference, divided, FEEDS, divided)
    assert [layer.layer for layer in found] == ["stem", "head"]
    assert all(layer.snr_db is None or layer.snr_db > 120 for layer in found)


@pytest.mark.parametrize("weight_first", [False, True])
def test_a_mul_behind_a_float_product_is_no_factor_of_it(weight_first: bool) -> None:
    inputs = ["w", "x"] if weight_first else ["x", "w"]
    product = onnx.helper.make_node("MatMul", inputs, ["y"])
    scaled = onnx.helper.make_node("Mul", ["y", "f"], ["z"])
    constants = {name: onnx.TensorProto(name=name) for name in ("w", "f")}
    assert behind_factors(product, {"y": [scaled]}, constants) == "y"
    product.input[inputs.index("w")] = "w_dequantized"
    assert behind_factors(product, {"y": [scaled]}, constants) == "z"
