from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np

from reptrt.engines.runtime.runners import Array, OnnxRuntimeRunner
from reptrt.pipeline.validation.remembered import OutputMemory, RememberingRunner
from tests.onnx_files import from_text

INFER = OnnxRuntimeRunner.infer


def twice(path: Path, factor: int) -> Path:
    text = f"""<ir_version: 9, opset_import: ["": 19]> toy (float[N,2] x) => (float[N,2] y)
        <float factor = {{{factor}}}> {{ y = Mul(x, factor) }}"""
    return from_text(text, path)


def answers(path: Path, memory: OutputMemory, feeds: list[Array]) -> tuple[list[Array], int]:
    """The answers, and how often the file ran."""
    with (
        patch.object(OnnxRuntimeRunner, "infer", autospec=True, side_effect=INFER) as infer,
        RememberingRunner(path, memory) as runner,
    ):
        return [runner.infer({"x": feed})["y"] for feed in feeds], infer.call_count


def test_an_answer_is_computed_once_per_file_and_feed(tmp_path: Path) -> None:
    memory, path = OutputMemory(1000), twice(tmp_path / "a.onnx", 2)
    feeds = [np.full((1, 2), value, np.float32) for value in (1.0, 2.0, 1.0)]
    first, runs = answers(path, memory, feeds)
    assert runs == 2
    again, runs = answers(path, memory, feeds)
    assert runs == 0
    np.testing.assert_array_equal(np.stack(again), np.stack(first))
    other, runs = answers(twice(path, 3), memory, feeds)  # the file has another content now
    assert runs == 2
    np.testing.assert_array_equal(np.stack(other), 1.5 * np.stack(first))


def test_feeds_of_equal_bytes_and_another_shape_are_different(tmp_path: Path) -> None:
    memory, path = OutputMemory(1000), twice(tmp_path / "a.onnx", 2)
    feeds = [np.ones((1, 2), np.float32), np.ones((2, 2), np.float32)]
    found, runs = answers(path, memory, feeds)
    assert runs == 2
    assert [one.shape for one in found] == [(1, 2), (2, 2)]


def test_what_finds_no_room_is_computed_again(tmp_path: Path) -> None:
    assert (
        answers(twice(tmp_path / "b.onnx", 2), OutputMemory(), [np.ones((1, 2), np.float32)] * 2)[1]
        == 2
    )
    memory, path = OutputMemory(most_bytes=8), twice(tmp_path / "a.onnx", 2)
    feeds = [np.full((1, 2), value, np.float32) for value in (1.0, 2.0, 1.0, 2.0)]
    assert answers(path, memory, feeds)[1] == 3
