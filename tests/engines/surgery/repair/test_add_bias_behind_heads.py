from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reptrt.engines.build.builder import build_engine
from reptrt.engines.inspection.fusion import fusion_report, parse_kernels
from reptrt.engines.surgery import clean
from reptrt.engines.surgery.repair.add_bias_behind_heads import AddBiasBehindHeads
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.export.export import Precision, export_qdq
from tests.tiny_networks import SIZE, calibrated

BIAS = np.arange(12, dtype=np.float32)
CONSTANTS = {
    "codes": np.random.default_rng(0).integers(-127, 128, (12, 4)).astype(np.int8),
    "scale": np.linspace(0.01, 0.02, 12),
    "zero": np.zeros(12, np.int8),
    "bias": BIAS,
    "heads": np.array([0, -1, 3, 2, 2]),
}
HEAD = "g (float[N,5,4] x) => (float[a,b,c,d,e] y)"
PRODUCT = """w = DequantizeLinear<axis=0>(codes, scale, zero)
             t = Transpose<perm=[1,0]>(w)
             p = MatMul(x, t)"""


@pytest.mark.parametrize("operands", ["p, bias", "bias, p"])
def test_the_bias_is_added_to_the_heads_and_no_number_changes(operands, operate):
    done = operate(
        AddBiasBehindHeads(),
        f"{HEAD} {{ {PRODUCT}  b = Add({operands})  y = Reshape(b, heads) }}",
        **CONSTANTS,
    )
    assert done.sites == 1
    assert done.ops == ["DequantizeLinear", "Transpose", "MatMul", "Reshape", "Add"]
    np.testing.assert_array_equal(done.node("Add").inputs[1].values, BIAS.reshape(3, 2, 2))
    np.testing.assert_array_equal(*done.outputs())


def test_a_half_bias_stays_half(operate):
    done = operate(
        AddBiasBehindHeads(),
        """g (float16[N,5,4] x) => (float16[a,b,c,d,e] y) {
            w = DequantizeLinear<axis=0>(codes, scale, zero)
            h = Cast<to=10>(w)
            t = Transpose<perm=[1,0]>(h)
            p = MatMul(x, t)
            b = Add(p, bias)
            y = Reshape(b, heads)
        }""",
        **{**CONSTANTS, "bias": BIAS.astype(np.float16)},
    )
    assert (done.sites, done.node("Add").inputs[1].dtype) == (1, np.float16)
    np.testing.assert_array_equal(*done.outputs())


def test_two_reshapes_may_share_their_shape(operate):
    done = operate(
        AddBiasBehindHeads(),
        f"""{HEAD} {{
            {PRODUCT}
            b = Add(p, bias)
            c = Add(p, bias)
            r = Reshape(b, heads)
            s = Reshape(c, heads)
            y = Mul(r, s)
        }}""",
        **CONSTANTS,
    )
    assert done.sites == 2
    np.testing.assert_array_equal(*done.outputs())


@pytest.mark.parametrize(
    "body",
    [
        "b = Add(p, bias)  r = Reshape(b, heads)  n = ReduceMean(b)  y = Mul(r, n)",
        "b = Add(p, bias)  y = Reshape(b, windows)",
        "b = Add(p, bias)  y = Reshape(b, mixed)",
        "b = Add(p, bias)  y = Reshape(b, inferred)",
        "b = Add(p, table)  y = Reshape(b, heads)",
        "b = Add(p, one)  y = Reshape(b, heads)",
        "f = MatMul(x, float)  b = Add(f, bias)  y = Reshape(b, heads)",
        "b = Add(p, bias)  r = Relu(b)  y = Reshape(r, heads)",
    ],
    ids=[
        "other reader",
        "channels whole",
        "channels mixed with rows",
        "an inferred head",
        "bias of positions",
        "scalar bias",
        "float weight",
        "no reshape",
    ],
)
def test_other_biases_stay_where_they_are(body, operate):
    done = operate(
        AddBiasBehindHeads(),
        f"{HEAD} {{ {PRODUCT}  {body} }}",
        **CONSTANTS,
        windows=np.array([-1, 5, 1, 1, 12]),
        mixed=np.array([-1, 1, 10, 3, 2]),
        inferred=np.array([2, 5, -1, 2, 2]),
        table=np.ones((5, 12)),
        one=np.ones(1),
        float=np.ones((4, 12)),
    )
    assert done.sites == 0
    np.testing.assert_array_equal(*done.outputs())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_every_linear_of_a_transformer_is_int8_in_the_engine(
    name: str, precision: Precision, tmp_path: Path
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")
    preprocess = Preprocess((SIZE, SIZE), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    card = ModelCard(name, "classification", preprocess, 10, None, ("logits",))
    qdq, trt = tmp_path / "model.qdq.onnx", tmp_path / "model.trt.onnx"
    export_qdq(calibrated(name), qdq, card, precision=precision)
    clean(qdq, trt)
    layers = build_engine(trt, tmp_path / "model.engine", rtx).layers
    assert fusion_report(parse_kernels(layers), trt).float_islands == ()
