from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reptrt.models.weights.checkpoint import CheckpointError, read_checkpoint

TENSORS = {"a.weight": torch.ones(2, 3), "a.num_batches_tracked": torch.tensor(7)}


class _Attack:
    """Its pickle creates a file when it is loaded without restriction."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def _error(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_safetensors_and_its_json_metadata_are_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    facts = {
        "classes": ["cat", "dog"],
        "image_size": [96, 64],
        "mean": [0, 0, 0],
        "std": [1, 1, 0.5],
    }
    save_file(TENSORS, path, metadata={key: json.dumps(value) for key, value in facts.items()})
    checkpoint = read_checkpoint(path)
    torch.testing.assert_close(checkpoint.tensors, TENSORS)
    assert checkpoint.classes == ("cat", "dog")
    assert checkpoint.image_size == (96, 64)
    assert (checkpoint.mean, checkpoint.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 0.5))


@pytest.mark.parametrize("key", ["state_dict", "model", "model_ema"])
def test_a_nested_state_dict_is_found(tmp_path: Path, key: str) -> None:
    torch.save({key: TENSORS, "epoch": 3, "image_size": 96}, tmp_path / "w.pth")
    checkpoint = read_checkpoint(tmp_path / "w.pth")
    assert checkpoint.tensors.keys() == TENSORS.keys()
    assert checkpoint.image_size == (96, 96)
    assert checkpoint.classes is None


def test_averaged_weights_are_preferred_to_the_last_ones(tmp_path: Path) -> None:
    averaged = {"a.weight": torch.zeros(2, 3)}
    torch.save({"model": TENSORS, "model_ema": averaged}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").tensors["a.weight"].sum() == 0


def test_half_precision_is_promoted_and_integers_stay(tmp_path: Path) -> None:
    torch.save({"a": torch.full((2,), 0.5).half(), "n": torch.tensor(3)}, tmp_path / "w.pth")
    tensors = read_checkpoint(tmp_path / "w.pth").tensors
    assert tensors["a"].dtype == torch.float32
    assert tensors["a"].tolist() == [0.5, 0.5]
    assert tensors["n"].dtype == torch.int64


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "w.pth")
    expected = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    assert read_checkpoint(tmp_path / "w.pth").sha256 == expected


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_malicious_torch_file_is_refused_and_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    target = tmp_path / "created-by-the-attack"
    path = tmp_path / "w.pth"
    torch.save({"a": _Attack(target)}, path, _use_new_zipfile_serialization=zipped)
    assert f"{os.mkdir.__module__}.mkdir" in _error(path)
    assert not target.exists()


def test_a_malicious_bare_pickle_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "created-by-the-attack"
    path = tmp_path / "w.pt"
    path.write_bytes(pickle.dumps(_Attack(target)))
    assert "refused" in _error(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()  # the attack itself works


def test_a_pickled_module_in_the_old_format_is_refused(tmp_path: Path) -> None:
    content, path = {"model": torch.nn.Linear(2, 2)}, tmp_path / "w.pt"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert "format before torch 1.6; save model.state_dict()" in _error(path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(1).expand(1000),
        torch.empty(2, device="meta"),
    ],
    ids=["sparse", "complex", "repeated", "meta"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_is_no_plain_tensor_is_refused(
    tmp_path: Path, tensor: torch.Tensor, zipped: bool
) -> None:
    path = tmp_path / "w.pth"
    torch.save({"fine": torch.ones(2), "w": tensor}, path, _use_new_zipfile_serialization=zipped)
    message = _error(path)
    assert "refused" in message or "no plain tensor" in message


def test_a_name_from_a_file_cannot_break_the_line(tmp_path: Path) -> None:
    torch.save({"a\n\x1b[31mb": torch.tensor([float("nan")])}, tmp_path / "w.pth")
    assert "?[31mb has 1 NaN" in _error(tmp_path / "w.pth")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert "No such file" in _error(tmp_path / "absent.pth")
    assert "folder" in _error(tmp_path)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    assert "empty" in _error(tmp_path / "w.pth")


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9])
@pytest.mark.parametrize("suffix", [".pth", ".legacy", ".safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=suffix == ".pth")
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(len(content) * share))])
    assert "corrupt" in _error(path)


def test_a_text_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("hello, these are not weights\n")
    assert "not a checkpoint" in _error(tmp_path / "w.pth")


def test_a_bare_tensor_and_a_dict_without_tensors_are_named(tmp_path: Path) -> None:
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    assert "holds a Tensor" in _error(tmp_path / "tensor.pth")
    torch.save({"epoch": 3}, tmp_path / "dict.pth")
    assert "no tensors (keys: epoch)" in _error(tmp_path / "dict.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    torch.save({"fine": torch.ones(2), "bad": torch.tensor([1.0, value])}, tmp_path / "w.pth")
    assert "bad has 1 NaN or infinite values of 2" in _error(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", "large"),
        ("image_size", 0),
        ("image_size", [96, 96, 3]),
        ("image_size", 96.5),
        ("mean", [0.5, 0.5]),
        ("std", [1.0, 0.0, 1.0]),
        ("classes", "cat"),
    ],
)
def test_a_wrong_statement_about_images_is_named(tmp_path: Path, key: str, value: object) -> None:
    torch.save({"state_dict": TENSORS, key: value}, tmp_path / "w.pth")
    assert key.replace("_", " ") in _error(tmp_path / "w.pth").replace("_", " ")


def test_metadata_that_is_not_json_is_named(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w.safetensors", metadata={"classes": "cat, dog"})
    assert "'classes' is not JSON" in _error(tmp_path / "w.safetensors")
