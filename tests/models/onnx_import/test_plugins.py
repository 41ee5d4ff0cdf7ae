"""Files that end in operators of which only TensorRT has a plugin."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.importer import import_onnx
from tests.models.onnx_import.test_islands import CONV, TALL
from tests.onnx_files import from_text

SUPPRESSED = "int32[N,1] n, float[N,5,4] b, float[N,5] s, int32[N,5] k"


def write(path: Path, body: str, outputs: str) -> Path:
    text = f"""<ir_version: 8, opset_import: ["": 13, "TRT": 1, "mine": 1]>
        net (float[N,3,8,8] x) => ({outputs}) <{CONV}, {TALL}, int64[3] shape = {{0, 4, -1}}> {{
        c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Reshape(c, shape) z = Sigmoid(r) {body} }}"""
    return from_text(text, path)


@pytest.mark.parametrize("domain", ["TRT.", ""])
def test_the_network_ends_in_front_of_a_plugin(
    domain: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = f"[nms] n, b, s, k = {domain}EfficientNMS_TRT<max_output_boxes = 5>(r, z)"
    file = read_onnx(write(tmp_path / "m.onnx", body, SUPPRESSED))
    imported = import_onnx(file, (8, 8))
    assert imported.outputs == ("r", "z")
    assert imported.batch_size is None
    assert "EfficientNMS_TRT 'nms': the network ends in front of it, at r, z" in caplog.text


def test_what_follows_a_plugin_goes_with_it_and_other_outputs_stay(tmp_path: Path) -> None:
    body = "n, b, s, k = TRT.EfficientNMS_TRT(r, z) d = Mul(s, s)"
    file = read_onnx(write(tmp_path / "m.onnx", body, "float[N,5] d, float[N,4,64] z"))
    assert import_onnx(file, (8, 8)).outputs == ("z", "r")


@pytest.mark.parametrize(
    ("body", "output"),
    [("q = mine.Whiten(c) y = Conv(q, v)", "y"), ("y = Sharpen(x) i = Conv(y, w)", "i")],
)
def test_an_unknown_operator_in_front_of_layers_is_refused(
    body: str, output: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.onnx", body, f"float {output}")
    with pytest.raises(OnnxFileError, match=r"Whiten|Sharpen"):
        read_onnx(path)


def test_the_network_ends_in_front_of_what_returns_text_or_maps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.onnx"
    body = "f = Flatten(c) label, p = ai.onnx.ml.LinearClassifier(f) m = ai.onnx.ml.ZipMap(p)"
    write(path, body, "string label, float m")
    model = onnx.load(path)
    maps = onnx.helper.make_map_type_proto(
        onnx.TensorProto.STRING, onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
    )
    model.graph.output[1].type.CopyFrom(onnx.helper.make_sequence_type_proto(maps))
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 1))
    onnx.save(model, path)
    assert import_onnx(read_onnx(path), (8, 8)).outputs == ("f",)
    assert (
        "no engine returns the text, sequences or maps of LinearClassifier, ZipMap" in caplog.text
    )
