from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest
from torch import nn

from reptrt.calibrators.progress import no_progress
from reptrt.calibrators.settings import Reconstruction
from reptrt.engines.target import TARGETS
from reptrt.models.load import LoadedModel
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.preprocess import DataError
from reptrt.pipeline.open_run import log_to
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.run import Run
from reptrt.pipeline.workspace.folder import open_workspace
from tests.tiny_networks import SIZE, traced


def run_of(module: nn.Module, chosen: Reconstruction, folder: Path) -> Run:
    recipe = Recipe(model="m", data=folder, reconstruction=chosen)
    target = TARGETS["cpu"]
    run = Run(recipe, target, open_workspace(folder, recipe, target.name), "reptrt", no_progress)
    layout = Preprocess((SIZE, SIZE), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    run.__dict__["loaded"] = LoadedModel("m", module, "detection", layout, None, 3, None, "0" * 64)
    return run


@pytest.mark.parametrize(
    ("said", "imported", "own"),
    [({}, "chains", "layers"), *(({"units": u}, u, u) for u in ("layers", "chains"))],
    ids=["nothing", "layers", "chains"],
)
def test_units_are_chains_in_a_graph_from_a_file_unless_the_recipe_says_otherwise(
    said: dict[str, str], imported: str, own: str, tmp_path: Path
) -> None:
    chosen = Reconstruction(iterations=7, **said)
    found = run_of(traced("detector"), chosen, tmp_path).plan.reconstruction
    assert found == Reconstruction(iterations=7, units=imported)
    assert run_of(nn.Sequential(), chosen, tmp_path).plan.reconstruction == Reconstruction(
        iterations=7, units=own
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [(DataError("images: none"), r"ERROR \S+: images: none"), (ValueError("ours"), "ValueError: ours")],
)  # fmt: skip
def test_the_log_of_a_run_that_failed_ends_with_its_error(
    tmp_path: Path, error: Exception, line: str
) -> None:
    screen = logging.StreamHandler(io.StringIO())
    with pytest.raises(type(error)), log_to(tmp_path / "run.log", [screen]):
        raise error
    last = (tmp_path / "run.log").read_text().splitlines()[-1]
    assert re.search(rf"{line}$", last)
    assert screen.stream.getvalue() == ""
