"""What no TensorRT has a kernel for becomes what it has, and computes the same as ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from reptrt.models.onnx_import.canonical import canonicalize
from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.importer import import_onnx
from tests.models.onnx_import.test_islands import weight
from tests.onnx_files import from_text

UNPOOL = (
    "m, i = MaxPool<kernel_shape = {kernel}, strides = {kernel}>({read}) r = Mul(m, half)"
    " y = MaxUnpool<kernel_shape = {kernel}, strides = {kernel}>(r, i)"
)
COLUMNS = "f = Flatten(c) k = Slice(f, start, end, one) r = Reshape(k, shape) y = Col2Im"
CASES = {
    "MaxUnpool": (17, UNPOOL.format(kernel="[2, 2]", read="c")),
    "MaxUnpool of windows of equal values": (
        17, "n = Neg(c) p = Relu(n) z = Floor(p) " + UNPOOL.format(kernel="[2, 4]", read="z"),
    ),
    "MaxUnpool in an old file": (11, UNPOOL.format(kernel="[2, 2]", read="c")),
    "AffineGrid": (20, "h = Shape(c) y = AffineGrid(t, h)"),
    "AffineGrid of corners": (20, "h = Shape(c) y = AffineGrid<align_corners = 1>(t, h)"),
    "DeformConv": (19, "d = DeformConv<pads = [1, 1, 1, 1]>(c, v, o, , q) y = Relu(d)"),
    "DeformConv in a later file": (22, "y = DeformConv<pads = [1, 1, 1, 1]>(c, v, o)"),
    "DeformConv in groups": (
        19,
        "p = Tile(o, twice) n = Tile(q, twice) k = Slice(p, zero, four, two, half2)"
        " l = Slice(n, zero, four, two, half2) y = DeformConv<group = 2, offset_group = 2,"
        " strides = [2, 2], dilations = [1, 2], pads = [1, 2, 1, 2]>(c, u, k, b, l)",
    ),
    "Resize with antialiasing": (18, "y = Resize<mode = \"linear\", antialias = 1>(c, , fewer)"),
    "Resize with antialiasing, of named axes": (
        19, "y = Resize<mode = \"cubic\", antialias = 1, axes = [3]>(c, , , three)",
    ),
    "Resize of a region": (
        13, "y = Resize<mode = \"linear\", coordinate_transformation_mode = \"tf_crop_and_resize\">"
        "(c, region, , sizes)",
    ),
    "Resize with symmetric coordinates": (
        19, "y = Resize<mode = \"cubic\", coordinate_transformation_mode = \"half_pixel_symmetric\">"
        "(c, , fewer)",
    ),
    "DFT of real values, one half of it": (
        17, "s = Unsqueeze(c, last) y = DFT<axis = 2, onesided = 1>(s)",
    ),
    "DFT of a spectrum, along rows and back": (
        17, "s = Unsqueeze(c, last) f = DFT<axis = 3, onesided = 1>(s) h = DFT<axis = 2>(f)"
        " y = DFT<axis = 2, inverse = 1>(h)",
    ),
    "DFT of another length, along a named axis": (
        20, "s = Unsqueeze(c, last) f = DFT(s, ten, third) y = DFT<inverse = 1>(f, , third)",
    ),
    "Col2Im": (18, COLUMNS + "(r, image, block)"),
    "Col2Im with strides, pads and dilations": (
        18, COLUMNS + "<strides = [2, 3], pads = [1, 0, 2, 1], dilations = [2, 1]>(r, wide, block)",
    ),
}  # fmt: skip
CONSTANTS = """float half = {0.5}, int64[1] start = {0}, int64[1] end = {144}, int64[1] one = {1},
    int64[3] shape = {-1, 12, 12}, int64[2] image = {4, 6}, int64[2] wide = {7, 10},
    int64[2] block = {2, 3}, int64[3] pair = {-1, 2, 3}, int64[1] six = {6},
    int64[4] twice = {1, 2, 1, 1}, int64[2] zero = {0, 0}, int64[2] two = {2, 3}, int64[2] four = {8, 8},
    int64[2] half2 = {2, 2}, float[4] fewer = {1, 1, 0.5, 0.7}, int64[1] three = {3},
    float[8] region = {0, 0, 0.1, 0.25, 1, 1, 0.8, 1.5}, int64[4] sizes = {1, 4, 5, 6},
    int64[1] last = {4}, int64 ten = {10}, int64 third = {-3}"""
WEIGHTS = ", ".join(
    weight(name, *sides)
    for name, sides in {
        "v": (3, 4, 3, 3), "u": (6, 2, 3, 3), "b": (6,), "f3": (18, 4, 3, 3), "g3": (9, 4, 3, 3),
    }.items()
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_written_by_what_tensorrt_has(name: str, tmp_path: Path) -> None:
    opset, body = CASES[name]
    text = f"""<ir_version: 8, opset_import: ["": {opset}]> net (float[N,4,8,8] x) => (float y)
        <{CONSTANTS}, {WEIGHTS}> {{ c = Sub(x, half) e = Flatten(c) a = Slice(e, start, six, one)
        t = Reshape(a, pair) o = Conv<pads = [1, 1, 1, 1]>(c, f3) q = Conv<pads = [1, 1, 1, 1]>(c, g3)
        {body} }}"""
    file = read_onnx(from_text(text, tmp_path / "m.onnx"))
    imported = import_onnx(file, (8, 8))
    found = {op for note in imported.islands for op in note.op_types}
    assert found == ({"GridSample"} if name.startswith("DeformConv") else set())
    assert imported.batch_size is None
    assert imported.relative_error < 1e-5
    ops = {node.op for node in canonicalize(file, file.network_inputs((8, 8))).graph.nodes}
    assert not ops & {"MaxUnpool", "AffineGrid", "Col2Im", "DeformConv", "Resize", "DFT"}


def test_values_go_to_the_first_of_equal_places(tmp_path: Path) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17]> net (float[1,1,4,4] x) => (float y)
        <{CONSTANTS}> {{ z = Floor(x) {UNPOOL.format(kernel="[2, 2]", read="z")} }}"""
    imported = import_onnx(read_onnx(from_text(text, tmp_path / "m.onnx")), (4, 4))
    assert imported.check is not None
    images = np.array([[7, 7, 0, 0], [7, 7, 0, 0], [1, 2, 3, 4], [2, 1, 4, 3]], np.float32)
    assert imported.check([images[None, None]]).error == 0


def test_what_onnx_runtimes_optimizer_wrote_is_imported(tmp_path: Path) -> None:
    body = "t = Transpose<perm = [0, 2, 3, 1]>(f) n = LayerNormalization(t, g, g)"
    body += " s = com.microsoft.BiasGelu(n, g) y = com.microsoft.FusedMatMul<transB = 1>(s, z)"
    constants = f"{weight('w', 4, 3, 3, 3)}, {weight('g', 4)}, {weight('z', 6, 4)}"
    text = f"""<ir_version: 8, opset_import: ["": 13, "com.microsoft": 1]>
        net (float[N,3,8,8] x) => (float y) <{constants}> {{
        f = com.microsoft.FusedConv<activation = "Relu", pads = [1, 1, 1, 1]>(x, w) {body} }}"""
    imported = import_onnx(read_onnx(from_text(text, tmp_path / "m.onnx")), (8, 8))
    assert imported.islands == ()
    assert imported.relative_error < 1e-5
    assert any(isinstance(part, torch.nn.LayerNorm) for part in imported.module.modules())
