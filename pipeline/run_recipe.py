"""The recipe of a run in its folder, so that the folder can stand for MODEL."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml

from reptrt.engines.artifacts import replace_when_done
from reptrt.pipeline.recipe import RUN_RECIPE, Recipe, is_file


def save_recipe(recipe: Recipe, folder: Path, target: str) -> None:
    """Write `recipe` to the folder of its run, so that the folder can stand for MODEL.

    Args:
        recipe: what was done.
        folder: of the run.
        target: that `auto` became.
    """
    text, file = _text(recipe, target), folder / RUN_RECIPE
    if not file.is_file() or file.read_bytes() != text.encode():
        with replace_when_done(file) as path:
            path.write_text(text, encoding="utf-8")


def recipe_sha256(recipe: Recipe, target: str) -> str:
    """Hex digest of the file that `save_recipe` writes."""
    return hashlib.sha256(_text(recipe, target).encode()).hexdigest()


def _text(recipe: Recipe, target: str) -> str:
    values = recipe.model_dump(exclude_defaults=True) | {"target": target}
    paths = {key: str(one.absolute()) for key, one in values.items() if isinstance(one, Path)}
    if is_file(recipe.model):
        paths["model"] = str(Path(recipe.model).absolute())
    plain = Recipe.model_validate(values | paths).model_dump(mode="json", include=set(values))
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text
