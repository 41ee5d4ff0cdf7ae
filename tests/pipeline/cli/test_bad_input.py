"""What users get wrong, through the command line: an exit code, one line, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reptrt.engines.artifacts import file_sha256
from tests.command_line import Outcome, TinyProject, reptrt
from tests.run_records import edit_record


class Attack:
    """Its pickle creates a folder when it is loaded without restriction."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def complaint(outcome: Outcome, workspace: Path, code: int = 2, finished: tuple = ()) -> str:
    """The one line on stderr of a command that must leave its log alone, and what was `finished`."""
    assert outcome.code == code
    (line,) = outcome.complaints
    assert line.startswith("reptrt: ")
    left = {path.name for path in workspace.rglob("*") if path.is_file()}
    assert left - {"run.log"} == set(finished)
    return line


def calibrate(tiny: TinyProject, workspace: Path, *more: object, model: str = "") -> Outcome:
    options = [model or tiny.model, *tiny.options[1:], "--workspace", workspace]
    return reptrt("calibrate", *options, *more)


def pictures(folder: Path, *modes: str) -> Path:
    """A folder with one picture of 40 x 40 pixels per mode."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    for index, mode in enumerate(modes):
        picture = Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        suffix = "jpg" if mode == "CMYK" else "png"
        picture.convert(mode).save(folder / f"{index}.{suffix}")
    return folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def weights(path: Path, **changed: torch.Tensor) -> Path:
    """A checkpoint of the tiny network with some tensors replaced."""
    import tiny_models  # written by the fixture `tiny`

    state = tiny_models.build().state_dict()
    torch.save({**state, **{key.replace("_", "."): value for key, value in changed.items()}}, path)
    return path


def test_weights_that_are_not_there(tiny: TinyProject, tmp_path: Path) -> None:
    path = tmp_path / "none.pth"
    line = complaint(calibrate(tiny, tmp_path / "b", "--weights", path), tmp_path / "b")
    assert str(path) in line


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04half a zip"])
def test_a_corrupt_checkpoint(tiny: TinyProject, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    line = complaint(calibrate(tiny, tmp_path / "b", "--weights", path), tmp_path / "b")
    assert str(path) in line


def test_a_malicious_checkpoint_is_refused_and_does_not_run(
    tiny: TinyProject, tmp_path: Path
) -> None:
    torch.save({"state_dict": Attack(tmp_path / "pwned")}, tmp_path / "w.pth")
    outcome = calibrate(tiny, tmp_path / "b", "--weights", tmp_path / "w.pth")
    assert "could run code" in complaint(outcome, tmp_path / "b")
    assert not (tmp_path / "pwned").exists()


def test_weights_of_another_architecture(tiny: TinyProject, tmp_path: Path) -> None:
    torch.save({"body.0.conv.weight": torch.zeros(4, 3, 7, 7)}, tmp_path / "w.pth")
    outcome = calibrate(tiny, tmp_path / "b", "--weights", tmp_path / "w.pth")
    line = complaint(outcome, tmp_path / "b")
    assert "another architecture" in line
    assert "body.0.conv.weight" in line


def test_weights_with_nan(tiny: TinyProject, tmp_path: Path) -> None:
    broken = torch.full((8, 8, 3, 3), float("nan"))
    path = weights(tmp_path / "w.pth", **{"3.weight": broken})
    line = complaint(calibrate(tiny, tmp_path / "b", "--weights", path), tmp_path / "b")
    assert "3.weight has 576 NaN or infinite values" in line


def test_a_network_of_the_user_that_diverged(tiny: TinyProject, tmp_path: Path) -> None:
    outcome = calibrate(tiny, tmp_path, model="tiny_models:diverged")
    finished = ("model.fp32.onnx", "run.json")
    assert "NaN" in complaint(outcome, tmp_path, finished=finished)


def test_good_weights_are_taken(tiny: TinyProject, tmp_path: Path) -> None:
    path = weights(tmp_path / "w.pth", **{"7.weight": torch.ones(2, 8)})
    outcome = calibrate(tiny, tmp_path / "b", "--weights", path)
    assert outcome.code == 0
    scales = json.loads((tiny.files_of(tmp_path / "b") / "scales.json").read_text())
    assert scales["weights"]["7"]["scale"] == pytest.approx([1 / 127] * 2)


def test_calibration_without_images_says_how_to_give_them(
    tiny: TinyProject, tmp_path: Path
) -> None:
    options = ["--image-size", 32, "--quantize", "all", "--workspace", tmp_path]
    outcome = reptrt("engine", tiny.model, *options)
    assert "--data FOLDER" in complaint(outcome, tmp_path)


def test_images_that_are_not_there(tiny: TinyProject, tmp_path: Path) -> None:
    outcome = calibrate(tiny, tmp_path / "b", "--data", tmp_path / "none")
    assert f"{tmp_path / 'none'}: does not exist" in complaint(outcome, tmp_path / "b")


def test_an_empty_folder(tiny: TinyProject, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images")
    outcome = calibrate(tiny, tmp_path / "b", "--data", folder)
    assert f"{folder}: no images; found nothing" in complaint(outcome, tmp_path / "b")


def test_a_folder_without_a_readable_image(tiny: TinyProject, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", "RGB", "L")
    for path in folder.iterdir():
        truncate(path)
    outcome = calibrate(tiny, tmp_path / "b", "--data", folder)
    assert "none of 2 images is readable" in complaint(outcome, tmp_path / "b")
    assert outcome.err.count("unreadable image") == 3  # a warning for each, and the complaint


def test_a_mixed_folder_calibrates_with_what_is_readable_and_warns_of_the_rest(
    tiny: TinyProject, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "images", "RGB", "L", "RGBA", "CMYK", "P", "1", "RGB")
    truncate(folder / "6.png")
    (folder / "notes.txt").write_text("no image")
    outcome = calibrate(tiny, tmp_path / "b", "--data", folder)
    assert outcome.code == 0
    files = tiny.files_of(tmp_path / "b")
    assert outcome.complaints == [f"calibrate: done, in {files}"]
    warnings = [line for line in outcome.err.splitlines() if "left out" in line]
    assert len(warnings) == 1
    assert str(folder / "6.png") in warnings[0]
    assert (files / "scales.json").exists()


def test_arrays_of_another_size(tiny: TinyProject, tmp_path: Path) -> None:
    outcome = calibrate(tiny, tmp_path, "--image-size", 48)
    assert "needs float [n, 3, 48, 48]" in complaint(outcome, tmp_path)


def test_too_few_images_for_one_fixed_batch(tiny: TinyProject, tmp_path: Path) -> None:
    outcome = calibrate(tiny, tmp_path, "--batch-size", 13)
    assert "12 calibration images do not fill one batch of 13" in complaint(outcome, tmp_path)


def test_a_truncated_image_stops_the_evaluation_and_is_named(
    tiny: TinyProject, workspace: Path, tmp_path: Path
) -> None:
    photos = Path(shutil.copytree(tiny.photos, tmp_path / "photos"))
    truncate(photos / "dog" / "2.png")
    options = [*tiny.options, "--eval", photos, "--workspace", workspace]
    outcome = reptrt("engine", *options)
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert str(photos / "dog" / "2.png") in line
    records = json.loads((tiny.files_of(workspace) / "run.json").read_text())["stages"]
    assert "validate" not in records
    assert reptrt("report", *options).code == 2  # the old validation is not of these images
    shutil.copy(tiny.photos / "dog" / "2.png", photos / "dog" / "2.png")
    assert reptrt("engine", *options).code == 0


def test_labelled_images_that_are_not_there(tiny: TinyProject, workspace: Path) -> None:
    options = [*tiny.options, "--eval", workspace / "none", "--workspace", workspace]
    outcome = reptrt("engine", *options)
    assert outcome.code == 2
    assert f"{workspace / 'none'}: does not exist" in outcome.complaints[0]


@pytest.mark.parametrize(
    ("model", "reason"),
    [("repvgg_a9", "did you mean repvgg_a"),
     ("timm:resnet18x", "did you mean timm:resnet18"),
     ("tiny_models:biuld", "did you mean build or blind?"),
     ("no_such_module:build", "no Python module 'no_such_module'"),
     ("..", "unknown model"),
     ("a:b:c", "a:b:c: no Python module 'a'")],
)  # fmt: skip
def test_an_unknown_model(tiny: TinyProject, tmp_path: Path, model: str, reason: str) -> None:
    outcome = calibrate(tiny, tmp_path / "b", model=model)
    assert reason in complaint(outcome, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("option", "name", "hint"),
    [("--calibrator", "minmaks", "did you mean 'minmax'?"),
     ("--calibrator", "../../mae", "choose from auto, minmax, percentile"),
     ("--target", "jetson-orion", "did you mean 'jetson-orin' or")],
)  # fmt: skip
def test_an_unknown_calibrator_or_target(
    tiny: TinyProject, tmp_path: Path, option: str, name: str, hint: str
) -> None:
    outcome = calibrate(tiny, tmp_path / "b", option, name)
    line = complaint(outcome, tmp_path / "b")
    assert repr(name) in line
    assert hint in line
    assert not (tmp_path / "b").exists()


def test_a_classifier_with_two_outputs(tiny: TinyProject, tmp_path: Path) -> None:
    model = "tiny_models:TwoOutputs"
    outcome = calibrate(tiny, tmp_path, "--task", "classification", model=model)
    line = complaint(outcome, tmp_path)
    assert "tiny_models:TwoOutputs returns" in line
    assert "classif" in line


def test_a_network_that_cannot_be_traced_is_told_by_its_own_line(
    tiny: TinyProject, tmp_path: Path
) -> None:
    line = complaint(calibrate(tiny, tmp_path, model="tiny_models:DataDependent"), tmp_path)
    assert "torch.export cannot record the network" in line
    assert "tiny_models.py:" in line
    assert line.endswith("return logits if logits.sum() > 0 else -logits")


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ("48", "cannot run on 1x3x48x48 images"),
        ("100000000", "more than 8388608 pixels"),
        ("9" * 30, "more than 8388608 pixels"),
        ("0", "at least 1 pixel"),
        ("-3x4", "at least 1"),
    ],
)
def test_an_image_size_that_the_network_cannot_take(
    tiny: TinyProject, tmp_path: Path, size: str, reason: str
) -> None:
    model = "tiny_models:fixed_size"
    outcome = calibrate(tiny, tmp_path, "--image-size", size, model=model)
    assert reason in complaint(outcome, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test misses")
def test_a_device_that_is_not_here(tiny: TinyProject, tmp_path: Path) -> None:
    outcome = calibrate(tiny, tmp_path, "--device", "cuda")
    assert "PyTorch finds no CUDA GPU" in complaint(outcome, tmp_path, code=4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test misses")
def test_a_target_that_cannot_be_built_here_is_said_before_calibration(
    tiny: TinyProject, tmp_path: Path
) -> None:
    options = [*tiny.options, "--target", "jetson-orin", "--workspace", tmp_path]
    outcome = reptrt("engine", *options)
    assert "tensorrt" in complaint(outcome, tmp_path, code=4)


def test_wrong_labels_are_said_before_calibration(tiny: TinyProject, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\nnone.png,cat\n")
    options = [*tiny.options, "--eval", tmp_path, "--workspace", tmp_path / "b"]
    for command in (["engine"], ["compare", "--calibrators", "minmax,mae"]):
        line = complaint(reptrt(*command, *options), tmp_path / "b")
        assert "labels.csv:2: label 'cat' is no integer" in line


def test_options_of_classic_tensorrt_are_refused_before_calibration(
    tiny: TinyProject, tmp_path: Path
) -> None:
    outcome = reptrt("engine", *tiny.options, "--version-compatible", "--workspace", tmp_path)
    assert "options of classic TensorRT" in complaint(outcome, tmp_path)


@pytest.mark.parametrize("option", ["--data", "--weights", "--eval", "--workspace"])
def test_an_empty_path_is_not_the_current_folder(tiny: TinyProject, option: str) -> None:
    outcome = reptrt("calibrate", *tiny.options, option, "")
    assert outcome.code == 2
    assert "the path is empty" in outcome.complaints[-1]


@pytest.mark.parametrize("command", ["validate", "report"])
@pytest.mark.parametrize("name", ["model.fp32.onnx", "model.trt.onnx"])
def test_a_file_that_is_gone_names_the_stage_that_makes_it(
    tiny: TinyProject, workspace: Path, command: str, name: str
) -> None:
    path = tiny.files_of(workspace) / name
    path.unlink()
    outcome = reptrt(command, *tiny.options, "--eval", tiny.photos, "--workspace", workspace)
    assert outcome.code == 2
    assert outcome.complaints == [f"reptrt: {path}: not made yet; run `reptrt export MODEL` first"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff\xfe"])
@pytest.mark.parametrize(
    ("name", "stage"), [("validation.json", "validate"), ("fusion.json", "build")]
)
def test_a_result_that_somebody_changed_is_not_reported(
    tiny: TinyProject, workspace: Path, name: str, stage: str, content: bytes
) -> None:
    path = tiny.files_of(workspace) / name
    path.write_bytes(content)
    options = [*tiny.options, "--eval", tiny.photos, "--workspace", workspace]
    outcome = reptrt("report", *options)
    assert outcome.code == 2
    assert outcome.complaints == [
        f"reptrt: {path}: is not what was written there; run `reptrt {stage} MODEL` again"
    ]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"accuracy": {"metric": "top1", "drop": "0"}}'])
def test_a_forged_result_with_a_forged_record_is_one_line(
    tiny: TinyProject, workspace: Path, content: bytes
) -> None:
    path = tiny.files_of(workspace) / "validation.json"
    path.write_bytes(content)
    edit_record(path.parent, "validate", artifacts={path.name: file_sha256(path)})
    options = [*tiny.options, "--eval", tiny.photos, "--workspace", workspace]
    outcome = reptrt("report", *options)
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert line.startswith(f"reptrt: {path}: is not what this version of reptrt writes there (")


@pytest.mark.parametrize("name", ["model.engine", "validation.json", "report.html"])
def test_a_folder_in_place_of_an_artifact(tiny: TinyProject, workspace: Path, name: str) -> None:
    path = tiny.files_of(workspace) / name
    path.unlink()
    path.mkdir()
    outcome = reptrt("engine", *tiny.options, "--eval", tiny.photos, "--workspace", workspace)
    assert outcome.code == 2
    assert outcome.complaints == [f"reptrt: {path}: cannot be written: a folder has that name"]


def test_a_kit_under_a_file(tiny: TinyProject, workspace: Path) -> None:
    archive = tiny.data / "kit.tar.gz"
    outcome = reptrt("kit", *tiny.options, "--output", archive, "--workspace", workspace)
    assert outcome.code == 2
    assert outcome.complaints == [
        f"reptrt: {archive}: cannot be written: a part of its path is a file"
    ]


def test_regress_names_a_wrong_target_before_the_first_entry(tmp_path: Path) -> None:
    outcome = reptrt("regress", "--target", "h100", "--workspace", tmp_path)
    assert "did you mean 'server-h100'?" in complaint(outcome, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--weights", "--data", "--eval", "--recipe"])
@pytest.mark.parametrize("kind", ["pipe", "device", "loop"])
def test_what_is_no_file_is_refused_and_never_waited_for(
    tiny: TinyProject, tmp_path: Path, option: str, kind: str
) -> None:
    path = tmp_path / "x.npy"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    line = complaint(
        reptrt("validate" if option == "--eval" else "calibrate", *tiny.options, option, path,
               "--workspace", tmp_path / "b"), tmp_path / "b"
    )  # fmt: skip
    assert str(path) in line or "run `reptrt export MODEL` first" in line


@pytest.mark.parametrize("text", ["{", '{"format": 1, "stages": {"export": 3}}', "[" * 9000])
def test_records_that_somebody_changed_are_one_line(
    tiny: TinyProject, workspace: Path, text: str
) -> None:
    path = tiny.files_of(workspace) / "run.json"
    path.write_text(text)
    for command in ("engine", "report"):
        outcome = reptrt(command, *tiny.options, "--workspace", workspace)
        assert outcome.code == 2
        (line,) = outcome.complaints
        assert line.startswith(f"reptrt: {path}: is not what this version of reptrt writes there")
        assert line.endswith("; remove it, and every stage runs again")
