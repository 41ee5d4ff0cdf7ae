"""The forms for TensorRT and TensorRT-RTX have the codes of the graph with scales per channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from reptrt.engines.build.builder import build_engine
from reptrt.engines.form import Form, form_for, read_form
from reptrt.engines.inspection.fusion import DEPTHWISE, fusion_report
from reptrt.engines.inspection.kernels import parse_kernels
from reptrt.engines.lint import Severity, lint_file
from reptrt.engines.surgery import clean
from reptrt.engines.target import TARGETS, load_backend
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.export.export import export_float, export_qdq
from reptrt.pipeline.validation.compare_outputs import compare_layers
from tests.onnx_codes import agreement, forced_codes, largest_step, onnx_codes, quantize_nodes
from tests.tiny_networks import SIZE, calibrated, smooth_images, traced

FORMS: tuple[Form, ...] = ("half-scales", "multiplier")
NETWORKS = ("reparameterized", "residual", "detector", "vit")
IMAGES = smooth_images(2, seed=5)


@dataclass(frozen=True)
class Forms:
    """One calibrated network in each form, and in float."""

    float32: Path
    channel: Path
    other: Path


def card(name: str) -> ModelCard:
    preprocess = Preprocess((SIZE, SIZE), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    if name == "detector":
        return ModelCard(name, "detection", preprocess, 3, None, ("p1", "p2"), (2, 4))
    return ModelCard(name, "classification", preprocess, 10, None, ("logits",))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Forms]:
    """`written(network, form, float_depthwise=True)`; a network is calibrated and exported once."""
    folders: dict[str, Path] = {}

    def export(name: str) -> Path:
        if name not in folders:
            folders[name] = folder = tmp_path_factory.mktemp(name)
            export_float(traced(name, 2), folder / "fp32.onnx", card(name), 2)
            model = calibrated(name, (8, 8), 2)
            export_qdq(model, folder / "qdq.onnx", card(name), 2, precision="fp16")
        return folders[name]

    def write(name: str, form: Form, float_depthwise: bool = True) -> Forms:
        folder = export(name)
        files = Forms(folder / "fp32.onnx", folder / "qdq.onnx", folder / f"{form}.onnx")
        clean(files.channel, files.other, form, float_depthwise=float_depthwise)
        return files

    return write


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_each_layer_makes_the_codes_of_the_form_with_scales_per_channel(
    written, name: str, form: Form
) -> None:
    files = written(name, form, float_depthwise=False)
    channel, other = onnx.load(files.channel), onnx.load(files.other)
    codes, _ = onnx_codes(channel, IMAGES, optimized=False)
    assert {node.output[0] for node in quantize_nodes(other)} == set(codes)
    expected, logits = forced_codes(channel, IMAGES, codes, optimized=False)
    actual, other_logits = forced_codes(other, IMAGES, codes, optimized=False)
    assert largest_step(actual, expected) <= 1
    assert agreement(actual, expected) >= 0.97
    for one, same in zip(other_logits, logits, strict=True):
        np.testing.assert_allclose(one, same, atol=0.005 * np.abs(same).max())


@pytest.mark.parametrize("form", FORMS)
def test_the_codes_of_weights_stay(written, form: Form) -> None:
    files = written("reparameterized", form, float_depthwise=False)
    assert weight_codes(files.other) == weight_codes(files.channel)


def weight_codes(path: Path) -> list[bytes]:
    model = onnx.load(path)
    read = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return sorted(
        numpy_helper.to_array(tensor).tobytes()
        for tensor in model.graph.initializer
        if tensor.name in read
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["reparameterized", "vit"])
def test_layers_are_compared_on_the_scale_of_the_float_network(
    written, name: str, form: Form
) -> None:
    files = written(name, form)
    feeds = [{"images": IMAGES.numpy()}]
    before = compare_layers(files.float32, files.channel, feeds)
    after = compare_layers(files.float32, files.other, feeds, files.channel)
    assert [entry.layer for entry in after] == [entry.layer for entry in before]
    lost = [old.snr_db - new.snr_db for old, new in zip(before, after, strict=True)]
    assert max(lost) < 2.5


@pytest.mark.parametrize("form", FORMS)
def test_the_file_says_its_form_and_lint_has_nothing_against_it(written, form: Form) -> None:
    files = written("reparameterized", form)
    assert read_form(onnx.load(files.other)) == form
    found = lint_file(files.other)
    assert {finding.severity for finding in found} <= {Severity.NOTE}
    assert ("multiplier-form" in {finding.rule for finding in found}) == (form == "multiplier")


def test_a_compiler_gets_its_form_only_where_fp16_is_left() -> None:
    assert form_for("tensorrt_rtx", half=True) == "multiplier"
    assert form_for("tensorrt", half=True) == "half-scales"
    assert form_for("onnxruntime", half=True) == "channel-scales"
    assert form_for("tensorrt_rtx", half=False) == form_for("tensorrt", half=False)
    assert form_for("tensorrt", half=False) == "channel-scales"


def report_of(path: Path):
    pytest.importorskip("tensorrt_rtx")
    built = build_engine(path, path.with_suffix(".engine"), load_backend(TARGETS["tensorrt-rtx"]))
    kernels = parse_kernels(built.layers)
    return kernels, fusion_report(kernels, path)


@pytest.mark.parametrize("name", ["residual", "vit"])
def test_tensorrt_rtx_writes_products_of_the_multiplier_form_in_half(written, name: str) -> None:
    kernels, report = report_of(written(name, "multiplier").other)
    assert all("1x1 map" in island.reason for island in report.float_islands)
    written_types = {
        tensor.dtype for kernel in kernels if kernel.is_int8 for tensor in kernel.outputs
    }
    assert written_types == {"Half"}


def test_depthwise_layers_that_are_float_by_form_are_listed_with_that_reason(
    written,
) -> None:
    _, report = report_of(written("reparameterized", "multiplier").other)
    assert [island.reason for island in report.float_islands] == [DEPTHWISE]
    _, report = report_of(written("reparameterized", "multiplier", False).other)
    assert report.int8_layers == report.quantizable_layers
