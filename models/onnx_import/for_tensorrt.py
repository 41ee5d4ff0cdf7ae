"""Operators that not every TensorRT has a kernel for, written by those that it has: exact, for sizes that are known.

AffineGrid is a product with a constant grid; MaxUnpool puts values where the largest of each window was, which
an ArgMax tells as well as the places that MaxPool may return; Col2Im is a transposed convolution by weights of
0 and 1. DeformConv, which TensorRT has as a plugin in float and TensorRT-RTX not at all, is a GridSample at the
moved points of each window, and a 1x1 convolution of what was found there, which may run in INT8. A Resize with
antialiasing, or with coordinates that TensorRT does not know, is a product with a constant matrix along each side.
A normalization whose parameters are no constants is arithmetic (`computed_norms`), a Fourier transform a product
with a constant matrix (`fourier`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.models.onnx_import.computed_norms import write_norm
from reptrt.models.onnx_import.fourier import write_transform
from reptrt.models.onnx_import.values import Array, run_operator
from reptrt.models.onnx_import.writer import Writer

Shapes = Mapping[str, tuple[int, ...]]
SHAPED = (
    "AffineGrid", "MaxPool", "MaxUnpool", "Col2Im", "DeformConv", "BatchNormalization",
    "InstanceNormalization", "DFT",
)  # fmt: skip
"""Operators whose sides are asked for."""

_NEW_MODES = 20  # opset that renamed the modes of GridSample
_UNKNOWN_COORDINATES = {"tf_crop_and_resize", "half_pixel_symmetric"}


def write_for_tensorrt(graph: gs.Graph, shapes: Shapes) -> int:
    """Write such operators of `graph` anew, in place; return how many.

    Args:
        graph: canonical; what is constant is a constant.
        shapes: of its tensors, for one image.
    """
    done = 0
    for node in [node for node in graph.nodes if node.op in _RULES]:
        done += _RULES[node.op](Writer(graph, node), node, shapes)
    return done


def _affine_grid(writer: Writer, node: gs.Node, shapes: Shapes) -> bool:
    sides = shapes.get(node.outputs[0].name, ())
    if len(sides) != 4:
        return False
    _, height, width, _ = sides
    corners = bool(node.attrs.get("align_corners", 0))
    y, x = (_centres(side, corners) for side in (height, width))
    grid = np.stack([*np.meshgrid(x, y), np.ones((height, width))], -1).reshape(-1, 3)
    turned = writer.add("Transpose", node.inputs[0], perm=[0, 2, 1])
    points = writer.add("MatMul", writer.constant(grid.astype(np.float32)), turned)
    shape = np.array([-1, height, width, 2], np.int64)
    writer.become("Reshape", points, writer.constant(shape))
    return True


def _centres(side: int, corners: bool) -> Array:
    """Centres of `side` pixels of a strip from -1 to 1, or its ends and what lies between them."""
    if corners:
        return np.linspace(-1, 1, side) if side > 1 else np.zeros(1)
    return (2 * np.arange(side) + 1) / side - 1


def _max_unpool(writer: Writer, node: gs.Node, shapes: Shapes) -> bool:
    """Windows side by side only: then every place is in one of them."""
    pool = node.inputs[1].inputs[0] if node.inputs[1].inputs else None
    if pool is None or pool.op != "MaxPool":
        return False
    source = pool.inputs[0]
    sides, kernel = shapes.get(source.name, ()), _window(pool)
    is_whole = len(sides) == 4 and shapes.get(node.outputs[0].name) == sides
    if kernel is None or kernel != _window(node) or not is_whole:
        return False
    channels, height, width = sides[1:]
    if height % kernel[0] or width % kernel[1]:
        return False
    rows, columns = height // kernel[0], width // kernel[1]
    split = writer.reshape(source, channels, rows, kernel[0], columns, kernel[1])
    turned = writer.add("Transpose", split, perm=[0, 1, 2, 4, 3, 5])
    windows = writer.reshape(turned, channels, rows, columns, math.prod(kernel))
    place = writer.add("ArgMax", windows, dtype=np.int64, axis=4, keepdims=1)
    places = writer.constant(np.arange(math.prod(kernel), dtype=np.int64))
    is_there = writer.add("Equal", place, places, dtype=np.bool_)
    values = writer.reshape(node.inputs[0], channels, rows, columns, 1)
    spread = writer.add("Where", is_there, values, writer.constant(np.zeros(1, np.float32)))
    split = writer.reshape(spread, channels, rows, columns, *kernel)
    turned = writer.add("Transpose", split, perm=[0, 1, 2, 4, 3, 5])
    shape = np.array([-1, channels, height, width], np.int64)
    writer.become("Reshape", turned, writer.constant(shape))
    if not pool.outputs[1].outputs:
        pool.outputs = pool.outputs[:1]
    return True


def _window(node: gs.Node) -> tuple[int, ...] | None:
    """Sides of windows that lie side by side without padding; None where they lie otherwise."""
    kernel = tuple(node.attrs["kernel_shape"])
    plain = not any(node.attrs.get("pads", ())) and set(node.attrs.get("dilations", (1,))) == {1}
    automatic = node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    is_apart = tuple(node.attrs.get("strides", ())) == kernel and not node.attrs.get(
        "storage_order"
    )
    return kernel if plain and is_apart and not automatic and len(kernel) == 2 else None


def _columns_to_image(writer: Writer, node: gs.Node, shapes: Shapes) -> bool:
    sides, block = shapes.get(node.inputs[0].name, ()), _integers(node.inputs[2])
    image = _integers(node.inputs[1])
    if len(sides) != 3 or len(image) != 2 or len(block) != 2:
        return False
    strides, dilations = (list(node.attrs.get(key, [1, 1])) for key in ("strides", "dilations"))
    pads = list(node.attrs.get("pads", [0] * 4))
    free = [
        image[axis] + pads[axis] + pads[axis + 2] - dilations[axis] * (block[axis] - 1) - 1
        for axis in (0, 1)
    ]
    counts = [side // stride + 1 for side, stride in zip(free, strides, strict=True)]
    left = [side % stride for side, stride in zip(free, strides, strict=True)]
    channels, area = sides[1] // math.prod(block), math.prod(block)
    weight = np.tile(np.eye(area, dtype=np.float32), (channels, 1)).reshape(-1, 1, *block)
    spread = writer.reshape(node.inputs[0], channels * area, *counts)
    writer.become(
        "ConvTranspose", spread, writer.constant(weight), group=channels, strides=strides,
        dilations=dilations, pads=pads, kernel_shape=list(block), output_padding=left,
    )  # fmt: skip
    return True


def _deform_conv(writer: Writer, node: gs.Node, shapes: Shapes) -> bool:
    """`inputs`: x, weight, offsets [N, groups x points x (y, x), h, w], bias, mask."""
    x, weight, offsets, bias, mask = [*node.inputs, *[None] * 5][:5]
    sides, made = shapes.get(x.name, ()), shapes.get(node.outputs[0].name, ())
    is_known = len(sides) == 4 and len(made) == 4 and isinstance(weight, gs.Constant)
    if not is_known or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return False
    groups = int(node.attrs.get("offset_group", 1))
    points, pixels = math.prod(weight.values.shape[2:]), math.prod(made[2:])
    scale = (2 / np.array(sides[2:])).reshape(1, 1, 2, 1)
    start = (_points(node, weight.values.shape[2:], made[2:]) + 0.5) * scale - 1
    moved = writer.reshape(offsets, points, 2, pixels)
    moved = writer.add("Mul", moved, writer.constant(scale.astype(np.float32)))
    moved = writer.add("Add", moved, writer.constant(start.astype(np.float32)))
    turned = writer.add("Transpose", moved, perm=[0, 1, 3, 2])
    order = writer.constant(np.array([1, 0], np.int64))
    grid = writer.add("Gather", turned, order, axis=3)
    source = writer.reshape(x, sides[1] // groups, *sides[2:]) if groups > 1 else x
    mode = "linear" if writer.opset >= _NEW_MODES else "bilinear"
    found = writer.add("GridSample", source, grid, mode=mode, padding_mode="zeros")
    if mask is not None and mask.name:
        found = writer.add("Mul", found, writer.reshape(mask, 1, points, pixels))
    columns = writer.reshape(found, sides[1] * points, *made[2:])
    flat = writer.constant(weight.values.reshape(len(weight.values), -1, 1, 1))
    rest = [] if bias is None or not bias.name else [bias]
    group = int(node.attrs.get("group", 1))
    writer.become("Conv", columns, flat, *rest, group=group, kernel_shape=[1, 1])
    return True


def _points(node: gs.Node, kernel: Sequence[int], made: Sequence[int]) -> Array:
    """Where the points of each window lie, in pixels of the input: [1, points, (y, x), pixels]."""
    strides, dilations = (node.attrs.get(key, [1, 1]) for key in ("strides", "dilations"))
    pads = node.attrs.get("pads", [0] * 4)
    starts = [np.arange(made[axis]) * strides[axis] - pads[axis] for axis in (0, 1)]
    steps = [np.arange(kernel[axis]) * dilations[axis] for axis in (0, 1)]
    corners, inside = (np.stack(np.meshgrid(*both, indexing="ij")) for both in (starts, steps))
    both = inside.reshape(2, -1, 1) + corners.reshape(2, 1, -1)
    return np.asarray(both.transpose(1, 0, 2)[None], np.float64)


def _resize(writer: Writer, node: gs.Node, shapes: Shapes) -> bool:
    """What lies between pixels is a weighted sum of them, along one side after the other."""
    before, after = (shapes.get(t.name, ()) for t in (node.inputs[0], node.outputs[0]))
    where = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    is_refused = node.attrs.get("antialias") or where in _UNKNOWN_COORDINATES
    is_fixed = all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:] if tensor.name)
    keeps_images = len(before) == len(after) == 4 and before[:2] == after[:2]
    is_sum = not (where == "tf_crop_and_resize" and node.attrs.get("extrapolation_value"))
    is_stretched = node.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    if not (is_refused and is_fixed and keeps_images and is_sum and is_stretched):
        return False
    rows, columns = (_along(writer, node, axis, before[axis]) for axis in (2, 3))
    right = [node.inputs[0], writer.constant(columns.T.copy())]
    if np.array_equal(rows, np.eye(before[2])):
        writer.become("MatMul", *right)
    else:
        same = np.array_equal(columns, np.eye(before[3]))
        narrower = node.inputs[0] if same else writer.add("MatMul", *right)
        writer.become("MatMul", writer.constant(rows), narrower)
    return True


def _along(writer: Writer, node: gs.Node, axis: int, side: int) -> Array:
    """The matrix [after, before] of a Resize along one axis: what it makes of an identity of `side` rows."""
    axes = list(node.attrs.get("axes", range(4)))
    place = axes.index(axis) if axis in axes else None
    inputs = [t.values if isinstance(t, gs.Constant) else np.zeros(0) for t in node.inputs[1:]]
    region, scales, sizes = [*inputs, *[np.zeros(0)] * 2][:3]
    if place is None:
        return np.eye(side, dtype=np.float32)
    values: dict[str, Array | None] = {
        "x": np.eye(side, dtype=np.float32)[None, None], "roi": None, "scales": None, "sizes": None,
    }  # fmt: skip
    if region.size:
        ends = [region[place], region[place + len(axes)]]
        values["roi"] = np.array([0, 0, ends[0], 0, 1, 1, ends[1], 1], np.float32)
    if scales.size:
        values["scales"] = np.array([1, 1, scales[place], 1], np.float32)
    else:
        values["sizes"] = np.array([1, 1, sizes[place], side], np.int64)
    attrs = {key: value for key, value in node.attrs.items() if key != "axes"}
    return np.asarray(run_operator("Resize", values, attrs, writer.opset)[0, 0], np.float32)


def _integers(tensor: gs.Tensor) -> Sequence[int]:
    return tensor.values.tolist() if isinstance(tensor, gs.Constant) else ()


_RULES: dict[str, Callable[[Writer, gs.Node, Shapes], bool]] = {
    "AffineGrid": _affine_grid,
    "MaxUnpool": _max_unpool,
    "Col2Im": _columns_to_image,
    "DeformConv": _deform_conv,
    "Resize": _resize,
    "DFT": write_transform,
    "BatchNormalization": write_norm,
    "InstanceNormalization": write_norm,
}
