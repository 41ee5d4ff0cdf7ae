"""Decoding and NMS in the graph against the NumPy path, in ONNX Runtime, and built by TensorRT-RTX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.parser import parse_model

from reptrt.engines.build.builder import BuildError, BuildOptions, build_engine
from reptrt.engines.outputs.detection import Detections, detect, read_nms_outputs
from reptrt.engines.outputs.suppression import EVALUATION, MAX_CANDIDATES, Suppression
from reptrt.engines.target import TARGETS, Backend
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.export.append_nms import AppendNmsError, write_with_nms
from reptrt.pipeline.model_card import read_card, write_card

SIZE, STRIDES = (64, 96), (8, 16)
SIDES = [(SIZE[0] // stride, SIZE[1] // stride) for stride in STRIDES]
CELLS = [height * width for height, width in SIDES]
BACKENDS: tuple[Backend, ...] = ("tensorrt", "tensorrt_rtx")


@dataclass
class Detector:
    """An ONNX file that only takes its input apart: what is fed are the maps themselves."""

    path: Path
    num_classes: int
    card: ModelCard

    def end2end(self, suppression: Suppression, backend: Backend) -> Path:
        """The same with decoding and NMS behind it."""
        path = self.path.with_name(f"{backend}.onnx")
        write_with_nms(self.path, path, suppression, backend)
        return path


def detector(
    folder: Path, num_classes: int, batch: str = "N", *, scores: str = "scores"
) -> Detector:
    """`scores` names a tensor of the base graph: its names must not meet those that are added."""
    channels = num_classes + 4
    maps = [
        f"float[{batch}, {channels}, {h}, {w}] p{s}"
        for (h, w), s in zip(SIDES, STRIDES, strict=True)
    ]
    model = parse_model(f"""<ir_version: 9, opset_import: ["": 19]>
        maps (float[{batch}, {channels}, {sum(CELLS)}] images) => ({", ".join(maps)})
        <int64[2] parts = {{{CELLS[0]}, {CELLS[1]}}},
         int64[4] first = {{0, {channels}, {SIDES[0][0]}, {SIDES[0][1]}}},
         int64[4] second = {{0, {channels}, {SIDES[1][0]}, {SIDES[1][1]}}}> {{
            {scores}, boxes = Split <axis = 2> (images, parts)
            p8 = Reshape({scores}, first)
            p16 = Reshape(boxes, second)
        }}""")  # fmt: skip
    card = ModelCard(
        model="maps", task="detection", preprocess=Preprocess(SIZE, (0.0,) * 3, (1.0,) * 3),
        num_classes=num_classes, classes=None, outputs=("p8", "p16"), strides=STRIDES,
    )  # fmt: skip
    write_card(card, model)
    path = folder / "maps.onnx"
    onnx.save(model, path)
    return Detector(path, num_classes, card)


def random_maps(
    seed: int, batch: int, num_classes: int, density: float = 1.0, *, wild: bool = False
) -> np.ndarray:
    """Maps `[batch, classes + 4, cells]`: scores with ties, a `density` of them above 0."""
    rng = np.random.default_rng(seed)
    shape = (batch, num_classes, sum(CELLS))
    scores = rng.integers(1, 33, shape) / 32 * (rng.random(shape) < density)
    distances = rng.uniform(0.1, 4, (batch, 4, sum(CELLS)))
    maps = np.concatenate((scores, distances), axis=1).astype(np.float32)
    if wild:
        odd = rng.choice([np.nan, np.inf, -np.inf, 3e38, -3e38, -2.0, 0.0], maps.shape)
        maps = np.where(rng.random(maps.shape) < 0.05, odd, maps).astype(np.float32)
    return maps


def in_numpy(maps: np.ndarray, suppression: Suppression) -> list[Detections]:
    levels = np.split(maps, [CELLS[0]], axis=2)
    shaped = [
        level.reshape(*level.shape[:2], *sides) for level, sides in zip(levels, SIDES, strict=True)
    ]
    return detect(shaped, STRIDES, suppression)


def in_graph(path: Path, maps: np.ndarray, optimize: bool = True) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": maps}), strict=True))


def assert_same(found: list[Detections], expected: list[Detections]) -> None:
    assert len(found) == len(expected)
    for one, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.labels, wanted.labels)
        np.testing.assert_allclose(one.scores, wanted.scores, rtol=0, atol=1e-6)
        np.testing.assert_allclose(one.boxes, wanted.boxes, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wild", [False, True], ids=["usual", "wild"])
@pytest.mark.parametrize(("num_classes", "density"), [(1, 1.0), (1, 0.5), (4, 0.3), (20, 0.01)])
def test_the_graph_finds_what_numpy_finds(
    tmp_path: Path, num_classes: int, density: float, wild: bool, backend: Backend
) -> None:
    suppression = Suppression(0.25, 0.5, 40)
    path = detector(tmp_path, num_classes).end2end(suppression, backend)
    for seed in range(3):
        maps = random_maps(seed, 3, num_classes, density, wild=wild)
        expected = in_numpy(maps, suppression)
        assert sum(len(one.scores) for one in expected) > 10
        assert_same(read_nms_outputs(in_graph(path, maps)), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_with_nothing_with_more_than_fits_and_in_between_share_a_batch(
    tmp_path: Path, backend: Backend
) -> None:
    suppression = Suppression(0.1, 0.6, 25)
    maps = random_maps(0, 3, 6)
    maps[0, :6] = 0.1  # not above the threshold
    maps[1, :6, 3:] = 0.0
    outputs = in_graph(detector(tmp_path, 6).end2end(suppression, backend), maps, optimize=False)
    few = len(in_numpy(maps, suppression)[1].scores)
    assert outputs["num_dets"].tolist() == [[0], [few], [25]]
    assert 0 < few < 25
    assert not outputs["boxes"][1, few:].any()
    assert not outputs["scores"][1, few:].any()
    assert (outputs["classes"][1, few:] == -1).all()
    assert not outputs["boxes"][0].any()
    assert_same(read_nms_outputs(outputs), in_numpy(maps, suppression))


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_best_candidates_are_looked_at_as_in_numpy(
    tmp_path: Path, backend: Backend
) -> None:
    maps = random_maps(1, 1, 30)
    maps[:, -4:] = 0.4  # nothing overlaps: all are kept
    assert 30 * sum(CELLS) > 2 * MAX_CANDIDATES
    suppression = Suppression(0.0, 0.65, MAX_CANDIDATES)
    outputs = in_graph(detector(tmp_path, 30).end2end(suppression, backend), maps)
    assert outputs["num_dets"].tolist() == [[MAX_CANDIDATES]]
    assert_same(read_nms_outputs(outputs), in_numpy(maps, suppression))


def test_a_long_chain_of_suppressions_is_followed_to_its_end(tmp_path: Path) -> None:
    """Each box overlaps the next better one only: every second one stays, as the loop must find."""
    count = sum(CELLS)
    maps = np.zeros((1, 5, count), np.float32)
    maps[0, 0] = np.linspace(0.9, 0.5, count)
    centres = np.concatenate([np.mgrid[:h, :w].reshape(2, -1)[::-1].T + 0.5 for h, w in SIDES]).T
    strides = np.repeat(STRIDES, CELLS)
    left = np.arange(count) * 10 / strides
    maps[0, 1:] = (
        centres[0] - left,
        centres[1],
        left + 16 / strides - centres[0],
        16 / strides - centres[1],
    )
    suppression = Suppression(0.25, 0.2, count)
    outputs = in_graph(detector(tmp_path, 1).end2end(suppression, "tensorrt_rtx"), maps)
    assert outputs["num_dets"].tolist() == [[count // 2]]
    assert_same(read_nms_outputs(outputs), in_numpy(maps, suppression))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", ["N", "2"], ids=["dynamic", "fixed"])
def test_outputs_have_types_and_fixed_sizes_and_the_file_is_valid(
    tmp_path: Path, batch: str, backend: Backend
) -> None:
    path = detector(tmp_path, 3, batch).end2end(Suppression(0.25, 0.65, 50), backend)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    first = "N" if batch == "N" else 2
    found = {}
    for value in model.graph.output:
        kind = value.type.tensor_type
        found[value.name] = (kind.elem_type, [d.dim_param or d.dim_value for d in kind.shape.dim])
    assert found == {
        "num_dets": (onnx.TensorProto.INT32, [first, 1]),
        "boxes": (onnx.TensorProto.FLOAT, [first, 50, 4]),
        "scores": (onnx.TensorProto.FLOAT, [first, 50]),
        "classes": (onnx.TensorProto.INT32, [first, 50]),
    }
    for size in (1, 2, 5) if batch == "N" else (2,):
        outputs = in_graph(path, random_maps(0, size, 3))
        assert {name: list(value.shape) for name, value in outputs.items()} == {
            name: [size, *shape[1:]] for name, (_, shape) in found.items()
        }


def test_a_network_with_fewer_cells_than_rows_has_as_many_rows_as_it_can_fill(
    tmp_path: Path,
) -> None:
    path = detector(tmp_path, 1).end2end(EVALUATION, "tensorrt")
    assert onnx.load(path).graph.output[1].type.tensor_type.shape.dim[1].dim_value == sum(CELLS)


def test_names_of_the_network_may_be_those_of_the_added_tensors(tmp_path: Path) -> None:
    for name in ("candidates", "flat_p8"):
        path = detector(tmp_path, 2, scores=name).end2end(EVALUATION, "tensorrt_rtx")
        assert in_graph(path, random_maps(0, 1, 2))["num_dets"][0, 0] > 0


def test_the_card_of_the_file_says_what_comes_out_of_it(tmp_path: Path) -> None:
    base = detector(tmp_path, 2)
    card = read_card(base.end2end(EVALUATION, "tensorrt"))
    assert card.outputs == ("num_dets", "boxes", "scores", "classes")
    assert (card.strides, card.preprocess) == ((), base.card.preprocess)


def test_what_has_no_boxes_is_refused_in_one_line(tmp_path: Path) -> None:
    done = detector(tmp_path, 2).end2end(EVALUATION, "tensorrt")
    with pytest.raises(AppendNmsError, match=r"^maps: `end2end` needs a detector .*leave it out"):
        write_with_nms(done, tmp_path / "twice.onnx", EVALUATION)
    assert not (tmp_path / "twice.onnx").exists()


@pytest.mark.parametrize("batch", ["N", "2"], ids=["dynamic", "fixed"])
def test_tensorrt_rtx_builds_it(tmp_path: Path, batch: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    path = detector(tmp_path, 3, batch).end2end(EVALUATION, "tensorrt_rtx")
    options = BuildOptions(TARGETS["tensorrt-rtx"].compute_capabilities[:1], batch=(1, 1, 4))
    built = build_engine(path, tmp_path / "model.engine", trt, options)
    assert built.size_bytes > 1000
    # an exception that an earlier test caught may keep its builder, and with it its logger, alive
    assert not [warning for warning in built.warnings if "logger passed" not in warning]


def test_tensorrt_rtx_parses_nonmaxsuppression_but_has_no_kernel_for_it(tmp_path: Path) -> None:
    """When this fails, TensorRT-RTX can do it, and the loop can go."""
    trt = pytest.importorskip("tensorrt_rtx")
    path = detector(tmp_path, 3).end2end(EVALUATION, "tensorrt")
    with pytest.raises(BuildError, match=r"end2end/selected.* has no runners"):
        build_engine(path, tmp_path / "model.engine", trt, BuildOptions(batch=(1, 1, 4)))
