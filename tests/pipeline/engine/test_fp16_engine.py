"""The FP16 engine that INT8 has to beat: made where a GPU is, kept while nothing changes."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from reptrt.calibrators.progress import no_progress
from reptrt.engines.device import Gpu
from reptrt.engines.outputs.detection import NMS_OUTPUTS
from reptrt.engines.outputs.snr import SignalNoise
from reptrt.engines.outputs.suppression import Suppression
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from reptrt.engines.target import TARGETS
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.engine.fp16_engine import make_fp16_engine, write_fp16_onnx
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.run import Run
from reptrt.pipeline.validation import validate
from reptrt.pipeline.workspace.folder import open_workspace, stage_records
from tests.command_line import TinyProject, reptrt
from tests.processor import sums_saturate
from tests.tiny_networks import SIZE, smooth_images, traced

TARGET = TARGETS["tensorrt-rtx"]


def test_it_is_made_once_and_goes_where_it_cannot_run(
    tiny: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    recipe = Recipe(model=tiny.model, data=tiny.data, calibrator="minmax", image_size=(32, 32))
    workspace = open_workspace(tmp_path, recipe, TARGET.name)
    run = Run(recipe, TARGET, workspace, "reptrt", no_progress)
    monkeypatch.setattr(validate, "find_gpu", lambda: Gpu("Pretended GPU", (8, 9)))
    make_fp16_engine(run)
    assert workspace.fp16_engine.stat().st_size > 1000
    record = stage_records(workspace)["fp16"]
    assert (record.inputs["batch"], record.inputs["suppression"]) == ([1, 1, 8], None)
    written = workspace.fp16_engine.stat().st_mtime_ns
    make_fp16_engine(run)
    assert workspace.fp16_engine.stat().st_mtime_ns == written
    monkeypatch.setattr(validate, "find_gpu", lambda: None)
    make_fp16_engine(run)
    assert not list(workspace.folder.glob("model.fp16*"))


def test_it_computes_the_network_in_half_precision(tmp_path: Path) -> None:
    layout = Preprocess((SIZE, SIZE), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), layout="letterbox")
    card = ModelCard("m", "detection", layout, 3, None, ("p1", "p2"), (2, 4))
    path, graph = tmp_path / "fp16.onnx", traced("detector")
    write_fp16_onnx(graph, card, path)
    model = onnx.load(path).graph
    types = {tensor.name: tensor.data_type for tensor in model.initializer}
    convolutions = [node for node in model.node if node.op_type.startswith("Conv")]
    assert len(convolutions) > 5
    read = {types[name] for node in convolutions for name in node.input[1:]}
    assert read == {onnx.TensorProto.FLOAT16}
    images = smooth_images(8, seed=5)
    with OnnxRuntimeRunner(path, num_threads=1) as runner:
        outputs = runner.infer({"images": images.numpy()})
    for name, expected in zip(card.outputs, graph(images), strict=True):
        noise = SignalNoise()
        noise.update(expected.detach().numpy(), outputs[name])
        assert 45 < noise.snr_db < 90
    suppression = Suppression(0.25, 0.65, 5)
    write_fp16_onnx(graph, card, path, suppression, "tensorrt_rtx")
    assert tuple(output.name for output in onnx.load(path).graph.output) == NMS_OUTPUTS


def test_on_a_cpu_the_float_model_is_fp32_and_no_other_file_is_made(
    tiny: TinyProject, tmp_path: Path
) -> None:
    options = [*tiny.options[:-1], "cpu", "--workspace", tmp_path]
    outcome = reptrt("engine", *options, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["deploy"] in ("int8", "fp32")
    assert "than FP32" in report["deploy_reason"]
    if not sums_saturate():
        deployed, quantized = (report[key]["logits"] for key in ("engine_numerics", "numerics"))
        assert deployed["snr_db"] > quantized["snr_db"]
    assert report["fp16_numerics"] is None
    assert not list(tmp_path.rglob("model.fp16*"))
    rows = reptrt("compare", *options, "--calibrators", "minmax")
    assert rows.code == 0, rows.err
