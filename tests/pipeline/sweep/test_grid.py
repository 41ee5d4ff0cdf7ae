"""From a sweep's YAML to its cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from reptrt.pipeline.recipe import RecipeError
from reptrt.pipeline.sweep.cell import folder_of_run
from reptrt.pipeline.sweep.grid import Cell, SweepError, cells_of, load_sweep


def cells(text: str, folder: Path) -> list[Cell]:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return cells_of(load_sweep(path), folder)


def test_axes_span_a_grid_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = cells(
        "base: {data: images, num_samples: 16}\n"
        "grid: {model: [repvgg_a0, mobileone_s0], bits: [8, 6], seed: 1}\n",
        tmp_path,
    )
    assert [cell.name for cell in found] == [
        "repvgg_a0-w8-s1", "repvgg_a0-w6-s1", "mobileone_s0-w8-s1", "mobileone_s0-w6-s1",
    ]  # fmt: skip
    recipe = found[1].recipe
    assert (recipe.weight_bits, recipe.activation_bits, recipe.seed) == (6, 6, 1)
    assert (recipe.num_samples, recipe.data) == (16, tmp_path / "images")


def test_a_value_that_is_a_mapping_sets_several_fields(tmp_path: Path) -> None:
    (cell,) = cells(
        "grid: {model: [{model: net.onnx, data: there, evaluation: labelled}]}", tmp_path
    )
    assert cell.recipe.model == str(tmp_path / "net.onnx")
    assert (cell.recipe.data, cell.recipe.evaluation) == (tmp_path / "there", tmp_path / "labelled")
    assert cell.name == "net"


def test_cells_are_left_out_and_added(tmp_path: Path) -> None:
    found = cells(
        "grid: {model: [repvgg_a0, mobileone_s0], calibrator: [minmax, mse]}\n"
        "exclude: [{model: repvgg_a0, calibrator: mse}]\n"
        "include: [{model: repvgg_a1, calibrator: mae, target: cpu}]\n",
        tmp_path,
    )
    assert [cell.name for cell in found] == [
        "repvgg_a0-minmax", "mobileone_s0-minmax", "mobileone_s0-mse", "repvgg_a1-mae-cpu",
    ]  # fmt: skip


def test_cells_of_one_workspace_have_folders_of_their_own(tmp_path: Path) -> None:
    found = cells(
        "grid: {model: repvgg_a0, calibrator: [mse, repapq], bits: [8, 6], seed: [0, 1], num_samples: [64, 128],"
        " precision: [fp16, fp32], target: [cpu, tensorrt-rtx]}",
        tmp_path,
    )
    assert {cell.group for cell in found} == {"repvgg_a0"}
    assert len({folder_of_run(tmp_path, cell) for cell in found}) == len(found) == 64


def test_cells_that_differ_in_anything_else_share_nothing(tmp_path: Path) -> None:
    found = cells("grid: {model: repvgg_a0, seed: [0, 1], quantize: [pays, all]}", tmp_path)
    assert [cell.group for cell in found] == [
        "repvgg_a0-quantize_pays",
        "repvgg_a0-quantize_all",
    ] * 2


def test_a_key_is_of_the_recipe(tmp_path: Path) -> None:
    (one,) = cells("grid: {model: repvgg_a0}", tmp_path)
    (same,) = cells("base: {model: repvgg_a0}\ninclude: [{seed: 0}]", tmp_path)
    (other,) = cells("base: {model: repvgg_a0}\ninclude: [{seed: 1}]", tmp_path)
    assert one.key == same.key != other.key


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "a sweep has `base:`, `grid:`"),
        ("grid: {model: []}", "grid.model"),
        ("grids: {}", "grids: extra inputs are not permitted"),
        ("grid: {seed: [0]}", "a cell has no `model`"),
        ("base: {model: repvgg_a0}", "spans no cell"),
        ("grid: {model: [repvgg_a0, repvgg_a0]}", "two cells are called repvgg_a0"),
("grid: {model: repvgg_a0}\nresources: {cpus: 0}", "resources.cpus"),
    ],
)  # fmt: skip
def test_what_is_not_legal_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(SweepError, match=reason) as found:
        cells(text, tmp_path)
    assert "\n" not in str(found.value)


def test_a_field_that_no_recipe_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'calibrator'"):
        cells("grid: {model: repvgg_a0, calibrater: [minmax]}", tmp_path)


def test_a_grid_of_millions_is_refused_before_it_is_spanned(tmp_path: Path) -> None:
    axes = ", ".join(f"{name}: {list(range(100))}" for name in ("seed", "num_samples", "max_batch"))
    with pytest.raises(SweepError, match="1000000 cells, and at most"):
        cells(f"grid: {{model: repvgg_a0, {axes}}}", tmp_path)


def test_rules_for_all_cells_are_bounded_too(tmp_path: Path) -> None:
    axes = ", ".join(f"{name}: {list(range(100))}" for name in ("seed", "num_samples"))
    rules = ", ".join(["{seed: 1}"] * 2000)
    with pytest.raises(SweepError, match="2000 items for 10000 cells"):
        cells(f"grid: {{model: repvgg_a0, {axes}}}\nexclude: [{rules}]", tmp_path)


@pytest.mark.parametrize("text", ["1,5GB", "0", "-1", ".nan", "1e30"])
def test_a_memory_that_is_no_size_is_refused_and_not_read_in_part(
    tmp_path: Path, text: str
) -> None:
    with pytest.raises(SweepError, match=r"resources\.memory: "):
        cells(f"grid: {{model: repvgg_a0}}\nresources: {{memory: '{text}'}}\n", tmp_path)
