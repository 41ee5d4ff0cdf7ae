"""Histograms on disk: what was written is what is read, and nothing else is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reptrt.calibrators.histogram.file import HistogramFileError, load_observers, save_observers
from reptrt.calibrators.histogram.methods import MseCalibrator, observe_activations
from reptrt.calibrators.histogram.observers import HistogramObserver
from reptrt.calibrators.settings import Settings
from tests.tiny_networks import quantized, smooth_images, traced


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_observers({"a": observer([1.0, -3.0]), "b": observer([0.0, 0.5])}, tmp_path / "seen")
    return tmp_path / "seen"


def observer(values: list[float]) -> HistogramObserver:
    made = HistogramObserver()
    made.observe(torch.tensor(values))
    return made


def test_histograms_come_back_as_they_were(file: Path) -> None:
    found = load_observers(file, ["a", "b"])
    assert list(found) == ["a", "b"]
    assert (found["a"].amax, found["a"].minimum, found["a"].limit) == (3.0, -3.0, 4.0)
    torch.testing.assert_close(found["b"].counts, observer([0.0, 0.5]).counts, rtol=0, atol=0)


@pytest.mark.parametrize("names", [["a"], ["b", "a"], ["a", "c"]])
def test_those_of_another_network_are_refused(file: Path, names: list[str]) -> None:
    with pytest.raises(HistogramFileError, match="of another network"):
        load_observers(file, names)


def test_a_damaged_file_is_one_line(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(HistogramFileError, match="holds no histograms; remove it"):
        load_observers(file, ["a", "b"])


def test_counts_below_zero_are_refused(file: Path) -> None:
    wrong = observer([1.0])
    wrong.counts[0] = -1.0
    save_observers({"a": wrong}, file)
    with pytest.raises(HistogramFileError, match="something else than counts"):
        load_observers(file, ["a"])


@pytest.mark.parametrize("bits", [8, 6])
def test_scales_of_any_bits_are_those_of_an_own_pass(tmp_path: Path, bits: int) -> None:
    images = [smooth_images(4, seed=0)]
    save_observers(observe_activations(quantized(traced("plain")), images), tmp_path / "seen")
    own, read = (quantized(traced("plain"), (bits, bits)) for _ in range(2))
    MseCalibrator().calibrate(own, images)
    MseCalibrator(Settings(histograms=tmp_path / "seen")).calibrate(read, [])
    for name, quantizer in own.activation_quantizers.items():
        assert read.activation_quantizers[name].grid == quantizer.grid
        assert torch.equal(read.activation_quantizers[name].scale, quantizer.scale)
