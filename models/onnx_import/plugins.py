"""Operators at the end of a file that nobody here can run: plugins of TensorRT, as for suppressing boxes.

Nor does an engine return text, sequences or maps, as classifiers of scikit-learn do. The network is cut in front of
them, and its outputs are what they read.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

_RUN = ("", "ai.onnx", "com.microsoft", "ai.onnx.ml", "ai.onnx.contrib")
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}


def cut_plugins(proto: onnx.ModelProto) -> tuple[str, ...]:
    """End `proto` in front of the operators that ONNX Runtime does not have, or that no engine has, in place.

    Returns:
        Why; nothing where there is none, or where layers follow them.
    """
    nodes = list(proto.graph.node)
    others = {value.name for value in proto.graph.output if not _is_numbers(value)}
    unknown = [node for node in nodes if not _is_known(node)]
    written = [node for node in nodes if others.intersection(node.output) and node not in unknown]
    if not unknown and not written:
        return ()
    lost, tensors = _behind(nodes, others)
    kept = [node for node in nodes if not tensors.intersection(node.output)]
    weights = {tensor.name for tensor in proto.graph.initializer}
    if any(node.op_type in _LAYERS and weights.intersection(node.input) for node in lost):
        return ()
    if not any(node.op_type in _LAYERS for node in kept):
        return ()
    made = {name for node in kept for name in node.output if name}
    read = dict.fromkeys(name for node in lost for name in node.input if name in made)
    outputs = [value for value in proto.graph.output if value.name not in tensors]
    names = [name for name in read if name not in {value.name for value in outputs}]
    if not outputs and not names:
        return ()
    reasons = (
        ("ONNX Runtime does not have", unknown),
        ("no engine returns the text, sequences or maps of", written),
    )
    _keep(proto, kept, outputs, names)
    return tuple(f"{why} {_shown(nodes)}" for why, nodes in reasons if nodes)


def _shown(nodes: Sequence[onnx.NodeProto]) -> str:
    return ", ".join(f"{node.op_type} {node.name!r}".removesuffix(" ''") for node in nodes)


def _is_numbers(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.WhichOneof("value")
    is_text = value.type.tensor_type.elem_type == onnx.TensorProto.STRING
    return kind in (None, "tensor_type") and not is_text


def _is_known(node: onnx.NodeProto) -> bool:
    """Whether ONNX Runtime may have it: it alone knows what it has in its own domains."""
    if node.domain not in ("", "ai.onnx"):
        return node.domain in _RUN
    return bool(onnx.defs.has(node.op_type))


def _behind(
    nodes: Sequence[onnx.NodeProto], others: set[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that ONNX Runtime does not have, those that make `others`, all that follow, and what these make."""
    lost: list[onnx.NodeProto] = []
    tensors = set[str]()
    for node in nodes:
        is_lost = not _is_known(node) or bool(others.intersection(node.output))
        if is_lost or tensors.intersection(node.input):
            lost.append(node)
            tensors.update(filter(None, node.output))
    return lost, tensors


def _keep(
    proto: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    outputs: list[onnx.ValueInfoProto],
    names: list[str],
) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    del proto.graph.node[:], proto.graph.output[:]
    proto.graph.node.extend(copies)
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    known = {value.name: value for value in (*proto.graph.value_info, *inferred.value_info)}
    new = [known.get(name) or onnx.ValueInfoProto(name=name) for name in names]
    proto.graph.output.extend([*kept, *new])
    used = {node.domain for node in copies}
    versions = [one for one in proto.opset_import if one.domain in used | {"", "ai.onnx"}]
    del proto.opset_import[:]
    proto.opset_import.extend(versions)
