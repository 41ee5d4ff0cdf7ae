"""What somebody may do to a file of a run: every way in which it is not what was written there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from safetensors import safe_open
from safetensors.torch import save_file

Edit = Callable[[Path], bool]
"""Changes a file in place; False where it has nothing that could be changed so."""

RANGED = {
    "agreement", "num_images", "chance", "lost", "gained", "cosine", "int8_coverage", "kernels", "int8_layers",
    "quantizable_layers", "milliseconds", "low", "high", "fp16_milliseconds", "int8_milliseconds", "int8_us", "fp16_us",
    "activation_megabytes", "weight_megabytes", "int8_writers", "time_ratio", "byte_ratio", "step", "clipped",
    "seconds", "peak_rss_mb", "seed", "layers", "p50", "p90", "p99", "rows", "columns", "batch", "engine_bytes",
}  # fmt: skip
"""Numbers of records that are never below 0, wherever they stand; `low` and `high` are of times alone."""


def empty(path: Path) -> bool:
    path.write_bytes(b"")
    return True


def cut(path: Path) -> bool:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return True


def garbage(path: Path) -> bool:
    path.write_bytes(b"\x00\xff\x1b]0;x\x07" * 20)
    return True


def deep(path: Path) -> bool:
    if path.suffix not in (".json", ".yaml"):
        return False
    path.write_text("[" * 5000 + "]" * 5000)
    return True


def a_folder(path: Path) -> bool:
    path.unlink()
    path.mkdir()
    return True


def a_pipe(path: Path) -> bool:
    path.unlink()
    os.mkfifo(path)
    return True


def a_link(path: Path) -> bool:
    """To the same content, elsewhere."""
    elsewhere = path.with_name(f"elsewhere-{path.name}")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    return True


def a_dead_link(path: Path) -> bool:
    path.unlink()
    path.symlink_to("/nowhere/at/all")
    return True


def removed(path: Path) -> bool:
    path.unlink()
    return True


def nan(path: Path) -> bool:
    """The first number, or of tensors and constants the first value, is NaN."""
    if path.suffix == ".json":
        return _change_leaves(path, lambda key, value: "@NaN" if _is_number(value) else value, 1)
    return _change_tensor(path, float("nan"))


def zero(path: Path) -> bool:
    return path.suffix == ".safetensors" and _change_tensor(path, 0.0)


def below_its_range(path: Path) -> bool:
    return _change_leaves(
        path, lambda key, value: -7 if _is_number(value) and _is_ranged(key, value, path) else value
    )


def text_for_a_number(path: Path) -> bool:
    return _change_leaves(path, lambda key, value: "1e9" if _is_number(value) else value, 1)


def number_for_a_text(path: Path) -> bool:
    return _change_leaves(path, lambda key, value: 7 if isinstance(value, str) else value, 1)


def empty_lists(path: Path) -> bool:
    """No attempt, no bin, no stage: everything that is in JSON's lists and objects is gone."""
    if path.suffix != ".json":
        return False
    content = json.loads(path.read_text())
    path.write_text(json.dumps([] if isinstance(content, list) else {key: [] for key in content}))
    return True


def unknown_names(path: Path) -> bool:
    """Layers and tensors are called as in another network."""
    if path.suffix == ".safetensors":
        tensors, metadata = _read_tensors(path)
        save_file({f"{name}_": one for name, one in tensors.items()}, path, metadata)
        return bool(tensors)
    if path.name not in ("placement.json", "sensitivity.json", "concats.json"):
        return False
    content = json.loads(path.read_text())
    price = {"int8_us": 1.0, "fp16_us": 1.0}
    added: Any = {
        "placement.json": lambda: content["float_layers"].update({"of.another": price}),
        "sensitivity.json": lambda: content["layers"].update({"of.another": 1.0}),
        "concats.json": lambda: content.append("of_another"),
    }
    added[path.name]()
    path.write_text(json.dumps(content))
    return True


PLAIN: dict[str, Edit] = {
    "cut": cut, "deep": deep, "a folder": a_folder, "a pipe": a_pipe, "a dead link": a_dead_link, "removed": removed,
}  # fmt: skip
"""Edits of the file alone: whatever it holds then, its hash is another."""

FORGED: dict[str, Edit] = {
    "empty": empty, "cut": cut, "garbage": garbage, "deep": deep, "NaN": nan, "zero": zero,
    "below its range": below_its_range, "text": text_for_a_number, "number": number_for_a_text,
    "empty lists": empty_lists, "unknown names": unknown_names,
}  # fmt: skip
"""Edits after which `forge` writes the new hash into run.json too."""


def forge(path: Path) -> None:
    """Let run.json say that `path` is what was written there."""
    records = path.with_name("run.json")
    content = json.loads(records.read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for record in content["stages"].values():
        if path.name in record["artifacts"]:
            record["artifacts"][path.name] = digest
    records.write_text(json.dumps(content))


def copy_of(source: Path, path: Path) -> bool:
    """Put the file of another run in its place; False where both are the same."""
    if not source.is_file() or source.read_bytes() == path.read_bytes():
        return False
    shutil.copyfile(source, path)
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_ranged(key: str, value: object, path: Path) -> bool:
    is_a_bin = path.name == "histograms.json" and key in ("low", "high")
    return key in RANGED and not is_a_bin


def _change_leaves(path: Path, change: Callable[[str, Any], Any], most: int = 1 << 30) -> bool:
    """Replace what `change` makes something else, at most `most` times."""
    if path.suffix != ".json":
        return False
    content, done = json.loads(path.read_text()), 0
    for owner, key, name in _leaves(content):
        changed = change(name, owner[key])
        if changed is not owner[key] and changed != owner[key] and done < most:
            owner[key] = changed
            done += 1
    path.write_text(json.dumps(content).replace('"@NaN"', "NaN"))
    return done > 0


def _leaves(content: Any) -> Iterator[tuple[Any, Any, str]]:
    """(owner, key or index, the last name on the way) of every value that holds no others."""
    pending: list[tuple[Any, str]] = [(content, "")]
    while pending:
        owner, name = pending.pop()
        keys = list(owner) if isinstance(owner, dict) else range(len(owner))
        for key in keys:
            own = key if isinstance(key, str) else name
            if isinstance(owner[key], dict | list):
                pending.append((owner[key], own))
            else:
                yield owner, key, own


def _read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def _change_tensor(path: Path, value: float) -> bool:
    if path.suffix == ".onnx":
        model = onnx.load(path)
        floats = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
        for tensor in floats[:1]:
            array = onnx.numpy_helper.to_array(tensor).copy()
            array.reshape(-1)[:1] = value
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        onnx.save(model, path)
        return bool(floats)
    if path.suffix != ".safetensors":
        return False
    tensors, metadata = _read_tensors(path)
    steps = [name for name in tensors if name.endswith("scale")] or list(tensors)
    for name in steps[:1]:
        tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, path, metadata)
    return bool(steps)
