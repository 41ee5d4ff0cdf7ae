"""-inf that only a MaxPool reads is in no tensor of the network."""

from __future__ import annotations

from pathlib import Path

import pytest

from reptrt.models.onnx_import.canonical import canonicalize
from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.importer import import_onnx
from tests.onnx_files import from_text

POOL = "y = MaxPool<kernel_shape = [3, 3], strides = [2, 2]"
CASES = {
    "one-sided": (13, f"d = Pad(x, end, least) {POOL}>(d)"),
    "both sides": (13, f"d = Pad(x, both, least) {POOL}>(d)"),
    "beside padding": (13, f"d = Pad(x, end, least) {POOL}, pads = [1, 1, 0, 0]>(d)"),
    "an old Pad": (10, f"d = Pad<pads = [0,0,0,0,0,0,1,1], value = -3e38>(x) {POOL}>(d)"),
    "overlapping windows": (
        13, "d = Pad(x, end, least) y = MaxPool<kernel_shape = [2, 2], strides = [1, 1]>(d)",
    ),
}  # fmt: skip
STAYS = {
    "zeros": f"d = Pad(x, end) {POOL}>(d)",
    "zeros that an input without a name stands for": f"d = Pad(x, end, , ) {POOL}>(d)",
    "another reader": f"d = Pad(x, end, least) e = Relu(d) f = {POOL[4:]}>(d) "
    "g = MaxPool<kernel_shape = [3, 3], strides = [2, 2]>(e) y = Add(f, g)",
}
CONSTANTS = """float least = {-3e38}, int64[8] end = {0,0,0,0,0,0,1,1},
    int64[8] both = {0,0,1,1,0,0,1,1}"""


def pads(body: str, opset: int, path: Path) -> int:
    """How many Pads the canonical graph has; the import computes the same."""
    text = f"""<ir_version: 8, opset_import: ["": {opset}]> net (float[N,3,8,8] x) => (float y)
        <{CONSTANTS}> {{ {body} }}"""
    file = read_onnx(from_text(text, path))
    assert import_onnx(file, (8, 8)).relative_error < 1e-5
    nodes = canonicalize(file, file.network_inputs((8, 8))).graph.nodes
    return sum(node.op == "Pad" for node in nodes)


@pytest.mark.parametrize("name", CASES)
def test_the_pool_pads_itself(name: str, tmp_path: Path) -> None:
    opset, body = CASES[name]
    assert pads(body, opset, tmp_path / "m.onnx") == 0


@pytest.mark.parametrize("name", STAYS)
def test_other_pads_stay(name: str, tmp_path: Path) -> None:
    assert pads(STAYS[name], 13, tmp_path / "m.onnx") == 1
