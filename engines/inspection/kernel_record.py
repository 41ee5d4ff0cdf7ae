"""Kernels as entries of fusion.json, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TypedDict, cast

from reptrt.engines.inspection.kernel import Kernel, Product, Tensor
from reptrt.engines.inspection.layer_list_error import LayerListError


class TensorEntry(TypedDict, total=False):
    """A tensor; see `reptrt.engines.inspection.kernel.Tensor`."""

    name: str
    dtype: str
    dims: list[int]
    strides: list[int]
    format: str


class ProductEntry(TypedDict, total=False):
    """What a kernel multiplies; see `reptrt.engines.inspection.kernel.Product`."""

    rows: int
    columns: int
    depth: int
    groups: int
    window: list[int]
    stride: list[int]


class KernelEntry(TypedDict, total=False):
    """One kernel; see `reptrt.engines.inspection.kernel.Kernel`."""

    name: str
    kind: str
    onnx_layers: list[str]
    inputs: list[TensorEntry]
    weights: list[TensorEntry]
    outputs: list[TensorEntry]
    tactic: str
    product: ProductEntry | None


def kernel_entry(kernel: Kernel) -> KernelEntry:
    """Return the kernel as JSON."""
    return cast(KernelEntry, _as_lists(asdict(kernel)))


def _as_lists(value: object) -> object:
    if isinstance(value, dict):
        return {key: _as_lists(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_as_lists(inner) for inner in value]
    return value


def read_kernel_entry(entry: Mapping[str, object]) -> Kernel:
    """Return the kernel that `kernel_entry` wrote; before 0.3 tensors were [name, datatype].

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
