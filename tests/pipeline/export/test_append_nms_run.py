"""The road with `--end2end`: its own artifact, what follows from it, and who is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from reptrt.calibrators.progress import no_progress
from reptrt.engines.artifacts import file_sha256
from reptrt.engines.target import TARGETS
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.run import Run
from reptrt.pipeline.stages import append_nms, build
from reptrt.pipeline.workspace.folder import open_workspace
from reptrt.pipeline.workspace.stage import Stage
from tests.command_line import TinyProject, reptrt
from tests.one_box_detector import write_detector
from tests.run_records import record_of


@pytest.mark.parametrize("command", ["engine", "export"])
def test_a_classifier_has_no_end_to_end_engine(
    tiny: TinyProject, finished: Path, tmp_path: Path, command: str
) -> None:
    root = tmp_path if command == "engine" else finished  # where nothing, and all, is done
    outcome = reptrt(command, *tiny.options, "--workspace", root, "--end2end")
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert line.startswith("reptrt: tiny_models:build: --end2end needs a detector")
    assert "started" not in (tiny.files_of(root) / "run.log").read_text().rpartition("command")[2]


@pytest.mark.parametrize("batch", ["N", "2"], ids=["dynamic", "fixed"])
def test_an_end_to_end_engine_is_built_from_its_own_graph(
    tmp_path: Path, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    recipe = Recipe(model="m", end2end=True, max_detections=3)
    workspace = open_workspace(tmp_path, recipe, "tensorrt-rtx")
    layout = Preprocess((16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), layout="letterbox")
    card = ModelCard("m", "detection", layout, 1, None, ("p3",), (8,))
    write = Stage("export", "", 0, {}, [workspace.trt_onnx])
    write.run(lambda: write_detector(workspace.trt_onnx, 0.9, card, batch) and None)

    road = Run(recipe, TARGETS["tensorrt-rtx"], workspace, "reptrt", no_progress)
    monkeypatch.setattr("reptrt.pipeline.stages.price", lambda run: None)  # it asks the network
    append_nms(road)
    build(road)
    rows = onnx.load(workspace.end2end_onnx).graph.output[1].type.tensor_type.shape.dim[1]
    assert rows.dim_value == 3
    record = record_of(workspace.folder, "build")
    assert record["inputs"]["onnx"] == file_sha256(workspace.end2end_onnx)
    before = workspace.engine.stat().st_mtime_ns
    append_nms(road)
    build(road)
    assert workspace.engine.stat().st_mtime_ns == before
    other = replace(road, recipe=recipe.model_copy(update={"score_threshold": 0.5}))
    append_nms(other)
    assert record["inputs"]["onnx"] != file_sha256(workspace.end2end_onnx)
    append_nms(replace(road, recipe=recipe.model_copy(update={"end2end": False})))
    assert not list(workspace.folder.glob("model.end2end*"))
