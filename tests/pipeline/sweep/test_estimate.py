"""How long a sweep takes, before it runs and after cells like its own have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from reptrt.pipeline.sweep import estimate
from reptrt.pipeline.sweep.estimate import plan_cells
from reptrt.pipeline.sweep.grid import Cell, Resources, cells_of, load_sweep
from tests.command_line import TinyProject, reptrt


@pytest.fixture
def cells(tiny: TinyProject, tmp_path: Path) -> list[Cell]:
    base = {"data": str(tiny.data), "image_size": [32, 32], "target": "cpu", "num_samples": 4}
    include = [{"model": "no_such_model", "calibrator": "mse"}]
    grid = {"model": tiny.model, "calibrator": ["minmax", "repapq"]}
    content = {"base": base, "grid": grid, "include": include, "price_per_hour": 2.0}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    return cells_of(load_sweep(tmp_path / "sweep.yaml"), tmp_path)


def test_what_has_not_run_is_known_from_one_pass_and_a_bad_cell_says_why(
    cells: list[Cell], tmp_path: Path
) -> None:
    first, learned, bad = plan_cells(cells, tmp_path / "out", Resources())
    assert (first.state, first.known_from) == ("to run", "one pass")
    assert first.hours is not None
    assert learned.hours is not None
    assert 0 < first.hours <= learned.hours
    assert bad.hours is None
    assert "no_such_model" in bad.known_from
    assert not (tmp_path / "out").exists()


def test_the_calibrator_of_a_guess_counts_by_its_passes(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess = estimate._Guess(others=10.0, pass_of_image=0.5, auto="repapq")
    monkeypatch.setattr(estimate, "_guess", lambda _: guess)
    minmax, learned, _ = plan_cells(cells, tmp_path, Resources())
    assert minmax.hours == (10 + 0.5 * 4 * 6) / 3600  # 4 images, 6 passes
    assert learned.hours == (10 + 0.5 * 4 * 20) / 3600


def test_the_dry_run_of_the_command_adds_up(cells: list[Cell], tmp_path: Path) -> None:
    outcome = reptrt(
        "sweep", tmp_path / "sweep.yaml", "--workspace", tmp_path / "out", "--dry-run", "--json"
    )
    found = json.loads(outcome.out)
    known = [one["hours"] for one in found["cells"] if one["hours"] is not None]
    assert len(known) == 2
    assert found["totals"]["cells of unknown length"] == 1
    assert found["totals"]["CPU hours"] == round(sum(known), 2)
    assert found["totals"]["cost"] == round(2 * sum(known), 2)
