"""Read torch's zip files: state dicts, and whole modules that were pickled, as YOLOv6 publishes them.

A pickled module is a record of `_parameters`, `_buffers` and `_modules`; its state dict follows from
those alone. No class of the file is imported, and no code of it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from reptrt.models.weights.nested import find_state
from reptrt.models.weights.torch_files.archive import TorchArchive
from reptrt.models.weights.torch_files.inert_pickle import read_inert_pickle
from reptrt.models.weights.torch_files.records import (
    ForeignObject,
    RefusedPickleError,
    StoredTensor,
)

logger = logging.getLogger(__name__)

_MAX_MEMBERS = 200_000
_MAX_PATH = 500
_MEMBERS = ("_parameters", "_buffers", "_modules")


def read_torch_archive(path: Path) -> dict[str, object]:
    """Return the dict in a torch zip file, with the tensors of one state dict.

    A pickled module becomes its state dict, `state_dict`. Of several, and of optimizer states, only
    the one that `reptrt.models.weights.nested` chooses is read. A module adds what it says about
    itself: `classes`, and `activations`, the class names of its backbone's activations.

    Raises:
        RefusedPickleError: The file would run code, or holds no dict and no module; on one line.
        CorruptFileError: The file is damaged.
    """
    with TorchArchive(path) as archive:
        root = read_inert_pickle(archive.read_pickle())
        if _is_module(root):
            root = {"model": root}
        if not isinstance(root, dict):
            raise RefusedPickleError(f"holds a {_type_name(root)}, not a state dict")
        content = {str(key): value for key, value in root.items()}
        state = find_state(content, _tensors)
        loaded: dict[str, object] = {
            key: None if isinstance(value, dict | ForeignObject) else value
            for key, value in content.items()
        }
        for key, value in content.items():
            if isinstance(value, StoredTensor):
                loaded[key] = archive.load(value)
        if state is not None and state.keys:
            logger.info("%s: the weights are those under %r", path, ".".join(state.keys))
            tensors = {name: archive.load(tensor) for name, tensor in state.tensors.items()}
            owner = content[state.keys[0]]
            for key in state.keys[1:]:
                owner = owner[key] if isinstance(owner, dict) else None
            loaded = {**_describe(path, ".".join(state.keys), owner), **loaded}
            loaded["state_dict"] = tensors
        return loaded


def read_torch_tensor(content: bytes) -> torch.Tensor:
    """Return the one tensor of a torch zip file.

    Raises:
        RefusedPickleError: The file would run code, or holds something else; on one line.
        CorruptFileError: The file is damaged.
    """
    with TorchArchive(content) as archive:
        root = read_inert_pickle(archive.read_pickle())
        if not isinstance(root, StoredTensor):
            raise RefusedPickleError(f"holds a {_type_name(root)}, not a tensor")
        return archive.load(root)


def _tensors(value: object) -> dict[str, StoredTensor]:
    """Return the state dict that `value` is, or that it has as a module."""
    if isinstance(value, dict):
        return {str(key): item for key, item in value.items() if isinstance(item, StoredTensor)}
    if not _is_module(value):
        return {}
    tensors: dict[str, StoredTensor] = {}
    for path, module in _walk(value):
        temporary = module.state.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            skipped = temporary if kind == "_buffers" and isinstance(temporary, set) else set()
            for name, item in _members(module, kind).items():
                if isinstance(item, StoredTensor) and name not in skipped:
                    tensors[f"{path}{name}"] = item
    return tensors


def _walk(root: object) -> Iterator[tuple[str, ForeignObject]]:
    """Yield a module and all below it with the beginning of their tensors' names."""
    pending, num_members = [("", root)], 0
    while pending:
        path, module = pending.pop()
        if not isinstance(module, ForeignObject):
            continue
        num_members += 1 + sum(len(_members(module, kind)) for kind in _MEMBERS)
        if num_members > _MAX_MEMBERS or len(path) > _MAX_PATH:
            raise RefusedPickleError("its modules are nested without end")
        yield path, module
        children = _members(module, "_modules").items()
        pending.extend((f"{path}{name}.", child) for name, child in reversed(children))


def _members(module: ForeignObject, kind: str) -> dict[object, object]:
    members = module.state.get(kind)
    return members if isinstance(members, dict) else {}


def _is_module(value: object) -> bool:
    return isinstance(value, ForeignObject) and {"_modules", "_parameters"} <= value.state.keys()


def _describe(path: Path, key: str, root: object) -> dict[str, object]:
    """Return what a pickled module says about itself, under the names that checkpoints use."""
    if not isinstance(root, ForeignObject):
        return {}
    logger.info(
        "%s: %r is a pickled %s; its tensors are read, it is not loaded", path, key, root.cls.path
    )
    facts: dict[str, object] = {
        "activations": sorted(
            {
                module.cls.name
                for name, module in _walk(root)
                if name.startswith("backbone.") and _is_activation(module)
            }
        )
    }
    names = root.state.get("names")
    if isinstance(names, Mapping):
        names = [name for _, name in sorted(names.items(), key=lambda pair: str(pair[0]).zfill(9))]
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        facts["classes"] = names
    return facts


def _is_activation(module: ForeignObject) -> bool:
    return module.cls.module == "torch.nn.modules.activation"


def _type_name(value: object) -> str:
    if isinstance(value, StoredTensor):
        return "Tensor"
    return value.cls.path[:120] if isinstance(value, ForeignObject) else type(value).__name__
