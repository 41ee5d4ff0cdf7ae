"""Recurrent layers of a few units compute the same with units that stay 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from reptrt.models.onnx_import.canonical import canonicalize
from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.importer import import_onnx
from tests.models.onnx_import.test_islands import weight
from tests.onnx_files import from_text

CASES = {
    "LSTM": "o, p, q = LSTM<hidden_size = 3>(t, a4, b4, c4)",
    "LSTM of both directions": 'o, , q = LSTM<hidden_size = 3, direction = "bidirectional">(t, a8, b8)',
    "GRU": "o, p = GRU<hidden_size = 3>(t, a3, b3, c3)",
    "GRU that resets behind": "o = GRU<hidden_size = 3, linear_before_reset = 1>(t, a3, b3, c3)",
    "GRU from a state": "o = GRU<hidden_size = 3>(t, a3, b3, , , h)",
}
WIDTHS = {
    "a4": (1, 12, 6), "b4": (1, 12, 3), "c4": (1, 24), "a8": (2, 12, 6), "b8": (2, 12, 3),
    "a3": (1, 9, 6), "b3": (1, 9, 3), "c3": (1, 18), "h": (1, 1, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_they_make_is_cut_out_of_wider_ones(name: str, tmp_path: Path) -> None:
    body, batch = CASES[name], "1" if "state" in name else "N"
    made = [one for one in "opq" if f"{one} =" in body or f"{one}," in body]
    constants = ", ".join(weight(key, *sides) for key, sides in WIDTHS.items())
    text = f"""<ir_version: 8, opset_import: ["": 17]> net (float[{batch},3,5,6] x) =>
        ({", ".join(f"float {one}" for one in made)}) <{constants}> {{
        m = ReduceMean<axes = [1], keepdims = 0>(x) t = Transpose<perm = [1, 0, 2]>(m) {body} }}"""
    file = read_onnx(from_text(text, tmp_path / "m.onnx"))
    imported = import_onnx(file, (5, 6))
    assert imported.relative_error < 1e-5
    nodes = canonicalize(file, file.network_inputs((5, 6))).graph.nodes
    assert [node.attrs["hidden_size"] for node in nodes if node.op in ("LSTM", "GRU")] == [8]
