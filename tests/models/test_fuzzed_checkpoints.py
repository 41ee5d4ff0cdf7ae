"""Two hundred damaged checkpoints: each is read, or refused on one clear line; nothing else happens."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from reptrt.models.weights.checkpoint import CheckpointError, read_checkpoint
from reptrt.models.weights.state_dict import WeightsMismatchError, load_weights, match_weights
from reptrt.models.yolov6.config import Yolov6Config
from reptrt.models.yolov6.network import Yolov6
from tests.official_checkpoints import save_official

TINY = Yolov6Config(0.1, 0.02, bidirectional=False)
KINDS = ("safetensors", "state dict", "pickled module", "old state dict")
FILES_PER_KIND = 50
Damage = Callable[[bytearray, random.Random], bytes]


def _small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    paths = {kind: folder / f"{index}.pt" for index, kind in enumerate(KINDS)}
    paths["safetensors"] = folder / "w.safetensors"
    save_file(_small().state_dict(), paths["safetensors"], metadata={"classes": '["a", "b"]'})
    content = {
        "state_dict": _small().state_dict(),
        "image_size": [32, 32],
        "classes": list("abcde"),
    }
    torch.save(content, paths["state dict"])
    torch.save(content, paths["old state dict"], _use_new_zipfile_serialization=False)
    save_official(paths["pickled module"], Yolov6(TINY, 2), names=["a", "b"])
    return paths


def _flip_bits(content: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 4, 64))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def _truncate(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content[: rng.randrange(len(content))])


def _damage_the_head(content: bytearray, rng: random.Random) -> bytes:
    """Where formats keep their lengths and names; a zip file keeps them at its end too."""
    for _ in range(8):
        position = rng.randrange(min(400, len(content)))
        content[position if rng.random() < 0.5 else -1 - position] = rng.randrange(256)
    return bytes(content)


def _swap_opcodes(content: bytearray, rng: random.Random) -> bytes:
    """Exchange bytes of the pickle, or characters of the header, for others that mean something."""
    meaningful = (
        b"(.012FIJKLMNPQRSTUVXabcdeghijlopqrstu\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x93{}[]"
    )
    for _ in range(rng.choice((1, 3, 12))):
        content[rng.randrange(len(content))] = rng.choice(meaningful)
    return bytes(content)


def _enlarge_numbers(content: bytearray, rng: random.Random) -> bytes:
    """Write wild shapes: one-byte integers of a pickle become others, digits of a header nines."""
    places = [i for i, byte in enumerate(content[:-1]) if byte in b"KM0123456789"]
    for place in rng.sample(places, min(6, len(places))):
        if content[place] in b"KM":
            content[place + 1] = rng.choice((0, 127, 255))
        else:
            content[place] = ord("9")
    return bytes(content)


def _inside(path: Path, damage: Damage, rng: random.Random) -> bytes:
    """Damage what checksums protect, and mend the checksums."""
    content = bytearray(path.read_bytes())
    if zipfile.is_zipfile(path):
        target = path.with_name("inside.pt")
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
            for entry in old.infolist():
                body = old.read(entry)
                if entry.filename.endswith("data.pkl"):
                    body = damage(bytearray(body), rng)
                name = entry.filename
                if rng.random() < 0.01:
                    name = rng.choice(("../" + name, name + "x", "/" + name, name.upper()))
                new.writestr(name, body)
        return target.read_bytes()
    if content[8:9] == b"{":
        (length,) = struct.unpack("<Q", content[:8])
        header = damage(content[8 : 8 + length], rng)
        return struct.pack("<Q", len(header)) + header + bytes(content[8 + length :])
    return damage(content[:2000], rng) + bytes(content[2000:])


_DAMAGES: tuple[Damage, ...] = (
    _flip_bits,
    _truncate,
    _damage_the_head,
    _swap_opcodes,
    _enlarge_numbers,
)


def _load(path: Path, module: nn.Module) -> str:
    """Return the refusal, or nothing where the file is read and fits."""
    try:
        checkpoint = read_checkpoint(path)
        load_weights(match_weights(module, checkpoint.tensors), "tiny", str(path))
    except (CheckpointError, WeightsMismatchError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused_on_one_line(
    files: dict[str, Path], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = Yolov6(TINY, 2) if kind == "pickled module" else _small()
    target = tmp_path / files[kind].name
    refusals = []
    for seed in range(FILES_PER_KIND):
        rng = random.Random(seed)
        damage = _DAMAGES[seed % len(_DAMAGES)]
        outside = rng.random() < 0.3
        whole = bytearray(files[kind].read_bytes())
        target.write_bytes(damage(whole, rng) if outside else _inside(files[kind], damage, rng))
        refusals.append(_load(target, module))
    refusals = [message for message in refusals if message]
    assert len(refusals) >= FILES_PER_KIND // 2
    assert all(str(target) in message and message.isprintable() for message in refusals)
    assert max(map(len, refusals)) < 1500
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_what_is_damaged_here_loads_where_it_is_whole(files: dict[str, Path]) -> None:
    for kind, path in files.items():
        assert _load(path, Yolov6(TINY, 2) if kind == "pickled module" else _small()) == ""


@pytest.mark.parametrize("shape", [[1 << 62], [1 << 31, 1 << 31], [-1], [0, 1 << 62], [2.5], "4"])
def test_a_wild_shape_in_a_safetensors_header_is_refused(tmp_path: Path, shape: object) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(CheckpointError, match="corrupt"):
        read_checkpoint(path)
