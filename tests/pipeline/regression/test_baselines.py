from __future__ import annotations

from pathlib import Path

import pytest

from reptrt.pipeline.recipe import RecipeError
from reptrt.pipeline.regression.baselines import (
    BASELINES,
    BaselineError,
    MissingFilesError,
    choose,
    entry_recipe,
    line_of,
    load_baselines,
    recipes_without_baseline,
)

ENTRY = """\
# of a user
net:
  recipe: {model: repvgg_a0, data: images, num_samples: 8}
  accuracy: {value: 80, tolerance: 0.5}
  kernels:
    tensorrt 10: {value: 9, tolerance: 0}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "baselines.yaml"
    path.write_text(ENTRY)
    return path


def complaint(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(BaselineError) as caught:
        load_baselines(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path))


def test_every_shipped_entry_has_a_legal_recipe_and_three_metrics(tmp_path: Path) -> None:
    for name, baseline in load_baselines(BASELINES).items():
        (tmp_path / "weights").mkdir(exist_ok=True)
        for key in {"weights", "data", "evaluation"} & baseline.recipe.keys():
            wanted = tmp_path / baseline.recipe[key]
            assert not Path(baseline.recipe[key]).is_absolute()
            wanted.mkdir(parents=True, exist_ok=True)
        model = str(baseline.recipe["model"])
        if model.endswith(".onnx"):
            (tmp_path / model).touch()
        recipe = entry_recipe(baseline, tmp_path, {})
        assert recipe.model.endswith(model), name
        assert baseline.accuracy
        assert baseline.agreement
        assert baseline.int8_coverage


def test_files_are_found_in_the_folder_and_what_is_missing_is_named(file: Path) -> None:
    baseline = load_baselines(file)["net"]
    with pytest.raises(MissingFilesError, match=r"images: set REPTRT_DATA to the folder"):
        entry_recipe(baseline, file.parent, {})
    (file.parent / "images").mkdir()
    recipe = entry_recipe(baseline, file.parent, {})
    assert (recipe.data, recipe.num_samples) == (file.parent / "images", 8)


def test_an_option_stands_above_the_entry_and_none_leaves_it(file: Path) -> None:
    file.write_text(ENTRY.replace("data: images", "target: cpu"))
    baseline = load_baselines(file)["net"]
    for option, target in ((None, "cpu"), ("tensorrt-rtx", "tensorrt-rtx")):
        assert entry_recipe(baseline, file.parent, {"target": option}).target == target


def test_an_onnx_model_is_one_of_the_files(file: Path) -> None:
    file.write_text(ENTRY.replace("repvgg_a0, data: images", "nets/a.onnx"))
    baseline = load_baselines(file)["net"]
    with pytest.raises(MissingFilesError, match=r"nets/a\.onnx"):
        entry_recipe(baseline, file.parent, {})
    (file.parent / "nets").mkdir()
    (file.parent / "nets" / "a.onnx").touch()
    assert entry_recipe(baseline, file.parent, {}).model == str(file.parent / "nets" / "a.onnx")


def test_an_entry_starts_from_the_recipe_that_ships_with_its_model(file: Path) -> None:
    file.write_text(ENTRY.replace("repvgg_a0, data: images, num_samples: 8", "yolov6s"))
    assert entry_recipe(load_baselines(file)["net"], file.parent, {}).num_samples == 128


def test_an_illegal_recipe_is_refused(file: Path) -> None:
    file.write_text(ENTRY.replace("data: images, num_samples", "num_sample"))
    with pytest.raises(RecipeError, match="did you mean 'num_samples'"):
        entry_recipe(load_baselines(file)["net"], file.parent, {})


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("accuracy:", "acuracy:", ":4: net.acuracy: unknown key; legal: recipe, accuracy"),
        ("tolerance: 0.5", "tol: 1", ":4: net.accuracy.tolerance: field required"),
        ("tolerance: 0.5", "tolerance: -1", ":4: net.accuracy.tolerance: input should be greater"),
        ("value: 80", "value: .nan", ":4: net.accuracy.value: input should be a finite number"),
        ("value: 9", "value: many", ":6: net.kernels.tensorrt 10.value: input should be a valid"),
        ("model: repvgg_a0, ", "", ":2: net: value error, its recipe names no model"),
        ("  accuracy:", "  # accuracy:", ":2: net: value error, expects none of accuracy, agree"),
        (ENTRY, "", ": holds no entry"),
        (ENTRY, "a: [", ": not valid YAML: while parsing a flow"),
    ],
)
def test_what_is_not_legal_is_named_with_its_line(
    file: Path, old: str, new: str, says: str
) -> None:
    assert complaint(file, ENTRY.replace(old, new)).startswith(says)


def test_entries_are_chosen_by_name_and_a_wrong_name_gets_the_nearest(file: Path) -> None:
    known = load_baselines(BASELINES)
    assert list(choose(known, [])) == list(known)
    assert list(choose(known, ["deit_tiny"])) == ["deit_tiny"]
    with pytest.raises(BaselineError, match="did you mean 'mobileone_s0'"):
        choose(known, ["mobileone-s0"])


def test_a_recipe_that_no_entry_runs_is_known(file: Path) -> None:
    missing = [path.name for path in recipes_without_baseline(load_baselines(file))]
    assert "yolov6s.yaml" in missing
    file.write_text(ENTRY.replace("repvgg_a0", "yolov6s"))
    assert "yolov6s.yaml" not in [p.name for p in recipes_without_baseline(load_baselines(file))]


def test_a_line_is_that_of_the_last_key_there_is(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert line_of(file, "net", "kernels", "tensorrt 10") == f"{file}:6"
    assert line_of(file, "net", "latency_ratio", "NVIDIA L4") == f"{file}:2"
    monkeypatch.chdir(file.parent)
    assert line_of(file, "net", "accuracy") == "baselines.yaml:4"


@pytest.mark.parametrize("name", ["../up", "/tmp/x", "a/b", "..", "", ".git", "a\\x1b[2J", "-x"])
def test_an_entry_is_the_name_of_a_folder_and_no_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(f'"{name}":\n  recipe: {{model: x}}\n  accuracy: {{value: 1, tolerance: 1}}\n')
    with pytest.raises(BaselineError, match="a name has letters"):
        load_baselines(path)
