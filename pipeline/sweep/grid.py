"""What `reptrt sweep` runs: a YAML file with axes, and the cells that they span."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from reptrt.engines.foreign.text import one_line, path_part
from reptrt.pipeline.byte_size import Bytes
from reptrt.pipeline.read_yaml import read_yaml
from reptrt.pipeline.recipe import Recipe, load_recipe, slug

MAX_CELLS, MAX_MATCHES = 100_000, 10_000_000
BITS = "bits"
"""An axis that sets the bits of weights and of activations at once."""
_APART = {
    "calibrator",
    BITS,
    "weight_bits",
    "activation_bits",
    "seed",
    "num_samples",
    "precision",
    "target",
}
"""Fields that a run's folder tells apart (`run_folder`): cells that differ in nothing else share a workspace."""
_SHORT = {"calibrator": "", "model": "", "target": "", BITS: "w", "seed": "s", "num_samples": "n"}

Fields = dict[str, Any]


class SweepError(ValueError):
    """The file of a sweep is not legal."""

    exit_code = 2


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


class Resources(BaseModel):
    """What one cell may use, and how often it is tried again.

    `cpus` also is the number of threads: scales may depend on it, so a cell that goes to another node
    gives the same. `memory`: None asks for what such a cell used before, or what the recipe may hold.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0.0
    memory: Annotated[Bytes, Field(gt=0)] | None = None
    retries: Annotated[int, Field(ge=0)] = 3
    hours: Annotated[float, Field(gt=0)] | None = None


class Sweep(BaseModel):
    """Content of sweep.yaml.

    Attributes:
        base: fields of `Recipe` that all cells share.
        grid: field -> values; a value that is a mapping sets several fields. `bits` sets both.
        include: cells beside the grid.
        exclude: a cell is left out where all fields of an item agree.
        resources: of each cell.
        price_per_hour: of a CPU, in a currency of yours; for `--dry-run` alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Fields = {}
    grid: dict[str, Annotated[list[Any], BeforeValidator(_as_list), Field(min_length=1)]] = {}
    include: list[Fields] = []
    exclude: list[Fields] = []
    resources: Resources = Resources()
    price_per_hour: Annotated[float, Field(ge=0)] | None = None


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: unique; also a folder's name.
        group: of cells that share a workspace, and so what their runs lend each other: exports, the placement,
            sensitivities, and a calibration where only the target differs.
        recipe: what to do.
        axes: what of it the sweep varies, field -> value as text.
    """

    name: str
    group: str
    recipe: Recipe
    axes: Mapping[str, str]

    @property
    def key(self) -> str:
        """Digest of the recipe: a result with another key is of another cell."""
        content = json.dumps(self.recipe.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def load_sweep(path: Path) -> Sweep:
    """Content of a YAML file.

    Raises:
        SweepError: unreadable, an unknown key, or a value that is not legal.
    """
    values = read_yaml(path, SweepError)
    if not isinstance(values, dict):
        raise SweepError(
            f"{path}: a sweep has `base:`, `grid:` and the like; see docs/how-to/sweep.md"
        )
    try:
        return Sweep.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = one_line(".".join(map(str, first["loc"])))
        raise SweepError(f"{path}: {key}: {one_line(first['msg'].lower())}") from None


def cells_of(sweep: Sweep, root: Path = Path()) -> list[Cell]:
    """All cells, in the order of the file.

    Args:
        sweep: what to span.
        root: folder that relative files of the sweep start from.

    Raises:
        SweepError: there is no cell, or too many, or two are the same.
        RecipeError: a field or a value is not legal.
    """
    count = len(sweep.include) + _product(len(values) for values in sweep.grid.values())
    if count > MAX_CELLS:
        raise SweepError(f"grid: {count} cells, and at most {MAX_CELLS} are run; split the sweep")
    if count * len(sweep.exclude) > MAX_MATCHES:
        raise SweepError(f"exclude: {len(sweep.exclude)} items for {count} cells; split the sweep")
    wanted = [_merged(sweep.grid, values) for values in product(*sweep.grid.values())]
    chosen = [
        one for one in wanted if one and not any(_matches(one, rule) for rule in sweep.exclude)
    ]
    cells: dict[str, Cell] = {}
    for varied in [*chosen, *sweep.include]:
        cell = _cell(sweep.base, varied, root)
        if cell.name in cells:
            raise SweepError(f"grid: two cells are called {cell.name}; one of them is too many")
        cells[cell.name] = cell
    if not cells:
        raise SweepError("grid: spans no cell; give `grid` a `model` at least, or `include` a cell")
    return list(cells.values())


def _product(numbers: Any) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def _merged(grid: Mapping[str, list[Any]], values: tuple[Any, ...]) -> Fields:
    """One value of each axis; a mapping brings several fields."""
    merged: Fields = {}
    for axis, value in zip(grid, values, strict=True):
        merged |= value if isinstance(value, dict) else {axis: value}
    return merged


def _matches(cell: Fields, rule: Fields) -> bool:
    return bool(rule) and all(cell.get(field) == value for field, value in rule.items())


def _cell(base: Fields, varied: Fields, root: Path) -> Cell:
    values = _with_bits({**base, **varied})
    model = values.pop("model", None)
    if not isinstance(model, str):
        raise SweepError("grid: a cell has no `model`; give one in `base`, `grid` or `include`")
    if model.endswith(".onnx"):
        model = str(root / model)
    for name in ("weights", "data", "evaluation"):
        if values.get(name) is not None:
            values[name] = root / str(values[name])
    recipe = load_recipe(model, values)
    axes = {field: _text(value) for field, value in varied.items() if not _is_file(field)}
    parts = {field: _part(field, value) for field, value in ({"model": model} | axes).items()}
    name = path_part("-".join(part for part in parts.values() if part))
    group = path_part(
        "-".join(part for field, part in parts.items() if field not in _APART and part)
    )
    return Cell(name, group, recipe, axes)


def _with_bits(values: Fields) -> Fields:
    bits = values.pop(BITS, None)
    return values if bits is None else {**values, "weight_bits": bits, "activation_bits": bits}


def _is_file(field: str) -> bool:
    return field in ("weights", "data", "evaluation")


def _text(value: object) -> str:
    return one_line(value if isinstance(value, str) else json.dumps(value, default=str))


def _part(field: str, value: object) -> str:
    """What a field adds to the name of its cell: `w6`, `s1`, `repapq`, `precision_fp16`."""
    text = slug(str(value)) if field == "model" else path_part(str(value))
    return f"{_SHORT.get(field, f'{field}_')}{text}"
