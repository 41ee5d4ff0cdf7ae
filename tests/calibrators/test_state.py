from __future__ import annotations

import errno
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from reptrt.calibrators.base import BlockFit, CalibrationResult
from reptrt.calibrators.quantized.quantizers import IntegerGrid
from reptrt.calibrators.reconstruction import checkpoint
from reptrt.calibrators.reconstruction.checkpoint import load_block, save_block
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.state import (
    CalibrationFileError,
    dump_scales,
    load_calibration,
    read_result,
    readable_scales,
    restore_tensors,
    save_calibration,
    save_tensors,
)
from tests.tiny_networks import calibrated, quantized, smooth_images, traced
from tests.tiny_transformers import images_for, transformer

RESULT = CalibrationResult("mae", {"Noise": "3 dB"}, num_samples=12)
FIT = BlockFit("0", 2, 0.5, 0.25, 1.5)
NAMES = ["0.weight", "0.bias", "weight_quantizers.0.scale", "activation_quantizers.relu.scale"]


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


def test_the_wide_unsigned_grid_comes_back(tmp_path: Path) -> None:
    original, loaded = calibrated("reparameterized"), quantized(traced("reparameterized"))
    original.activation_quantizers["relu_2"].grid = IntegerGrid.unsigned(8)
    save_calibration(original, tmp_path / "calibration.safetensors", RESULT)
    load_calibration(loaded, tmp_path / "calibration.safetensors")
    assert loaded.activation_quantizers["relu_2"].grid == IntegerGrid(8, 0, 255)
    assert readable_scales(loaded)["activations"]["relu_2"]["quant_max"] == 255


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


def test_the_blocks_of_a_result_come_back(tmp_path: Path) -> None:
    path, model = tmp_path / "calibration.safetensors", calibrated("plain")
    untimed = replace(FIT, seconds=None)  # a clock would make equal calibrations differ
    result = CalibrationResult("repapq", blocks=(untimed, untimed))
    save_calibration(model, path, result)
    assert read_result(path) == load_calibration(model, path) == result


def test_a_block_comes_back_to_the_bit_and_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "blocks" / "block-000.safetensors"
    original, loaded = calibrated("plain", bits=(4, 6)), quantized(traced("plain"), bits=(4, 6))
    loaded.graph_module.requires_grad_(False)
    original.graph_module.get_parameter("0.weight").data.mul_(0.5)
    original.graph_module.get_parameter("4.weight").data.mul_(0.5)
    save_block(original, NAMES, FIT, path)
    before = {name: tensor.clone() for name, tensor in loaded.graph_module.state_dict().items()}
    assert load_block(loaded, NAMES, path) == FIT
    saved, after = original.graph_module.state_dict(), loaded.graph_module.state_dict()
    assert all(torch.equal(after[name], saved[name]) for name in NAMES)
    assert {name for name in after if not torch.equal(after[name], before[name])} == set(NAMES)
    assert [file.name for file in path.parent.iterdir()] == ["block-000.safetensors"]


def test_saved_tensors_are_copies_and_come_back_in_place() -> None:
    model = calibrated("plain", bits=(4, 6))
    model.graph_module.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.graph_module.state_dict().items()}
    kept = save_tensors(model, NAMES)
    assert list(kept) == NAMES
    weight = model.weight_of("0")
    for tensor in model.graph_module.state_dict().values():
        tensor.mul_(2)
    restore_tensors(model, kept)
    after = model.graph_module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in NAMES)
    assert torch.equal(after["4.weight"], 2 * before["4.weight"])
    assert model.weight_of("0") is weight


def test_a_block_that_was_not_saved_is_none(tmp_path: Path) -> None:
    assert load_block(calibrated("plain"), NAMES, tmp_path / "block-000.safetensors") is None


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_block_gives_one_line(tmp_path: Path, keep: int) -> None:
    model, path = calibrated("plain"), tmp_path / "block-000.safetensors"
    save_block(model, NAMES, FIT, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CalibrationFileError) as caught:
        load_block(model, NAMES, path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_block_that_does_not_fit_on_the_disk_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fill_the_disk)
    path = tmp_path / "block-000.safetensors"
    with pytest.raises(CalibrationFileError, match="the disk is full") as caught:
        save_block(calibrated("plain"), NAMES, FIT, path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_block_never_follows_a_link(tmp_path: Path) -> None:
    model, path = calibrated("plain"), tmp_path / "block-000.safetensors"
    (tmp_path / "mine").write_text("precious")
    for name in ("block-000.tmp", "block-000.safetensors"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    with pytest.raises(CalibrationFileError, match="it is a link"):
        save_block(model, NAMES, FIT, path)
    path.unlink()
    save_block(model, NAMES, FIT, path)
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    "fit", ["[" * 9000, "[]", '{"name": 3}', "{}", json.dumps({**asdict(FIT), "stage": 1e400})]
)
def test_a_block_whose_fit_is_forged_gives_one_line(tmp_path: Path, fit: str) -> None:
    model, path = calibrated("plain"), tmp_path / "block-000.safetensors"
    save_file(save_tensors(model, NAMES), path, metadata={"fit": fit})
    with pytest.raises(CalibrationFileError, match="delete it to calibrate") as caught:
        load_block(model, NAMES, path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("key", "text"),
    [("result", '{"method": 3}'), ("result", '{"method": "mae", "notes": []}'), ("result", "[" * 9000),
     ("grids", '{"activations": []}'), ("grids", '{"activations": {"none": {}}}')],
)  # fmt: skip
def test_a_calibration_that_is_forged_gives_one_line(saved: Path, key: str, text: str) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = {**file.metadata(), key: text}
        save_file({name: file.get_tensor(name) for name in file.keys()}, saved, metadata)  # noqa: SIM118
    with pytest.raises(CalibrationFileError, match="calibrate again") as caught:
        load_calibration(calibrated("plain", bits=(4, 6)), saved)
    assert str(caught.value).isprintable()


def test_a_block_of_another_shape_is_refused_and_nothing_is_read(tmp_path: Path) -> None:
    model, path = calibrated("plain"), tmp_path / "block-000.safetensors"
    shapes = dict.fromkeys(NAMES, torch.zeros(5)) | {NAMES[0]: model.weight_of("0").detach() + 1}
    tensors = {name: tensor.clone() for name, tensor in shapes.items()}
    save_file(tensors, path, metadata={"fit": json.dumps(asdict(FIT))})
    before = {name: tensor.clone() for name, tensor in model.graph_module.state_dict().items()}
    with pytest.raises(CalibrationFileError) as caught:
        load_block(model, NAMES, path)
    assert "\n" not in str(caught.value)
    after = model.graph_module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_calibration_file_is_no_block(saved: Path) -> None:
    with pytest.raises(CalibrationFileError, match="cannot be read"):
        load_block(calibrated("plain", bits=(4, 6)), NAMES, saved)


@pytest.mark.parametrize("bits", [8, 4])
def test_zero_points_and_the_grids_of_weights_come_back(tmp_path: Path, bits: int) -> None:
    original, loaded = (transformer("vit", (bits, bits), "log2") for _ in range(2))
    images = images_for("vit", 4)
    create_calibrator("repq-vit").calibrate(original, [images])
    path = tmp_path / "calibration.safetensors"
    save_calibration(original, path, RESULT)
    load_calibration(loaded, path)
    assert torch.equal(original(images)[0], loaded(images)[0])
    first, second = (
        [*model.weight_quantizers.values(), *model.activation_quantizers.values()]
        for model in (original, loaded)
    )
    pairs = list(zip(first, second, strict=True))
    assert all(a.grid == b.grid and torch.equal(a.zero_point, b.zero_point) for a, b in pairs)
    assert any(a.zero_point.any() for a, _ in pairs)
    weight_grids = {a.grid for a in original.weight_quantizers.values()}
    assert weight_grids == {IntegerGrid.for_weights(8) if bits == 8 else IntegerGrid.unsigned(4)}


def test_readable_scales_name_zero_points_where_there_are_any() -> None:
    model = transformer("vit", (4, 4))
    create_calibrator("repq-vit").calibrate(model, [images_for("vit", 4)])
    model.weight_quantizers["head"].set_amax(torch.ones(10))
    scales = json.loads(dump_scales(readable_scales(model)))
    weights = scales["weights"]
    assert weights["blocks.0.attn.qkv"]["zero_point"] == [
        int(z) for z in model.weight_quantizers["blocks.0.attn.qkv"].zero_point
    ]
    assert "zero_point" not in weights["head"]
    gelu = model.activation_quantizers["gelu"]
    assert scales["activations"]["gelu"]["zero_point"] == int(gelu.zero_point) > 0


def test_the_same_calibration_gives_the_same_bytes(tmp_path: Path) -> None:
    model, files = calibrated("plain"), [tmp_path / f"{index}.safetensors" for index in range(8)]
    for index, path in enumerate(files):
        fit = BlockFit("0", 0, 1.0, 0.5, float(index))
        save_calibration(model, path, CalibrationResult("repapq", blocks=(fit,)))
    assert len({path.read_bytes() for path in files}) == 1
    assert load_calibration(model, files[0]).blocks == (BlockFit("0", 0, 1.0, 0.5, None),)
