"""Generated scenes: the data of the bundled demo model when the user gives none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from reptrt.models.demo import scenes
from reptrt.models.demo.dataset import write_dataset, written_ahead
from reptrt.models.names import DEMO
from reptrt.pipeline.data.preprocess import DataError

if TYPE_CHECKING:
    from reptrt.pipeline.recipe import Recipe

NUM_EVALUATION = 200
_LABELLED = scenes.EVALUATION[:NUM_EVALUATION]
SCENES = "demo-scenes"
"""Where they are kept in the folder of all runs."""
_CALIBRATION, _EVALUATION = "calibration", "evaluation"


def calibration_scenes(model: str, folder: Path) -> Path:
    """Folder of unlabelled scenes for the demo model.

    Raises:
        DataError: another model, which needs images of its own.
    """
    if model != DEMO:
        raise DataError(
            f"{model}: calibration needs images like those it will see: give `data=FOLDER` "
            f"(make: DATA=folder), a folder of unlabelled images or an .npy file; only {DEMO} "
            "has its own"
        )
    return _write(folder / _CALIBRATION, scenes.CALIBRATION)


def scenes_ahead(recipe: Recipe, root: Path) -> AbstractContextManager[None]:
    """Let a second process draw the scenes that `recipe` needs during the block, while PyTorch is loaded, say.

    Args:
        recipe: of a run.
        root: folder of all runs.
    """
    if recipe.model != DEMO:
        return nullcontext()
    folder, needed = root / SCENES, {}
    if recipe.evaluation is None:
        needed[folder / _EVALUATION] = _LABELLED
    if recipe.data is None:
        needed[folder / _CALIBRATION] = scenes.CALIBRATION
    return written_ahead(needed)


def evaluation_scenes(model: str, folder: Path) -> Path | None:
    """Folder of labelled scenes for the demo model, None for any other."""
    if model != DEMO:
        return None
    return _write(folder / _EVALUATION, _LABELLED)


def _write(folder: Path, seeds: Sequence[int]) -> Path:
    return write_dataset(folder, seeds).parent
