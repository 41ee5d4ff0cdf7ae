"""The model card: preprocessing, outputs and classes of an ONNX file, in its metadata.

It travels inside the file, so that every stage after export needs the file alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no stubs

from reptrt.engines.foreign.border import reading
from reptrt.models.card import ModelCard
from reptrt.models.read_fields import read_fields

_KEY = "reptrt.model_card"


class ModelCardError(ValueError):
    """The ONNX file was not written by reptrt's export."""

    exit_code = 2


def write_card(card: ModelCard, proto: onnx.ModelProto) -> None:
    """Put `card` into the metadata of `proto`, in place."""
    entry = proto.metadata_props.add()
    entry.key, entry.value = _KEY, json.dumps(asdict(card))


def write_facts(facts: Mapping[str, object], proto: onnx.ModelProto) -> None:
    """Say in `proto` that reptrt made it, and how: each fact is an entry `reptrt.<name>` of its metadata."""
    proto.producer_name, proto.producer_version = "reptrt", version("reptrt")
    for name, value in facts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = f"reptrt.{name}", str(value)


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
    with reading(path, ModelCardError, "has a damaged model card; export again"):
        return read_fields(values[_KEY], ModelCard)
