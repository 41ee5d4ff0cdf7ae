"""The face in Python: networks, images, labels and metrics that a program already holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reptrt
from reptrt.calibrators.names import UnknownCalibratorError
from reptrt.pipeline.data.in_memory import store_images
from reptrt.pipeline.data.preprocess import DataError
from reptrt.pipeline.recipe import RecipeError

QUICK = {"calibrator": "minmax", "image_size": (16, 16), "target": "cpu", "progress": False}


def network() -> nn.Module:
    """A class of this very file, as one of a notebook's cell."""

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )
            self.head = nn.Linear(8, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.body(images))
            return logits

    torch.manual_seed(0)
    return Local().eval()


IMAGES = np.random.default_rng(0).standard_normal((12, 3, 16, 16)).astype(np.float32)


@torch.no_grad()
def labels(module: nn.Module) -> torch.Tensor:
    return module(torch.from_numpy(IMAGES)).argmax(1)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> reptrt.Result:
    module = network()
    loader = DataLoader(TensorDataset(torch.from_numpy(IMAGES), labels(module)), batch_size=5)
    folder = tmp_path_factory.mktemp("api")
    return reptrt.quantize(module, loader, evaluate=loader, workspace=folder, **QUICK)


def test_a_network_and_a_loader_in_memory_become_an_engine(result: reptrt.Result) -> None:
    accuracy = result.report.accuracy
    assert accuracy is not None
    assert (accuracy.metric, accuracy.fp32, accuracy.num_images) == ("top1", 100.0, 12)
    assert result.report.num_samples == 12
    assert result.engine.stat().st_size > 1000
    assert result.onnx.exists()
    assert result.report.command is not None
    assert result.report.command.startswith("reptrt.quantize('Local', data=")


def test_a_result_shows_itself_and_can_be_saved(result: reptrt.Result, tmp_path: Path) -> None:
    assert "top-1" in repr(result)
    assert "<pre>" in result._repr_html_()
    saved = result.save(tmp_path / "mine")
    assert (saved / "report.html").exists()
    assert not list(saved.glob(".*"))


def test_the_plan_is_in_the_report_with_nothing_left_open(result: reptrt.Result) -> None:
    plan = result.report.plan
    assert plan is not None
    assert (plan["calibrator"], plan["device"], plan["target"]) == ("minmax", "cpu", "cpu")
    for name in ("num_samples", "precision", "quantize_head", "min_snr"):
        assert plan[name] is not None


def test_a_metric_of_the_users_own_is_the_accuracy(tmp_path: Path) -> None:
    asked = []

    def share_of_class_0(predict: Callable[[Any], Any]) -> float:
        found = predict(torch.from_numpy(IMAGES))
        asked.append(type(found))
        return float((found.argmax(1) == 0).float().mean())

    made = reptrt.quantize(
        network(), IMAGES, evaluate=share_of_class_0, workspace=tmp_path, **QUICK
    )
    accuracy = made.report.accuracy
    assert accuracy is not None
    assert accuracy.metric == "share_of_class_0"
    expected = float((labels(network()) == 0).float().mean())
    assert accuracy.fp32 == pytest.approx(expected)
    assert asked == [torch.Tensor, torch.Tensor]


def in_tuples() -> Iterator[Any]:
    yield torch.from_numpy(IMAGES[:7]), torch.zeros(7)
    yield torch.from_numpy(IMAGES[7:]), torch.zeros(5)


@pytest.mark.parametrize(
    "images",
    [IMAGES, torch.from_numpy(IMAGES), [IMAGES[:4], IMAGES[4:]], in_tuples(),
     [{"pixel_values": torch.from_numpy(IMAGES)}]],
    ids=["array", "tensor", "list of batches", "iterator of tuples", "dict"],
)  # fmt: skip
def test_every_form_of_the_same_images_is_the_same_file(images: Any, tmp_path: Path) -> None:
    stored = store_images(images, tmp_path)
    assert stored == store_images(IMAGES, tmp_path)
    np.testing.assert_array_equal(np.load(stored), IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == [stored.name]


def test_a_limit_ends_an_endless_iterator(tmp_path: Path) -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield IMAGES

    assert np.load(store_images(endless(), tmp_path, limit=20)).shape == (20, 3, 16, 16)


@pytest.mark.parametrize(
    ("images", "message"),
    [([], "there are none"), (3, "an int|a int"), ([{"x": "text"}], "which no network reads"),
     ([IMAGES[0]], "has to be"), ([IMAGES, IMAGES[:, :, :8]], "behind others")],
)  # fmt: skip
def test_what_are_no_images_is_refused(images: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        store_images(images, tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_options_are_checked_as_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'weight_bits'"):
        reptrt.quantize(network(), IMAGES, weight_bit=8, workspace=tmp_path)
    with pytest.raises(RecipeError, match="less than or equal to 8"):
        reptrt.quantize(network(), IMAGES, weight_bits=9, workspace=tmp_path)
    with pytest.raises(UnknownCalibratorError):
        reptrt.compare(network(), IMAGES, calibrators=["minmux"], workspace=tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = reptrt.compare(network(), IMAGES, calibrators=["minmax", "mae"], workspace=tmp_path,
                          **{key: value for key, value in QUICK.items() if key != "calibrator"})  # fmt: skip
    assert [row.calibrator for row in rows] == ["minmax", "mae"]
    assert capfd.readouterr() == ("", "")


def test_a_model_is_loaded_once_and_used(tmp_path: Path) -> None:
    loaded = reptrt.load("yolov6n_demo")
    assert loaded.task == "detection"
    assert isinstance(loaded.module, nn.Module)


def test_lint_returns_findings(result: reptrt.Result) -> None:
    assert [finding for finding in reptrt.lint(result.onnx) if finding.severity == "error"] == []


def test_importing_the_package_needs_no_torch() -> None:
    check = (
        "import sys, reptrt; assert 'torch' not in sys.modules; "
        "assert set(reptrt.__all__) <= set(dir(reptrt))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_every_public_name_exists_and_is_described() -> None:
    for name in reptrt.__all__:
        assert getattr(reptrt, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        reptrt.quantise  # noqa: B018
