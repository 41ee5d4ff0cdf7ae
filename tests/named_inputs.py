"""Small networks that read something else than one image in the usual layout, as ONNX text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

OPSET = '<ir_version: 8, opset_import: ["": 17]>'

KINDS = {
    "two images of different sizes": """
        net (float[n,3,16,16] large, float[n,3,8,8] small) => (float[n,4,8,8] y)
        <float[8,3,3,3] w0, float[8,3,3,3] w1, float[4,16,1,1] w2> {
            a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (large, w0)
            b = Conv <pads = [1, 1, 1, 1]> (small, w1)
            c = Concat <axis = 1> (a, b)
            r = Relu(c)
            y = Conv(r, w2)
        }""",
    "an image and a vector": """
        net (float[n,3,16,16] image, float[n,4] state) => (float[n,5] y)
        <float[8,3,3,3] w0, float[8,4] w1, float[16,5] w2> {
            a = Conv <pads = [1, 1, 1, 1]> (image, w0)
            r = Relu(a)
            p = ReduceMean <axes = [2, 3], keepdims = 0> (r)
            t = Transpose <perm = [1, 0]> (w1)
            s = MatMul(state, t)
            c = Concat <axis = 1> (p, s)
            y = MatMul(c, w2)
        }""",
    "an image and a number that the batch shares": """
        net (float[n,3,16,16] image, float[1] scale_factor) => (float[n,4,16,16] y)
        <float[8,3,3,3] w0, float[4,8,1,1] w1> {
            a = Conv <pads = [1, 1, 1, 1]> (image, w0)
            r = Relu(a)
            l = Conv(r, w1)
            y = Div(l, scale_factor)
        }""",
    "token numbers": """
        net (int64[n,6] ids) => (float[n,6,3] y)
        <float[7,8] table, float[8,8] w0, float[8,3] w1> {
            e = Gather(table, ids)
            h = MatMul(e, w0)
            r = Relu(h)
            y = MatMul(r, w1)
        }""",
    "video": """
        net (float[n,3,4,8,8] clip) => (float[n,5] y)
        <float[6,3,3,3,3] w0, float[6,5] w1> {
            a = Conv <pads = [1, 1, 1, 1, 1, 1]> (clip, w0)
            r = Relu(a)
            p = ReduceMean <axes = [2, 3, 4], keepdims = 0> (r)
            y = MatMul(p, w1)
        }""",
    "channels last and pixels as they are": """
        net (uint8[n,16,16,3] x) => (float[n,4,16,16] y)
        <float[8,3,3,3] w0, float[4,8,1,1] w1, float half = {127.5}> {
            f = Cast <to = 1> (x)
            z = Sub(f, half)
            d = Div(z, half)
            t = Transpose <perm = [0, 3, 1, 2]> (d)
            a = Conv <pads = [1, 1, 1, 1]> (t, w0)
            r = Relu(a)
            y = Conv(r, w1)
        }""",
    "two images, pixels with channels last": """
        net (uint8[n,16,16,3] left, uint8[n,16,16,3] right) => (float[n,4,16,16] y)
        <float[8,3,3,3] w0, float[4,8,1,1] w1> {
            l = Cast <to = 1> (left)
            m = Cast <to = 1> (right)
            s = Sub(l, m)
            t = Transpose <perm = [0, 3, 1, 2]> (s)
            a = Conv <pads = [1, 1, 1, 1]> (t, w0)
            r = Relu(a)
            y = Conv(r, w1)
        }""",
    "sequence first": """
        net (float[12,n,8] x) => (float[12,n,3] y)
        <float[8,8] w0, float[8,3] w1> { h = MatMul(x, w0) r = Relu(h) y = MatMul(r, w1) }""",
}
"""What it reads -> its graph, whose weights `write_network` fills."""

OPEN_SIZES = {
    "convolutions and a Resize by a factor": """
        net (float[n,3,h,w] x) => (float[n,4,a,b] y)
        <float[8,3,3,3] w0, float[8,8,3,3] w1, float[4,16,1,1] w2, float[4] up = {1,1,2,2}> {
            a = Conv <pads = [1, 1, 1, 1]> (x, w0)
            r = Relu(a)
            d = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (r, w1)
            e = Relu(d)
            f = Resize <mode = "linear"> (e, , up)
            c = Concat <axis = 1> (r, f)
            y = Conv(c, w2)
        }""",
    "a Resize to the size of another tensor": """
        net (float[n,3,h,w] x) => (float[n,4,a,b] y)
        <float[8,3,3,3] w0, float[8,8,3,3] w1, float[4,16,1,1] w2,
         int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}> {
            a = Conv <pads = [1, 1, 1, 1]> (x, w0)
            r = Relu(a)
            d = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (r, w1)
            e = Relu(d)
            s = Shape(r)
            hw = Slice(s, two, four)
            t = Shape(e)
            nc = Slice(t, zero, two)
            sizes = Concat <axis = 0> (nc, hw)
            f = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",
                nearest_mode = "floor"> (e, , , sizes)
            c = Concat <axis = 1> (r, f)
            y = Conv(c, w2)
        }""",
    "an open width that becomes a sequence": """
        net (float[n,3,16,w] x) => (float[n,s,6] y)
        <float[8,3,3,3] w0, float[8,6] w1,
         int64[1] zero = {0}, int64[1] one = {1}, int64[1] rest = {-1}> {
            a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w0)
            r = Relu(a)
            p = ReduceMean <axes = [2], keepdims = 1> (r)
            shape = Shape(p)
            count = Gather <axis = 0> (shape, zero)
            channels = Gather <axis = 0> (shape, one)
            to = Concat <axis = 0> (count, channels, rest)
            q = Reshape(p, to)
            t = Transpose <perm = [0, 2, 1]> (q)
            m = MatMul(t, w1)
            y = Softmax <axis = 2> (m)
        }""",
}
"""What follows the size of its images -> its graph."""

BATCHES = {
    "a Resize to sizes of one image": """
        net (float[1,3,8,8] x) => (float[1,4,16,16] y)
        <float[8,3,3,3] w0, float[4,8,1,1] w1, int64[4] s = {1,8,16,16}> {
            a = Conv <pads = [1, 1, 1, 1]> (x, w0)
            r = Relu(a)
            q = Resize <mode = "linear"> (r, , , s)
            y = Conv(q, w1)
        }""",
    "a Reshape with allowzero": """
        net (float[1,3,8,8] x) => (float[1,8,5] y)
        <float[8,3,8,8] w0, float[1,5] w1, int64[3] s = {1,-1,1}> {
            a = Conv(x, w0)
            r = Relu(a)
            q = Reshape <allowzero = 1> (r, s)
            y = MatMul(q, w1)
        }""",
    "rows that are picked by arange(batch)": """
        net (float[n,3,8,8] x) => (float[n,4] y)
        <float[8,3,8,8] w0, float[8,20] w1, int64 zero = {0}, int64 one = {1},
         int64[3] s = {0,5,4}, int64[2] column = {-1,1}> {
            a = Conv(x, w0)
            f = Flatten(a)
            m = MatMul(f, w1)
            q = Reshape(m, s)
            shape = Shape(x)
            count = Gather <axis = 0> (shape, zero)
            rows = Range(zero, count, one)
            row = Reshape(rows, column)
            score = ReduceMax <axes = [2], keepdims = 0> (q)
            best = ArgMax <axis = 1, keepdims = 1> (score)
            places = Concat <axis = 1> (row, best)
            y = GatherND(q, places)
        }""",
    "a class token [1, 1, C]": """
        net (float[1,3,8,8] x) => (float[1,65,5] y)
        <float[8,3,1,1] w0, float[8,5] w1, float[1,1,8] token, float[1,65,8] places,
         int64[3] s = {1,8,64}> {
            a = Conv(x, w0)
            q = Reshape(a, s)
            t = Transpose <perm = [0, 2, 1]> (q)
            c = Concat <axis = 1> (token, t)
            e = Add(c, places)
            y = MatMul(e, w1)
        }""",
    "an Expand to one image": """
        net (float[1,3,8,8] x) => (float[1,8,8,8] y)
        <float[8,3,1,1] w0, int64[4] s = {1,8,8,8}> {
            a = Conv(x, w0)
            p = GlobalAveragePool(a)
            e = Expand(p, s)
            y = Add(a, e)
        }""",
    "a number beside one image": """
        net (float[1,3,8,8] image, float[1] scale) => (float[1,4,8,8] y) <float[4,3,1,1] w0> {
            a = Conv(image, w0)
            r = Relu(a)
            y = Div(r, scale)
        }""",
    "a sequence in front of the batch": """
        net (float[n,3,4,8] x) => (float[8,n,5] y)
        <float[8,3,4,1] w0, float[8,5] w1, int64[1] ax = {2}> {
            a = Conv(x, w0)
            r = Relu(a)
            s = Squeeze(r, ax)
            t = Transpose <perm = [2, 0, 1]> (s)
            y = MatMul(t, w1)
        }""",
}
"""What says 1, or counts images -> its graph, whose batch can be open."""


def write_network(graph: str, path: Path) -> Path:
    """Write a graph with weights from a seed; a value that the text states stays."""
    model = parser.parse_model(OPSET + graph)
    generator = np.random.default_rng(0)
    for value in model.graph.value_info:  # what the text declares without a value
        shape = [side.dim_value for side in value.type.tensor_type.shape.dim]
        weight = generator.standard_normal(shape).astype(np.float32) * np.float32(0.2)
        model.graph.initializer.append(numpy_helper.from_array(weight, value.name))
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


def random_feed(path: Path, samples: int, seed: int) -> dict[str, NDArray[np.generic]]:
    """Values of every input of a file: `samples` where its first side is open, 1 for other open sides."""
    generator, feed = np.random.default_rng(seed), {}
    for value in onnx.load(path).graph.input:
        sides = [d.dim_value for d in value.type.tensor_type.shape.dim]
        shape = [
            samples if index == 0 and not side else side or 1 for index, side in enumerate(sides)
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype == np.float32:
            feed[value.name] = generator.random(shape, dtype=np.float32) + np.float32(0.5)
        else:
            feed[value.name] = generator.integers(0, 255 if dtype == np.uint8 else 7, shape, dtype)
    return feed
