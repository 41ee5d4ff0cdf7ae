"""Official YOLOv6 checkpoints: names of older releases, branches of training, which size it is."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from reptrt.models.fuse import reparameterize
from reptrt.models.weights.state_dict import WeightsMismatchError, load_weights, match_weights
from reptrt.models.yolov6.checkpoint import fitting_names
from reptrt.models.yolov6.config import Yolov6Config
from reptrt.models.yolov6.network import CONFIGS, Yolov6, build_yolov6

TINY = {
    "release 2": Yolov6Config(0.2, 0.03, False, csp_expansion=0.5, reg_max=16),
    "release 3": Yolov6Config(0.1, 0.03, True, csp_pooling=True),
    "plain": Yolov6Config(0.1, 0.03, True, csp_expansion=0.5, mode="conv_silu", reg_max=16),
}


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Give each tensor of `module` a value of its own."""
    return {
        name: torch.full_like(tensor, index / 100) if tensor.is_floating_point() else tensor
        for index, (name, tensor) in enumerate(module.state_dict().items())
    }


def _as_release_0_2(name: str) -> str:
    """Rename to what the files of tags 0.2.0 to 0.3.1 hold: neck, pooling, head and BepC3's own."""
    wrapped = r"backbone\.(stem|ERBlock_\d\.0)|\.m\.|Rep_\w\d\.(conv1|block)"
    if not re.search(wrapped, name):
        name = name.replace(".block.conv.", ".conv.").replace(".block.bn.", ".bn.")
    return name.replace(".cspsppf.", ".").replace(".sppf.", ".")


def _error(model: nn.Module, tensors: dict[str, torch.Tensor], name: str = "tiny") -> str:
    with pytest.raises(WeightsMismatchError) as caught:
        load_weights(match_weights(model, tensors), name, "w.pt")
    return str(caught.value)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("fused", [False, True], ids=["train form", "deploy form"])
def test_names_of_older_releases_are_known(kind: str, fused: bool) -> None:
    model = Yolov6(TINY[kind], 2)
    tensors = _tensors(reparameterize(model) if fused else model)
    old = {_as_release_0_2(name): tensor for name, tensor in tensors.items()}
    assert any(name.startswith("neck.reduce_layer0.conv.") for name in old)
    assert any(name.startswith("backbone.ERBlock_5.2.cv1.conv.") for name in old)
    loaded = load_weights(match_weights(model, old), "tiny", "w.pt").state_dict()
    torch.testing.assert_close(dict(loaded), tensors, rtol=0, atol=0)


def test_a_part_of_the_network_is_never_dropped() -> None:
    model = Yolov6(TINY["release 2"], 2)
    match = match_weights(model, _tensors(model) | {"detect.proj": torch.arange(17.0)})
    assert set(match.dropped) == {"detect.proj"}
    assert set(match.dropped.values()) == {"distances of the bins"}


@pytest.mark.parametrize(
    "name", ["detect.cls_preds_abc.0.weight", "detect.lrtb.0.weight", "neck.reg_preds_dist.0.bias"]
)
def test_what_no_rule_names_is_an_error(name: str) -> None:
    model = Yolov6(TINY["release 3"], 2)
    assert f"1 unexpected ({name}" in _error(model, _tensors(model) | {name: torch.zeros(1)})


def test_other_distances_than_0_1_2_are_an_error() -> None:
    """They would change the boxes; this network's integral has its own."""
    model = Yolov6(TINY["release 2"], 2)
    trained = torch.arange(17.0) * 1.01
    assert "1 unexpected (detect.proj" in _error(model, _tensors(model) | {"detect.proj": trained})


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_size_and_release_is_told_from_its_tensors(name: str) -> None:
    with torch.device("meta"):
        model = build_yolov6(name, 3)
    twins = {"yolov6l": "yolov6l_base", "yolov6l_base": "yolov6l"}
    expected = {name, twins.get(name, name)}
    assert set(fitting_names(model.state_dict())) == expected


def test_a_deploy_form_is_told_too() -> None:
    with torch.device("meta"):
        tensors = reparameterize(build_yolov6("yolov6t")).state_dict()
    assert fitting_names(tensors) == ["yolov6t"]


def test_the_error_names_the_size_that_fits() -> None:
    with torch.device("meta"):
        tensors = build_yolov6("yolov6n_v2").state_dict()
        old = {_as_release_0_2(f"model.{name}"): tensor for name, tensor in tensors.items()}
        aux = {"model.detect.reg_preds_dist.0.bias": torch.zeros(68)}
        message = _error(build_yolov6("yolov6n"), old | aux, "yolov6n")
    assert message.endswith("; it fits MODEL=yolov6n_v2")
    assert "does not fit yolov6n:" in message


def test_weights_of_no_known_size_get_no_suggestion() -> None:
    assert fitting_names({}) == []
    assert fitting_names(_tensors(Yolov6(TINY["release 2"], 2))) == []
