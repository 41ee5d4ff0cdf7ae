from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from reptrt.models.registry import PreprocessOverrides, UnknownModelError, find_model, list_models
from reptrt.models.spec import PreprocessError


def _error(name: str) -> str:
    with pytest.raises(UnknownModelError) as caught:
        find_model(name)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder; its name is unique to the test."""
    name = f"user_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "def plain(): return nn.Linear(3, 4)\n"
        "def sized(num_classes): return nn.Linear(3, num_classes)\n"
        "def wrong(): return 'model'\n"
        "def demanding(depth, num_classes=2): return nn.Linear(depth, num_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    return name


def test_the_zoo_lists_every_family_and_each_name_finds_itself() -> None:
    names = [spec.name for spec in list_models()]
    assert len(names) == len(set(names)) == 39
    assert {"yolov6n_demo", "repvgg_b3g4", "mobileone_s4", "deit_base", "swin_tiny"} <= set(names)
    assert [find_model(name).name for name in names] == names


def test_a_detector_is_letterboxed_and_not_normalised() -> None:
    spec = find_model("yolov6n")
    assert spec.task == "detection"
    assert spec.preprocess.layout == "letterbox"
    assert spec.preprocess.image_size == (640, 640)
    assert (spec.preprocess.mean, spec.preprocess.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_a_detector_is_built_with_the_class_count_asked_for() -> None:
    with torch.device("meta"):
        module = find_model("yolov6n_demo").build(3, (640, 640))
    assert module.num_classes == 3


def test_weights_have_the_licence_of_those_who_published_them() -> None:
    found = {name: find_model(name).licence for name in ("yolov6n_demo", "yolov6s", "deit_tiny")}
    assert found == {"yolov6n_demo": "Apache-2.0", "yolov6s": "GPL-3.0", "deit_tiny": "apache-2.0"}


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    assert "mobileone_s0" in _error("mobileone-s0")
    assert "timm:resnet50" in _error("resnet50")


def test_an_unknown_timm_name_or_tag_gets_the_nearest_ones() -> None:
    assert "timm:resnet50" in _error("timm:resnet5O")
    assert "timm:repvgg_a0.rvgg_in1k" in _error("timm:repvgg_a0.rvgg_in2k")


def test_a_users_callable_is_found_in_the_current_folder(user_code: str) -> None:
    module = find_model(f"{user_code}:plain").build(7, (224, 224))
    assert isinstance(module, nn.Linear)
    assert module.out_features == 4


def test_a_users_callable_gets_the_class_count_it_takes(user_code: str) -> None:
    build = find_model(f"{user_code}:sized").build
    assert build(7, (224, 224)).out_features == 7
    assert build(None, (224, 224)).out_features == 1000


def test_what_is_wrong_with_a_users_callable_is_named(user_code: str) -> None:
    assert "no callable 'plan'; did you mean plain?" in _error(f"{user_code}:plan")
    assert "requires the arguments depth" in _error(f"{user_code}:demanding")
    assert "no Python module 'absent_module'" in _error("absent_module:model")
    assert "package.module:callable" in _error(":model")
    with pytest.raises(UnknownModelError, match="returned a str"):
        find_model(f"{user_code}:wrong").build(None, (224, 224))


def test_a_missing_import_of_the_users_module_keeps_its_traceback(
    user_code: str, tmp_path: Path
) -> None:
    (tmp_path / f"{user_code}_broken.py").write_text("import absent_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="absent_dependency"):
        find_model(f"{user_code}_broken:model")


def test_a_stated_image_size_is_the_short_side_too() -> None:
    preprocess = find_model("repvgg_a0").preprocess
    assert preprocess.crop_pct == 0.875
    stated = preprocess.override(PreprocessOverrides(image_size=(96, 96)))
    assert (stated.image_size, stated.crop_pct, stated.mean) == ((96, 96), 1.0, preprocess.mean)
    assert preprocess.override(PreprocessOverrides()) == preprocess


@pytest.mark.parametrize(
    "facts",
    [{"image_size": (0, 96)}, {"mean": (0.0, float("nan"), 0.0)}, {"std": (1.0, 0.0, 1.0)}],
    ids=["size", "mean", "std"],
)
def test_an_impossible_override_is_refused(facts: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(PreprocessError, match=next(iter(facts)).split("_")[0]):
        PreprocessOverrides(**facts)
