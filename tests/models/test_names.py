from __future__ import annotations

from pathlib import Path

import pytest
import timm

from reptrt.models import torchvision_zoo
from reptrt.models.names import (
    ZOO,
    UnknownModelError,
    require_model_name,
    timm_names,
    torchvision_names,
)
from reptrt.models.registry import list_models


def test_the_names_are_those_of_the_zoo_in_its_order() -> None:
    assert list(ZOO) == [spec.name for spec in list_models()]


def test_names_of_timm_are_those_that_it_registers() -> None:
    assert sorted(timm_names()) == sorted(timm.list_models())


def test_no_model_of_timm_is_refused_and_none_of_its_former_names() -> None:
    for name in (*timm.list_models(), "vit_tiny_patch16_224_in21k", "tf_efficientnet_b0_ns"):
        assert timm.is_model(name)
        require_model_name(f"timm:{name}")


def test_classifiers_of_torchvision_are_those_that_it_registers() -> None:
    assert sorted(torchvision_names()) == sorted(torchvision_zoo.list_classifiers())


@pytest.mark.parametrize(
    ("name", "said"),
    [("timm:resnet19", "no 'timm:resnet19'; did you mean timm:resnet18"),
     ("torchvision:resnet81", "no classifier 'torchvision:resnet81'; did you mean torchvision:resnet18"),
     ("resnet18", "did you mean timm:resnet18?"),
     ("yolov8n.pt", "yolo export model=FILE format=onnx"),
     ("none.onnx", "none.onnx: no such file")],
)  # fmt: skip
def test_what_names_nothing_is_refused(name: str, said: str) -> None:
    with pytest.raises(UnknownModelError, match=r".") as caught:
        require_model_name(name)
    assert said in str(caught.value)


def test_what_only_an_import_can_tell_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "Net.ONNX").touch()
    for name in (
        "nets:build",
        "hf-hub:a/b",
        "timm:hf-hub:a/b",
        f"{tmp_path}/Net.ONNX",
    ):
        require_model_name(name)
