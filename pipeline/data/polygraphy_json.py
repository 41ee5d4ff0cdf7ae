"""Feeds in the JSON that Polygraphy writes with `--save-inputs`, decoded here: no class of the file is made.

A feed is an object of input names; its values are arrays, or tensors of PyTorch, as base64 of their files:
`{"polygraphy_class": "ndarray", "array": "..."}` and `{"polygraphy_class": "Tensor", "tensor": "..."}`.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.lib import format as npy_format
from numpy.typing import NDArray

from reptrt.engines.foreign.border import read_json, reading
from reptrt.engines.foreign.limits import MAX_JSON_BYTES
from reptrt.engines.foreign.text import one_line
from reptrt.pipeline.data.array_images import read_npy_header
from reptrt.pipeline.data.preprocess import DataError

_CLASS = "polygraphy_class"
_FORMER = "__polygraphy_encoded_"


def read_polygraphy_feeds(path: Path) -> list[dict[str, NDArray[Any]]]:
    """The feeds of a file, in order.

    Raises:
        DataError: it is missing, damaged, or holds something else than feeds of arrays.
    """
    with reading(path, DataError, "is no JSON that Polygraphy saved with --save-inputs"):
        if not path.exists():
            raise DataError(f"{path}: does not exist")
        content = read_json(path, MAX_JSON_BYTES, DataError)
        if not isinstance(content, list):
            raise DataError(
                f"{path}: holds a {type(content).__name__}; feeds are a list of mappings"
            )
        return [_feed(feed) for feed in content]


def _feed(feed: object) -> dict[str, NDArray[Any]]:
    if not isinstance(feed, Mapping) or not feed:
        raise ValueError(f"a {type(feed).__name__} is no feed; one maps input names to arrays")
    return {name: _array(name, value) for name, value in feed.items()}


def _array(name: str, value: object) -> NDArray[Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{one_line(name)!r} is no array: {one_line(value)}")
    kind = value.get(_CLASS) or next(
        (key.removeprefix(_FORMER) for key in value if key.startswith(_FORMER)), None
    )
    if kind == "ndarray":
        return _npy(base64.b64decode(value["array"], validate=True))
    if kind == "Tensor":
        from reptrt.models.weights.torch_files.pickled_module import read_torch_tensor

        tensor = read_torch_tensor(base64.b64decode(value["tensor"], validate=True))
        found: NDArray[Any] = tensor.numpy()
        return found
    raise ValueError(f"{one_line(name)!r} is a {one_line(kind)}, and no array")


def _npy(content: bytes) -> NDArray[Any]:
    """The array of a `.npy` file, which is no larger than the file."""
    stream = io.BytesIO(content)
    shape, _, dtype = read_npy_header(stream)
    if math.prod(shape) * dtype.itemsize > len(content) - stream.tell():
        raise ValueError(f"an array of {list(shape)} {dtype} is cut off")
    stream.seek(0)
    array: NDArray[Any] = npy_format.read_array(stream, allow_pickle=False)
    return array
