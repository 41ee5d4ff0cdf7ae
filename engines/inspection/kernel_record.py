"""Kernels read back from fusion.json, without pydantic: whoever costs an engine may be a Jetson."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from reptrt.engines.inspection.kernel import Kernel, Product, Tensor
from reptrt.engines.inspection.layer_list_error import LayerListError

_MOST_SIDES = 16


def read_kernel_entry(entry: Mapping[str, object]) -> Kernel:
    """Return the kernel of an entry; before 0.3 tensors were [name, datatype].

    Raises:
        LayerListError: it is something else.
    """
    try:
        product = entry.get("product")
        return Kernel(
            name=str(entry.get("name", "")),
            kind=str(entry.get("kind", "")),
            inputs=_tensors(entry.get("inputs", [])),
            weights=_tensors(entry.get("weights", [])),
            outputs=_tensors(entry.get("outputs", [])),
            onnx_layers=tuple(str(name) for name in _sequence(entry.get("onnx_layers", []))),
            tactic=str(entry.get("tactic", "")),
            product=None if product is None else _product(cast(Mapping[str, object], product)),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        name = str(getattr(entry, "get", lambda _: entry)("name"))[:80]
        raise LayerListError(f"kernel '{name}': no entry of fusion.json: {error}") from error


def _tensors(entries: object) -> tuple[Tensor, ...]:
    return tuple(_tensor(entry) for entry in _sequence(entries))


def _tensor(entry: object) -> Tensor:
    if not isinstance(entry, Mapping):
        name, dtype = _sequence(entry)
        return Tensor(str(name), str(dtype))
    return Tensor(
        str(entry["name"]),
        str(entry["dtype"]),
        _sides(entry.get("dims", [])),
        _sides(entry.get("strides", [])),
        str(entry.get("format", "")),
    )


def _product(entry: Mapping[str, object]) -> Product:
    rows, columns, depth, groups = (
        _count(entry[key]) for key in ("rows", "columns", "depth", "groups")
    )
    return Product(
        rows, columns, depth, groups,
        _sides(entry.get("window", [])), _sides(entry.get("stride", [])),
    )  # fmt: skip


def _sides(value: object) -> tuple[int, ...]:
    if len(_sequence(value)) > _MOST_SIDES:
        raise ValueError("it has too many sides")
    return tuple(_whole(side) for side in _sequence(value))


def _count(value: object) -> int:
    if _whole(value) < 1:
        raise ValueError(f"{value} is no count")
    return _whole(value)


def _whole(value: object) -> int:
    if type(value) is not int or not -1 <= value < 2**40:
        raise ValueError(f"{str(value)[:40]} is no whole number that could be a size")
    return value


def _sequence(value: object) -> Sequence[object]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{str(value)[:40]} is no list")
    return value
