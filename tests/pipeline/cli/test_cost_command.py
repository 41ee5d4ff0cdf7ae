from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import reptrt

GRAPH = {
    "Layers": [
        {
            "Name": name, "LayerType": "CaskConvolution", "Kernel": [1, 1], "Stride": [1, 1],
            "OutMaps": channels, "Groups": 1,
            "Inputs": [{"Name": "x", "Dimensions": [2, 64, 56, 56], "Format/Datatype": "FP16"}],
            "Outputs": [{"Name": "y", "Dimensions": [2, channels, 56, 56], "Format/Datatype": "FP16"}],
        }
        for name, channels in (("narrow", 64), ("wide", 4096))
    ]
}  # fmt: skip


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(GRAPH))
    return path


def test_the_slowest_kernel_comes_first_and_says_what_bounds_it(graph):
    outcome = reptrt("cost", graph, "--target", "server-t4", "--json")
    found = json.loads(outcome.out)
    assert (outcome.code, found["gpu"], found["batch"]) == (0, "T4", 2)
    assert [kernel["name"] for kernel in found["kernels"]] == ["wide", "narrow"]
    assert found["kernels"][0]["bound"] in ("compute", "memory")
    assert found["low"] < found["milliseconds"] < found["high"]


def test_the_table_says_the_same(graph):
    outcome = reptrt("cost", graph, "--target", "server-a100")
    assert outcome.code == 0
    assert "ms predicted" in outcome.out
    assert outcome.out.index("wide") < outcome.out.index("narrow")


def test_a_larger_batch_takes_longer_and_a_sweep_shows_how_much(graph):
    rows = json.loads(
        reptrt("cost", graph, "--target", "server-t4", "--sweep", "batch", "--json").out
    )
    times = [row["milliseconds"] for row in rows]
    assert [row["batch"] for row in rows] == [1, 2, 4, 8, 16, 32]
    assert times == sorted(times)
    one = json.loads(reptrt("cost", graph, "--target", "server-t4", "--batch", 8, "--json").out)
    assert one["milliseconds"] == times[3]
    assert "images/s" in reptrt("cost", graph, "--target", "server-t4", "--sweep", "batch").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.onnx"], "no such file"),
        (["graph.json", "--target", "cpu"], "target 'cpu' names no GPU"),
        (["graph.json", "--target", "t5"], "unknown target 't5'"),
        (["graph.json", "--device-info", "graph.json"], "no 'device_information'"),
        (["graph.json", "--batch", "0"], "0 is not in the range"),
        (["broken.onnx", "--target", "server-t4"], "broken.onnx"),
        (["broken.json", "--target", "server-t4"], "broken.json"),
    ],
)
def test_bad_input_is_refused_in_one_line(graph, monkeypatch, arguments, message):
    monkeypatch.chdir(graph.parent)
    for name in ("broken.onnx", "broken.json"):
        Path(name).write_bytes(b"{\x00")
    outcome = reptrt("cost", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_names_of_a_file_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    layers = [{**layer, "Name": "\x1b]0;owned\x07[red]\n"} for layer in GRAPH["Layers"]]
    tensor = {"Name": "x", "Dimensions": [2, 64, 56, 56], "Format/Datatype": "\x1b[2Jodd"}
    layers[0] = {**layers[0], "Inputs": [tensor], "Outputs": [tensor]}
    (tmp_path / "graph.json").write_text(json.dumps({"Layers": layers}))
    info = {
        "Selected Device": "\x1b[31mT4", "Compute Capability": 7.5, "SMs": 40,
        "Compute Clock Rate": 1.59, "Memory Bus Width": 256, "Memory Clock Rate": 5.0,
    }  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps({"device_information": info}))
    options = ("--device-info", tmp_path / "p.json")
    for more in ((), ("--sweep", "batch")):
        outcome = reptrt("cost", tmp_path / "graph.json", *options, *more)
        assert outcome.code == 0
        assert outcome.out.replace("\n", "").isprintable()
