from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from calibrators.base import CalibrationResult
from calibrators.state import (
    CalibrationFileError,
    dump_scales,
    load_calibration,
    read_result,
    readable_scales,
    save_calibration,
)
from tests.tiny_networks import calibrated, quantized, smooth_images, traced

RESULT = CalibrationResult("mae", {"Noise": "3 dB"}, num_samples=12)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.safetensors"
    save_calibration(calibrated("plain", bits=(4, 6)), path, RESULT)
    return path


def test_a_saved_calibration_comes_back_to_the_bit(saved: Path) -> None:
    original, loaded = calibrated("plain", bits=(4, 6)), quantized(traced("plain"), bits=(4, 6))
    for parameter in loaded.graph_module.parameters():
        parameter.data.zero_()
    assert load_calibration(loaded, saved) == RESULT
    images = smooth_images(3, seed=5)
    assert torch.equal(original(images)[0], loaded(images)[0])
    before, after = original.graph_module.state_dict(), loaded.graph_module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [q.grid for q in loaded.activation_quantizers.values()] == [
        q.grid for q in original.activation_quantizers.values()
    ]


def test_the_result_is_read_without_the_model(saved: Path) -> None:
    assert read_result(saved) == RESULT


@pytest.mark.parametrize("network", ["residual", "vit"])
def test_the_calibration_of_another_model_is_refused(saved: Path, network: str) -> None:
    with pytest.raises(CalibrationFileError, match="another model") as caught:
        load_calibration(quantized(traced(network)), saved)
    assert caught.value.exit_code == 2


def test_the_calibration_of_another_placement_is_refused(saved: Path) -> None:
    with pytest.raises(CalibrationFileError, match="placement; calibrate again"):
        load_calibration(quantized(traced("plain"), keep_float=["4"]), saved)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_gives_one_line(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    for read in (
        lambda: load_calibration(quantized(traced("plain")), saved),
        lambda: read_result(saved),
    ):
        with pytest.raises(CalibrationFileError) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert "calibrate again" in str(caught.value)


def test_a_missing_file_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(CalibrationFileError, match="cannot be read"):
        load_calibration(quantized(traced("plain")), tmp_path / "none.safetensors")


def test_readable_scales_name_tensors_readers_and_float_layers() -> None:
    model = calibrated("detector")
    scales = readable_scales(model)
    assert scales["activations"].keys() == model.activation_quantizers.keys()
    assert scales["weights"].keys() == model.weight_quantizers.keys()
    assert list(scales["float_layers"]) == ["up.upsample_transpose"]
    first = next(iter(scales["activations"].values()))
    assert first["read_by"] == ["stem.rbr_reparam"]
    assert (first["num_bits"], first["quant_min"], first["quant_max"]) == (8, -128, 127)
    shared = [e for e in scales["activations"].values() if len(e["tensors"]) == 3]
    assert len(shared) == 1
    for layer, entry in scales["weights"].items():
        exact = model.weight_quantizers[layer].scale
        assert torch.equal(torch.tensor(entry["scale"], dtype=torch.float32), exact)


def test_scales_are_json_with_one_line_per_quantizer() -> None:
    scales = readable_scales(calibrated("plain"))
    text = dump_scales(scales)
    assert json.loads(text) == scales
    quantizers = len(scales["activations"]) + len(scales["weights"])
    lines = [line for line in text.splitlines() if '"scale"' in line]
    assert len(lines) == quantizers == text.count('"scale"')


def test_scales_of_a_model_without_float_layers_are_json() -> None:
    assert json.loads(dump_scales(readable_scales(calibrated("plain"))))["float_layers"] == {}
