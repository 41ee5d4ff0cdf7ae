"""Tolerances and verdicts against hand-computed values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reptrt.engines.build.builder import BuildOptions
from reptrt.engines.kit.manifest import Manifest, Tolerances
from reptrt.engines.kit.verification import (
    EngineCheck,
    ReferenceFileError,
    References,
    compare,
    derive_tolerances,
    join_checks,
    read_references,
    run_in_batches,
    write_references,
)
from reptrt.engines.report_schema import OutputNumerics
from reptrt.engines.tensor_spec import Tensor
from tests.reports import FACTS


def manifest(tolerances: Tolerances, *outputs: str, strides: tuple[int, ...] = ()) -> Manifest:
    return Manifest(
        name="net",
        model="net",
        task="generic",
        target="tensorrt",
        onnx="",
        references="",
        build=BuildOptions(batch=(1, 1, 1)),
        inputs=(Tensor("images", "float32", (-1, 1)),),
        outputs=tuple(Tensor(name, "float32", (-1,)) for name in outputs),
        classes=None,
        strides=strides,
        preprocess={},
        layers={},
        layers_source="",
        tolerances=tolerances,
        run=FACTS,
        files={},
    )


def array(*rows: object) -> np.ndarray:
    return np.array(rows, np.float32)


def one_box(score: float, left: float = 0.0) -> np.ndarray:
    """A map `[1, 5, 4, 4]` with one box, around the cell in the second row and column."""
    maps = np.zeros((1, 5, 4, 4), np.float32)
    maps[0, 0, 1, 1] = score
    maps[0, 1:, 1, 1] = (1 + left, 1, 1, 1)
    return maps


@pytest.mark.parametrize(
    ("error", "bound"),
    [(0.5, 20.0), (0.0, 40.0), (0.005, 40.0), (5.0, 3.0), (math.nan, 3.0)],
)
def test_the_bound_is_what_quantization_changed_within_limits(error: float, bound: float):
    floating = {"y": array([3.0, 4.0])}
    quantized = {"y": array([3.0, 4.0 + error])}
    assert derive_tolerances(floating, quantized, "generic", ()).snr_db == {"y": bound}


def test_a_class_counts_where_the_margin_is_beyond_the_noise():
    floating = {"logits": array([0, 0, 9.0], [0, 8.0, 7.5], [5, 0, 0])}
    noise = array([1, -1, 1], [1, 1, -1], [1, 1, 1])  # rms 1: a margin of 4.24 is clear
    quantized = {"logits": floating["logits"] + noise}
    tolerances = derive_tolerances(floating, quantized, "classification", ())
    assert tolerances.top1 == (2, None, 0)


def test_boxes_must_agree_as_well_as_quantization_left_them():
    floating = {"p3": np.concatenate([one_box(0.9), one_box(0.9)])}
    moved = {"p3": np.concatenate([one_box(0.9), one_box(0.1)])}
    assert derive_tolerances(floating, floating, "detection", (8,)).agreement == 90.0
    assert derive_tolerances(floating, moved, "detection", (8,)).agreement == 50.0


def test_of_an_end_to_end_model_the_boxes_alone_are_compared():
    boxes = {
        "num_dets": np.array([[1]]), "boxes": array([[4, 4, 20, 20]]), "scores": array([0.9]),
        "classes": np.array([[0]]),
    }  # fmt: skip
    tolerances = derive_tolerances({"p3": one_box(0.9)}, boxes, "detection", (8,))
    assert tolerances == Tolerances({}, (), 90.0)
    wanted = manifest(tolerances, *boxes, strides=(8,))
    assert compare(boxes, [boxes], wanted).failures == ()
    nothing = {**boxes, "num_dets": np.array([[0]])}
    assert compare(boxes, [boxes, nothing], wanted).failures == (
        "boxes agree to 0.0 %, at least 90.0 % wanted",
    )


def test_every_tolerance_that_is_missed_is_named():
    reference = {"y": array([3.0, 4.0])}
    engine = {"y": array([3.5, 4.0])}  # 20 dB, and the same class
    wanted = manifest(Tolerances({"y": 19.0}, (1,)), "y")
    verdict = compare(reference, [engine], wanted)
    assert verdict.failures == ()
    assert verdict.numerics["y"].snr_db == pytest.approx(20.0)
    assert verdict.top1 == 100.0
    strict = replace(wanted, tolerances=Tolerances({"y": 21.0}, (0,)))
    assert compare(reference, [engine], strict).failures == (
        "output y: 20.0 dB, at least 21.0 dB wanted",
        "1 of 1 images get another class",
    )


def test_one_image_of_another_class_is_enough_to_fail():
    reference = {"y": array([9.0, 0.0], [0.0, 9.0], [4.0, 4.1])}
    engine = {"y": array([9.0, 0.0], [9.0, 8.9], [4.1, 4.0])}
    verdict = compare(reference, [engine], manifest(Tolerances({}, (0, 1, None)), "y"))
    assert verdict.failures == ("1 of 2 images get another class",)
    assert verdict.top1 == 50.0


def test_one_bad_batch_size_is_enough_to_fail():
    reference = {"y": array([3.0, 4.0])}
    wanted = manifest(Tolerances({"y": 10.0}), "y")
    assert compare(reference, [reference, reference], wanted).failures == ()
    assert compare(reference, [reference, {"y": -reference["y"]}], wanted).failures != ()


def test_one_bad_size_is_enough_to_fail():
    good = EngineCheck({"y": OutputNumerics(30.0, 1.0)}, 100.0, None, ())
    bad = EngineCheck({"y": OutputNumerics(9.0, 0.9)}, 50.0, None, ("output y: 9.0 dB",))
    found = join_checks({"": good, "at 8x8": bad})
    assert found.failures == ("at 8x8: output y: 9.0 dB",)
    assert found.numerics == {"y": good.numerics["y"], "y at 8x8": bad.numerics["y"]}
    assert (found.top1, found.agreement) == (50.0, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_an_engine_without_sensible_numbers_fails(value: float):
    reference = {"y": array([3.0, 4.0])}
    wanted = manifest(Tolerances({"y": 3.0}), "y")
    engine = {"y": np.full((1, 2), value, np.float32)}
    assert compare(reference, [engine], wanted).failures != ()


def test_outputs_of_another_model_are_refused():
    wanted = manifest(Tolerances({"y": 3.0}), "y")
    for engine in ({"y": array([1.0])}, {"z": array([3.0, 4.0])}):
        with pytest.raises(ReferenceFileError, match="another model; make the kit again"):
            compare({"y": array([3.0, 4.0])}, [engine], wanted)


class Doubler:
    """A runner that notes the batches it gets."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []

    def infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.batches.append(feed["images"].ravel().tolist())
        return {"y": 2 * feed["images"]}


def test_the_last_batch_is_filled_up_and_cut_again():
    runner = Doubler()
    outputs = run_in_batches(runner, {"images": array([1], [2], [3])}, 2)  # type: ignore[arg-type]
    assert runner.batches == [[1, 2], [3, 3]]
    assert outputs["y"].tolist() == [[2], [4], [6]]
    whole = run_in_batches(runner, {"images": array([1], [2], [3])}, 8)  # type: ignore[arg-type]
    assert whole["y"].tolist() == [[2], [4], [6]]


def test_references_come_back_as_they_were_written(tmp_path: Path):
    stored = References({"images": array([1], [2])}, {"y": array([3], [4])})
    for name in ("a.npz", "b.npz"):
        write_references(stored, tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    read = read_references(tmp_path / "a.npz", manifest(Tolerances({}), "y"))
    assert read.inputs["images"].tolist() == [[1], [2]]
    assert read.outputs["y"].tolist() == [[3], [4]]
    with pytest.raises(ReferenceFileError, match="no reference inputs and outputs"):
        read_references(tmp_path / "a.npz", manifest(Tolerances({}), "z"))
