"""The gate on files: a quantized ONNX model that loses all its points, and every wrong run through `regress`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from onnx import numpy_helper

import reptrt as package
from reptrt.pipeline.deploy.passed import GateError
from tests.command_line import Outcome, TinyProject, reptrt
from tests.pipeline.test_gate import five, shuffled

SIZE, LIMIT = (32, 32), 5.0


@dataclass(frozen=True)
class Inverted:
    """`tiny_models:colours` in INT8, with the two classes exchanged: 100 % right in FP32, 0 % in INT8."""

    quantized: Path
    floating: Path
    images: Path

    @property
    def recipe(self) -> dict[str, Any]:
        return {
            "float_model": str(self.floating), "data": str(self.images), "evaluation": str(self.images),
            "image_size": list(SIZE), "max_drop": LIMIT,
        }  # fmt: skip

    def run(self, command: str, workspace: Path, target: str, *more: object) -> Outcome:
        options = ["--float", self.floating, "--data", self.images, "--eval", self.images]
        options += ["--image-size", 32, "--max-drop", LIMIT, "--target", target]
        return reptrt(command, self.quantized, *options, "--workspace", workspace, *more)


@pytest.fixture(scope="module")
def inverted(
    tiny: TinyProject, red_and_blue: Path, tmp_path_factory: pytest.TempPathFactory
) -> Inverted:
    folder = tmp_path_factory.mktemp("inverted")
    result = package.quantize(
        "tiny_models:colours", red_and_blue, workspace=folder, image_size=SIZE, calibrator="minmax",
        quantize="all", target="cpu", progress=False,
    )  # fmt: skip
    model = onnx.load(result.workspace.qdq_onnx)
    last = max(
        (one for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 2),
        key=lambda one: one.dims[1],
    )  # fmt: skip
    codes = numpy_helper.to_array(last)
    assert codes.shape == (2, 8)
    last.CopyFrom(numpy_helper.from_array(codes[::-1].copy(), last.name))
    del model.metadata_props[:]
    onnx.save(model, folder / "inverted.onnx")
    return Inverted(folder / "inverted.onnx", result.workspace.fp32_onnx, red_and_blue)


REASON = "INT8 loses 100.00 points, and the limit is 5.00"


def test_a_model_that_loses_its_points_fails_everywhere(inverted: Inverted, tmp_path: Path) -> None:
    outcome = inverted.run("engine", tmp_path / "build", "cpu", "--json")
    assert outcome.code == 1, outcome.err
    report = json.loads(outcome.out)
    assert REASON in report["verdict"]["reason"]
    assert (report["accuracy"]["fp32"], report["accuracy"]["quantized"]) == (100.0, 0.0)
    kit, repository = tmp_path / "kit.tar.gz", tmp_path / "repository"
    for command, target, place in (("triton", "cpu", repository), ("kit", "tensorrt-rtx", kit)):
        outcome = inverted.run(command, tmp_path / "build", target, "--output", place)
        assert outcome.code == 1
        assert REASON in outcome.complaints[-1]
    assert not kit.exists()
    assert not list(repository.rglob("model.*"))
    result = package.quantize(
        inverted.quantized, inverted.images, evaluate=inverted.images, workspace=tmp_path / "python",
        float_model=inverted.floating, image_size=SIZE, target="cpu", max_drop=LIMIT, progress=False,
    )  # fmt: skip
    assert result.verdict.stops
    with pytest.raises(GateError, match=r"100\.00 points"):
        result.save(tmp_path / "saved")


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("REPTRT_REGRESSION"), reason="a minute of work: `make regress` runs it"
)
def test_regress_fails_whatever_is_wrong(
    tiny: TinyProject, red_and_blue: Path, inverted: Inverted, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), str(tiny.folder)]))
    usual = {"data": str(red_and_blue), "evaluation": str(red_and_blue), "image_size": list(SIZE),
             "calibrator": "minmax", "quantize": "all", "target": "cpu", "max_drop": LIMIT}  # fmt: skip
    wrong = str(shuffled(red_and_blue, tmp_path))
    few = str(five(red_and_blue, tmp_path))
    colours, collapsing = {"model": "tiny_models:colours"}, {"model": "tiny_models:collapsing"}
    bound = {"max_drop": None, "min_agreement": 95.0, "channel_scaling": "none"}
    entries: Mapping[str, tuple[Mapping[str, Any], str]] = {
        "right": ({**usual, **colours}, ""),
        "mean": ({**usual, **colours, "mean": [1.0, 1.0, 1.0]}, "not surely more than chance"),
        "channels": ({**usual, **colours, "channels": "bgr"}, "FP32 has 0.00 %"),
        "labels": ({**usual, **colours, "evaluation": wrong}, "FP32 has 50.00 %"),
        "five": ({**usual, **colours, "evaluation": few}, "labelled images would decide"),
        "collapse": ({**usual, **collapsing, **bound}, "INT8 agrees with FP32 to 50.00 %"),
        "nan": ({**usual, "model": "tiny_models:blind"}, "left with 2"),
        "points": ({**inverted.recipe, "target": "cpu", "model": str(inverted.quantized)}, REASON),
    }  # fmt: skip
    expected = {"int8_coverage": {"value": 100.0, "tolerance": 100.0}}
    (tmp_path / "baselines.yaml").write_text(
        yaml.safe_dump({name: {"recipe": dict(recipe), **expected} for name, (recipe, _) in entries.items()})
    )  # fmt: skip
    outcome = reptrt(
        "regress", "--baselines", tmp_path / "baselines.yaml", "--workspace", tmp_path / "build"
    )
    assert outcome.code == 1, outcome.err
    found = json.loads((tmp_path / "build" / "regress" / "results.json").read_text())
    for name, (_, reason) in entries.items():
        metric = "" if name == "nan" else "gate"
        (one,) = (one for one in found if (one["entry"], one["metric"]) == (name, metric))
        assert one["outcome"] == {"right": "ok", "nan": "error"}.get(name, "regression"), one
        assert reason in one["message"]
