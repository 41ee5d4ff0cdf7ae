from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reptrt.engines.device import Gpu
from reptrt.engines.target import TARGETS
from reptrt.pipeline.engine import build as module
from reptrt.pipeline.engine.build import build_inputs, build_options
from reptrt.pipeline.recipe import RecipeError, load_recipe
from tests.command_line import TinyProject, reptrt

RTX = TARGETS["tensorrt-rtx"]


def recipe(**options: Any) -> Any:
    return load_recipe("mobileone_s0", options)


def test_every_choice_reaches_the_builder(tmp_path: Path) -> None:
    options = build_options(
        recipe(max_batch=16, opt_batch=4, workspace_limit="1GiB", optimization_level=5,
               timing_cache=tmp_path, version_compatible=True, hardware_compatible=True),
        TARGETS["server-l4"],
    )  # fmt: skip
    assert options.batch == (1, 4, 16)
    assert options.workspace_bytes == 2**30
    assert options.optimization_level == 5
    assert options.timing_cache == tmp_path
    assert options.version_compatible
    assert options.hardware_compatible
    assert options.compute_capabilities == ((8, 9),)


def test_what_is_not_chosen_is_left_to_tensorrt() -> None:
    options = build_options(recipe(), RTX)
    assert options.batch == (1, 1, 8)
    assert options.workspace_bytes is None
    assert options.optimization_level is None
    assert options.timing_cache is not None
    assert not options.version_compatible
    assert not options.hardware_compatible


def test_a_usual_batch_above_the_largest_is_refused_before_anything_runs(
    tiny: TinyProject, tmp_path: Path
) -> None:
    outcome = reptrt("engine", *tiny.options, "--opt-batch", 9, "--workspace", tmp_path)
    assert outcome.code == 2
    assert outcome.complaints == ["reptrt: opt_batch 9 is larger than max_batch 8"]


def test_a_workspace_limit_that_is_no_size_is_refused() -> None:
    with pytest.raises(RecipeError, match="workspace_limit: lots is not a size"):
        recipe(workspace_limit="lots")


@pytest.mark.parametrize(
    "change",
    [{"opt_batch": 2}, {"max_batch": 2}, {"workspace_limit": "1GiB"}, {"optimization_level": 1},
     {"version_compatible": True}, {"hardware_compatible": True}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_changes_the_engine_makes_it_stale(change: dict[str, Any]) -> None:
    target = TARGETS["server-l4"]
    assert build_inputs(recipe(**change), target) != build_inputs(recipe(), target)


def test_where_timings_are_kept_does_not(tmp_path: Path) -> None:
    assert build_inputs(recipe(timing_cache=tmp_path), RTX) == build_inputs(recipe(), RTX)


def test_an_engine_of_another_gpu_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = []
    for name in ("NVIDIA L4", "NVIDIA RTX 4090"):
        gpu = Gpu(name, (8, 9))
        monkeypatch.setattr(module, "find_gpu", lambda gpu=gpu: gpu)
        stated.append(build_inputs(recipe(), TARGETS["tensorrt"])["gpu"])
    assert stated == ["NVIDIA L4", "NVIDIA RTX 4090"]
