"""What a reader of an ONNX file must know to feed the network and to read its outputs.

The card travels inside the file as metadata, so every stage after export needs the file alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no stubs

from models.spec import Preprocess, Task

_KEY = "reptrt.model_card"


class ModelCardError(ValueError):
    """The ONNX file was not written by reptrt's export."""

    exit_code = 2


@dataclass(frozen=True)
class ModelCard:
    """Contract of a network.

    Attributes:
        model: name that the user gave.
        task: what the outputs mean.
        preprocess: how images become the input `images`.
        num_classes: classes that the head tells apart.
        classes: their names in the order of the outputs, None when nobody named them.
        outputs: names of the graph outputs in order.
        strides: of a detector's outputs, in pixels per cell; empty for a classifier.
        batch_size: that the files are made for; None for any.
    """

    model: str
    task: Task
    preprocess: Preprocess
    num_classes: int
    classes: tuple[str, ...] | None
    outputs: tuple[str, ...]
    strides: tuple[int, ...] = ()
    batch_size: int | None = None


def write_card(card: ModelCard, proto: onnx.ModelProto) -> None:
    """Put `card` into the metadata of `proto`, in place."""
    entry = proto.metadata_props.add()
    entry.key, entry.value = _KEY, json.dumps(asdict(card))


def read_card(path: Path) -> ModelCard:
    """Card of an ONNX file that export wrote.

    Raises:
        ModelCardError: the file is damaged or holds no card.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
    except DecodeError:
        raise ModelCardError(f"{path}: is not an ONNX file, or is damaged; export again") from None
    values = {entry.key: entry.value for entry in proto.metadata_props}
    if _KEY not in values:
        raise ModelCardError(f"{path}: has no model card; export it with `reptrt export MODEL`")
    return _from_json(json.loads(values[_KEY]))


def _from_json(values: dict[str, Any]) -> ModelCard:
    preprocess = values.pop("preprocess")
    for key in ("image_size", "mean", "std"):
        preprocess[key] = tuple(preprocess[key])
    for key in ("classes", "outputs", "strides"):
        values[key] = None if values[key] is None else tuple(values[key])
    return ModelCard(preprocess=Preprocess(**preprocess), **values)
