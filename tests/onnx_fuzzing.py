"""Hostile ONNX files, one per seed: what a damaged, hand-made or malicious file may hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tests.onnx_files import Detector, Plain, seeded, write_onnx

Mutation = Callable[[onnx.ModelProto, random.Random], None]


def hostile_files(folder: Path, seeds: Iterable[int]) -> Iterator[tuple[str, Path]]:
    """Write one file per seed; yield what was done to it, and where it is."""
    bases = [
        write_onnx(seeded(network), folder / f"{network.__name__}.onnx").read_bytes()
        for network in (Plain, Detector)
    ]
    (folder.parent / "outside.bin").write_bytes(bytes(4096))
    for seed in seeds:
        draw = random.Random(seed)
        data, path = draw.choice(bases), folder / f"hostile_{seed}.onnx"
        index = seed % (len(_MUTATIONS) + 3)  # the last three are damaged bytes
        if index >= len(_MUTATIONS):
            path.write_bytes(_damage(data, draw))
            yield "damage", path
            continue
        mutate = _MUTATIONS[index]
        model = onnx.load_model_from_string(data)
        mutate(model, draw)
        path.write_bytes(model.SerializeToString())
        yield mutate.__name__, path


def _damage(data: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(data)
    if draw.random() < 0.3:
        return bytes(damaged[: draw.randrange(len(damaged))])
    for _ in range(draw.choice((1, 4, 64))):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def rename_values(model: onnx.ModelProto, draw: random.Random) -> None:
    names = [name for node in model.graph.node for name in node.output]
    for node in draw.sample([node for node in model.graph.node if node.input], 2):
        node.input[0] = draw.choice([*names, "", "nothing", "../etc", "\u2028"])


def rename_nodes(model: onnx.ModelProto, draw: random.Random) -> None:
    odd = [
        "",
        "forward",
        "a.b",
        "a",
        "a.b.c",
        "class",
        "/",
        "..",
        "0",
        "é\n",
        "training",
        "x" * 999,
    ]
    for node in model.graph.node:
        node.name = draw.choice(odd)


def rename_outputs(model: onnx.ModelProto, draw: random.Random) -> None:
    node = draw.choice(list(model.graph.node))
    node.output[0] = draw.choice(["image", "images", "n" * 5000, "stem.weight", "conv2d"])


def drop_weights(model: onnx.ModelProto, draw: random.Random) -> None:
    del model.graph.initializer[draw.randrange(len(model.graph.initializer))]


def drop_nodes(model: onnx.ModelProto, draw: random.Random) -> None:
    del model.graph.node[draw.randrange(len(model.graph.node))]


def swap_nodes(model: onnx.ModelProto, draw: random.Random) -> None:
    nodes = list(model.graph.node)
    draw.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def run_in_a_circle(model: onnx.ModelProto, draw: random.Random) -> None:
    first, last = model.graph.node[0], model.graph.node[-1]
    first.input[:1] = [last.output[0]]


def claim_wild_dims(model: onnx.ModelProto, draw: random.Random) -> None:
    tensor = draw.choice(list(model.graph.initializer))
    if tensor.dims:
        tensor.dims[0] = draw.choice([0, -1, 1 << 40, 1 << 62, (1 << 63) - 1])


def claim_wild_input(model: onnx.ModelProto, draw: random.Random) -> None:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[draw.randrange(4)].dim_value = draw.choice([0, -3, 1, 1 << 40, (1 << 63) - 1, 33])


def change_types(model: onnx.ModelProto, draw: random.Random) -> None:
    tensor = draw.choice(list(model.graph.initializer))
    tensor.data_type = draw.choice([0, 2, 7, 8, 9, 10, 11, 14, 16, 17, 22, 99, -5])


def change_attributes(model: onnx.ModelProto, draw: random.Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    attribute = draw.choice(list(draw.choice(nodes).attribute))
    wild = draw.choice([0, -1, 1 << 20, 1 << 40, (1 << 63) - 1])
    if attribute.ints:
        attribute.ints[draw.randrange(len(attribute.ints))] = wild
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = wild
    else:
        attribute.name = draw.choice(["", "axis", "value", "mode"])


def change_operators(model: onnx.ModelProto, draw: random.Random) -> None:
    other = ["Tile", "Einsum", "Loop", "NoSuchOp", "NonZero", "QuantizeLinear", "Range", "Resize"]
    draw.choice(list(model.graph.node)).op_type = draw.choice(other)


def change_opset(model: onnx.ModelProto, draw: random.Random) -> None:
    model.opset_import[0].version = draw.choice([-1, 0, 1, 6, 9, 12, 18, 21, 99, 1 << 40])
    model.ir_version = draw.choice([0, 1, 8, 99])


def make_huge(model: onnx.ModelProto, draw: random.Random) -> None:
    """A few bytes that ask for terabytes."""
    sides = draw.choice([[1 << 20, 1 << 20], [1 << 40], [1, 8, 100_000, 100_000]])
    shape = helper.make_tensor("huge_shape", TensorProto.INT64, [len(sides)], sides)
    model.graph.initializer.append(shape)
    source = draw.choice(["ConstantOfShape", "Expand", "Tile"])
    inputs = ["huge_shape"] if source == "ConstantOfShape" else ["fc.bias", "huge_shape"]
    if source != "ConstantOfShape" and all(t.name != "fc.bias" for t in model.graph.initializer):
        inputs[0] = model.graph.initializer[0].name
    model.graph.node.insert(0, helper.make_node(source, inputs, ["huge"]))
    reduced = helper.make_node("ReduceMax", ["huge"], ["small"], keepdims=0)
    model.graph.node.insert(1, reduced)
    last = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Add", [last, "small"], ["sum"]))
    model.graph.output[0].name = "sum"


def reach_outside(model: onnx.ModelProto, draw: random.Random) -> None:
    tensor = draw.choice(list(model.graph.initializer))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    places = [
        "../outside.bin",
        "/etc/passwd",
        "..\\outside.bin",
        "",
        "nothing.bin",
        ".",
        "a/../../x",
    ]
    facts = {
        "location": draw.choice(places),
        "offset": draw.choice(["0", "-1", "x", str(1 << 62)]),
        "length": draw.choice(["0", "8", "-8", str(1 << 62)]),
    }
    for key, value in facts.items():
        tensor.external_data.add(key=key, value=value)


def nest_graphs(model: onnx.ModelProto, draw: random.Random) -> None:
    node = draw.choice(list(model.graph.node))
    inner = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", [], [])
    for _ in range(draw.choice([1, 20])):
        inner = helper.make_graph(
            [helper.make_node("If", ["c"], ["d"], then_branch=inner)], "g", [], []
        )
    node.attribute.append(helper.make_attribute("body", inner))


def repeat_parts(model: onnx.ModelProto, draw: random.Random) -> None:
    part = draw.choice(["node", "initializer", "input", "output"])
    found = getattr(model.graph, part)
    found.append(draw.choice(list(found)))


_MUTATIONS: tuple[Mutation, ...] = (
    rename_values, rename_nodes, rename_outputs, drop_weights, drop_nodes, swap_nodes,
    run_in_a_circle, claim_wild_dims, claim_wild_input, change_types, change_attributes,
    change_operators, change_opset, make_huge, reach_outside, nest_graphs, repeat_parts,
)  # fmt: skip
