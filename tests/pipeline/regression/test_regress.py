"""The two-sided rule on a real report, and whole runs of a tiny network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from reptrt.engines.report_schema import (
    NOT_JUDGED,
    Accuracy,
    DeviceLatency,
    ModelLatency,
    Percentiles,
    Report,
    Verdict,
)
from reptrt.pipeline.regression.baselines import load_baselines
from reptrt.pipeline.regression.regress import BaselineCheck, _gate, exit_code, judge
from reptrt.pipeline.workspace.records import read_record
from tests.command_line import Outcome, TinyProject, reptrt

GPU = "NVIDIA L4"


@pytest.fixture(scope="session")
def measured(finished: Path) -> Report:
    """Report of a whole run; its accuracy is made up, since that of a random network is chance."""
    (path,) = finished.rglob("report.json")
    report = read_record(path, Report)
    return replace(report, accuracy=Accuracy("top1", quantized=80.0, agreement=95.0))


def on_gpu(report: Report, alone: DeviceLatency | None = None, **p50: float) -> Report:
    latency = {name: Percentiles(value) for name, value in p50.items()}
    where = {"backend": report.backend, "device": GPU, "device_only": alone}
    return replace(report, latency_ms=ModelLatency(**latency, **where))  # type: ignore[arg-type]


def entry(**metrics: Any) -> dict[str, Any]:
    expected: dict[str, Any] = {"accuracy": {"value": 80, "tolerance": 0.5}}
    return {"recipe": {"model": "repvgg_a0"}, **expected, **metrics}


def findings(folder: Path, report: Report, **metrics: Any) -> dict[str, BaselineCheck]:
    path = folder / "baselines.yaml"
    path.write_text(yaml.safe_dump({"net": entry(**metrics)}, sort_keys=False))
    found = judge(path, "net", load_baselines(path)["net"], report)
    return {finding.metric: finding for finding in found}


def near(value: float, tolerance: float = 0.5) -> dict[str, float]:
    return {"value": value, "tolerance": tolerance}


@pytest.mark.parametrize(
    ("baseline", "outcome", "code"),
    [
        (80.0, "ok", 0),
        (80.5, "ok", 0),
        (79.5, "ok", 0),
        (80.6, "regression", 1),
        (79.4, "improvement", 3),
    ],
)
def test_more_accuracy_than_the_tolerance_fails_as_less_does(
    tmp_path: Path, measured: Report, baseline: float, outcome: str, code: int
) -> None:
    found = findings(tmp_path, measured, accuracy=near(baseline))["accuracy"]
    assert found.outcome == outcome
    assert exit_code([found]) == code


def test_a_message_names_the_line_and_what_it_should_become(
    tmp_path: Path, measured: Report
) -> None:
    found = findings(tmp_path, measured, accuracy=near(70), agreement=near(99))
    line = f"{tmp_path / 'baselines.yaml'}"
    assert found["accuracy"].message == (
        f"{line}:4: accuracy: 80 is better than 70 ± 0.5: claim it, change this line to "
        "`accuracy: {value: 80, tolerance: 0.5}`"
    )
    assert found["agreement"].message.startswith(
        f"{line}:7: agreement: 95 is worse than 99 ± 0.5: mend it, or change this line to "
    )


def test_fewer_kernels_are_better_and_belong_to_a_builder(tmp_path: Path, measured: Report) -> None:
    kernels = measured.fusion.kernels
    version = measured.backend.rpartition(".")[0]

    def outcome(baselines: dict[str, Any]) -> str:
        return findings(tmp_path, measured, kernels=baselines)["kernels"].outcome

    assert outcome({version: near(kernels, 0)}) == "ok"
    assert outcome({version: near(kernels - 1, 0)}) == "regression"
    assert outcome({version: near(kernels + 1, 0)}) == "improvement"
    assert outcome({"tensorrt 10.13": near(kernels, 0)}) == "skipped"
    assert outcome({measured.backend[:-1]: near(kernels, 0)}) == "skipped"
    # the most exact key counts
    assert outcome({version[:14]: near(1, 0), version: near(kernels, 0)}) == "ok"
    assert outcome({version[:14]: near(1, 0)}) == "regression"


def test_a_lost_int8_layer_fails(tmp_path: Path, measured: Report) -> None:
    report = replace(measured, fusion=replace(measured.fusion, int8_coverage=75.0))
    found = findings(tmp_path, report, int8_coverage=near(100, 0))
    assert found["int8_coverage"].outcome == "regression"


def test_what_is_expected_and_was_not_measured_fails(tmp_path: Path, measured: Report) -> None:
    found = findings(tmp_path, replace(measured, accuracy=None))["accuracy"]
    assert found.outcome == "regression"
    assert "not measured, but the baseline expects 80" in found.message


def test_latency_counts_on_the_gpu_that_its_baseline_names(
    tmp_path: Path, measured: Report
) -> None:
    def found(report: Report, gpu: str = GPU) -> BaselineCheck:
        return findings(tmp_path, report, latency_ratio={gpu: near(0.5, 0.05)})["latency_ratio"]

    slow = found(on_gpu(measured, fp32=10, quantized=5.6))
    assert (slow.outcome, slow.measured) == ("regression", 0.56)
    assert found(on_gpu(measured, fp32=10, quantized=4.4)).outcome == "improvement"
    assert found(on_gpu(measured, fp32=10, fp16=4, quantized=2)).outcome == "ok"
    alone = DeviceLatency(Percentiles(4), Percentiles(2))
    assert found(on_gpu(measured, alone, fp16=9, quantized=8)).measured == 0.5
    other = found(on_gpu(measured, fp32=10, quantized=5), "NVIDIA L40S")
    assert (other.outcome, other.measured) == ("skipped", 0.5)
    assert "no baseline for NVIDIA L4; one can be added at" in other.message


def test_latency_without_a_gpu_or_a_float_engine_is_skipped_with_the_reason(
    tmp_path: Path, measured: Report
) -> None:
    def reason(report: Report) -> str:
        found = findings(tmp_path, report, latency_ratio={GPU: near(0.5)})["latency_ratio"]
        assert found.outcome == "skipped"
        return found.message

    timed = replace(measured, latency_ms=ModelLatency(backend="onnxruntime", device="a CPU"))
    assert reason(timed) == "no GPU here: the time of onnxruntime says nothing about the engine"
    assert reason(on_gpu(measured, quantized=5)) == "neither FP16 nor FP32 was timed beside INT8"
    assert reason(replace(measured, latency_ms=None)) == "no latency was measured"


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (["ok", "skipped"], 0),
        (["ok", "improvement"], 3),
        (["improvement", "regression"], 1),
        (["improvement", "error"], 2),
        (["error", "regression"], 1),
        (["skipped"], 4),
        ([], 4),
    ],
)
def test_the_worst_outcome_decides_the_exit_code(outcomes: list[Any], code: int) -> None:
    codes = {"error": 2}
    found = [
        BaselineCheck("net", "", outcome, exit_code=codes.get(outcome, 0)) for outcome in outcomes
    ]
    assert exit_code(found) == code


@pytest.mark.parametrize(
    ("verdict", "outcomes"),
    [(Verdict("failed", "FP32 has 0.00 %"), ["regression"]), (Verdict("passed"), ["ok"]),
     (Verdict("failed", "so", forced=True), ["ok"]), (NOT_JUDGED, [])],
)  # fmt: skip
def test_the_gate_of_a_recipe_counts_as_a_baseline(verdict: Verdict, outcomes: list[str]) -> None:
    found = _gate("net", verdict)
    assert [one.outcome for one in found] == outcomes
    assert exit_code(found) == {"regression": 1, "ok": 0}.get("".join(outcomes), 4)
    assert all(one.message == verdict.reason for one in found if one.outcome == "regression")


def test_a_run_that_was_killed_fails() -> None:
    assert exit_code([BaselineCheck("net", "", "error", exit_code=-9)]) == 137


def regress(tiny: TinyProject, folder: Path, entries: dict[str, Any], *options: object) -> Outcome:
    path = folder / "baselines.yaml"
    path.write_text(yaml.safe_dump(entries, sort_keys=False))
    place = ("--files", tiny.folder, "--workspace", folder / "build")
    return reptrt("regress", "--baselines", path, *place, *options)


def tiny_entry(tiny: TinyProject, **metrics: Any) -> dict[str, Any]:
    files = {"data": tiny.data.name, "evaluation": tiny.photos.name}
    recipe = {"model": tiny.model, "calibrator": "minmax", "image_size": [32, 32], **files}
    recipe["quantize"] = "all"
    return {**entry(**metrics), "recipe": recipe}


def test_recipes_run_and_are_judged_and_what_tells_about_them_is_kept(
    tiny: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tiny.folder))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "job.md"))
    entries = tmp_path / "build" / "regress"
    stale, elsewhere = entries / "tiny" / "run" / "stale", tmp_path / "elsewhere"
    stale.mkdir(parents=True)
    elsewhere.mkdir()
    (entries / "broken").mkdir()
    (entries / "broken" / "run").symlink_to(elsewhere)
    coverage = {"value": 50, "tolerance": 1}
    outcome = regress(
        tiny, tmp_path,
        {
            "tiny": tiny_entry(tiny, accuracy=near(50, 50), int8_coverage=coverage),
            "broken": {**entry(), "recipe": {**tiny_entry(tiny)["recipe"], "model": "tiny_models:none"}},
            "absent": {**entry(), "recipe": {"model": "repvgg_a0", "weights": "none.pt"}},
        },
        "--target", "tensorrt-rtx",
    )  # fmt: skip
    assert outcome.code == 2, outcome.out + outcome.err
    folder = tmp_path / "build" / "regress"
    results = json.loads((folder / "results.json").read_text())
    found = {(one["entry"], one["metric"]): one for one in results}
    assert found["tiny", "accuracy"]["outcome"] == "ok"
    assert found["tiny", "int8_coverage"]["outcome"] == "improvement"
    assert found["tiny", "int8_coverage"]["measured"] == 100
    assert found["broken", ""]["outcome"] == "error"
    assert "left with 2" in found["broken", ""]["message"]
    assert found["absent", ""]["outcome"] == "skipped"
    assert "none.pt: set REPTRT_DATA" in found["absent", ""]["message"]
    assert {path.name for path in (folder / "tiny").iterdir()} == {
        *("recipe.yaml", "report.json", "report.html", "run.log"),
        *("run", ".lock"),
    }
    assert not stale.exists()
    assert not list(elsewhere.iterdir())
    assert not (folder / "broken" / "run").is_symlink()
    recipe = yaml.safe_load((folder / "tiny" / "recipe.yaml").read_text())
    assert recipe["target"] == "tensorrt-rtx"
    page = (folder / "summary.md").read_text()
    assert (tmp_path / "job.md").read_text() == page
    assert "| improvement | tiny | int8_coverage | 100 | 50 ± 1 |" in page
    assert "skipped: yolov6s.yaml: no baseline in" in page


def test_json_is_all_that_goes_to_stdout(
    tiny: TinyProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tiny.folder))
    entries = {"tiny": tiny_entry(tiny, accuracy=near(50, 50))}
    outcome = regress(tiny, tmp_path, entries, "tiny", "--target", "tensorrt-rtx", "--json")
    assert json.loads(outcome.out)[0]["metric"] == "accuracy"
    of_the_run = capfd.readouterr()
    assert of_the_run.out == ""
    assert "layers in INT8" in of_the_run.err


def test_that_nothing_was_checked_is_said_and_is_no_success(
    tiny: TinyProject, tmp_path: Path
) -> None:
    absent = {**entry(), "recipe": {"model": "repvgg_a0", "weights": "none.pt"}}
    outcome = regress(tiny, tmp_path, {"absent": absent}, "absent")
    assert outcome.code == 4
    assert "Nothing was checked: every entry was skipped" in outcome.out


def test_an_unknown_entry_is_refused_before_anything_runs(
    tiny: TinyProject, tmp_path: Path
) -> None:
    outcome = regress(tiny, tmp_path, {"tiny": tiny_entry(tiny)}, "tny")
    assert outcome.code == 2
    assert outcome.complaints == ["reptrt: no baseline is called 'tny'; did you mean 'tiny'?"]
    assert not (tmp_path / "build").exists()
