"""`reptrt lint` on files: what it prints, what it repairs, what it refuses."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from reptrt.engines.lint import lint_file
from reptrt.engines.lint.read_model import read_model
from tests.command_line import reptrt
from tests.engines.lint.cases import BRANCHES, CONSTANTS, CONV, GRID, PAIR, tensor, weight
from tests.engines.lint.equal_codes import differences
from tests.engines.lint.rtx import needs_rtx, refused_by_rtx

CNN = """net (float[1,3,16,16] images) => (float[1,10] logits) {
    a = Conv<pads=[1,1,1,1]>(images, w1, b1)
    r = Relu(a)
    c = Conv<pads=[1,1,1,1]>(r, w2, b2)
    k = Relu(c)
    g = GlobalAveragePool(k)
    f = Flatten(g)
    logits = Gemm<transB=1>(f, w3, b3)
}"""


class Images(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._images = iter(rng.normal(size=(4, 1, 3, 16, 16)).astype(np.float32))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {"images": image}


@pytest.fixture
def quantize(save, tmp_path):
    """ONNX Runtime's static quantization of a small CNN."""

    def quantized(**options: object):
        rng = np.random.default_rng(0)
        shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (10, 8)}
        constants = {n: rng.normal(size=s) / np.prod(s[1:]) ** 0.5 for n, s in shapes.items()}
        constants |= {f"b{i}": rng.normal(size=n) for i, n in ((1, 8), (2, 8), (3, 10))}
        path = tmp_path / "ort.onnx"
        quantize_static(save(CNN, opset=17, **constants), path, Images(), **options)
        return path

    return quantized


def test_the_default_of_onnx_runtime_is_refused_and_repaired(quantize, tmp_path):
    path, fixed = quantize(), tmp_path / "fixed.onnx"
    before = path.read_bytes()
    outcome = reptrt("lint", path, "--no-build")
    assert outcome.code == 1
    assert "error     zero-point" in outcome.out
    assert "error     integer-bias" in outcome.out
    outcome = reptrt("lint", path, "--fix", fixed, "--no-build")
    assert outcome.code == 0, outcome.out
    assert re.search(r"repaired: .*\d+ zero-point", outcome.out)
    assert path.read_bytes() == before
    assert {f.severity.value for f in lint_file(fixed)} <= {"slow", "accuracy", "note"}


@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8], ids=["int8", "uint8"])
def test_the_repaired_model_computes_the_codes_of_the_original(kind, quantize, tmp_path):
    path, fixed = quantize(activation_type=kind), tmp_path / "fixed.onnx"
    reptrt("lint", path, "--fix", fixed, "--no-build")
    images = np.random.default_rng(5).normal(size=(1, 3, 16, 16)).astype(np.float32)
    steps = differences(onnx.load(path), onnx.load(fixed), images)
    assert len(steps) >= 4
    assert max(int(step.max()) for step in steps.values()) <= 1
    assert np.mean([(step > 0).mean() for step in steps.values()]) < 1e-3


@needs_rtx
def test_what_was_repaired_parses_and_its_kernels_are_listed(quantize, tmp_path):
    path, fixed = quantize(), tmp_path / "fixed.onnx"
    assert "Int32" in refused_by_rtx(path)
    outcome = reptrt("lint", path)
    assert "error     tensorrt-rtx" in outcome.out
    outcome = reptrt("lint", path, "--fix", fixed)
    assert "3 of 3 layers in INT8" in outcome.out
    assert re.search(r"^\d+ +\w+ +Int8 ", outcome.out, re.MULTILINE)


def test_without_tensorrt_rtx_it_says_so(save, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    outcome = reptrt("lint", save(PAIR, **GRID))
    assert outcome.code == 0
    assert "TensorRT-RTX not asked" in outcome.out
    assert "pip install 'tensorrt-rtx" in outcome.out


@needs_rtx
def test_open_sides_are_parsed_and_not_built(save):
    text = "g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }"
    outcome = reptrt("lint", save(text))
    assert outcome.code == 0
    assert "not built: dimensions other than the batch are open" in outcome.out


def test_json_has_stable_keys(quantize):
    outcome = reptrt("lint", quantize(), "--json", "--no-build")
    content = json.loads(outcome.out)
    assert set(content) == {"file", "counts", "findings", "repaired", "tensorrt_rtx"}
    assert list(content["counts"]) == ["error", "slow", "accuracy", "note"]
    keys = {"rule", "severity", "node", "op", "reason", "detail", "remedy", "fixable"}
    assert all(set(finding) == keys for finding in content["findings"])
    ranks = [list(content["counts"]).index(f["severity"]) for f in content["findings"]]
    assert ranks == sorted(ranks)
    assert sum(content["counts"].values()) == len(content["findings"])


def test_json_is_all_that_is_printed_for_types_that_numpy_lacks(save):
    zero = tensor("z", onnx.TensorProto.FLOAT8E5M2FNUZ, [], [0.0])
    outcome = reptrt("lint", save(PAIR, s=np.float32(0.1), z=zero), "--json", "--no-build")
    assert "code-type" in {f["rule"] for f in json.loads(outcome.out)["findings"]}


def test_the_operator_format_is_named_and_becomes_pairs(quantize, tmp_path):
    path, fixed = quantize(quant_format=QuantFormat.QOperator), tmp_path / "fixed.onnx"
    outcome = reptrt("lint", path, "--no-build")
    assert outcome.code == 1
    assert "error     operator-format" in outcome.out
    outcome = reptrt("lint", path, "--no-build", "--fix", fixed)
    assert outcome.code == 0
    kinds = {node.op_type for node in onnx.load(fixed).graph.node}
    assert not any(kind.startswith(("QLinear", "QGemm")) for kind in kinds)
    assert "DequantizeLinear" in kinds


@pytest.mark.parametrize("name", ["same", "link", "folder", "nowhere/out.onnx"])
def test_the_repaired_file_goes_elsewhere(name, save, tmp_path):
    path = save(PAIR, **GRID)
    before = path.read_bytes()
    target = path if name == "same" else tmp_path / name
    if name == "link":
        target.symlink_to(path)
    if name == "folder":
        target.mkdir()
    outcome = reptrt("lint", path, "--no-build", "--fix", target)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"", b"no model at all", b"\x08\x07", bytes(range(256)) * 40],
    ids=["empty", "text", "no graph", "bytes"],
)
def test_what_is_no_onnx_file_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    outcome = reptrt("lint", path, "--no-build")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "bad.onnx: not an ONNX file" in outcome.err


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path):
        outcome = reptrt("lint", path, "--no-build")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("keep", range(0, 100, 9))
def test_a_file_that_was_cut_short_never_ends_in_a_traceback(keep, save):
    path = save(CONV, **CONSTANTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * keep // 100])
    outcome = reptrt("lint", path, "--no-build")
    assert outcome.code == 2
    assert "not a" in outcome.err


def test_a_graph_that_reads_what_nothing_makes_is_refused(save):
    outcome = reptrt("lint", save(CONV, **GRID), "--no-build")
    assert outcome.code == 2
    assert "not a valid ONNX model" in outcome.err


def test_large_external_weights_are_not_read_and_small_constants_are(save, tmp_path):
    constants = {**weight(256, 512, 3, 3), "s": np.float32(0.05), "z": np.int8(3)}
    text = CONV.replace("32,8,8] x", "512,8,8] x").replace("32,8,8] y", "256,8,8] y")
    model = onnx.load(save(text, **constants))
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="e.bin", size_threshold=0)
    assert "zero-point" in {finding.rule for finding in lint_file(path)}
    assert len(read_model(path).proto.SerializeToString()) < 20_000
    (tmp_path / "e.bin").unlink()
    outcome = reptrt("lint", path, "--no-build")
    assert outcome.code == 2
    assert "e.bin" in outcome.err


def test_scales_in_constant_nodes_are_read(save):
    text = PAIR.replace("q = Q", "s = Constant<value_float = -1.0>()\n q = Q")
    path = save(text, z=np.int8(0))
    assert lint_file(path)[0].rule == "scale-not-positive"


def test_what_is_inside_control_flow_is_found_and_not_called_repairable(save):
    text = BRANCHES.replace("t = Relu(x)", "q = QuantizeLinear(x, s, z)\n"
                            " t = DequantizeLinear(q, s, z)")  # fmt: skip
    findings = lint_file(save(text, s=np.float32(0.1), z=np.int8(3)))
    (finding,) = [f for f in findings if f.rule == "zero-point"]
    assert not finding.fixable


def test_equal_findings_stand_on_one_line(save):
    text = "\n".join(
        f"q{i} = QuantizeLinear(x, s, z)\n d{i} = DequantizeLinear(q{i}, s, z)\n r{i} = Relu(d{i})"
        for i in range(9)
    )
    path = save(
        f"g (float[1,4] x) => (float[1,4] y) {{ {text}\n y = Sum(r0,r1,r2,r3,r4,r5,r6,r7,r8) }}",
        **(GRID | {"z": np.int8(1)}),
    )
    outcome = reptrt("lint", path, "--no-build")
    (line,) = [line for line in outcome.out.splitlines() if "zero-point" in line]
    assert "9 nodes: QuantizeLinear_0 (zero point 1), " in line
    assert line.endswith(", and 6 more")
    assert len(json.loads(reptrt("lint", path, "--no-build", "--json").out)["findings"]) >= 9


def test_an_output_without_a_shape_is_linted_and_repaired(save, tmp_path):
    path, fixed = save(CONV, **CONSTANTS), tmp_path / "fixed.onnx"
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    outcome = reptrt("lint", str(path), "--fix", str(fixed), "--no-build")
    assert outcome.code == 0
    shape = onnx.load(fixed).graph.output[0].type.tensor_type.shape
    assert [side.dim_value for side in shape.dim] == [1, 32, 8, 8]
