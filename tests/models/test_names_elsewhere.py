"""Names of models that live elsewhere: torchvision's classifiers, and timm's models on the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file

from reptrt.models.load import load_model
from reptrt.models.registry import UnknownModelError, find_model

ARCHITECTURE = "test_byobnet"
"""Of timm, made for tests."""


def put_on_hub(folder: Path, config: dict[str, object], **tensors: torch.Tensor) -> None:
    """Lay files where the hub's client finds them without a network."""
    repository, commit = folder / "models--someone--net", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config))
    save_file(tensors, snapshot / "model.safetensors")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("prefix", ["hf-hub:", "timm:hf_hub:"])
def test_a_model_on_the_hub_is_what_its_config_says(prefix: str, hub: Path) -> None:
    network = timm.create_model(ARCHITECTURE, num_classes=7).eval()
    stated = {"input_size": [3, 96, 96], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.9}
    config = {"architecture": ARCHITECTURE, "num_classes": 7, "pretrained_cfg": stated}
    put_on_hub(hub, config, **network.state_dict())
    loaded = load_model(f"{prefix}someone/net")
    assert (loaded.task, loaded.num_classes) == ("classification", 7)
    assert loaded.preprocess.image_size == (96, 96)
    assert (loaded.preprocess.mean, loaded.preprocess.crop_pct) == ((0.5,) * 3, 0.9)
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), network(images))


def test_a_model_on_the_hub_that_is_not_timms_is_refused(hub: Path) -> None:
    put_on_hub(hub, {"architecture": "BertModel"}, weight=torch.zeros(1))
    with pytest.raises(UnknownModelError, match=r"architecture 'BertModel', none of timm's"):
        find_model("hf-hub:someone/net")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"num_classes": 1 << 40}, "num_classes"), ({"pretrained_cfg": []}, "is no object"),
     ({"pretrained_cfg": {"input_size": [3, 99999, 99999]}}, "pixels"),
     ({"pretrained_cfg": {"input_size": "ab"}}, "describes no model"),
     ({"pretrained_cfg": {"mean": [1e400, 0, 0]}}, "mean"),
     ({"pretrained_cfg": {"crop_pct": 1.5}}, "crop_pct"),
     ({"pretrained_cfg": {"interpolation": ["\x1b"]}}, "no text")],
)  # fmt: skip
def test_a_config_of_the_hub_that_describes_no_model_is_one_line(
    changed: dict[str, object], reason: str, hub: Path
) -> None:
    put_on_hub(hub, {"architecture": ARCHITECTURE, **changed}, weight=torch.zeros(1))
    with pytest.raises(UnknownModelError, match=reason) as caught:
        find_model("hf-hub:someone/net")
    assert str(caught.value).isprintable()


def test_a_classifier_of_torchvision_has_its_weights_and_preprocessing() -> None:
    spec = find_model("torchvision:resnet18")
    assert spec.preprocess is not None
    assert spec.preprocess.image_size == (224, 224)
    assert spec.preprocess.crop_pct == pytest.approx(224 / 256)
    assert spec.preprocess.mean == (0.485, 0.456, 0.406)
    assert spec.weights is not None
    assert spec.weights.filename == "resnet18-f37072fd.pth"
    assert spec.weights.sha256 == "f37072fd"


def test_a_checkpoint_of_torchvision_loads(tmp_path: Path) -> None:
    network = torchvision.models.squeezenet1_1(num_classes=5).eval()
    torch.save(network.state_dict(), tmp_path / "net.pth")
    loaded = load_model("torchvision:squeezenet1_1", tmp_path / "net.pth")
    assert (loaded.task, loaded.num_classes) == ("classification", 5)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), network(images))


def test_a_name_that_torchvision_lacks_gets_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match="did you mean torchvision:resnet18"):
        find_model("torchvision:resnet81")
