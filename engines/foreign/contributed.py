"""ONNX Runtime's own operators, as its optimizer writes them, in ONNX's: TensorRT has only those.

What they compute: ContribOperators.md of microsoft/onnxruntime. Operators that are not in the table, and forms
that need more than others say (masks, caches), stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from reptrt.engines.foreign.opset import opset_of

DOMAIN = "com.microsoft"
_FIRST_LAYER_NORM = 17
_FIRST_RMS_NORM = 23
_AXES_ARE_INPUT = 18
_LIMITS_ARE_INPUT = 11

Array = NDArray[Any]
Shapes = Callable[[str], Sequence[object] | None]


class _CannotWriteError(ValueError):
    """A form of an operator that ONNX's operators do not have."""


def write_contributed(model: onnx.ModelProto) -> int:
    """Write ONNX Runtime's operators of the main graph by ONNX's, in place; return how many.

    LayerNormalization counts as one before opset 17, which has it first. Names of nodes stay; what
    comes beside them is called after them.
    """
    opset = opset_of(model)
    sites = [node for node in model.graph.node if _is_site(node, opset)]
    if not sites:
        return 0
    writer, done = _Writer(model, opset, _Shapes(model, sites)), 0
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        written = writer.write(node) if _is_site(node, opset) else None
        done += written is not None
        nodes.extend([node] if written is None else written)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {node.domain for node in kept}
    versions = [one for one in model.opset_import if one.domain != DOMAIN or DOMAIN in used]
    del model.opset_import[:]
    model.opset_import.extend(versions)
    return done


def is_contributed(op_type: str, domain: str, opset: int) -> bool:
    """Whether an operator is one of those that are written, in most of its forms."""
    if domain == DOMAIN:
        return op_type in _RULES
    is_early = op_type == "LayerNormalization" and opset < _FIRST_LAYER_NORM
    return domain in ("", "ai.onnx") and (is_early or op_type == "SimplifiedLayerNormalization")


def _is_site(node: onnx.NodeProto, opset: int) -> bool:
    return is_contributed(node.op_type, node.domain, opset)


class _Shapes:
    """Sides of tensors as ONNX Runtime infers them; names stand for open ones."""

    def __init__(self, model: onnx.ModelProto, sites: Sequence[onnx.NodeProto]) -> None:
        self._model = model
        self._names = [name for node in sites for name in node.input if name]
        self._found: dict[str, Sequence[object]] | None = None

    def __call__(self, name: str) -> Sequence[object] | None:
        """Sides of a tensor that one of the sites reads; None where nothing is known."""
        if self._found is None:
            self._found = self._infer()
        return self._found.get(name)

    def _infer(self) -> dict[str, Sequence[object]]:
        import onnxruntime  # here: a device that builds engines does not need it

        marked = onnx.ModelProto()
        marked.CopyFrom(self._model)
        present = {value.name for value in [*marked.graph.output, *marked.graph.input]}
        present |= {tensor.name for tensor in marked.graph.initializer}
        new = [name for name in dict.fromkeys(self._names) if name not in present]
        marked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in new)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = onnxruntime.InferenceSession(
                marked.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception:  # its errors have no common class; whoever runs the model says more
            return {}
        known = [*session.get_inputs(), *session.get_outputs()]
        return {one.name: one.shape for one in known if one.shape}


class _Writer:
    """Writes one node after the other by ONNX's operators."""

    def __init__(self, model: onnx.ModelProto, opset: int, shapes: Shapes) -> None:
        self.opset, self.shapes = opset, shapes
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self._taken = {name for node in model.graph.node for name in (node.name, *node.output)}
        self._taken |= set(self.constants)
        self._nodes: list[onnx.NodeProto] = []
        self._stem = ""

    def write(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """The nodes that compute what `node` does; None where its form is none that is known."""
        self._nodes, self._stem = [], node.name or node.output[0]
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        try:
            made = _RULES[node.op_type](self, list(node.input), attributes)
        except _CannotWriteError:
            return None
        results = [made] if isinstance(made, str) else list(made)
        outputs = list(node.output)
        if any(outputs[len(results) :]) or any(
            name and not result for name, result in zip(outputs, results, strict=False)
        ):
            return None  # a result that only training reads
        pairs = zip(results, outputs, strict=False)
        renamed = {result: name for result, name in pairs if name}
        for one in self._nodes:
            one.input[:] = [renamed.get(name, name) for name in one.input]
            one.output[:] = [renamed.get(name, name) for name in one.output]
        main = next((one for one in self._nodes if one.op_type in _LAYERS), self._nodes[-1])
        main.name = node.name
        return self._nodes

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of one output and return that."""
        output = self._fresh(f"{self._stem}_{op_type.lower()}")
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self._nodes.append(helper.make_node(op_type, inputs, [output], output, **attributes))
        return output

    def constant(self, values: Array | float, dtype: type = np.float32) -> str:
        """A constant of the graph."""
        tensor = numpy_helper.from_array(np.asarray(values, dtype))
        return self.add("Constant", value=tensor)

    def value(self, name: str) -> Array:
        """What a constant input holds."""
        if name not in self.constants:
            raise _CannotWriteError
        return numpy_helper.to_array(self.constants[name])

    def sides(self, name: str) -> Sequence[object]:
        """The sides of an input, open ones by name."""
        found = self.constants[name].dims if name in self.constants else self.shapes(name)
        if found is None:
            raise _CannotWriteError
        return list(found)

    def mean(self, x: str, axes: Sequence[int]) -> str:
        """The mean of `x` over `axes`, which stay as sides of 1."""
        if self.opset < _AXES_ARE_INPUT:
            return self.add("ReduceMean", x, axes=list(axes))
        return self.add("ReduceMean", x, self.constant(np.array(axes), np.int64))

    def _fresh(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate


Attributes = Mapping[str, Any]
_LAYERS = {"Conv", "Gemm", "MatMul", "LayerNormalization"}
_OF_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _at(inputs: Sequence[str], index: int) -> str:
    return inputs[index] if index < len(inputs) else ""


def _activate(w: _Writer, x: str, kind: bytes, numbers: Sequence[float]) -> str:
    """The function `kind` of `x`, with its parameters in ONNX's order."""
    name = kind.decode()
    if name in ("", "Relu", "Sigmoid", "Tanh", "HardSwish"):
        return w.add(name, x) if name else x
    if name == "LeakyRelu":
        return w.add(name, x, alpha=float(numbers[0]))
    if name == "HardSigmoid":
        return w.add(name, x, alpha=float(numbers[0]), beta=float(numbers[1]))
    if name != "Clip":
        raise _CannotWriteError
    if w.opset < _LIMITS_ARE_INPUT:
        return w.add("Clip", x, min=float(numbers[0]), max=float(numbers[1]))
    return w.add("Clip", x, w.constant(numbers[0]), w.constant(numbers[1]))


def _fused_conv(w: _Writer, inputs: list[str], attributes: Attributes) -> str:
    stated = {key: attributes[key] for key in _OF_CONV if key in attributes}
    y = w.add("Conv", *inputs[:3], **stated)
    if _at(inputs, 3):
        y = w.add("Add", y, inputs[3])
    numbers = attributes.get("activation_params", ())
    return _activate(w, y, attributes.get("activation", b""), numbers)


def _fused_gemm(w: _Writer, inputs: list[str], attributes: Attributes) -> str:
    stated = {
        key: attributes[key] for key in ("alpha", "beta", "transA", "transB") if key in attributes
    }
    y = w.add("Gemm", *inputs, **stated)
    names = ("activation_alpha", "activation_beta")
    numbers = [float(attributes[name]) for name in names if name in attributes]
    return _activate(w, y, attributes.get("activation", b""), numbers)


def _fused_product(w: _Writer, inputs: list[str], attributes: Attributes) -> str:
    if attributes.get("transBatchA") or attributes.get("transBatchB"):
        raise _CannotWriteError
    turned = [
        _turned(w, name) if attributes.get(key) else name
        for name, key in zip(inputs, ("transA", "transB"), strict=True)
    ]
    y = w.add("MatMul", *turned)
    alpha = float(attributes.get("alpha", 1.0))
    return y if alpha == 1.0 else w.add("Mul", y, w.constant(alpha))


def _turned(w: _Writer, name: str) -> str:
    """A tensor with its last two axes in the other order; one axis stays."""
    rank = len(w.sides(name))
    if rank < 2:
        return name
    return w.add("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])


def _gelu(w: _Writer, inputs: list[str], attributes: Attributes) -> str:
    """Half of x * (1 + erf(x / sqrt(2))), as PyTorch's exporters write it; of a sum, if there is a bias."""
    x = w.add("Add", *inputs) if _at(inputs, 1) else inputs[0]
    erf = w.add("Erf", w.add("Div", x, w.constant(math.sqrt(2))))
    doubled = w.add("Mul", x, w.add("Add", erf, w.constant(1.0)))
    return w.add("Mul", doubled, w.constant(0.5))


def _fast_gelu(w: _Writer, inputs: list[str], attributes: Attributes) -> str:
    """Half of x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
    x = w.add("Add", *inputs) if _at(inputs, 1) else inputs[0]
    cubed = w.add("Mul", w.add("Mul", w.add("Mul", x, x), x), w.constant(0.044715))
    inner = w.add("Mul", w.add("Add", x, cubed), w.constant(math.sqrt(2 / math.pi)))
    doubled = w.add("Mul", x, w.add("Add", w.add("Tanh", inner), w.constant(1.0)))
    return w.add("Mul", doubled, w.constant(0.5))


def _quick_gelu(w: _Writer, inputs: list[str], attributes: Attributes) -> str:
    alpha = float(attributes.get("alpha", 1.702))
    x = inputs[0]
    scaled = x if alpha == 1.0 else w.add("Mul", x, w.constant(alpha))
    return w.add("Mul", x, w.add("Sigmoid", scaled))


def _sum(w: _Writer, inputs: list[str], attributes: Attributes) -> str:
    y = inputs[0]
    for name in filter(None, inputs[1:]):
        y = w.add("Add", y, name)
    return y


def _layer_norm(w: _Writer, inputs: list[str], attributes: Attributes) -> str:
    """In parts before opset 17, as PyTorch's exporters write it."""
    x, gamma, beta = inputs[0], inputs[1], _at(inputs, 2)
    axis, epsilon = int(attributes.get("axis", -1)), float(attributes.get("epsilon", 1e-5))
    if w.opset >= _FIRST_LAYER_NORM:
        return w.add("LayerNormalization", x, gamma, beta, axis=axis, epsilon=epsilon)
    first = axis if axis < 0 else axis - len(w.sides(x))
    axes = list(range(first, 0))
    centred = w.add("Sub", x, w.mean(x, axes))
    variance = w.mean(w.add("Mul", centred, centred), axes)
    root = w.add("Sqrt", w.add("Add", variance, w.constant(epsilon)))
    scaled = w.add("Mul", w.add("Div", centred, root), gamma)
    if not beta:
        beta = w.constant(np.zeros([int(str(side)) for side in w.sides(gamma)]))
    return w.add("Add", scaled, beta)


def _rms_norm(w: _Writer, inputs: list[str], attributes: Attributes) -> str:
    x, gamma = inputs[:2]
    axis, epsilon = int(attributes.get("axis", -1)), float(attributes.get("epsilon", 1e-5))
    if w.opset >= _FIRST_RMS_NORM:
        return w.add("RMSNormalization", x, gamma, axis=axis, epsilon=epsilon)
    first = axis if axis < 0 else axis - len(w.sides(x))
    square = w.mean(w.add("Mul", x, x), list(range(first, 0)))
    root = w.add("Sqrt", w.add("Add", square, w.constant(epsilon)))
    return w.add("Mul", w.add("Div", x, root), gamma)


def _skip_layer_norm(
    w: _Writer, inputs: list[str], attributes: Attributes
) -> tuple[str, str, str, str]:
    """LayerNormalization of a sum, which is its fourth output."""
    total = _sum(w, [inputs[0], inputs[1], _at(inputs, 4)], {})
    stated = {"epsilon": attributes.get("epsilon", 1e-12)}
    return _layer_norm(w, [total, inputs[2], _at(inputs, 3)], stated), "", "", total


def _skip_rms_norm(
    w: _Writer, inputs: list[str], attributes: Attributes
) -> tuple[str, str, str, str]:
    total = _sum(w, [inputs[0], inputs[1], _at(inputs, 3)], {})
    stated = {"epsilon": attributes.get("epsilon", 1e-12)}
    return _rms_norm(w, [total, inputs[2]], stated), "", "", total


def _attention(w: _Writer, inputs: list[str], attributes: Attributes) -> str:
    """Self-attention of [N, tokens, channels]; queries, keys and values are one product."""
    rest = [name for index, name in enumerate(inputs) if index > 2 and index != 5]
    if any(rest) or attributes.get("unidirectional") or attributes.get("do_rotary"):
        raise _CannotWriteError
    weight = w.value(inputs[1])
    bias = w.value(inputs[2]) if _at(inputs, 2) else np.zeros(weight.shape[1], weight.dtype)
    sizes = attributes.get("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
    ends = np.cumsum(sizes)[:2]
    parts = zip(np.split(weight, ends, 1), np.split(bias, ends), strict=True)
    q, k, v = (
        w.add("Add", w.add("MatMul", inputs[0], w.constant(matrix)), w.constant(vector))
        for matrix, vector in parts
    )
    head = int(sizes[0]) // int(attributes["num_heads"])
    return _attend(w, (q, k, v), head, _at(inputs, 5), attributes)


def _multi_head_attention(w: _Writer, inputs: list[str], attributes: Attributes) -> str:
    """Attention of [N, tokens, channels] that are queries, keys and values already."""
    rest = [name for index, name in enumerate(inputs) if index == 4 or index > 5]
    if any(rest) or attributes.get("unidirectional") or not all(inputs[:3]):
        raise _CannotWriteError
    sides = [w.sides(name) for name in inputs[:3]]
    widths = [shape[-1] for shape in sides]
    if any(len(shape) != 3 for shape in sides) or not all(isinstance(one, int) for one in widths):
        raise _CannotWriteError
    names = list(inputs[:3])
    if _at(inputs, 3):
        ends = np.cumsum([int(str(one)) for one in widths])[:2]
        vectors = np.split(w.value(inputs[3]), ends)
        names = [w.add("Add", x, w.constant(b)) for x, b in zip(names, vectors, strict=True)]
    head = int(str(widths[0])) // int(attributes["num_heads"])
    return _attend(w, (names[0], names[1], names[2]), head, _at(inputs, 5), attributes)


def _attend(
    w: _Writer, qkv: tuple[str, str, str], head: int, added: str, attributes: Attributes
) -> str:
    """softmax(scale * Q K^T + added) V, by heads of `head` channels."""
    shape = np.array([0, 0, int(attributes["num_heads"]), -1])
    q, k, v = (w.add("Reshape", one, w.constant(shape, np.int64)) for one in qkv)
    q, v = (w.add("Transpose", one, perm=[0, 2, 1, 3]) for one in (q, v))
    scores = w.add("MatMul", q, w.add("Transpose", k, perm=[0, 2, 3, 1]))
    scale = float(attributes.get("scale") or 1 / math.sqrt(head))
    scores = w.add("Mul", scores, w.constant(scale))
    scores = w.add("Add", scores, added) if added else scores
    mixed = w.add("MatMul", w.add("Softmax", scores, axis=-1), v)
    turned = w.add("Transpose", mixed, perm=[0, 2, 1, 3])
    return w.add("Reshape", turned, w.constant(np.array([0, 0, -1]), np.int64))


_RULES: dict[str, Callable[[_Writer, list[str], Attributes], str | Sequence[str]]] = {
    "Attention": _attention,
    "BiasAdd": _sum,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_product,
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
    "MultiHeadAttention": _multi_head_attention,
    "QuickGelu": _quick_gelu,
    "SimplifiedLayerNormalization": _rms_norm,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_rms_norm,
    "TransposeMatMul": _fused_product,
}
