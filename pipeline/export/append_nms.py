"""Append decoding and NMS to a detector, as standard ONNX operators behind its maps.

The graph computes in FP32 what `reptrt.engines.outputs.detection.detect` computes, in the same order:

1. boxes of all cells; scores that are no candidates (too low, not finite, a box without area) are 0;
2. the best `MAX_CANDIDATES` pairs of class and cell of each image, best first;
3. NMS among them, within each class;
4. the best `max_detections` of those that are left. Unused rows are 0, and -1 in `classes`.

TensorRT runs NonMaxSuppression as its INMSLayer, which looks at 5000 boxes of an image at most.
TensorRT-RTX parses that operator and has no kernel for it (1.7; github.com/NVIDIA/TensorRT-RTX issue
5). There, step 3 is a loop: a pair stays unless a better pair of its class that stays overlaps it. It
starts with all pairs, and when nothing changes any more the answer is the greedy one, which is unique.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.parser import parse_graph

from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.outputs.detection import NMS_OUTPUTS, cell_centres
from reptrt.engines.outputs.suppression import MAX_CANDIDATES, Suppression
from reptrt.engines.target import Backend
from reptrt.models.card import ModelCard
from reptrt.pipeline.model_card import read_card, write_card

_PREFIX = "end2end/"


class AppendNmsError(ValueError):
    """The model is no detector whose maps can be decoded."""

    exit_code = 2


def require_detector(model: str, is_detector: bool) -> None:
    """Refuse a model that is no detector.

    Raises:
        AppendNmsError: it is no detector.
    """
    if not is_detector:
        raise AppendNmsError(
            f"{model}: `end2end` needs a detector with maps [N, classes + 4, h, w], as YOLOv6 has; "
            "leave it out for this model"
        )


def write_with_nms(
    source: Path, destination: Path, suppression: Suppression, backend: Backend = "tensorrt"
) -> None:
    """Write the detector `source` with decoding and NMS behind it.

    Outputs, for N images and rows = min(`max_detections`, classes x cells): `num_dets` [N, 1] int32;
    `boxes` [N, rows, 4] float32, x1 y1 x2 y2 in pixels of the canvas; `scores` [N, rows] float32, best
    first; `classes` [N, rows] int32.

    Args:
        source: ONNX file of `reptrt.pipeline.export.export`, with a fixed or a dynamic batch.
        destination: file to write, atomically.
        suppression: thresholds and number of rows.
        backend: what will build it.

    Raises:
        AppendNmsError: `source` is no detector.
    """
    card = read_card(source)
    require_detector(card.model, bool(card.strides))
    model = onnx.load(source)
    _rename(model.graph, _free_name)
    maps = [_free_name(name) for name in card.outputs]
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    graph = parse_graph(
        _text(
            replace(card, outputs=tuple(maps)),
            batch.dim_param or str(batch.dim_value),
            suppression,
            backend,
        )
    )
    graph.initializer.extend(_grid(card))
    _rename(graph, lambda name: name if name in (*maps, *NMS_OUTPUTS) else _PREFIX + name)
    for node in graph.node:
        node.name = _PREFIX + node.output[0].removeprefix(_PREFIX)  # for TensorRT's list of kernels
    model.graph.node.extend(graph.node)
    model.graph.initializer.extend(graph.initializer)
    del model.graph.output[:]
    model.graph.output.extend(graph.output)
    del model.metadata_props[:]
    write_card(replace(card, outputs=NMS_OUTPUTS, strides=()), model)
    with replace_when_done(destination) as temporary:
        onnx.save(model, temporary)


def _text(card: ModelCard, batch: str, suppression: Suppression, backend: Backend) -> str:
    """Graph from the maps to the four outputs, in ONNX's own notation."""
    channels = card.num_classes + 4
    cells = sum(height * width for height, width in _map_sizes(card))
    pairs = min(MAX_CANDIDATES, card.num_classes * cells)
    rows = min(suppression.max_detections, pairs)
    maps = [
        f"float[{batch}, {channels}, {height}, {width}] {name}"
        for name, (height, width) in zip(card.outputs, _map_sizes(card), strict=True)
    ]
    reshaped = [f"flat_{name} = Reshape({name}, map_shape)" for name in card.outputs]
    return f"""
    end2end ({", ".join(maps)}) => (
        int32[{batch}, 1] num_dets, float[{batch}, {rows}, 4] boxes,
        float[{batch}, {rows}] scores, int32[{batch}, {rows}] classes
    ) <
        int64[3] map_shape = {{0, {channels}, -1}},
        int64[3] channels = {{{card.num_classes}, 2, 2}},
        int64[2] image_shape = {{0, -1}},
        int64 cells = {{{cells}}},
        int64[1] pairs = {{{pairs}}},
        int64[1] rows = {{{rows}}},
        int64[1] axis_1 = {{1}},
        int64[1] axis_2 = {{2}},
        int64 no_class = {{-1}},
        float[1] iou_threshold = {{{suppression.iou_threshold:.9g}}},
        float[1] score_threshold = {{{suppression.score_threshold:.9g}}},
        float[1] nothing = {{0.0}}
    > {{
        {chr(10).join(reshaped)}
        maps = Concat <axis = 2> ({", ".join(f"flat_{name}" for name in card.outputs)})
        {_CANDIDATES}
        {_nms_loop(pairs) if backend == "tensorrt_rtx" else _nms_layer(card.num_classes)}
        {_ROWS}
    }}"""


# Boxes [N, cells, 4]; of the best pairs: scores and classes [N, pairs], boxes [N, pairs, 4].
_CANDIDATES = """
        cell_scores, left_top, right_bottom = Split <axis = 1> (maps, channels)
        first_corner = Sub(centres, left_top)
        last_corner = Add(centres, right_bottom)
        first_pixel = Mul(first_corner, strides)
        last_pixel = Mul(last_corner, strides)
        corners = Concat <axis = 1> (first_pixel, last_pixel)
        cell_boxes = Transpose <perm = [0, 2, 1]> (corners)

        sides = Sub(last_pixel, first_pixel)
        is_positive = Greater(sides, nothing)
        is_finite = Less(sides, infinity)
        is_side = And(is_positive, is_finite)
        is_wide, is_high = Split <axis = 1, num_outputs = 2> (is_side)
        has_area = And(is_wide, is_high)
        is_above = Greater(cell_scores, score_threshold)
        is_number = Less(cell_scores, infinity)
        is_scored = And(is_above, is_number)
        is_candidate = And(is_scored, has_area)
        candidates = Where(is_candidate, cell_scores, nothing)

        image_scores = Reshape(candidates, image_shape)
        pair_scores, pair_indices = TopK <axis = 1> (image_scores, pairs)
        pair_classes = Div(pair_indices, cells)
        first_indices = Mul(pair_classes, cells)
        pair_cells = Sub(pair_indices, first_indices)
        cell_indices = Unsqueeze(pair_cells, axis_2)
        pair_boxes = GatherND <batch_dims = 1> (cell_boxes, cell_indices)
"""

_ROWS = """
        scores, best = TopK <axis = 1> (final_scores, rows)
        is_found = Greater(scores, nothing)
        found = Cast <to = 6> (is_found)
        num_dets = ReduceSum <keepdims = 1> (found, axis_1)
        best_indices = Unsqueeze(best, axis_2)
        best_boxes = GatherND <batch_dims = 1> (pair_boxes, best_indices)
        is_box = Unsqueeze(is_found, axis_2)
        boxes = Where(is_box, best_boxes, nothing)
        best_classes = GatherElements <axis = 1> (pair_classes, best)
        found_classes = Where(is_found, best_classes, no_class)
        classes = Cast <to = 6> (found_classes)
"""


def _nms_layer(num_classes: int) -> str:
    """Scores [N, pairs], 0 where NonMaxSuppression drops the pair.

    A pair has its score in its own class and 0 in all others. IoU does not change when x and y change
    places, so it does not matter that ONNX says y1 x1 y2 x2.
    """
    return f"""
        class_column = Constant <value = int64[1, {num_classes}, 1] {{{_count(num_classes)}}}> ()
        image_and_pair = Constant <value = int64[2] {{0, 2}}> ()
        row_classes = Unsqueeze(pair_classes, axis_1)
        row_scores = Unsqueeze(pair_scores, axis_1)
        is_own = Equal(row_classes, class_column)
        class_scores = Where(is_own, row_scores, nothing)
        selected = NonMaxSuppression(pair_boxes, class_scores, rows, iou_threshold, nothing)
        kept = Gather <axis = 1> (selected, image_and_pair)
        kept_scores = GatherND(pair_scores, kept)
        no_scores = Mul(pair_scores, nothing)
        final_scores = ScatterND(no_scores, kept, kept_scores)
"""


def _nms_loop(pairs: int) -> str:
    """Scores [N, pairs], 0 where a better pair suppresses the pair; without NonMaxSuppression.

    `suppresses` [N, pairs, pairs] says that the row's pair is better than the column's, of its class,
    and overlaps it. Only a pair that is alive suppresses others.
    """
    return f"""
        ranks = Constant <value = int64[1, {pairs}] {{{_count(pairs)}}}> ()
        half = Constant <value = float[1] {{0.5}}> ()
        few = Constant <value = float {{0.5}}> ()
        yes = Constant <value = bool {{1}}> ()
        left, top, right, bottom = Split <axis = 2, num_outputs = 4> (pair_boxes)
        across = Transpose <perm = [0, 2, 1]> (pair_boxes)
        left_2, top_2, right_2, bottom_2 = Split <axis = 1, num_outputs = 4> (across)
        shared_left = Max(left, left_2)
        shared_top = Max(top, top_2)
        shared_right = Min(right, right_2)
        shared_bottom = Min(bottom, bottom_2)
        shared_width = Sub(shared_right, shared_left)
        shared_height = Sub(shared_bottom, shared_top)
        positive_width = Max(shared_width, nothing)
        positive_height = Max(shared_height, nothing)
        shared = Mul(positive_width, positive_height)
        width = Sub(right, left)
        height = Sub(bottom, top)
        area = Mul(width, height)
        area_2 = Transpose <perm = [0, 2, 1]> (area)
        both_areas = Add(area, area_2)
        joint = Sub(both_areas, shared)
        overlap = Div(shared, joint)
        is_overlapping = Greater(overlap, iou_threshold)
        class_1 = Unsqueeze(pair_classes, axis_2)
        class_2 = Unsqueeze(pair_classes, axis_1)
        is_rival = Equal(class_1, class_2)
        rank_1 = Unsqueeze(ranks, axis_2)
        rank_2 = Unsqueeze(ranks, axis_1)
        is_better = Less(rank_1, rank_2)
        is_stronger = And(is_rival, is_better)
        is_suppressing = And(is_stronger, is_overlapping)
        suppresses = Cast <to = 1> (is_suppressing)

        is_pair = Greater(pair_scores, nothing)
        all_pairs = Cast <to = 1> (is_pair)
        start = Unsqueeze(all_pairs, axis_1)
        alive = Loop(pairs, yes, start) <body = round (int64 count, bool go, float[n, 1, {pairs}] before)
            => (bool is_changed, float[n, 1, {pairs}] after) {{
                attackers = MatMul(before, suppresses)
                is_free = Less(attackers, half)
                free = Cast <to = 1> (is_free)
                after = Mul(free, start)
                difference = Sub(after, before)
                distance = Abs(difference)
                changes = ReduceSum <keepdims = 0> (distance)
                is_changed = Greater(changes, few)
            }}>
        alive_pairs = Squeeze(alive, axis_1)
        final_scores = Mul(pair_scores, alive_pairs)
"""


def _count(stop: int) -> str:
    return ", ".join(map(str, range(stop)))


def _grid(card: ModelCard) -> list[onnx.TensorProto]:
    """What the notation has no numbers for: centres [1, 2, cells], strides [1, 1, cells], infinity."""
    sizes = _map_sizes(card)
    centres = np.concatenate([cell_centres(*size).reshape(-1, 2) for size in sizes])
    strides = np.repeat(card.strides, [height * width for height, width in sizes])
    constants = {
        "centres": np.ascontiguousarray(centres.T)[None],
        "strides": strides.astype(np.float32)[None, None],
        "infinity": np.full(1, np.inf, np.float32),
    }
    return [numpy_helper.from_array(value, name) for name, value in constants.items()]


def _map_sizes(card: ModelCard) -> list[tuple[int, int]]:
    height, width = card.preprocess.image_size
    return [(height // stride, width // stride) for stride in card.strides]


def _free_name(name: str) -> str:
    """Name of a tensor of the network: another one where it is that of a new output."""
    return f"network_{name}" if name in NMS_OUTPUTS else name


def _rename(graph: onnx.GraphProto, new_name: Callable[[str], str]) -> None:
    """Give all tensors of `graph` new names, also inside loops."""
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = new_name(value.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [name and new_name(name) for name in names]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, new_name)
