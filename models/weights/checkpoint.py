"""Read a checkpoint's tensors and what it says about its images; never run anything it holds.

Two formats: safetensors (metadata values are JSON), and torch files. Torch's zip files are read by
`reptrt.models.weights.torch_files.pickled_module`, older ones by `torch.load(weights_only=True)`. A torch file is a state dict, or
a dict that holds one, or a pickled module, beside `classes`, `image_size`, `mean` and `std`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.foreign.border import reading, require_file
from reptrt.engines.foreign.text import one_line
from reptrt.models.spec import PreprocessError, PreprocessOverrides, Triple
from reptrt.models.weights.nested import AmbiguousStatesError, find_state
from reptrt.models.weights.torch_files.archive import is_torch_archive
from reptrt.models.weights.torch_files.exported_program import (
    is_exported_program,
    read_exported_weights,
)
from reptrt.models.weights.torch_files.old_file import check_old_file
from reptrt.models.weights.torch_files.pickled_module import read_torch_archive
from reptrt.models.weights.torch_files.records import CorruptFileError, RefusedPickleError

_ACCURACY_KEYS = ("top1", "map_50_95")


class CheckpointError(ValueError):
    """A checkpoint file that cannot be used as it is."""

    exit_code = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's content, checked: every tensor finite, floating-point ones float32.

    Attributes:
        path: File it was read from.
        tensors: State dict under the file's own names.
        classes: Class names in the order of the head's outputs.
        image_size: (height, width) in pixels.
        mean: Per RGB channel, on the 0-1 scale.
        std: Per RGB channel, on the 0-1 scale.
        sha256: Hex digest of the file.
        accuracy: Top-1, or mAP 50-95, of the float network in percent: `top1` or `map_50_95`.
        activations: Class names of the backbone's activations, where the file pickles a module.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    classes: tuple[str, ...] | None
    image_size: tuple[int, int] | None
    mean: Triple | None
    std: Triple | None
    sha256: str
    activations: tuple[str, ...] = ()
    accuracy: float | None = None

    @property
    def preprocess(self) -> PreprocessOverrides:
        """What the checkpoint states about its images."""
        return PreprocessOverrides(self.image_size, self.mean, self.std)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors or torch checkpoint.

    Raises:
        CheckpointError: The file is missing, empty, truncated, no checkpoint, would run code, or
            holds NaN or infinite weights; the message says which, on one line.
    """
    with reading(path, CheckpointError, "cannot be used as a checkpoint"):
        return _read_checkpoint(path)


def _read_checkpoint(path: Path) -> Checkpoint:
    is_safetensors = _looks_like_safetensors(path)
    content = _read_safetensors(path) if is_safetensors else _read_torch(path)
    tensors = _promote(path, _find_state_dict(path, content))
    image_size = _image_size(path, content.get("image_size"))
    mean = _triple(path, "mean", content.get("mean"))
    std = _triple(path, "std", content.get("std"))
    try:
        PreprocessOverrides(image_size, mean, std)
    except PreprocessError as error:
        raise CheckpointError(f"{path}: {error}") from error
    classes = _classes(path, content.get("classes"))
    activations = _names(content.get("activations"))
    accuracy = _accuracy(path, content)
    digest = file_sha256(path)
    return Checkpoint(path, tensors, classes, image_size, mean, std, digest, activations, accuracy)


def _looks_like_safetensors(path: Path) -> bool:
    """Tell the format from the first bytes: a safetensors file has 8 bytes of length, then JSON."""
    try:
        require_file(path, CheckpointError)
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot read the checkpoint: {error.strerror or error}"
        ) from error
    if not head:
        raise CheckpointError(f"{path}: the file is empty; download or export it again")
    return path.suffix == ".safetensors" or head[8:9] == b"{"


def _read_safetensors(path: Path) -> dict[str, object]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: corrupt or truncated safetensors file ({one_line(error)});"
            " download or export it again"
        ) from error
    content: dict[str, object] = {"state_dict": state_dict}
    for key in ("classes", "image_size", "mean", "std", *_ACCURACY_KEYS):
        if key in metadata:
            content[key] = _parse_json(path, key, metadata[key])
    return content


def _parse_json(path: Path, key: str, text: str) -> object:
    try:
        parsed: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: metadata {key!r} is not JSON: {one_line(text)}") from error
    return parsed


def _read_torch(path: Path) -> dict[str, object]:
    try:
        if is_torch_archive(path):
            if is_exported_program(path):
                return {"state_dict": read_exported_weights(path)}
            return read_torch_archive(path)
        return _read_old_torch(path)
    except AmbiguousStatesError as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from error
    except RefusedPickleError as error:
        raise CheckpointError(
            f"{path}: refused: {error}; save model.state_dict(), or convert the file to safetensors"
        ) from error
    except CorruptFileError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint, or corrupt or truncated ({error});"
            " expected safetensors or a torch file with a state dict"
        ) from error


def _read_old_torch(path: Path) -> dict[str, object]:
    """Read a state dict that torch saved before its version 1.6, after a look at its pickles."""
    check_old_file(path)
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RefusedPickleError(
            "its pickle holds more than tensors, and is in the format before torch 1.6"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise CorruptFileError(one_line(error)) from error
    if not isinstance(content, Mapping):
        raise RefusedPickleError(f"holds a {type(content).__name__}, not a state dict")
    return {str(key): value for key, value in content.items()}


def _find_state_dict(path: Path, content: Mapping[str, object]) -> dict[str, torch.Tensor]:
    try:
        state = find_state(content, _plain_tensors)
    except AmbiguousStatesError as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from error
    if state is not None:
        return dict(state.tensors)
    raise CheckpointError(
        f"{path}: holds no tensors (keys: {one_line(', '.join(list(content)[:5])) or 'none'}); expected a"
        " state dict, or a dict with one under a name like state_dict, model or ema"
    )


def _plain_tensors(value: object) -> dict[str, torch.Tensor]:
    """The tensors that a mapping holds itself."""
    items = value.items() if isinstance(value, Mapping) else ()
    return {str(key): item for key, item in items if isinstance(item, torch.Tensor)}


def _promote(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make every floating-point tensor float32 and check that it is finite."""
    promoted: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            raise CheckpointError(
                f"{path}: {one_line(name)} is no plain tensor ({tensor.dtype}, {tensor.layout});"
                " save model.state_dict() of a float model"
            )
        if not tensor.is_floating_point():
            promoted[name] = tensor
            continue
        value = tensor.detach().float()
        finite = torch.isfinite(value)
        if not finite.all():
            broken = int((~finite).sum())
            raise CheckpointError(
                f"{path}: {one_line(name)} has {broken} NaN or infinite values of {value.numel()};"
                " use a checkpoint from before the training diverged"
            )
        promoted[name] = value
    return promoted


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has numbers of its own: not sparse, complex, quantized, or one repeated."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    if tensor.is_complex() or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _image_size(path: Path, value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = _numbers(value) or _numbers([value, value])
    if sides is None or len(sides) != 2 or not all(side.is_integer() for side in sides):
        raise CheckpointError(
            f"{path}: image_size is {one_line(value)}; expected pixels or [height, width]"
        )
    return int(sides[0]), int(sides[1])


def _accuracy(path: Path, content: Mapping[str, object]) -> float | None:
    for key in _ACCURACY_KEYS:
        if content.get(key) is not None:
            found = _numbers([content[key]])
            if found is None or not 0 <= found[0] <= 100:
                raise CheckpointError(
                    f"{path}: {key} is {one_line(content[key])}; expected percent, 0 to 100"
                )
            return found[0]
    return None


def _triple(path: Path, key: str, value: object) -> Triple | None:
    if value is None:
        return None
    numbers = _numbers(value)
    if numbers is None or len(numbers) != 3:
        raise CheckpointError(f"{path}: {key} is {one_line(value)}; expected three numbers")
    return numbers[0], numbers[1], numbers[2]


def _numbers(value: object) -> list[float] | None:
    """Return a sequence or 1-D tensor of numbers as floats, None when it is something else."""
    if isinstance(value, torch.Tensor):
        return _numbers(value.tolist()) if value.dim() == 1 and len(value) <= 3 else None
    items = value
    if not isinstance(items, Sequence) or isinstance(items, str):
        return None
    numeric = all(isinstance(item, int | float) and not isinstance(item, bool) for item in items)
    return [float(item) for item in items] if numeric else None


def _classes(path: Path, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = _names(value)
    if names:
        return names
    raise CheckpointError(f"{path}: classes is {one_line(value)}; expected a list of names")


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    return ()
