from __future__ import annotations

import json

from reptrt.engines.target import TARGETS
from reptrt.pipeline.cli.target_list import HEADER, target_facts, target_rows
from tests.command_line import reptrt


def test_every_target_has_a_row_with_its_facts() -> None:
    rows = {row[0]: dict(zip(HEADER, row, strict=True)) for row in target_rows()}
    assert rows.keys() == TARGETS.keys()
    assert rows["jetson-orin-nx"] == {
        "target": "jetson-orin-nx", "built by": "tensorrt", "compute": "8.7", "memory": "8, 16 GB",
        "TensorRT": "10.3 to 10.7", "FP8": "", "DLA": "1",
    }  # fmt: skip
    assert rows["tensorrt-rtx"]["compute"] == "8.0 to 12.0"


def test_the_table_fits_a_terminal() -> None:
    outcome = reptrt("targets")
    assert "…" not in outcome.out
    assert len(outcome.out.splitlines()) == len(TARGETS) + 1


def test_one_target_is_told_in_full() -> None:
    outcome = reptrt("targets", "jetson-thor")
    assert outcome.code == 0
    assert "10.13 on" in outcome.out
    assert "JetPack 7.1" in outcome.out
    assert dict(target_facts(TARGETS["cpu"])).keys() >= {"target", "device", "note"}


def test_an_unknown_target_names_the_nearest() -> None:
    outcome = reptrt("targets", "h100")
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert "did you mean 'server-h100'?" in line


def test_json_has_every_field() -> None:
    entries = {entry["name"]: entry for entry in json.loads(reptrt("targets", "--json").out)}
    assert entries["server-t4"]["compute_capabilities"] == [[7, 5]]
    assert entries["jetson-orin"]["dla"] == 2
    assert entries["server-l40s"]["fp8"] is True
    (chosen,) = json.loads(reptrt("targets", "server-l40s", "--json").out)
    assert chosen == entries["server-l40s"]
    assert reptrt("targets", "h100", "--json").code == 2
