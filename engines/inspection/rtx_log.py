"""Kernels from the "Layers:" message of a TensorRT-RTX build."""

from __future__ import annotations

import math
import re

from reptrt.engines.inspection.kernel import Kernel, Product, Tensor, convolution
from reptrt.engines.inspection.layer_list_error import LayerListError, onnx_layers

LAYERS_PREFIX = "Layers:"
_LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[")
_TENSOR_START, _LONGEST_TENSOR = "{ Name: ", 4000
_TENSOR = re.compile(
    r"(?P<name>.*?), Dimensions: \[(?P<dims>[-\d, ]*)\],(?: Strides: \[(?P<strides>[-\d, ]*)\],)?"
    r".*?Datatype: (?P<dtype>\w+)(?:, Format: (?P<format>[^}]*?))? *\}"
)
_TACTIC = re.compile(r", TacticName: (?P<tactic>[^,]*), StreamId:")
_NO_WORK = (
    "signal",
    "wait",
    "shape_call",
)  # between streams, and on the host: they compute nothing
_ATTENTION = "_mha"
_MOST_SIDES, _MOST_DIGITS = 16, 12
_IMAGE_RANK = 3  # [N, C, W] and more


def parse_log(text: str) -> tuple[Kernel, ...]:
    """Return the kernels of the message, in execution order.

    Raises:
        LayerListError: a line has another form than that of TensorRT-RTX 1.7.
    """
    kernels = []
    for line in text.splitlines()[1:]:
        if not line.startswith("Name: "):  # blank line: "I/O Tensors:" and the rest follow
            break
        head = _LINE.match(line)
        if head is None:
            raise LayerListError(f"unknown form of layer line: {line[:120]}")
        if head["kind"] in _NO_WORK:
            continue
        body, _, metadata = line.partition(", Metadata: ")
        tactic = _TACTIC.search(body)
        inputs, constants, outputs = map(_tensors, _split_lists(body[head.end() :]))
        kernels.append(
            Kernel(
                name=head["name"],
                kind=head["kind"],
                inputs=inputs,
                weights=constants,
                outputs=outputs,
                onnx_layers=onnx_layers(metadata),
                tactic=tactic["tactic"] if tactic else "",
                product=_product(head["name"], head["kind"], inputs, constants, outputs),
            )
        )
    return tuple(kernels)


def _split_lists(body: str) -> tuple[str, str, str]:
    """Cut the text behind "Inputs: [" into inputs, constants and outputs."""
    before_outputs, _, outputs = body.partition(", Outputs: [")
    inputs, _, constants = before_outputs.partition(", Constants: [")
    return inputs, constants, outputs


def _tensors(text: str) -> tuple[Tensor, ...]:
    parts = (part[:_LONGEST_TENSOR] for part in text.split(_TENSOR_START)[1:])
    return tuple(
        Tensor(
            match["name"],
            match["dtype"],
            _sides(match["dims"]) or (1,),
            _sides(match["strides"] or ""),
            (match["format"] or "").strip(),
        )
        for match in map(_TENSOR.match, parts)
        if match
    )


def _sides(text: str) -> tuple[int, ...]:
    sides = [side for side in text.split(",") if side.strip()]
    if len(sides) > _MOST_SIDES or any(len(side) > _MOST_DIGITS for side in sides):
        raise LayerListError(f"[{text[:80]}] is no shape")
    return tuple(map(int, sides))


def _product(
    name: str,
    kind: str,
    inputs: tuple[Tensor, ...],
    constants: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
) -> Product | None:
    """What the kernel multiplies, told from shapes: the log names neither window nor groups."""
    if not inputs or not outputs:
        return None
    if _ATTENTION in name:
        return attention_product(inputs[0].dims, inputs[1].dims if len(inputs) > 1 else ())
    if not any(word in kind for word in ("correlation", "gemm", "fusion", "conv")):
        return None
    weight = max(constants, key=lambda tensor: tensor.elements, default=None)
    source, result = inputs[0].dims, outputs[0].dims
    if weight is not None and len(weight.dims) == len(source) == len(result) >= _IMAGE_RANK:
        window = weight.dims[2:]
        is_batch = len(source) == _IMAGE_RANK and weight.dims[0] != result[1]  # of matrices
        if kind != "gemm" and not is_batch and source[1] > 0 and weight.dims[1] > 0:
            return _convolution(source, result, weight.dims, window)
    return matrix_product(
        source, result, None if weight is None or weight.elements == 1 else weight.elements
    )


def _convolution(
    source: tuple[int, ...],
    result: tuple[int, ...],
    weight: tuple[int, ...],
    window: tuple[int, ...],
) -> Product | None:
    """A convolution by `weight` [out, in / groups, ...], or a transposed one by [in, out / groups, ...]."""
    transposed = weight[0] == source[1] and result[2] > source[2] > 0
    channels = result[1] if transposed else source[1]
    groups = channels // weight[1]
    if groups < 1 or result[1] % groups:
        return None
    if transposed:
        return convolution(source, result, window, groups, transposed=True)
    stride = tuple(
        max(1, round(before / after)) if before > 0 and after > 0 else 1
        for before, after in zip(source[2:], result[2:], strict=True)
    )
    return convolution(source, result, window, groups, stride)


def matrix_product(
    left: tuple[int, ...], result: tuple[int, ...], weight_elements: int | None
) -> Product | None:
    """A product of `left` [..., rows, depth] to `result` [..., rows, columns].

    By a constant of `weight_elements` all rows are one matrix; without, each matrix has its own. A 1x1
    convolution that became a product multiplies from the left: [channels, pixels], so that the side of
    `result` that the constant makes is the one for which the rest of it is a side of `left`.
    """
    columns = abs(result[-1]) if result else 0
    rows = math.prod(abs(side) for side in result[:-1])
    if not columns or not rows:
        return None
    if weight_elements is not None:
        sides = [abs(side) for side in reversed(result)]
        depths = {abs(side) for side in left}
        made = next((side for side in sides if side and weight_elements / side in depths), columns)
        return Product(rows * columns // made, made, max(1, weight_elements // made))
    groups = math.prod(abs(side) for side in result[:-2]) or 1
    depth = math.prod(abs(side) for side in left) // rows
    return Product(rows // groups, columns, max(1, depth), groups)


def attention_product(query: tuple[int, ...], key: tuple[int, ...]) -> Product | None:
    """Both products of an attention: queries [..., rows, depth] by keys, and the result by values."""
    if len(query) < 2 or len(key) < 2:
        return None
    rows, depth = (abs(side) for side in query[-2:])
    columns = next((abs(side) for side in key[-2:] if abs(side) != depth), depth)
    groups = math.prod(abs(side) for side in query[:-2])
    return Product(rows, columns, 2 * depth, groups)
