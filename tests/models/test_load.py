from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from reptrt.models.examine import ModelRunError
from reptrt.models.fuse import reparameterize
from reptrt.models.load import MissingWeightsError, load_model, load_random
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.registry import find_model
from reptrt.models.spec import PreprocessOverrides
from reptrt.models.task import OutputError
from reptrt.models.weights.checkpoint import CheckpointError
from reptrt.models.weights.state_dict import WeightsMismatchError
from tests.onnx_files import Plain, seeded, write_onnx

WEIGHTS = Path(os.environ.get("REPTRT_DATA", "../shared/data")) / "weights"


def _real(filename: str) -> Path:
    path = WEIGHTS / filename
    if not path.exists():
        pytest.skip(f"no {path}: set REPTRT_DATA to the folder of real weights and images")
    return path


def _network(num_classes: int = 5) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, num_classes),
    )


@pytest.fixture
def user_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MODEL of a callable that builds `_network`."""
    name = f"network_{tmp_path.name.replace('-', '_')}"
    source = "\n".join(
        [
            "from torch import nn",
            "def build(num_classes=5):",
            "    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4),",
            "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))",
            "def without_head(): return nn.Conv2d(3, 4, 3)",
        ]
    )
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"{name}:build"


def test_apples_fused_mobileone_loads_completely_into_the_deploy_form() -> None:
    path = _real("mobileone_s0_fused_imagenet1k.pth")
    loaded = load_model("mobileone_s0", path)
    published = torch.load(path, weights_only=True)
    assert len(loaded.module.state_dict()) == len(published)
    torch.testing.assert_close(
        loaded.module.get_parameter("stages.1.15.reparam_conv.weight"),
        published["stage2.15.reparam_conv.weight"],
        rtol=0,
        atol=0,
    )
    assert loaded.num_classes == 1000
    assert not any(isinstance(module, nn.BatchNorm2d) for module in loaded.module.modules())


def test_a_train_form_repvgg_with_ten_classes_loads_with_its_own_preprocessing() -> None:
    path = _real("repvgg_a0_imagenette.pth")
    loaded = load_model("repvgg_a0", path)
    published = torch.load(path, weights_only=True)["state_dict"]
    assert loaded.module.state_dict().keys() == published.keys()
    assert loaded.num_classes == 10
    assert loaded.classes is not None
    assert loaded.classes[0] == "n01440764"
    assert loaded.preprocess.image_size == (96, 96)
    assert loaded.preprocess.crop_pct == 1.0
    assert all(p.dtype == torch.float32 for p in loaded.module.parameters())
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = loaded.module(images), reparameterize(loaded.module)(images)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_deit_tiny_loads_completely_with_timms_preprocessing() -> None:
    path = _real("deit_tiny_patch16_224_imagenet1k.pth")
    loaded = load_model("timm:deit_tiny_patch16_224", path)
    assert loaded.module.state_dict().keys() == torch.load(path, weights_only=True).keys()
    assert loaded.preprocess == find_model("deit_tiny").preprocess


def test_weights_of_another_architecture_are_refused() -> None:
    with pytest.raises(WeightsMismatchError, match="another architecture"):
        load_model("deit_tiny", _real("mobileone_s0_fused_imagenet1k.pth"))


def test_the_class_count_is_read_from_the_weights(user_model: str, tmp_path: Path) -> None:
    source = _network(num_classes=7)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    loaded = load_model(user_model, tmp_path / "w.pth")
    assert loaded.num_classes == 7
    assert not loaded.module.training
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.module(images), source.eval()(images), rtol=0, atol=0)


def test_a_detectors_class_count_is_read_from_the_weights(tmp_path: Path) -> None:
    detector = load_random("yolov6n_demo", seed=1, num_classes=3).module
    torch.save({"state_dict": detector.state_dict(), "image_size": 64}, tmp_path / "w.pth")
    loaded = load_model("yolov6n_demo", tmp_path / "w.pth")
    assert (loaded.task, loaded.num_classes) == ("detection", 3)
    assert loaded.preprocess.image_size == (64, 64)
    assert loaded.preprocess.layout == "letterbox"


def test_the_bundled_demo_detector_loads_without_a_file() -> None:
    loaded = load_model("yolov6n_demo")
    assert loaded.classes is not None
    assert len(loaded.classes) == loaded.num_classes >= 6


def test_the_user_overrules_the_checkpoint_and_the_checkpoint_the_zoo(
    user_model: str, tmp_path: Path
) -> None:
    facts = {"image_size": 64, "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}
    torch.save({"state_dict": _network().state_dict(), **facts}, tmp_path / "w.pth")
    overrides = PreprocessOverrides(mean=(0.5, 0.5, 0.5))
    preprocess = load_model(user_model, tmp_path / "w.pth", overrides).preprocess
    assert (preprocess.image_size, preprocess.crop_pct) == ((64, 64), 1.0)
    assert preprocess.mean == (0.5, 0.5, 0.5)
    assert preprocess.std == (1.0, 1.0, 1.0)


def test_class_names_that_do_not_match_the_head_are_refused(
    user_model: str, tmp_path: Path
) -> None:
    content = {"state_dict": _network().state_dict(), "classes": ["cat", "dog"]}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="names 2 classes, its head has 5"):
        load_model(user_model, tmp_path / "w.pth")


def test_a_users_network_without_a_file_is_the_same_each_time(user_model: str) -> None:
    first, second = load_model(user_model), load_model(user_model)
    assert first.weights_path is None
    assert first.weights_sha256 == second.weights_sha256
    assert first.num_classes == 5


def test_a_network_that_returns_no_logits_is_generic_unless_it_must_be_a_classifier(
    user_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = user_model.replace("build", "without_head")
    loaded = load_model(name)
    assert (loaded.task, loaded.num_classes) == ("generic", 0)
    assert "assumed: --layout crop --channels rgb --mean 0,0,0 --std 1,1,1" in caplog.text
    with pytest.raises(OutputError, match="must return logits"):
        load_model(name, task="classification")


def test_an_image_size_that_the_network_cannot_take_is_refused(tmp_path: Path) -> None:
    torch.save(load_random("yolov6n_demo").module.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelRunError, match="cannot run on 1x3x40x40 images"):
        load_model("yolov6n_demo", tmp_path / "w.pth", PreprocessOverrides(image_size=(40, 40)))


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(MissingWeightsError, match="MODEL=timm:convnextv2_small WEIGHTS=file"):
        load_model("timm:convnextv2_small")


def test_random_weights_depend_on_the_seed_alone() -> None:
    digests = [
        load_random("yolov6n_demo", seed=seed, num_classes=2).weights_sha256 for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    load_random("yolov6n_demo", num_classes=2)
    assert torch.equal(torch.rand(1), before)


def test_an_import_that_differs_on_real_images_is_refused_with_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(str(write_onnx(seeded(Plain), tmp_path / "m.onnx")))
    images = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    loaded.require_same_as_file(images)
    monkeypatch.setattr(nn.Hardsigmoid, "forward", lambda self, x: torch.sigmoid(x))
    with pytest.raises(OnnxFileError, match="on the calibration data, from '/HardSigmoid' on"):
        loaded.require_same_as_file(images)
