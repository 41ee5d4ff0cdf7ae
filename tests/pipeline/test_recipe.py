from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from reptrt.calibrators.settings import Reconstruction
from reptrt.engines.outputs.suppression import Suppression
from reptrt.pipeline.recipe import RECIPES, Recipe, RecipeError, load_recipe, slug
from tests.command_line import reptrt


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def error_of(model: str, options: dict[str, Any], file: Path | None = None) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(model, options, file)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_options_beat_the_file_which_beats_the_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "num_samples: 40\nweight_bits: 6\n")
    recipe = load_recipe("m:build", {"num_samples": 7, "seed": None}, file)
    assert (recipe.num_samples, recipe.weight_bits, recipe.seed) == (7, 6, 0)
    assert recipe.calibrator == "auto"


def test_the_model_is_the_one_that_was_named(tmp_path: Path) -> None:
    assert load_recipe("m:build", {}, write(tmp_path, "model: other\n")).model == "m:build"


def test_a_falsy_option_still_counts(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 5\nmax_drop: 1.5\n")
    recipe = load_recipe("m:build", {"seed": 0, "max_drop": 0.0}, file)
    assert (recipe.seed, recipe.max_drop) == (0, 0.0)


def test_a_model_may_bring_its_own_recipe_and_a_users_file_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm-m.yaml").write_text("keep_float: [head.*]\n")
    monkeypatch.setattr("reptrt.pipeline.recipe.RECIPES", tmp_path)
    assert load_recipe("timm:m", {}).keep_float == ("head.*",)
    assert load_recipe("timm:m", {}, write(tmp_path, "seed: 1\n")).keep_float == ()


def test_nested_choices_merge_key_by_key(tmp_path: Path) -> None:
    file = write(tmp_path, "reconstruction: {iterations: 7, rounding: nearest, blocks: [a, b.*]}\n")
    options = {"reconstruction": {"iterations": "3", "loss": "l2"}}
    chosen = load_recipe("m:build", options, file).reconstruction
    changed = Reconstruction(iterations=3, loss="l2", rounding="nearest", blocks=("a", "b.*"))
    assert chosen == changed
    assert load_recipe("m:build", options).reconstruction == Reconstruction(iterations=3, loss="l2")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 * 2**30), ("512 MiB", 2**29), ("1.5GB", 1_500_000_000), ("0", 0), ("4096", 4096)],
)  # fmt: skip
def test_memory_is_a_number_of_bytes_or_has_a_unit(tmp_path: Path, text: str, size: int) -> None:
    assert load_recipe("m:build", {"max_memory": text}).max_memory == size
    assert load_recipe("m:build", {}, write(tmp_path, f"max_memory: {text}\n")).max_memory == size


@pytest.mark.parametrize(
    "text", ["much", "4XB", "-1GiB", "-1", "1,5GB", "[1]", ".inf", ".nan", "1e30", "9" * 500]
)
def test_a_bad_size_says_how_to_write_one(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, f"max_memory: {text}\n")
    message = error_of("m:build", {}, file)
    assert message.startswith(f"{file}: max_memory: ")
    assert "write 4GiB, 512MiB or a number of bytes" in message


def test_the_number_of_images_is_the_calibrators_choice_unless_given() -> None:
    assert load_recipe("m:build", {}).num_samples is None
    assert load_recipe("m:build", {"num_samples": 3}).num_samples == 3


def test_the_outer_layers_have_8_bits_unless_told_otherwise(tmp_path: Path) -> None:
    file = write(tmp_path, "first_last_bits: null\n")
    assert load_recipe("m:build", {}).first_last_bits == 8
    assert load_recipe("m:build", {}, file).first_last_bits is None
    assert load_recipe("m:build", {"first_last_bits": 4}, file).first_last_bits == 4


def test_nms_is_part_of_the_engine_only_where_asked(tmp_path: Path) -> None:
    assert load_recipe("m:build", {}).suppression is None
    asked = load_recipe("m:build", {"max_detections": 7}, write(tmp_path, "end2end: true\n"))
    assert asked.suppression == Suppression(0.25, 0.65, 7)


def test_thresholds_that_nothing_heeds_are_refused(tmp_path: Path) -> None:
    for file, options in (
        (None, {"score_threshold": 0.5}),
        (write(tmp_path, "max_detections: 7\n"), {}),
    ):
        assert "is of `end2end`" in error_of("m:build", options, file)


@pytest.mark.parametrize("name", ["min_snr", "max_drop"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_are_finite(name: str, number: float) -> None:
    assert f"{name}: input should be a finite number" in error_of("m:build", {name: number})


def test_scratch_memory_is_more_than_nothing() -> None:
    assert "greater than 0" in error_of("m:build", {"workspace_limit": "0"})


def test_attention_stays_float_unless_told_otherwise(tmp_path: Path) -> None:
    file = write(tmp_path, "softmax: uniform\n")
    assert load_recipe("m:build", {}).softmax == "float"
    assert load_recipe("m:build", {}, file).softmax == "uniform"
    assert load_recipe("m:build", {"softmax": "log2"}, file).softmax == "log2"


@pytest.mark.parametrize(
    ("key", "hint"),
    [("iteration", "did you mean 'iterations'?"),
     ("num_samples", f"legal: {', '.join(Reconstruction.model_fields)}")],
)  # fmt: skip
def test_an_unknown_nested_key_is_named_with_the_nearest_legal_one(
    tmp_path: Path, key: str, hint: str
) -> None:
    expected = f"unknown key 'reconstruction.{key}'; {hint}"
    assert error_of("m:build", {"reconstruction": {key: "1"}}) == expected
    file = write(tmp_path, f"reconstruction: {{{key}: 1}}\n")
    assert error_of("m:build", {}, file) == f"{file}: {expected}"


def test_every_shipped_recipe_is_legal() -> None:
    files = sorted(RECIPES.glob("*.yaml"))
    assert files
    for file in files:
        assert load_recipe(file.stem, {}).model == file.stem


def test_a_recipe_survives_a_trip_through_yaml(tmp_path: Path) -> None:
    options = {"weights": Path("w.pth"), "image_size": (32, 48), "mean": (0.5, 0.5, 0.5)}
    recipe = load_recipe("m:build", options)
    file = write(tmp_path, yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe("m:build", {}, file) == recipe


@pytest.mark.parametrize(
    ("key", "hint"),
    [("num_sample", "did you mean 'num_samples'?"),
     ("calibrater", "did you mean 'calibrator'?"),
     ("zzz", f"legal: {', '.join(Recipe.model_fields)}")],
)  # fmt: skip
def test_an_unknown_key_is_named_with_the_nearest_legal_one(
    tmp_path: Path, key: str, hint: str
) -> None:
    file = write(tmp_path, f"{key}: 1\n")
    assert error_of("m:build", {}, file) == f"{file}: unknown key {key!r}; {hint}"


@pytest.mark.parametrize(
    "line",
    ["score_threshold: 1", "iou_threshold: 1.1", "max_detections: 0", "max_detections: 1025", "weight_bits: 1", "activation_bits: 9", "num_samples: 0", "seed: -1", "precision: int8",
     "device: tpu", "batch_size: 0", "max_batch: 0", "mean: [0.5, 0.5]", "image_size: 32",
     "max_drop: much", "weight_bits: [8]", "keep_float: 3", "first_last_bits: 1",
     "softmax: log10", "softmax: true",
     "reconstruction: 3", "reconstruction: {loss: l3}", "reconstruction: {iterations: -1}",
     "reconstruction: {float_inputs: 1.5}", "reconstruction: {blocks: stem}"],
)  # fmt: skip
def test_a_value_out_of_range_is_named_with_its_file(tmp_path: Path, line: str) -> None:
    file = write(tmp_path, line)
    key = line.partition(":")[0]
    message = error_of("m:build", {}, file)
    assert message.startswith(f"{file}: {key}")
    assert "(got " in message


def test_a_bad_option_without_a_file_is_named_alone() -> None:
    assert error_of("m:build", {"weight_bits": 9}).startswith("weight_bits: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"seed: [1\n", "not valid YAML"),
     (b"a: b: c\n", "not valid YAML"),
     (b"!!python/object/apply:os.mkdir [pwned]\n", "not valid YAML"),
     (b"end2end: !!bool maybe\n", "not valid YAML: 'maybe' is no value of its tag"),
     (b"- seed\n- 3\n", "`key: value`"),
     (b"just words\n", "`key: value`"),
     (b"seed: 1 # caf\xe9\n", "UTF-8")],
    ids=["unclosed", "two colons", "python object", "no boolean", "list", "text", "latin-1"],
)  # fmt: skip
def test_what_is_no_recipe_is_refused_in_one_line(
    tmp_path: Path, content: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    message = error_of("m:build", {}, file)
    assert message.startswith(f"{file}: ")
    assert reason in message
    assert not (tmp_path / "pwned").exists()


def test_an_empty_file_is_a_recipe_of_defaults(tmp_path: Path) -> None:
    assert load_recipe("m:build", {}, write(tmp_path, "# nothing yet\n")) == Recipe(model="m:build")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    message = error_of("m:build", {}, tmp_path / "none.yaml")
    assert message == f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory"


def test_the_command_line_leaves_with_2_on_an_unknown_key(
    tmp_path: Path,
) -> None:
    file = write(tmp_path, "num_sample: 1\n")
    outcome = reptrt("engine", "m:build", "--recipe", file, "--workspace", tmp_path / "build")
    assert outcome.code == 2
    expected = f"reptrt: {file}: unknown key 'num_sample'; did you mean 'num_samples'?"
    assert outcome.complaints == [expected]
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(
    ("model", "folder"),
    [("yolov6n", "yolov6n"), ("timm:resnet18.a1_in1k", "timm-resnet18.a1_in1k"),
     ("my.package:build", "my.package-build"), ("../a b/c", "a-b-c"),
     ("...onnx", "model"), ("../..onnx", "model"), ("-rf.onnx", "rf"), ("x" * 300, "x" * 100)],
)  # fmt: skip
def test_a_models_folder_name_is_one_plain_path_component(model: str, folder: str) -> None:
    assert slug(model) == folder
