"""A gate that cannot lie: what is wrong fails in every command and in Python, and says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import reptrt as package
from reptrt.engines.kit.manifest import read_manifest
from reptrt.pipeline.deploy.passed import ACCURACY_KEY, COST_KEY, VERDICT_KEY, GateError
from reptrt.pipeline.recipe import RecipeError, flag
from tests.command_line import Outcome, TinyProject, reptrt
from tests.pipeline.deploy.test_kit import unpack

GATES = {
    "colours": {"max_drop": 5.0},
    "collapsing": {"min_agreement": 95.0, "channel_scaling": "none"},
}
"""Of a network that INT8 ruins `max_drop` would make the float engine (tests/pipeline/test_budget.py)."""


class Case:
    """One model and its labelled images, through every command, in one workspace."""

    def __init__(self, model: str, images: Path, workspace: Path, *more: object) -> None:
        self.model, self.images, self.workspace = f"tiny_models:{model}", images, workspace
        self.more, self.gate = more, GATES.get(model, GATES["colours"])

    def options(self, target: str, *more: object) -> list[object]:
        known = ["--image-size", 32, "--data", self.images, "--eval", self.images]
        known += ["--calibrator", "minmax", "--quantize", "all", "--target", target]
        known += ["--workspace", self.workspace]
        gate = [word for name, value in self.gate.items() for word in (flag(name), value)]
        return [self.model, *known, *gate, *self.more, *more]

    def engine(self, *more: object) -> Outcome:
        return reptrt("engine", *self.options("cpu", "--json", *more))

    def triton(self, *more: object) -> Outcome:
        repository = self.workspace / "repository"
        return reptrt("triton", *self.options("cpu", "--output", repository, *more))

    def kit(self, *more: object) -> Outcome:
        archive = self.workspace / "kit.tar.gz"
        return reptrt("kit", *self.options("tensorrt-rtx", "--output", archive, *more))

    def python(self, **more: object) -> package.Result:
        return package.quantize(
            self.model, self.images, evaluate=self.images, workspace=self.workspace, image_size=(32, 32),
            calibrator="minmax", quantize="all", target="cpu", progress=False, **self.gate, **more,
        )  # fmt: skip

    @property
    def written(self) -> list[Path]:
        """Files that were deployed."""
        repository = (self.workspace / "repository").rglob("model.*")
        return [*repository, *self.workspace.rglob("*.tar.gz")]


def shuffled(images: Path, folder: Path) -> Path:
    """Half of the labels are those of the other class."""
    copied = Path(shutil.copytree(images, folder / "shuffled"))
    for name, other in (("red", "blue"), ("blue", "red")):
        for index in range(25):
            (copied / name / f"{index}.png").rename(copied / other / f"swapped-{index}.png")
    return copied


def five(images: Path, folder: Path) -> Path:
    for name, count in (("red", 3), ("blue", 2)):
        (folder / "five" / name).mkdir(parents=True)
        for index in range(count):
            shutil.copy(images / name / f"{index}.png", folder / "five" / name)
    return folder / "five"


def all_of_them(images: Path, folder: Path) -> Path:
    return images


@pytest.mark.parametrize(
    ("model", "choose", "python", "reason"),
    [
        ("colours", all_of_them, {"mean": (1.0, 1.0, 1.0)}, "which is not surely more than chance"),
        ("colours", all_of_them, {"channels": "bgr"}, "FP32 has 0.00 %"),
        ("colours", shuffled, {}, "FP32 has 50.00 %"),
        ("colours", five, {}, "labelled images would decide"),
        ("collapsing", all_of_them, {}, "INT8 agrees with FP32 to 50.00 %, at least 95.00 wanted"),
    ],
    ids=["wrong mean", "swapped channels", "shuffled labels", "five images", "collapse"],
)
def test_what_is_wrong_fails_everywhere_with_its_reason(
    tiny: TinyProject, red_and_blue: Path, tmp_path: Path, model: str,
    choose: Callable[[Path, Path], Path], python: dict[str, object], reason: str,
) -> None:  # fmt: skip
    flags = [f"--{name}" if at == 0 else value for name, found in python.items()
             for at, value in enumerate(("", ",".join(map(str, found)) if name == "mean" else found))]  # fmt: skip
    case = Case(model, choose(red_and_blue, tmp_path), tmp_path / "build", *flags)
    outcome = case.engine("--junit", tmp_path / "junit.xml")
    assert outcome.code == 1, outcome.err
    assert "<failure" in (tmp_path / "junit.xml").read_text()
    verdict = json.loads(outcome.out)["verdict"]
    assert verdict["decision"] == "failed"
    assert reason in verdict["reason"]
    for run in (case.triton, case.kit):
        outcome = run()
        assert outcome.code == 1
        assert reason in outcome.complaints[-1]
        assert "--force writes it all the same" in outcome.complaints[-1]
    assert case.written == []
    result = case.python(**python)
    assert reason in result.verdict.reason
    assert result.verdict.stops
    with pytest.raises(GateError, match="not written"):
        result.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_network_with_nan_weights_is_refused_everywhere(
    tiny: TinyProject, red_and_blue: Path, tmp_path: Path
) -> None:
    case = Case("blind", red_and_blue, tmp_path / "build")
    for run in (case.engine, case.triton, case.kit):
        outcome = run()
        assert outcome.code == 2
        assert "NaN or infinite" in outcome.complaints[-1]
    with pytest.raises(ValueError, match="NaN or infinite"):
        case.python()
    assert case.written == []


def verdict_in(path: Path) -> dict[str, object]:
    (entry,) = [one for one in onnx.load(path).metadata_props if one.key == VERDICT_KEY]
    found: dict[str, object] = json.loads(entry.value)
    return found


def measured_in(path: Path) -> list[float]:
    """Top-1 of both models, and predicted milliseconds, in a file's metadata."""
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    accuracy, cost = (json.loads(facts.get(key, "{}")) for key in (ACCURACY_KEY, COST_KEY))
    return [
        accuracy["fp32"],
        accuracy["quantized"],
        *(cost[key] for key in ("int8_ms", "fp16_ms") if cost),
    ]


def test_what_is_right_passes_everywhere_and_every_artifact_says_so(
    tiny: TinyProject, red_and_blue: Path, tmp_path: Path
) -> None:
    case = Case("colours", red_and_blue, tmp_path / "build")
    outcome = case.engine()
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["verdict"]["decision"] == "passed"
    assert all(check["passed"] for check in report["verdict"]["checks"])
    assert report["accuracy"]["drop_interval"][1] == pytest.approx(3.7, abs=0.01)
    assert case.triton().code == 0
    version = tmp_path / "build" / "repository" / "tiny_models-colours" / "1"
    assert verdict_in(version / "model.onnx")["decision"] == "passed"
    assert json.loads((version / "verdict.json").read_text())["decision"] == "passed"
    config = (version.parent / "config.pbtxt").read_text()
    assert 'parameters { key: "reptrt.verdict.1" value { string_value: "passed' in config
    assert case.kit().code == 0
    kit = unpack(tmp_path / "build" / "kit.tar.gz", tmp_path / "device")
    assert read_manifest(kit).run.verdict.decision == "passed"
    assert verdict_in(kit / "model.trt.onnx")["decision"] == "passed"
    fp32, int8, *milliseconds = measured_in(kit / "model.trt.onnx")
    assert (fp32, int8, len(milliseconds)) == (100, 100, 2)
    assert all(0 < one < 10 for one in milliseconds)
    result = case.python()
    assert result.verdict.decision == "passed"
    saved = result.save(tmp_path / "saved")
    assert verdict_in(saved / "model.trt.onnx")["decision"] == "passed"
    assert verdict_in(saved / "model.cpu.onnx")["decision"] == "passed"
    assert measured_in(saved / "model.cpu.onnx") == [100, 100]
    assert case.engine().code == 0  # and nothing in the workspace has changed


def test_forced_artifacts_are_written_and_say_that_they_failed(
    tiny: TinyProject, red_and_blue: Path, tmp_path: Path
) -> None:
    case = Case("collapsing", red_and_blue, tmp_path / "build", "--force")
    assert case.engine().code == 0
    for run in (case.triton, case.kit):
        outcome = run()
        assert outcome.code == 0
        assert "the gate failed, written all the same" in outcome.err
    version = tmp_path / "build" / "repository" / "tiny_models-collapsing" / "1"
    found = verdict_in(version / "model.onnx")
    assert (found["decision"], found["forced"]) == ("failed", True)
    assert '"failed, forced: ' in (version.parent / "config.pbtxt").read_text()
    kit = unpack(tmp_path / "build" / "kit.tar.gz", tmp_path / "device")
    assert read_manifest(kit).run.verdict.forced


@pytest.mark.parametrize("command", ["engine", "validate", "report", "kit", "triton"])
def test_a_least_accuracy_without_labelled_images_is_refused_before_anything_runs(
    tiny: TinyProject, tmp_path: Path, command: str
) -> None:
    more = ["--output", tmp_path / "repository"] if command == "triton" else []
    options = [*tiny.options, "--workspace", tmp_path, "--min-accuracy", 70, *more]
    outcome = reptrt(command, *options)
    assert outcome.code == 2
    assert outcome.complaints == [
        "reptrt: --min-accuracy: there is no accuracy without labelled images; add them (--eval), or leave it"
        " out (--max-drop and --min-agreement compare with FP32 where there are no labels)"
    ]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["run.log"]


@pytest.mark.parametrize(
    ("model", "gate", "code", "reason"),
    [
        ("colours", ("--max-drop", 10), 0, "no label was seen: INT8 changes the class of 0.00 % of 100 images (all of"),
        ("colours", ("--max-drop", 2), 1, "images would decide"),
        ("collapsing", ("--min-agreement", 90), 1, "INT8 agrees with FP32 to 50.00 % on 100 images"),
        ("blue", ("--max-drop", 10), 1, "FP32 answers all 50 images"),
    ],
)  # fmt: skip
def test_without_labels_the_gate_compares_with_fp32(
    tiny: TinyProject, red_and_blue: Path, tmp_path: Path, model: str,
    gate: tuple[object, ...], code: int, reason: str,
) -> None:  # fmt: skip
    images = red_and_blue / "blue" if model == "blue" else red_and_blue
    options = [f"tiny_models:{'colours' if model == 'blue' else model}", "--image-size", 32]
    options += ["--data", images, "--calibrator", "minmax", "--quantize", "all", "--target", "cpu"]
    options += ["--channel-scaling", "none", "--workspace", tmp_path / "build"]
    outcome = reptrt("engine", *options, *gate, "--json")
    assert outcome.code == code, outcome.err
    report = json.loads(outcome.out)
    assert report["accuracy"] is None
    assert report["likeness"]["num_calibrated"] == report["likeness"]["num_images"]
    assert reason in report["verdict"]["reason"]
    repository = tmp_path / "repository"
    assert reptrt("triton", *options, *gate, "--output", repository).code == code
    assert repository.exists() == (code == 0)


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        (("--mean", "123.7,116.3,103.5"), "must be three numbers of 0 to 1, the scale of pixels / 255"),
        (("--std", "58,57,57"), "must be three numbers above 0 and up to 1"),
        (("--std", "0,1,1"), "must be three numbers above 0 and up to 1"),
    ],
)  # fmt: skip
def test_preprocessing_that_cannot_be_right_is_refused(
    tiny: TinyProject, red_and_blue: Path, tmp_path: Path, option: tuple[str, str], complaint: str
) -> None:
    outcome = Case("colours", red_and_blue, tmp_path / "build").engine(*option)
    assert outcome.code == 2
    assert complaint in outcome.complaints[-1]


def test_a_bound_out_of_range_is_refused() -> None:
    with pytest.raises(RecipeError, match="min_agreement"):
        package.quantize("yolov6n_demo", min_agreement=101.0)
