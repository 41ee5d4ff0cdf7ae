"""What is read back has the record's types, or is refused in one line."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from reptrt.calibrators.sensitivity import Sensitivity
from reptrt.engines.artifacts import write_json
from reptrt.engines.inspection.kernel import Kernel, Tensor
from reptrt.engines.kit.report import KitReport, Verification
from reptrt.engines.report_schema import (
    Accuracy,
    End2End,
    FloatIsland,
    FusionReport,
    MetricPair,
    OutputNumerics,
    Report,
    Validation,
)
from reptrt.pipeline.workspace.records import RecordError, read_record
from tests.reports import make_report

ACCURACY = Accuracy("top1", 80.0, 79.5, 0.5, 97.0, 200, {"top5": MetricPair(95.0, 94.5)})
FUSION = FusionReport(
    int8_layers=1, quantizable_layers=2, int8_coverage=50.0, kernels=1, attention_blocks=0,
    fused_attention=0, float_islands=(FloatIsland("head", "Gemm", "why"),), backend="rtx 1.7",
    fused_kernels=(Kernel("k", "conv", (Tensor("x", "Int8"),), (), (Tensor("y", "Half"),), ("stem",)),),
)  # fmt: skip
KIT = KitReport(**vars(make_report()), verification=Verification("engine", 100.0, None, ("bad",)))


@pytest.mark.parametrize(
    ("record", "value"),
    [
        (FusionReport, FUSION),
        (Validation, Validation(ACCURACY, {"y": OutputNumerics(30.0, 0.9)}, shown=((1, 0),))),
        (Validation, Validation(end2end=End2End(0.25, 0.65, 10, 100.0, 99.0, 4, "rtx"))),
        (Report, make_report(accuracy=ACCURACY, fusion=FUSION.summary, notes=("a",))),
        (KitReport, KIT),
        (Sensitivity, Sensitivity({"stem": 12.5, "head": None}, 20.5)),
    ],
)
def test_a_record_comes_back_as_it_was_written(tmp_path: Path, record: Any, value: Any) -> None:
    write_json(value, tmp_path / "record.json")
    assert read_record(tmp_path / "record.json", record) == value


def test_a_key_of_a_later_version_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "fusion.json"
    path.write_text(json.dumps({**asdict(FUSION), "bytes": 7}))
    assert read_record(path, FusionReport) == FUSION


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "EOF while parsing"),
        ("[1]", "Input should be an object"),
        ("[" * 100_000, "recursion limit"),
        ("{}", "int8_layers: Field required"),
        (json.dumps({**asdict(FUSION), "kernels": "many"}), "kernels: Input should be a valid integer"),
        (json.dumps({**asdict(FUSION), "kernels": 1.5}), "kernels: Input should be"),
        (json.dumps({**asdict(FUSION), "float_islands": [{}]}), "float_islands.0.layer: Field required"),
        (json.dumps({**asdict(FUSION), "fused_kernels": None}), "fused_kernels: Input should be"),
    ],
)  # fmt: skip
def test_what_is_no_record_is_one_line(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "fusion.json"
    path.write_text(content)
    with pytest.raises(RecordError) as raised:
        read_record(path, FusionReport)
    message = str(raised.value)
    assert message.startswith(f"{path}: is not what this version of reptrt writes there (")
    assert reason in message
    assert "\n" not in message
    assert raised.value.exit_code == 2


def test_a_missing_file_and_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        read_record(tmp_path / "none.json", Report)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match="is not what"):
        read_record(tmp_path / "bytes.json", Report)


def test_records_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        FUSION.kernels = 3  # type: ignore[misc]
    assert replace(FUSION, kernels=3).kernels == 3
