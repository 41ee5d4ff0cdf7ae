"""Stored results of whole runs, `baselines.yaml`: recipe, measured values, tolerances.

An entry is a recipe and the values that it gave, each with a tolerance. The recipe overrides
the one that ships with its model; its files are relative to a folder that is chosen on each machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from reptrt.engines.foreign.border import reading
from reptrt.engines.foreign.text import one_line, path_part
from reptrt.pipeline.read_yaml import read_yaml
from reptrt.pipeline.recipe import RECIPES, Recipe, load_recipe, slug

BASELINES = Path(__file__).with_name("baselines.yaml")
_FILES = ("weights", "data", "evaluation")


class BaselineError(ValueError):
    """The file of baselines is not legal, or lacks the entry that was asked for."""

    exit_code = 2


class MissingFilesError(FileNotFoundError):
    """Weights or images of an entry are not on this machine."""


class Expected(BaseModel):
    """A stored value; a run passes within `tolerance` of it in either direction."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: FiniteFloat
    tolerance: Annotated[FiniteFloat, Field(ge=0)]


class Baseline(BaseModel):
    """One entry.

    Attributes:
        recipe: fields of `Recipe`, `model` among them.
        accuracy: of INT8, in percent.
        agreement: with FP32, in percent.
        int8_coverage: percent of the quantizable layers that run in INT8.
        kernels: of the engine, by builder: "tensorrt_rtx 1.7" stands for 1.7.1.116 too.
        megabytes: that the kernels of the engine read and write, activations and weights, by builder.
        latency_ratio: median latency, INT8 over FP16 (else FP32), by GPU; of the target `cpu`, by processor.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: dict[str, Any]
    accuracy: Expected | None = None
    agreement: Expected | None = None
    int8_coverage: Expected | None = None
    kernels: dict[str, Expected] = {}
    megabytes: dict[str, Expected] = {}
    latency_ratio: dict[str, Expected] = {}

    @model_validator(mode="after")
    def _expects_something(self) -> Baseline:
        if not isinstance(self.recipe.get("model"), str):
            raise ValueError("its recipe names no model")
        if not (self.accuracy or self.agreement or self.int8_coverage):
            raise ValueError("expects none of accuracy, agreement, int8_coverage")
        return self


def load_baselines(path: Path) -> dict[str, Baseline]:
    """Entries of `path` by name.

    Raises:
        BaselineError: unreadable, not YAML, an unknown key or a value out of range.
    """
    entries = read_yaml(path, BaselineError)
    if not isinstance(entries, dict) or not entries:
        raise BaselineError(f"{path}: holds no entry; it has to be `name:` and below it `recipe:`")
    with reading(path, BaselineError, "not legal"):
        return {str(name): _entry(path, str(name), values) for name, values in entries.items()}


def _entry(path: Path, name: str, values: object) -> Baseline:
    if path_part(name) != name:  # it names a folder
        raise BaselineError(
            f"{path}: {one_line(name)!r}: a name has letters, digits, '-', '.' and '_', and begins with"
            " a letter or a digit"
        )
    try:
        return Baseline.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        keys = [str(part) for part in first["loc"]]
        where = one_line(f"{line_of(path, name, *keys)}: {'.'.join([name, *keys])}")
        if first["type"] == "extra_forbidden":
            legal = Expected.model_fields if len(keys) > 1 else Baseline.model_fields
            raise BaselineError(f"{where}: unknown key; legal: {', '.join(legal)}") from None
        raise BaselineError(f"{where}: {first['msg'].lower()}") from None


def choose(baselines: Mapping[str, Baseline], names: Sequence[str]) -> dict[str, Baseline]:
    """Entries called `names`; all of them for no name.

    Raises:
        BaselineError: there is no such entry.
    """
    for name in names:
        if name not in baselines:
            close = get_close_matches(name, baselines, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"legal: {', '.join(baselines)}"
            raise BaselineError(f"no baseline is called {name!r}; {hint}")
    return {name: baselines[name] for name in names or baselines}


def entry_recipe(baseline: Baseline, folder: Path, options: Mapping[str, Any]) -> Recipe:
    """The recipe of `baseline`, with its files in `folder`.

    Args:
        baseline: the entry.
        folder: relative paths start here.
        options: fields of `Recipe` that override the entry's; None keeps the entry's.

    Raises:
        MissingFilesError: one of its files is not there.
        RecipeError: its recipe is not legal.
    """
    values = dict(baseline.recipe)
    model = str(values.pop("model"))
    if model.endswith(".onnx"):
        model = str(_existing(folder / model))
    for key in _FILES:
        if values.get(key) is not None:
            values[key] = _existing(folder / str(values[key]))
    chosen = {key: value for key, value in options.items() if value is not None}
    return load_recipe(model, {**values, **chosen})


def _existing(path: Path) -> Path:
    if not path.exists():
        raise MissingFilesError(
            f"no {path}: set REPTRT_DATA to the folder of real weights and images"
        )
    return path.resolve()


def recipes_without_baseline(baselines: Mapping[str, Baseline]) -> list[Path]:
    """Recipes that ship with a model which no entry runs."""
    covered = {slug(str(baseline.recipe["model"])) for baseline in baselines.values()}
    return [path for path in sorted(RECIPES.glob("*.yaml")) if path.stem not in covered]


def line_of(path: Path, *keys: str) -> str:
    """`path:line` of the last of the nested `keys` that the YAML file has."""
    node, line = yaml.compose(path.read_text(encoding="utf-8")), 1
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((name, value) for name, value in pairs if name.value == key), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{line}"
