"""ONNX Runtime's own operators compute what the operators of ONNX that are written for them do."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from reptrt.engines.foreign.contributed import write_contributed

TOKENS, IMAGE = "float[N,5,8] x", "float[N,8,6,6] x"
SIDES: dict[str, tuple[int, ...]] = {
    "g": (8,), "b": (8,), "p": (1, 2, 5, 5), "w": (4, 8, 3, 3), "w1": (4, 4, 1, 1), "v": (4,),
    "m": (6, 8), "qkv": (8, 24), "qb": (24,), "gm": (8, 4), "gn": (6, 6),
}  # fmt: skip
MS = "com.microsoft."
CASES = {
    "FusedConv with Relu": (IMAGE, f'y = {MS}FusedConv<activation = "Relu", pads = [1,1,1,1]>(x, w, v)'),
    "FusedConv with Clip": (
        IMAGE, f'y = {MS}FusedConv<activation = "Clip", activation_params = [0.0, 0.5]>(x, w)',
    ),
    "FusedConv with LeakyRelu": (
        IMAGE, f'y = {MS}FusedConv<activation = "LeakyRelu", activation_params = [0.2]>(x, w, v)',
    ),
    "FusedConv with HardSigmoid": (
        IMAGE,
        f'y = {MS}FusedConv<activation = "HardSigmoid", activation_params = [0.2, 0.4]>(x, w, v)',
    ),
    "FusedConv of a sum": (
        IMAGE,
        f'c = Conv<pads = [1,1,1,1]>(x, w) y = {MS}FusedConv<activation = "Relu">(c, w1, v, c)',
    ),
    "FusedConv in a strip": (
        IMAGE, f'y = {MS}FusedConv<activation = "Tanh", strides = [2,2], auto_pad = "SAME_UPPER">(x, w)',
    ),
    "FusedGemm": (
        "float[N,8] x",
        f'y = {MS}FusedGemm<activation = "LeakyRelu", activation_alpha = 0.3, alpha = 0.5>(x, gm, v)',
    ),
    "FusedMatMul": (TOKENS, f"y = {MS}FusedMatMul<transB = 1, alpha = 0.25>(x, x)"),
    "FusedMatMul by a constant": (TOKENS, f"y = {MS}FusedMatMul<transB = 1>(x, m)"),
    "FusedMatMul of the first turned": (TOKENS, f"y = {MS}FusedMatMul<transA = 1>(x, x)"),
    "Gelu": (TOKENS, f"y = {MS}Gelu(x)"),
    "BiasGelu": (TOKENS, f"y = {MS}BiasGelu(x, b)"),
    "FastGelu": (TOKENS, f"y = {MS}FastGelu(x, b)"),
    "FastGelu without bias": (TOKENS, f"y = {MS}FastGelu(x)"),
    "QuickGelu": (TOKENS, f"y = {MS}QuickGelu(x)"),
    "QuickGelu that is SiLU": (TOKENS, f"y = {MS}QuickGelu<alpha = 1.0>(x)"),
    "LayerNormalization": (TOKENS, "y = LayerNormalization<axis = -1, epsilon = 0.01>(x, g, b)"),
    "LayerNormalization without shift": (TOKENS, "y = LayerNormalization<axis = 2>(x, g)"),
    "SimplifiedLayerNormalization": (TOKENS, "y = SimplifiedLayerNormalization<epsilon = 0.01>(x, g)"),
    "SkipLayerNormalization": (TOKENS, f"y = {MS}SkipLayerNormalization<epsilon = 0.01>(x, x, g, b)"),
    "SkipLayerNormalization that keeps its sum": (
        TOKENS, f"a, , , c = {MS}SkipLayerNormalization(x, x, g, b, g) y = Add(a, c)",
    ),
    "SkipSimplifiedLayerNormalization": (
        TOKENS, f"a, , , c = {MS}SkipSimplifiedLayerNormalization(x, x, g, b) y = Add(a, c)",
    ),
    "Attention": (TOKENS, f"y = {MS}Attention<num_heads = 2>(x, qkv, qb)"),
    "Attention with positions": (
        TOKENS, f"y = {MS}Attention<num_heads = 2, scale = 0.3>(x, qkv, qb, , , p)",
    ),
    "MultiHeadAttention": (TOKENS, f"y = {MS}MultiHeadAttention<num_heads = 2>(x, x, x)"),
    "MultiHeadAttention with bias": (
        TOKENS, f"y = {MS}MultiHeadAttention<num_heads = 2>(x, x, x, qb, , p)",
    ),
}  # fmt: skip


def model(read: str, body: str, opset: int) -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]>
        net ({read}) => (float y) {{ {body} }}"""
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    made.graph.initializer.extend(
        numpy_helper.from_array(rng.standard_normal(sides).astype(np.float32), name)
        for name, sides in SIDES.items()
    )
    return made


def run(made: onnx.ModelProto) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (one,) = session.get_inputs()
    sides = [side if isinstance(side, int) else 2 for side in one.shape]
    values = np.random.default_rng(1).standard_normal(sides).astype(np.float32)
    found: NDArray[np.float32] = session.run(None, {one.name: values})[0]
    return found


@pytest.mark.parametrize("opset", [10, 13, 16, 18])
@pytest.mark.parametrize("name", CASES)
def test_what_is_written_computes_the_same(name: str, opset: int) -> None:
    read, body = CASES[name]
    made = model(read, body, opset)
    expected = run(made)
    count = write_contributed(made)
    assert count == (0 if name.startswith("LayerNorm") and opset > 16 else 1)
    assert all(node.domain == "" for node in made.graph.node)
    made.graph.output[0].type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(made)
    np.testing.assert_allclose(run(made), expected, rtol=2e-4, atol=2e-5)


STAYS = {
    "an operator that nobody wrote": f"y = {MS}CDist(x, x)",
    "a mask": f"y = {MS}Attention<num_heads = 2>(x, qkv, qb, k)",
    "batches that are turned": f"y = {MS}FusedMatMul<transBatchA = 1>(x, x)",
    "an activation that nobody wrote": f'y = {MS}FusedGemm<activation = "Elu">(x, gm, v)',
    "statistics of training": f"y, mean = {MS}SkipLayerNormalization(x, x, g, b)",
}


@pytest.mark.parametrize("name", STAYS)
def test_what_has_no_form_of_onnx_stays(name: str) -> None:
    made = model(TOKENS, STAYS[name], 17)
    before = made.SerializeToString()
    assert write_contributed(made) == 0
    assert made.SerializeToString() == before


def test_a_layer_keeps_the_name_of_its_node() -> None:
    made = model(IMAGE, f'[stem] y = {MS}FusedConv<activation = "Relu">(x, w)', 17)
    write_contributed(made)
    assert (made.graph.node[0].op_type, made.graph.node[0].name) == ("Conv", "stem")
    assert len({node.name for node in made.graph.node}) == len(made.graph.node)
