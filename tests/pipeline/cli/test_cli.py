from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from reptrt.calibrators.registry import list_calibrators
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from reptrt.engines.target import TARGETS
from reptrt.models.registry import list_models
from reptrt.pipeline.cli.main import cli
from reptrt.pipeline.cli.options import option_type
from reptrt.pipeline.recipe import SECTIONS, Recipe, flag
from tests.command_line import Outcome, TinyProject, reptrt

COMMANDS = (
    "engine", "calibrate", "export", "build", "validate", "report", "compare", "bench", "lint", "models",
    "calibrators", "targets", "doctor",
)  # fmt: skip


def test_a_command_does_not_collect_garbage_after_every_700_objects() -> None:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    try:
        reptrt("models")
        assert gc.get_threshold()[0] >= 10_000
    finally:
        gc.set_threshold(*before)


def engine(tiny: TinyProject, workspace: Path, *more: object) -> Outcome:
    """A whole run whose stages are all fresh."""
    return reptrt("engine", *tiny.options, "--eval", tiny.photos, "--workspace", workspace, *more)


def missing(outcome: Outcome, names: Sequence[str]) -> list[str]:
    """Those of `names` that begin no line of a table."""
    assert outcome.code == 0
    first = {line.split(" ", 1)[0] for line in outcome.out.splitlines()}
    return [name for name in names if name not in first]


def test_help_lists_every_command() -> None:
    outcome = reptrt("--help")
    assert outcome.code == 0
    assert [name for name in COMMANDS if f"\n  {name} " not in outcome.out] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    outcome = reptrt(command, "-h")
    assert outcome.code == 0
    usage, _, text = outcome.out.partition("\n")
    assert f"reptrt {command} " in usage
    assert text.strip().partition("\n\n")[0].endswith(".")


def test_help_lists_options_below_the_titles_of_their_sections() -> None:
    shown = reptrt("engine", "-h").out
    titles = [section.title for section in SECTIONS]
    assert [shown.index(f"\n{title}:\n") for title in titles] == sorted(
        shown.index(f"\n{title}:\n") for title in titles
    )
    for section in SECTIONS:
        text = shown.partition(f"\n{section.title}:\n")[2].partition("\n\n")[0]
        assert all(
            f" {flag(name)} " in f"{text} " for name in section.model_fields if name != "model"
        )


def test_a_stage_has_no_option_that_it_does_not_heed() -> None:
    assert reptrt("calibrate", "yolov6n_demo", "--max-drop", 1).code == 2
    assert "--end2end" not in reptrt("calibrate", "-h").out
    assert "--end2end" in reptrt("export", "-h").out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["engine", "mobile"], "mobileone_s0"),
        (["engine", "timm:vit_so150m"], "timm:vit_so150m_patch16_reg4_gap_256"),
        (["engine", "torchvision:resnet1"], "torchvision:resnet152"),
        (["engine", "m", "--target", "server-l"], "server-l40s"),
        (["calibrate", "m", "--calibrator", "repq"], "repq-vit"),
    ],
)
def test_a_shell_completes_names(typed: list[str], offered: str) -> None:
    complete = ShellComplete(cli, {}, "reptrt", "_REPTRT_COMPLETE")
    *before, last = typed
    items = complete.get_completions(before, last)
    assert offered in [item.value for item in items]
    assert {type(item.value) for item in items} == {str}


def test_the_list_of_commands_says_each_in_one_whole_line() -> None:
    shown = reptrt("--help").out
    assert "  engine " in shown
    assert "..." not in shown.partition("The whole road")[2]


def test_help_answers_without_loading_torch() -> None:
    check = "import sys; from reptrt.pipeline.cli.main import cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    ("typed", "wrong"),
    [("engine yolov6n_demo --target nope", "nope"),
     ("engine yolov6n_demo --calibrator nope", "nope"),
     ("compare yolov6n_demo --calibrators minmax --weight-bits 99", "99"),
     ("engine nope", "nope"),
     ("engine yolov6n_demo --target jetson-orin-nx", "`reptrt kit`"),
     ("kit timm:nope", "timm:nope"),
     ("engine torchvision:resnet81", "torchvision:resnet18"),
     ("compare nope.onnx --calibrators minmax", "nope.onnx"),
     ("engine yolov6n_demo --data nope", "nope: does not exist; give a path for --data that does"),
     ("validate yolov6n_demo --eval nope", "for --eval"),
     ("calibrate yolov6n_demo --weights nope", "for --weights")],
)  # fmt: skip
def test_what_is_wrong_is_said_without_loading_torch(typed: str, wrong: str) -> None:
    script = (
        "import sys; from reptrt.pipeline.cli.main import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    line = [sys.executable, "-c", script, *typed.split()]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    assert done.returncode == (4 if "jetson" in typed else 2)
    assert "AssertionError" not in done.stderr
    assert wrong in done.stderr


def test_every_field_of_a_recipe_that_is_one_value_has_an_option() -> None:
    options = {option for one in cli.commands["engine"].params for option in one.opts}
    flags = {flag(name) for name in Recipe.model_fields if name != "model"}
    assert flags - options == set()
    own = {
        "--recipe",
        "--workspace",
        "--json",
        "--dry-run",
        "--junit",
        "-v",
        "--verbose",
        "-q",
        "--quiet",
    }
    assert options - flags == {"model", *own}


def test_every_field_stands_in_one_section() -> None:
    names = [name for section in SECTIONS for name in section.model_fields]
    assert sorted(names) == sorted(Recipe.model_fields)


@pytest.mark.parametrize(
    ("field", "legal", "refused"),
    [("weight_bits", ["2", "8"], ["1", "9", "x"]), ("score_threshold", ["0", "0.5"], ["1", "-1"]),
     ("device", ["auto", "cuda"], ["tpu"]), ("max_detections", ["1", "1024"], ["0", "1025"]),
     ("min_snr", ["0"], ["-1"]), ("mean", ["0.5", "1,2,3"], ["1,2"])],
)  # fmt: skip
def test_an_option_has_the_bounds_of_its_field(
    field: str, legal: list[str], refused: list[str]
) -> None:
    parser = click.types.convert_type(option_type(Recipe.model_fields[field]))
    for value in legal:
        parser.convert(value, None, None)
    for value in refused:
        with pytest.raises(click.BadParameter):
            parser.convert(value, None, None)


def test_the_model_is_required_and_a_wrong_command_refused() -> None:
    for arguments in (["engine"], ["egnine"], ["bench"]):
        outcome = reptrt(*arguments)
        assert outcome.code == 2
        assert outcome.complaints[-1].startswith("Error: ")


def test_models_lists_the_zoo() -> None:
    assert missing(reptrt("models"), [spec.name for spec in list_models()]) == []


def test_calibrators_are_listed_with_what_they_do() -> None:
    outcome = reptrt("calibrators")
    assert missing(outcome, list(list_calibrators())) == []
    assert "no clipping" in outcome.out


def test_targets_are_listed() -> None:
    assert missing(reptrt("targets"), list(TARGETS)) == []


def test_doctor_says_what_is_installed_and_what_auto_means() -> None:
    outcome = reptrt("doctor")
    assert outcome.code == 0
    for fact in ("torch ", "onnxruntime ", "processor ", "GPU ", "--target auto "):
        assert f"\n{fact}" in outcome.out


def test_the_table_shows_accuracy_and_where_the_page_is(tiny: TinyProject, workspace: Path) -> None:
    outcome = engine(tiny, workspace)
    assert outcome.code == 0
    assert "tiny_models:build · minmax · INT8 · tensorrt-rtx" in outcome.out
    assert outcome.out.rstrip().endswith(str(tiny.files_of(workspace) / "report.html"))


def test_json_is_all_that_reaches_stdout_even_from_native_code(
    tiny: TinyProject, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = reptrt("engine", *tiny.options, "--json", "--workspace", tmp_path)
    assert outcome.code == 0
    assert outcome.out == (tiny.files_of(tmp_path) / "report.json").read_text()
    assert json.loads(outcome.out)["model"] == "tiny_models:build"
    assert outcome.complaints == []
    assert capfd.readouterr() == ("", "")  # what bypasses sys.stdout and sys.stderr


def test_the_upper_end_of_the_drops_interval_decides_the_exit_code(
    tiny: TinyProject, red_and_blue: Path, tmp_path: Path
) -> None:
    """On 100 images that both models get right, the drop may be up to 3.70 points."""
    options = [
        "tiny_models:colours", "--image-size", 32, "--data", red_and_blue, "--eval", red_and_blue,
        "--calibrator", "minmax", "--target", "cpu", "--workspace", tmp_path,
    ]  # fmt: skip
    for limit, code, gate in ((3.71, 0, "Gate passed"), (3.69, 1, "Gate failed")):
        outcome = reptrt("engine", *options, "--max-drop", limit)
        assert outcome.code == code
        assert gate in outcome.out


def test_a_gate_that_cannot_be_measured_is_refused(tiny: TinyProject, workspace: Path) -> None:
    outcome = reptrt(
        "engine", *tiny.options, "--workspace", workspace, "--min-accuracy", 5, "--json"
    )
    assert outcome.code == 2
    assert "--min-accuracy: there is no accuracy without labelled images" in outcome.complaints[-1]


def test_report_alone_shows_the_same_table(tiny: TinyProject, workspace: Path) -> None:
    shown = reptrt("report", *tiny.options, "--eval", tiny.photos, "--workspace", workspace)
    assert shown.code == 0
    assert shown.out == engine(tiny, workspace).out


def test_the_folder_of_a_run_stands_for_its_model_and_options(
    tiny: TinyProject, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = engine(tiny, workspace)
    folder = tiny.files_of(workspace)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = reptrt("report", folder)
    assert (again.code, again.out) == (0, shown.out), again.err
    assert list((tmp_path / "elsewhere").iterdir()) == []
    logged = (folder / "run.log").read_text().rpartition("command: ")[2]
    assert "validate: started" not in logged
    changed = reptrt("engine", folder, "--max-drop", 1, "--json")
    assert json.loads(changed.out)["verdict"]["decision"] == "failed"


def test_the_recipe_of_a_run_can_be_damaged(tiny: TinyProject, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: [1]\nweight_bits: 99")
    outcome = reptrt("report", tmp_path)
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert f"{tmp_path}/recipe.yaml: " in line


@pytest.mark.parametrize(("option", "shown"), [("-v", True), ("-q", False)])
def test_what_the_log_gets_is_shown_on_request(
    tiny: TinyProject, workspace: Path, option: str, shown: bool
) -> None:
    outcome = engine(tiny, workspace, option)
    assert outcome.code == 0
    assert ("INFO: plan: " in outcome.err) == shown


def test_a_checkpoint_is_no_model() -> None:
    outcome = reptrt("engine", "yolov8n.pt")
    assert outcome.code == 2
    assert "export the network to ONNX" in outcome.complaints[-1]


def test_an_engine_of_a_jetson_names_the_kit(tiny: TinyProject, tmp_path: Path) -> None:
    options = ["--data", tiny.data, "--target", "jetson-orin-nx", "--workspace", tmp_path]
    outcome = reptrt("engine", tiny.model, *options)
    assert outcome.code == 4
    assert "`reptrt kit`" in outcome.complaints[-1]


def test_compare_makes_one_row_per_calibrator_and_reuses_what_is_there(
    tiny: TinyProject, workspace: Path
) -> None:
    before = (tiny.files_of(workspace) / "scales.json").stat().st_mtime_ns
    options = [*tiny.options, "--eval", tiny.photos, "--workspace", workspace]
    outcome = reptrt("compare", *options, "--calibrators", "minmax, mae")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()[1:]] == ["minmax", "mae"]
    table = json.loads((workspace / "tiny_models-build" / "compare-w8a8.json").read_text())
    assert [row["calibrator"] for row in table["rows"]] == ["minmax", "mae"]
    assert all(row["accuracy"]["num_images"] == 8 for row in table["rows"])
    assert (tiny.files_of(workspace) / "scales.json").stat().st_mtime_ns == before
    other = tiny.files_of(workspace, "mae-w8a8")
    assert (other / "model.trt.onnx").exists()
    records = json.loads((other / "run.json").read_text())["stages"]
    assert records["fp32"]["copied_from"] == str(tiny.files_of(workspace))


def test_compare_runs_the_float_network_over_the_labelled_images_once(
    tiny: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, infer = [], OnnxRuntimeRunner.infer

    def counted(self: OnnxRuntimeRunner, feed_dict: Any) -> Any:
        if len(next(iter(feed_dict.values()))) == 8:  # the photos
            runs.append(self.name)
        return infer(self, feed_dict)

    monkeypatch.setattr(OnnxRuntimeRunner, "infer", counted)
    options = [*tiny.options, "--eval", tiny.photos, "--workspace", tmp_path]
    assert reptrt("compare", *options, "--calibrators", "minmax,mse,mae").code == 0
    compared = runs.count("Q/DQ")  # outputs on calibration images, beside the reference's
    assert (runs.count("reference") - compared, runs.count("INT8")) == (1, 3)


def test_compare_checks_every_name_before_it_starts(tiny: TinyProject, tmp_path: Path) -> None:
    options = [*tiny.options, "--workspace", tmp_path / "build"]
    outcome = reptrt("compare", *options, "--calibrators", "mse,mea")
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert line.startswith("reptrt: calibrator 'mea' is unknown: choose from auto, minmax, ")
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("size", ["24", "24x24"])
def test_an_image_size_is_one_number_or_two(tiny: TinyProject, tmp_path: Path, size: str) -> None:
    options = [*tiny.options, "--data", tiny.photos, "--image-size", size]
    outcome = reptrt("calibrate", *options, "--workspace", tmp_path)
    assert outcome.code == 0
    assert "for classification, 24x24 pixels" in outcome.err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--image-size", "32x32x3"), ("--image-size", "big"), ("--mean", "0.5,0.5"),
     ("--std", "a"), ("--weight-bits", "1"), ("--seed", "-1"), ("--precision", "int8"),
     ("--first-last-bits", "9"), ("--reconstruction", "iterations"), ("--reconstruction", "=3"),
     ("--reconstruction", "loss=l2,"), ("--softmax", "log10")],
)  # fmt: skip
def test_a_malformed_option_is_named(tiny: TinyProject, option: str, value: str) -> None:
    outcome = reptrt("calibrate", tiny.model, option, value)
    assert outcome.code == 2
    assert outcome.complaints[-1].startswith(f"Error: Invalid value for '{option}': ")


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [("--reconstruction", "iteration=3",
      "unknown key 'reconstruction.iteration'; did you mean 'iterations'?"),
     ("--reconstruction", "iterations=3, loss=l3", "reconstruction.loss: input should be "),
     ("--reconstruction", "iterations=few", "reconstruction.iterations: input should be "),
     ("--max-memory", "much", "max_memory: much is not a size; write 4GiB, 512MiB or ")],
)  # fmt: skip
def test_what_only_the_recipe_can_judge_is_named_in_one_line(
    tiny: TinyProject, tmp_path: Path, option: str, value: str, reason: str
) -> None:
    outcome = reptrt("calibrate", *tiny.options, option, value, "--workspace", tmp_path / "build")
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert line.startswith(f"reptrt: {reason}")
    assert not (tmp_path / "build").exists()
