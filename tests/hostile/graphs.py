"""Small ONNX graphs, and what hostile ones hold."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.hostile.limited import PLANTED
from tests.hostile.strategies import damaged
from tests.onnx_fuzzing import _MUTATIONS, Mutation

OPSETS = [helper.make_opsetid("", 17)]


def quantized_model(size: int = 16, name: str = "") -> onnx.ModelProto:
    """Q/DQ, a convolution with a quantized weight, Concat, Pad and a linear layer.

    `name` stands in the name of every node and tensor but the input.
    """
    rng = np.random.default_rng(0)
    values = {
        "s": np.float32(0.02), "z": np.int8(0), "sw": np.full(8, 0.01, np.float32),
        "zw": np.zeros(8, np.int8), "w": rng.integers(-9, 9, (8, 3, 3, 3)).astype(np.int8),
        "fc": rng.standard_normal((5, 16)).astype(np.float32), "pads": np.zeros(8, np.int64),
    }  # fmt: skip
    rows = [
        ("QuantizeLinear", "image s z", "iq", {}), ("DequantizeLinear", "iq s z", "id", {}),
        ("DequantizeLinear", "w sw zw", "wd", {"axis": 0}),
        ("Conv", "id wd", "c", {"pads": [1, 1, 1, 1]}), ("Relu", "c", "r", {}),
        ("QuantizeLinear", "r s z", "rq", {}), ("DequantizeLinear", "rq s z", "rd", {}),
        ("Pad", "rd pads", "p", {}), ("Concat", "p rd", "j", {"axis": 1}),
        ("Add", "j j", "a", {}), ("GlobalAveragePool", "a", "g", {}),
        ("Flatten", "g", "f", {}), ("Gemm", "f fc", "logits", {"transB": 1}),
    ]  # fmt: skip
    nodes = [
        helper.make_node(
            op, _named(name, inputs), _named(name, output), f"{name}{index}_{op}", **more
        )
        for index, (op, inputs, output, more) in enumerate(rows)
    ]
    return _model(nodes, values, size, name)


def chain(op: str, count: int, **attributes: object) -> onnx.ModelProto:
    """`quantized_model` with `count` nodes `op` before the second quantization."""
    model = quantized_model()
    nodes, tensor = list(model.graph.node), "r"
    new = []
    for index in range(count):
        inputs = [tensor] * (2 if op in {"Add", "Mul"} else 1)
        tensor = f"k{index}"
        new.append(helper.make_node(op, inputs, [tensor], f"chain{index}", **attributes))
    nodes[5].input[0] = tensor
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:5], *new, *nodes[5:]])
    return model


def computed_scale(count: int) -> onnx.ModelProto:
    """`quantized_model` whose first scale is doubled by `count` nodes `Mul(x, x)`."""
    model = quantized_model()
    nodes, tensor = list(model.graph.node), "s"
    new = []
    for index in range(count):
        new.append(helper.make_node("Mul", [tensor, tensor], [f"e{index}"], f"e{index}"))
        tensor = f"e{index}"
    nodes[0].input[1] = tensor
    del model.graph.node[:]
    model.graph.node.extend([*new, *nodes])
    return model


def nested_functions(levels: int, calls: int = 2) -> onnx.ModelProto:
    """`quantized_model` whose Relu calls a function that calls another one `calls` times, and so on."""
    model, opsets = quantized_model(), [*OPSETS, helper.make_opsetid("fd", 1)]
    for level in range(levels):
        body = [helper.make_node("Relu", ["x"], ["y"])]
        if level:
            names = ["x", *(f"t{index}" for index in range(calls - 1)), "y"]
            body = [
                helper.make_node(f"F{level - 1}", [before], [after], domain="fd")
                for before, after in pairwise(names)
            ]
        model.functions.append(helper.make_function("fd", f"F{level}", ["x"], ["y"], body, opsets))
    model.opset_import.append(opsets[1])
    model.graph.node[4].domain, model.graph.node[4].op_type = "fd", f"F{levels - 1}"
    return model


def growing_constant(elements: int) -> onnx.ModelProto:
    """`quantized_model` that adds the largest of `elements` zeros, which it makes of one number."""
    model = quantized_model()
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([elements], np.int64), "hs"))
    graph.node.insert(0, helper.make_node("ConstantOfShape", ["hs"], ["big"]))
    graph.node.insert(1, helper.make_node("ReduceMax", ["big"], ["small"], keepdims=0))
    graph.node[-1].output[0] = "before"
    graph.node.append(helper.make_node("Add", ["before", "small"], ["logits"]))
    return model


def _plant_names(model: onnx.ModelProto, draw: random.Random) -> None:
    node = draw.choice(list(model.graph.node))
    node.name, node.doc_string = PLANTED, PLANTED
    for other in model.graph.node:
        for index, name in enumerate(other.input):
            if name == node.output[0]:
                other.input[index] = PLANTED
    node.output[0] = PLANTED


def _spoil_grids(model: onnx.ModelProto, draw: random.Random) -> None:
    tensor = draw.choice(list(model.graph.initializer))
    shape = draw.choice([(), (1,), (8,), (3, 3), (0,)])
    value = draw.choice([0.0, -1.0, float("nan"), float("inf"), 1e-45, 300.0])
    kind = draw.choice([np.float32, np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64])
    with np.errstate(all="ignore"):
        tensor.CopyFrom(numpy_helper.from_array(np.full(shape, value).astype(kind), tensor.name))


def _drop_inputs(model: onnx.ModelProto, draw: random.Random) -> None:
    node = draw.choice(list(model.graph.node))
    del node.input[draw.randrange(len(node.input) + 1) :]


def _drop_outputs(model: onnx.ModelProto, draw: random.Random) -> None:
    del draw.choice(list(model.graph.node)).output[:]


def _make_constants(model: onnx.ModelProto, draw: random.Random) -> None:
    """Hold an initializer in a Constant, in one of its many attributes."""
    key = draw.choice(["value", "value_float", "value_ints", "value_string", "value_strings"])
    tensor = draw.choice(list(model.graph.initializer))
    values = {
        "value": tensor, "value_float": 1.0, "value_ints": [1, 2], "value_string": PLANTED,
        "value_strings": [PLANTED],
    }  # fmt: skip
    node = helper.make_node("Constant", [], [tensor.name], **{key: values[key]})
    model.graph.node.insert(0, node)
    model.graph.initializer.remove(tensor)


def _other_opset(model: onnx.ModelProto, draw: random.Random) -> None:
    model.opset_import[0].version = draw.choice([6, 9, 10, 13, 19, 21, 23])


MUTATIONS: tuple[Mutation, ...] = (
    *_MUTATIONS, _plant_names, _spoil_grids, _spoil_grids, _drop_inputs, _drop_outputs,
    _make_constants, _other_opset,
)  # fmt: skip


@st.composite
def onnx_files(draw: st.DrawFn) -> bytes:
    """Bytes of a graph with some mutations, of one that is larger than it looks, or damaged ones."""
    kind = draw(st.sampled_from(["mutated"] * 6 + ["damaged", "big"]))
    model = quantized_model()
    if kind == "big":
        model = draw(
            st.sampled_from([computed_scale(60), nested_functions(40), growing_constant(1 << 31)])
        )
    if kind == "damaged":
        return draw(damaged(model.SerializeToString()))
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    for mutate in draw(st.lists(st.sampled_from(MUTATIONS), min_size=1, max_size=3)):
        try:
            mutate(model, rng)
        except (IndexError, ValueError, TypeError):  # nothing left to mutate, or not by this one
            continue
    return model.SerializeToString()


@st.composite
def external_files(draw: st.DrawFn) -> bytes:
    """A graph with some weights as external data, in a file of 4,096 bytes called `m.data` or elsewhere."""
    model = quantized_model()
    constant = model.graph.node.add(op_type="Constant", output=["unread"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    constant.attribute[0].t.CopyFrom(model.graph.initializer[0])
    tensors = [*model.graph.initializer, constant.attribute[0].t]
    places = ["m.data"] * 9 + ["link", "", ".", "..", "../outside", "/etc/passwd", "/dev/zero", "m.onnx",
                               "a\0b", "x" * 5000, PLANTED, "no/../m.data"]  # fmt: skip
    numbers = [
        "0",
        "0",
        "8",
        "-1",
        "4096",
        "1000000000000",
        "9" * 5000,
        "x",
        " 1",
        "1e3",
        "",
        PLANTED,
    ]
    for tensor in draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=4)):
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=draw(st.sampled_from(places)))
        for key, usual in (("length", str(size)), ("offset", "0")):
            if draw(st.integers(0, 3)):
                value = draw(st.sampled_from([usual] * 8 + numbers))
                tensor.external_data.add(key=key, value=value)
        if draw(st.integers(0, 7)) == 0:
            tensor.external_data.add(
                key=draw(st.sampled_from(["checksum", "basepath", PLANTED])), value="/"
            )
    if draw(st.integers(0, 7)) == 0:  # many tensors of the same bytes
        for number in range(400):
            model.graph.initializer.add().CopyFrom(tensors[0])
            model.graph.initializer[-1].name = f"copy{number}"
    return model.SerializeToString()


def _named(name: str, tensors: str) -> list[str]:
    return [tensor if tensor == "image" else f"{name}{tensor}" for tensor in tensors.split()]


def _model(
    nodes: list[onnx.NodeProto], values: dict[str, np.ndarray], size: int, name: str
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info(f"{name}logits", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(np.asarray(value), f"{name}{key}") for key, value in values.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=8)
