"""For each rule, the smallest graph that breaks it and one that does not."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx

PAIR = """g (float[1,4] x) => (float[1,4] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    y = Relu(d)
}"""
CONV = """g (float[1,32,8,8] x) => (float[1,32,8,8] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    c = DequantizeLinear<axis=0>(w, ws, wz)
    t = Conv<pads=[1,1,1,1]>(d, c)
    y = Relu(t)
}"""
ATTENTION = """g (TYPE[1,4,32,32] q, TYPE[1,4,32,32] k, TYPE[1,4,32,32] v) => (TYPE[1,4,32,32] y) {
    QUANTIZE
    a = MatMul(KEY, k)
    m = Mul(a, root)
    p = Softmax(m)
    y = MatMul(p, v)
}"""
RESIDUAL = """g (float[1,32,8,8] x) => (float[1,32,8,8] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    c = DequantizeLinear<axis=0>(w, ws, wz)
    t = Conv<pads=[1,1,1,1]>(d, c)
    BRANCH
    h = Relu(SKIP)
    u = Add(SUM)
    r = Relu(u)
    e = QuantizeLinear(r, s, z)
    f = DequantizeLinear(e, s, z)
    v = Conv<pads=[1,1,1,1]>(f, c)
    y = Relu(v)
}"""
JOIN = """g (float[1,16,8,8] x) => (float[1,32,8,8] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    k = Sigmoid(x)
    r = QuantizeLinear(k, s2, z)
    e = DequantizeLinear(r, s2, z)
    j = Concat<axis=1>(d, e)
    c = DequantizeLinear<axis=0>(w, ws, wz)
    t = Conv<pads=[1,1,1,1]>(j, c)
    y = Relu(t)
}"""
PADDED = """g (float[1,32,8,8] x) => (float[1,32,8,8] y) {
    p = Pad(x, pads)
    q = QuantizeLinear(p, s, z)
    d = DequantizeLinear(q, s, z)
    c = DequantizeLinear<axis=0>(w, ws, wz)
    t = Conv(d, c)
    y = Relu(t)
}"""
HEADS = """g (float[1,8,32] x) => (float[1,8,3,2,16] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    c = DequantizeLinear<axis=1>(w, ws, wz)
    m = MatMul(d, c)
    FIRST
    LAST
}"""
DECONV = """g (float[1,32,8,8] x) => (float[1,32,9,9] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    c = DequantizeLinear<axis=1>(w, ws, wz)
    t = ConvTranspose(DATA, c)
    y = Relu(t)
}"""
ZERO, STEP = np.int8(0), np.float32(0.05)
GRID = {"s": STEP, "z": ZERO}
_RANDOM = np.random.default_rng(0)


def weight(*shape: int, axis: int = 0) -> dict[str, object]:
    """Codes, scales and zero points of a weight."""
    return {
        "w": _RANDOM.integers(-127, 128, shape).astype(np.int8),
        "ws": np.full(shape[axis], 0.002, np.float32),
        "wz": np.zeros(shape[axis], np.int8),
    }


CONSTANTS = {**GRID, **weight(32, 32, 3, 3)}


@dataclass(frozen=True)
class Case:
    """A graph that breaks `rule`, and one that does not; both as text and constants."""

    rule: str
    broken: str
    broken_constants: dict[str, object]
    sound: str
    sound_constants: dict[str, object]
    broken_opset: int = 19
    sound_opset: int = 19
    expected: int = field(default=1)


def tensor(name: str, kind: int, shape: list[int], values: list[float]) -> onnx.TensorProto:
    """A constant of a type that NumPy does not have."""
    return onnx.helper.make_tensor(name, kind, shape, values)


FP8 = tensor("z", onnx.TensorProto.FLOAT8E4M3FN, [], [0.0])
E5M2 = tensor("z", onnx.TensorProto.FLOAT8E5M2, [], [0.0])
TWO = {"sa": np.float32(0.04), "sb": np.float32(0.05)}
QLINEAR = PAIR.replace("y = Relu(d)", "r = ConvInteger(q, q)\n y = Relu(d)")
BIAS = PAIR.replace("y = Relu(d)", "b = DequantizeLinear(i, s)\n y = Add(d, b)")
INTEGERS = np.arange(4, dtype=np.int32)
HALF_WEIGHT = CONV.replace("Conv<pads=[1,1,1,1]>(d, c)", "Conv<pads=[1,1,1,1]>(x, c)")
SKIP = RESIDUAL.replace("BRANCH", "").replace("SKIP", "x")
BRANCH = "bq = QuantizeLinear(t, s2, z)\n b = DequantizeLinear(bq, s2, z)"
FLOAT_SKIP = SKIP.replace("SUM", "t, h")
QUANTIZED_SKIP = SKIP.replace("SUM", "t, d").replace("h = Relu(x)", "")
BOTH = RESIDUAL.replace("BRANCH", BRANCH).replace("h = Relu(SKIP)", "").replace("SUM", "b, d")
FLOAT32 = ATTENTION.replace("TYPE", "float").replace("QUANTIZE", "").replace("KEY", "q")
FLOAT16 = FLOAT32.replace("float", "float16")
ATTENTION_PAIRS = """c = QuantizeLinear(q, s, z)
    d = DequantizeLinear(c, s, z)
    e = QuantizeLinear(k, s, z)
    f = DequantizeLinear(e, s, z)"""
QUANTIZED = (
    ATTENTION.replace("TYPE", "float16")
    .replace("QUANTIZE", ATTENTION_PAIRS)
    .replace("(KEY, k)", "(d, f)")
)
ALL_FP8 = QUANTIZED.replace(
    "y = MatMul(",
    """pq = QuantizeLinear(p, s, z)
    pd = DequantizeLinear(pq, s, z)
    vq = QuantizeLinear(v, s, z)
    vd = DequantizeLinear(vq, s, z)
    y = MatMul(""",
).replace("MatMul(p, v)", "MatMul(pd, vd)")
OUTPUT = PAIR.replace("d = Deq", "y = Deq").replace("y = Relu(d)", "")
FLOAT_CONV = "g (float[1,4,8,8] x) => (float[1,4,6,6] y) { y = Conv(x, w) }"
BIAS_FIRST = HEADS.replace("FIRST", "a = Add(m, b)").replace("LAST", "y = Reshape(a, shape)")
BIAS_LAST = HEADS.replace("FIRST", "a = Reshape(m, shape)").replace("LAST", "y = Add(a, b)")
HEAD_CONSTANTS = {**GRID, **weight(32, 96, axis=1), "shape": np.array([0, 0, 3, 2, 16])}
COMPUTED = PAIR.replace("q = Q", "s = ReduceMax<keepdims=0>(x)\n q = Q")
ROOT = {"root": np.float16(0.2)}
BRANCHES = """g (float[1,4] x, bool c) => (float[1,4] y) {
    y = If(c) <
        then_branch = a () => (float[1,4] t) { t = Relu(x) },
        else_branch = b () => (float[1,4] e) { e = Sigmoid(x) }
    >
}"""
DEPTHWISE = (
    CONV.replace("y = Relu(t)", "y = Conv<group=32>(t, f)"),
    {**CONSTANTS, "f": np.ones((32, 1, 1, 1), np.float32)},
)

ERRORS = [
    Case("zero-point", PAIR, {"s": STEP, "z": np.int8(3)}, PAIR, GRID),
    Case("zero-point", PAIR, {"s": STEP, "z": np.uint8(128)}, PAIR, GRID),
    Case("integer-bias", BIAS, {**GRID, "i": INTEGERS}, BIAS, {**GRID, "i": np.int8(INTEGERS)}),
    Case("code-type", PAIR, {"s": STEP, "z": np.int16(0)}, PAIR, GRID, 21),
    Case("code-type", PAIR, {"s": STEP, "z": E5M2}, PAIR, {"s": STEP, "z": FP8}),
    Case("scale-not-positive", PAIR, {"s": np.float32(0), "z": ZERO}, PAIR, GRID),
    Case("scale-not-positive", PAIR, {"s": np.float32(-1), "z": ZERO}, PAIR, GRID),
    Case("scale-not-positive", PAIR, {"s": np.float32(np.nan), "z": ZERO}, PAIR, GRID),
    Case(
        "dynamic-quantization",
        "g (float[1,4] x) => (float[1,4] y) {\n q, s, z = DynamicQuantizeLinear(x)\n"
        " d = DequantizeLinear(q, s, z)\n y = Relu(d)\n}",
        {},
        PAIR,
        GRID,
    ),
    Case(
        "runtime-operator",
        PAIR.replace("y = Relu(d)", "y = com.microsoft.QuickGelu(d)"), GRID, PAIR, GRID,
    ),
    Case(
        "runtime-operator",
        PAIR.replace("y = Relu(d)", "y = com.microsoft.CDist(d, d)"), GRID, PAIR, GRID,
    ),
    Case(
        "operator-format",
        PAIR.replace("d = Deq", "m = QLinearMatMul(q, s, z, w, s, z, s, z)\n d = Deq")
        .replace("DequantizeLinear(q", "DequantizeLinear(m"),
        {**GRID, "w": np.ones((4, 4), np.int8)},
        PAIR,
        GRID,
    ),
]  # fmt: skip
OTHERS = [
    Case(
        "fake-quantization",
        "g (float[1,4] x) => (float[1,4] y) {\n d = Div(x, s)\n r = Round(d)\n c = Clip(r, l, h)\n"
        " m = Mul(c, s)\n y = Relu(m)\n}",
        {"s": STEP, "l": np.float32(-128), "h": np.float32(127)},
        PAIR,
        GRID,
    ),
    Case("uint8", PAIR, {"s": STEP, "z": np.uint8(0)}, PAIR, GRID),
    Case("uint8", PAIR.replace(", s, z", ", s"), {"s": STEP}, PAIR, GRID),
    Case("computed-scale", COMPUTED, {"z": ZERO}, PAIR, GRID, 17, expected=2),
    Case("tiny-scale", PAIR, {"s": np.float32(1e-40), "z": ZERO}, PAIR, GRID),
    Case(
        "tiny-scale",
        PAIR.replace("float", "float16"), {"s": np.float16(1e-6), "z": ZERO},
        PAIR.replace("float", "float16"), {"s": np.float16(1e-4), "z": ZERO},
    ),
    Case("low-bits", PAIR, {"s": STEP, "z": FP8}, PAIR, GRID),
    Case("opset", PAIR, GRID, PAIR, GRID, 21, 20),
    Case(
        "per-channel-opset",
        PAIR, {"s": np.full(4, 0.1, np.float32), "z": np.zeros(4, np.int8)}, PAIR, GRID, 10,
        expected=2,
    ),
    Case(
        "not-quantized",
        FLOAT_CONV, {"w": np.ones((4, 4, 3, 3), np.float32)}, CONV, CONSTANTS,
    ),
    Case(
        "fp32-remainder",
        CONV, CONSTANTS,
        CONV.replace("float", "float16"),
        {**CONSTANTS, "s": np.float16(STEP), "ws": np.full(32, 0.002, np.float16)},
    ),
    Case("dynamic-shape", PAIR.replace("[1,4] x", "[N,4] x"), GRID, PAIR, GRID),
    Case("control-flow", BRANCHES, {}, PAIR, GRID),
    Case(
        "per-tensor-weight",
        CONV, {**CONSTANTS, "ws": np.float32(0.002), "wz": ZERO}, CONV, CONSTANTS,
    ),
    Case(
        "per-tensor-weight",
        CONV, {**CONSTANTS, "ws": np.float32(0.002), "wz": ZERO},
        CONV, {**CONSTANTS, "ws": np.float32(0.002), "wz": ZERO, "form": "multiplier"},
    ),
    Case("multiplier-form", CONV, {**CONSTANTS, "form": "multiplier"},
         CONV, {**CONSTANTS, "form": "half-scales"}),
    Case(
        "float-layer", *DEPTHWISE,
        DEPTHWISE[0], {**DEPTHWISE[1], "form": "multiplier"},
    ),
    Case(
        "float-layer",
        CONV.replace("y = Relu(t)", "y = Conv(t, f)"),
        {**CONSTANTS, "f": np.ones((32, 32, 1, 1), np.float32)}, CONV, CONSTANTS,
    ),
    Case("output-pair", OUTPUT, GRID, PAIR, GRID),
    Case("pad-before-pair", PADDED,
         {**CONSTANTS, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, CONV, CONSTANTS),
    Case("float-skip", FLOAT_SKIP, CONSTANTS, QUANTIZED_SKIP, CONSTANTS),
    Case(
        "float-skip",
        FLOAT_SKIP.replace("u = ", "m = Mul(alpha, h)\n u = ").replace("t, h", "t, m"),
        {**CONSTANTS, "alpha": np.float32(0.7)},
        QUANTIZED_SKIP.replace("t, d", "t, m").replace("u = ", "m = Mul(alpha, d)\n u = "),
        {**CONSTANTS, "alpha": np.float32(0.7)},
    ),
    Case("branch-pair", BOTH, {**CONSTANTS, "s2": np.float32(0.07)}, QUANTIZED_SKIP, CONSTANTS),
    Case("bias-before-heads", BIAS_FIRST, {**HEAD_CONSTANTS, "b": np.ones(96, np.float32)},
         BIAS_LAST, {**HEAD_CONSTANTS, "b": np.ones((3, 2, 16), np.float32)}),
]  # fmt: skip
# What runs in float or loses its fusion in TensorRT-RTX, and what does not.
IN_FLOAT = [
    Case("half-quantized", HALF_WEIGHT, CONSTANTS, CONV, CONSTANTS),
    Case(
        "half-quantized",
        CONV.replace("(d, c)", "(d, f)"),
        {**CONSTANTS, "f": np.ones((32, 32, 3, 3), np.float32)}, CONV, CONSTANTS,
    ),
    Case(
        "weight-axis",
        CONV.replace("axis=0", "axis=1"),
        {**CONSTANTS, "ws": np.linspace(0.001, 0.003, 32)}, CONV, CONSTANTS,
    ),
    Case(
        "per-channel-activation",
        CONV, {**CONSTANTS, "s": np.linspace(0.01, 0.1, 32), "z": np.zeros(32, np.int8)},
        CONV, CONSTANTS,
    ),
    Case("untied-concat", JOIN, {**CONSTANTS, "s2": np.float32(0.01)},
         JOIN, {**CONSTANTS, "s2": STEP}),
    Case("conv-transpose", DECONV.replace("DATA", "d"),
         {**GRID, **weight(32, 32, 2, 2, axis=1)}, CONV, CONSTANTS),
]  # fmt: skip
ONE_SIDE = QUANTIZED.replace("(d, f)", "(d, k)")
QUANTIZED_CONSTANTS = {"s": np.float16(0.05), "z": ZERO, **ROOT}
FP8_CONSTANTS = {**QUANTIZED_CONSTANTS, "z": FP8}
ATTENTIONS = [
    Case("attention-pair", QUANTIZED, QUANTIZED_CONSTANTS, FLOAT16, ROOT),
    Case("attention-pair", QUANTIZED, QUANTIZED_CONSTANTS, ONE_SIDE, QUANTIZED_CONSTANTS),
    Case("attention-pair", QUANTIZED, FP8_CONSTANTS, ALL_FP8, FP8_CONSTANTS),
    Case("float32-attention", FLOAT32, {"root": np.float32(0.2)}, FLOAT16, ROOT),
]
EVERY = [*ERRORS, *OTHERS, *IN_FLOAT, *ATTENTIONS]
