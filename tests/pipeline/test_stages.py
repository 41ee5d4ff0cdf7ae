from __future__ import annotations

import json
import shutil
import sys
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from reptrt.calibrators.quantized.quantizers import IntegerGrid
from reptrt.calibrators.reconstruction import across_block
from reptrt.calibrators.state import read_result
from reptrt.engines.report_schema import BlockLoss, Report
from reptrt.pipeline.workspace.folder import ARTIFACTS
from tests.command_line import Outcome, TinyProject, reptrt
from tests.run_records import record_of

QUICK = ("--reconstruction", "iterations=2,batch_size=4")
LEARN = (
    "--calibrator", "repapq", "--effort", "high", "--weight-bits", 4, "--activation-bits", 4,
    "--first-last-bits", 4, "--reconstruction", "iterations=10,batch_size=8",
)  # fmt: skip
NO_STEPS = ("--reconstruction", "iterations=0")
ROAD = ("calibrate", "export", "build", "validate", "report")


def run(tiny: TinyProject, workspace: Path, *more: object, command: str = "engine") -> Outcome:
    outcome = reptrt(command, *tiny.options, "--workspace", workspace, *more)
    assert outcome.code == 0, outcome.err
    return outcome


def fail(tiny: TinyProject, workspace: Path, *more: object, command: str = "engine") -> str:
    outcome = reptrt(command, *tiny.options, "--workspace", workspace, *more)
    assert outcome.code == 2
    (line,) = outcome.complaints
    return line


def stages_that_ran(files: Path) -> list[str]:
    """Stages started by the last command."""
    last = (files / "run.log").read_text().rpartition("command: ")[2]
    return [stage for stage in ROAD if f"{stage}: started" in last]


def nodes(path: Path, op: str) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(path).graph.node if node.op_type == op]


def initializers(path: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


def types_of(files: Path) -> set[int]:
    return {tensor.data_type for tensor in initializers(files / "model.trt.onnx").values()}


def batch_of(path: Path) -> int:
    return int(onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value)


@pytest.fixture(scope="module")
def plain(tiny: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace of a run without labelled images, walked stage by stage."""
    workspace = tmp_path_factory.mktemp("plain") / "build"
    for command in ROAD:
        run(tiny, workspace, command=command)
    return workspace


def test_a_run_leaves_every_file_its_records_and_nothing_else(
    tiny: TinyProject, finished: Path
) -> None:
    found = {path.name for path in tiny.files_of(finished).iterdir()}
    elsewhere = {
        "budget.json",
        "concats.json",
        "sensitivity.json",
        "model.end2end.onnx",
        "model.cut.onnx",
        "model.tail.onnx",
        "placement.json",
    }  # of others
    elsewhere |= {"model.fp16.onnx", "model.fp16.engine"}  # where a GPU is
    made = set(ARTIFACTS.values()) - elsewhere
    assert found == made | {"run.json", "recipe.yaml"}
    records = json.loads((tiny.files_of(finished) / "run.json").read_text())["stages"]
    stages = "fp32 channels calibrate export build cost validate report"
    assert list(records) == stages.split()
    assert tiny.files_of(finished).joinpath("model.engine").stat().st_size > 1000


def test_the_quantized_files_say_what_they_are(tiny: TinyProject, finished: Path) -> None:
    for name in ("model.qdq.onnx", "model.trt.onnx"):
        model = onnx.load(tiny.files_of(finished) / name)
        assert (model.producer_name, model.producer_version) == ("reptrt", version("reptrt"))
        facts = {entry.key: entry.value for entry in model.metadata_props}
        wanted = {"model": tiny.model, "calibrator": "minmax", "weight_bits": "8", "seed": "0"}
        assert {key: facts[f"reptrt.{key}"] for key in wanted} == wanted
        assert "reptrt.weights_licence" not in facts  # of a network of the user's nobody states one


def test_the_stages_one_by_one_write_the_same_bytes_as_the_whole_road(
    tiny: TinyProject, finished: Path, plain: Path
) -> None:
    for name in ("scales.json", "model.fp32.onnx", "model.qdq.onnx", "model.trt.onnx"):
        whole, single = (tiny.files_of(root) / name for root in (finished, plain))
        assert whole.read_bytes() == single.read_bytes(), name


def test_the_report_has_the_stable_keys_and_is_strict_json(
    tiny: TinyProject, finished: Path
) -> None:
    text = (tiny.files_of(finished) / "report.json").read_text()
    report: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    assert list(report) == [field.name for field in fields(Report)]
    assert report.keys() >= {
        "model", "calibrator", "weight_bits", "activation_bits", "target", "backend",
        "num_samples", "seed", "accuracy", "numerics", "latency_ms", "fusion", "size_bytes",
        "seconds", "peak_rss_mb", "versions",
    }  # fmt: skip
    accuracy = report["accuracy"]
    assert accuracy.keys() >= {"metric", "fp32", "quantized", "drop", "agreement", "num_images"}
    assert report["numerics"].keys() == {"logits"}
    assert report["numerics"]["logits"].keys() >= {"snr_db", "cosine"}
    assert (report["latency_ms"], report["engine_numerics"]) == (None, None)
    assert report["deploy"] in ("int8", "fp16")
    assert "predicted ± " in report["deploy_reason"]
    assert report["cost"].keys() >= {"gpu", "batch", "int8", "fp16", "time_ratio", "byte_ratio"}
    assert report["fusion"].keys() >= {
        "int8_layers", "quantizable_layers", "int8_coverage", "kernels", "float_islands",
    }  # fmt: skip
    assert report["size_bytes"].keys() >= {"fp32_onnx", "trt_onnx", "engine"}
    assert report["seconds"].keys() >= {"calibrate", "export", "build", "validate"}


def test_the_report_tells_what_was_run(tiny: TinyProject, finished: Path) -> None:
    report = json.loads((tiny.files_of(finished) / "report.json").read_text())
    assert report["model"] == "tiny_models:build"
    assert (report["calibrator"], report["target"]) == ("minmax", "tensorrt-rtx")
    assert (report["num_samples"], report["seed"]) == (12, 0)
    assert (report["accuracy"]["metric"], report["accuracy"]["num_images"]) == ("top1", 8)
    assert report["accuracy"]["agreement"] >= 75.0
    assert report["numerics"]["logits"]["snr_db"] > 25.0
    assert report["fusion"]["quantizable_layers"] == 3
    assert report["fusion"]["int8_coverage"] == 100.0
    assert [row["layer"] for row in report["layers"]] == ["0", "3", "7"]
    assert report["command"].startswith("reptrt engine tiny_models:build ")


def test_without_labelled_images_the_accuracy_is_left_out(tiny: TinyProject, plain: Path) -> None:
    report = json.loads((tiny.files_of(plain) / "report.json").read_text())
    assert report["accuracy"] is None
    assert "`evaluate`" in report["accuracy_note"]
    assert report["numerics"]["logits"]["snr_db"] > 25.0


def test_a_second_run_touches_nothing_but_the_report(tiny: TinyProject, workspace: Path) -> None:
    files = tiny.files_of(workspace)
    before = {path: path.stat().st_mtime_ns for path in files.iterdir()}
    run(tiny, workspace, "--eval", tiny.photos)
    assert stages_that_ran(files) == []
    after = {path: path.stat().st_mtime_ns for path in files.iterdir()}
    changed = {path.name for path in after if before.get(path) != after[path]}
    assert changed == {"report.json", "report.html", "run.log", "run.json"}


def test_other_labels_validate_again_and_nothing_else(
    tiny: TinyProject, workspace: Path, tmp_path: Path
) -> None:
    photos = Path(shutil.copytree(tiny.photos, tmp_path / "photos"))
    (photos / "cat" / "0.png").rename(photos / "dog" / "9.png")
    run(tiny, workspace, "--eval", photos)
    assert stages_that_ran(tiny.files_of(workspace)) == ["validate"]


def test_other_images_calibrate_again(tiny: TinyProject, workspace: Path) -> None:
    run(tiny, workspace, "--num-samples", 5, command="calibrate")
    files = tiny.files_of(workspace, "minmax-w8a8-n5")
    assert stages_that_ran(files) == ["calibrate"]
    assert "--num-samples 5" in record_of(files, "calibrate")["command"]


def test_another_seed_calibrates_again(tiny: TinyProject, workspace: Path) -> None:
    run(tiny, workspace, "--seed", 1, command="calibrate")
    assert stages_that_ran(tiny.files_of(workspace, "minmax-w8a8-seed1")) == ["calibrate"]


def test_a_deleted_engine_is_built_again_alone(tiny: TinyProject, workspace: Path) -> None:
    files = tiny.files_of(workspace)
    (files / "model.engine").unlink()
    run(tiny, workspace, "--eval", tiny.photos)
    assert stages_that_ran(files) == ["build"]
    assert (files / "model.engine").stat().st_size > 1000


def test_a_network_whose_code_changed_is_calibrated_again(
    tiny: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (tiny.folder / "tiny_models.py").read_text()
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ["edited_models:build", *tiny.options[1:], "--workspace", tmp_path / "build"]
    files = tmp_path / "build" / "edited_models-build" / "minmax-w8a8" / "tensorrt-rtx"
    for text in (source, source.replace("nn.ReLU()", "nn.Hardswish()")):
        (tmp_path / "edited_models.py").write_text(text)
        monkeypatch.delitem(sys.modules, "edited_models", raising=False)
        assert reptrt("calibrate", *options).code == 0
        assert stages_that_ran(files) == ["calibrate"]
    monkeypatch.delitem(sys.modules, "edited_models")


@pytest.mark.parametrize(
    ("model", "chosen"), [("tiny_models:build", "best"), ("tiny_models:branches", "repapq")]
)
def test_auto_depends_on_the_network(
    tiny: TinyProject, tmp_path: Path, model: str, chosen: str
) -> None:
    options = [model, *tiny.options[1:], "--calibrator", "auto", *QUICK, "--workspace", tmp_path]
    assert reptrt("calibrate", *options).code == 0
    files = tmp_path / model.replace(":", "-") / "auto-w8a8" / "tensorrt-rtx"
    assert record_of(files, "calibrate")["inputs"]["calibration"]["calibrator"] == chosen
    result = read_result(files / "calibration.safetensors")
    assert [block.name for block in result.blocks] == (
        ["0.rbr_reparam", "1.rbr_reparam", "4"] if chosen == "repapq" else []
    )


@pytest.mark.parametrize(("calibrator", "expected"), [("minmax", 128), ("repapq", 256)])
def test_a_calibrator_takes_as_many_images_as_it_likes_unless_told(
    tiny: TinyProject, tmp_path: Path, calibrator: str, expected: int
) -> None:
    random = np.random.default_rng(0)
    np.save(tmp_path / "many.npy", random.standard_normal((300, 3, 32, 32)).astype(np.float32))
    options = ["--data", tmp_path / "many.npy", "--calibrator", calibrator]
    for more, count in (([], expected), (["--num-samples", 20], 20)):
        files = tiny.files_of(tmp_path, f"{calibrator}-w8a8{'-n20' * (count == 20)}")
        run(tiny, tmp_path, *options, *NO_STEPS, *more, command="calibrate")
        assert read_result(files / "calibration.safetensors").num_samples == count


def test_what_is_learned_from_is_an_input_of_the_calibration_and_memory_is_none(
    tiny: TinyProject, workspace: Path
) -> None:
    files = tiny.files_of(workspace)
    run(tiny, workspace, "--max-memory", "1MiB", command="calibrate")
    assert stages_that_ran(files) == []
    learning = ["--reconstruction", "iterations=3, loss=l2"]
    for more in (learning, ["--first-last-bits", 2], ["--softmax", "uniform"]):
        run(tiny, workspace, *more, command="calibrate")
        assert stages_that_ran(files) == ["calibrate"]
        chosen = record_of(files, "calibrate")["inputs"]["calibration"]["reconstruction"]
        expected = (3, "l2") if more is learning else (50, "l1")
        assert (chosen["iterations"], chosen["loss"]) == expected


def test_the_first_and_the_last_layer_keep_8_bits(tiny: TinyProject, tmp_path: Path) -> None:
    run(tiny, tmp_path, "--weight-bits", 4, "--activation-bits", 6, command="calibrate")
    scales = json.loads((tiny.files_of(tmp_path, "minmax-w4a6") / "scales.json").read_text())
    weights = {name: entry["num_bits"] for name, entry in scales["weights"].items()}
    assert weights == {"0": 8, "3": 4, "7": 8}
    inputs = {entry["read_by"][0]: entry["num_bits"] for entry in scales["activations"].values()}
    assert inputs == {"0": 8, "3": 6, "7": 8}


@pytest.fixture(scope="module")
def learned(tiny: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace of a run that learned, uninterrupted."""
    workspace = tmp_path_factory.mktemp("learned") / "build"
    run(tiny, workspace, *LEARN)
    return workspace


def test_the_report_shows_how_each_block_was_learned(tiny: TinyProject, learned: Path) -> None:
    files = tiny.files_of(learned, "repapq-w4a4")
    report = json.loads((files / "report.json").read_text(), parse_constant=pytest.fail)
    blocks = report["blocks"]
    assert [block["name"] for block in blocks] == ["0", "3", "7"]
    assert all(list(block) == [field.name for field in fields(BlockLoss)] for block in blocks)
    assert all(0 < block["after"] <= 2 * block["before"] for block in blocks)
    assert any(block["after"] < block["before"] for block in blocks)
    found = report["calibrators_db"]
    assert "repapq" in found
    assert report["calibrator"] == max(found, key=lambda name: found[name])
    assert report["numerics"]["logits"]["snr_db"] > 25.0
    assert not (files / "calibrate.unfinished").exists()


def test_without_learning_the_report_has_no_blocks(tiny: TinyProject, finished: Path) -> None:
    report = json.loads((tiny.files_of(finished) / "report.json").read_text())
    assert report["blocks"] == []


@pytest.mark.parametrize(
    ("more", "num_learned"),
    [([], 1), (["--max-memory", 0], 1), (["--first-last-bits", 6], 3)],
    ids=["same", "less memory", "other choices"],
)
def test_a_killed_calibration_goes_on_behind_its_last_block(
    tiny: TinyProject,
    learned: Path,
    tmp_path: Path,
    more: list[object],
    num_learned: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files, saved = tiny.files_of(tmp_path, "repapq-w4a4"), []
    save_block = across_block.save_block

    def save_and_kill(model: object, names: object, fit: object, path: Path) -> None:
        saved.append(path)
        save_block(model, names, fit, path)
        if len(saved) == 2:
            path.with_name("block-002.tmp").write_bytes(b"half a blo")
            raise KeyboardInterrupt

    options = [*tiny.options, *LEARN, "--workspace", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(across_block, "save_block", save_and_kill)
        assert reptrt("calibrate", *options).code == 130
    assert not (files / "scales.json").exists()
    assert saved[0].parent.parent == files / "calibrate.unfinished"
    assert all(path.exists() for path in saved)
    saved.clear()

    def save_and_note(model: object, names: object, fit: object, path: Path) -> None:
        saved.append(path)
        save_block(model, names, fit, path)

    monkeypatch.setattr(across_block, "save_block", save_and_note)
    assert reptrt("calibrate", *options, *more).code == 0
    assert len(saved) == num_learned
    assert not (files / "calibrate.unfinished").exists()
    expected = (tiny.files_of(learned, "repapq-w4a4") / "scales.json").read_bytes()
    assert ((files / "scales.json").read_bytes() == expected) == (num_learned == 1)


@pytest.mark.parametrize(
    ("command", "first"),
    [("export", "calibrate"), ("build", "export"), ("validate", "export"), ("report", "validate")],
)
def test_a_stage_that_comes_too_early_names_the_one_before(
    tiny: TinyProject, tmp_path: Path, command: str, first: str
) -> None:
    line = fail(tiny, tmp_path, command=command)
    assert line.endswith(f"not made yet; run `reptrt {first} MODEL` first")
    assert [path.name for path in tiny.files_of(tmp_path).iterdir()] == ["run.log"]


def test_a_fixed_batch_is_static_in_the_graphs_and_padded_in_the_evaluation(
    tiny: TinyProject, tmp_path: Path
) -> None:
    run(tiny, tmp_path, "--batch-size", 3, "--eval", tiny.photos)  # 8 photos: 3 + 3 + 2
    files = tiny.files_of(tmp_path)
    for name in ("model.fp32.onnx", "model.qdq.onnx", "model.trt.onnx"):
        assert batch_of(files / name) == 3
    report = json.loads((files / "report.json").read_text())
    assert report["accuracy"]["num_images"] == 8
    assert report["num_samples"] == 12


def test_the_batch_is_dynamic_unless_fixed(tiny: TinyProject, finished: Path) -> None:
    assert batch_of(tiny.files_of(finished) / "model.trt.onnx") == 0


def test_another_precision_exports_again_and_keeps_the_calibration(
    tiny: TinyProject, workspace: Path
) -> None:
    assert onnx.TensorProto.FLOAT16 in types_of(tiny.files_of(workspace))
    run(tiny, workspace, "--precision", "fp32", "--eval", tiny.photos)
    files = tiny.files_of(workspace, "minmax-w8a8-fp32")
    assert stages_that_ran(files) == ["export", "build", "validate"]
    assert onnx.TensorProto.FLOAT16 not in types_of(files)
    report = json.loads((files / "report.json").read_text())
    assert report["numerics"]["logits"]["snr_db"] > 25.0
    assert report["fusion"]["int8_coverage"] == 100.0


def test_six_bits_stay_on_their_grid_inside_int8(tiny: TinyProject, tmp_path: Path) -> None:
    run(tiny, tmp_path, "--weight-bits", 6, "--activation-bits", 6, "--first-last-bits", 6)
    files = tiny.files_of(tmp_path, "minmax-w6a6")
    codes = [
        onnx.numpy_helper.to_array(tensor)
        for name, tensor in initializers(files / "model.trt.onnx").items()
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    limit = IntegerGrid.for_weights(6).quant_max
    assert limit == 31
    assert len(codes) == 3
    assert max(int(abs(code.astype(int)).max()) for code in codes) == limit
    assert nodes(files / "model.trt.onnx", "Clip")
    report = json.loads((files / "report.json").read_text())
    assert (report["weight_bits"], report["activation_bits"]) == (6, 6)
