"""The tensors that an ONNX file holds, and those that lie beside it as external data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto, external_data_helper, helper

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.foreign.limits import MAX_SHARED_DATA

_MAX_MESSAGE = 400


class OnnxFileError(ValueError):
    """An ONNX file that cannot be used as it is."""

    exit_code = 2

    def at(self, path: Path) -> OnnxFileError:
        """Say which file it is, on one line that is no longer than a message should be."""
        text = " ".join(str(self).split())
        if len(text) > _MAX_MESSAGE:
            text = f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 2 :]}"
        return OnnxFileError(f"{path}: {text}")


def load_external_data(path: Path, proto: onnx.ModelProto) -> str:
    """Read the data that lies beside the file; return the digest of all that was read."""
    digest = hashlib.sha256(file_sha256(path).encode())
    folder = path.resolve().parent
    files: dict[Path, None] = {}
    external = [
        tensor
        for tensor in list_tensors(proto.graph)
        if tensor.data_location == TensorProto.EXTERNAL
    ]
    for tensor in external:
        files[_external_file(folder, tensor)] = None
    if sum(map(num_bytes, external)) > MAX_SHARED_DATA * sum(one.stat().st_size for one in files):
        raise OnnxFileError("its weights have many times the bytes of the files that they lie in")
    for tensor in external:
        external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
    for file in files:
        digest.update(file_sha256(file).encode())
    return digest.hexdigest() if files else file_sha256(path)


def _external_file(folder: Path, tensor: onnx.TensorProto) -> Path:
    """Where the data of `tensor` lies: in `folder` or below it, whole and no longer than needed."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    pure = PurePosixPath(location)
    if not location or pure.is_absolute() or ".." in pure.parts or "\\" in location:
        raise OnnxFileError(
            f"weight {tensor.name!r} wants the file {location!r}: external data must lie in the"
            " folder of the model"
        )
    file = (folder / pure).resolve()
    if not file.is_relative_to(folder):
        raise OnnxFileError(f"weight {tensor.name!r}: {location!r} leads out of the model's folder")
    if not file.is_file():
        raise OnnxFileError(
            f"weight {tensor.name!r} lies in {location!r}, which is not beside the model: copy it"
            " there"
        )
    offset, needed = int(entries.get("offset", 0) or 0), num_bytes(tensor)
    length = int(entries.get("length", 0) or 0) or needed
    if offset < 0 or length != needed or offset + length > file.stat().st_size:
        raise OnnxFileError(
            f"weight {tensor.name!r} needs {needed} bytes of {location!r} from byte {offset} on,"
            f" which has {file.stat().st_size}: the file is damaged or another one"
        )
    return file


def list_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every weight, and every constant that an operator holds, in subgraphs too."""
    for part in list_graphs(graph):
        yield from part.initializer
        for node in part.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def list_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """`graph`, and the graphs that its operators of control flow hold."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from list_graphs(inner)


def num_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes that data of the tensor's shape and type has.

    Raises:
        OnnxFileError: A side is negative, or the type is unknown.
    """
    if any(side < 0 for side in tensor.dims):
        raise OnnxFileError(f"weight {tensor.name!r} has the shape {list(tensor.dims)}")
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise OnnxFileError(
            f"weight {tensor.name!r} has the unknown data type {tensor.data_type}"
        ) from None
    elements: int = math.prod(tensor.dims)
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
        return (elements + 1) // 2
    return elements * int(dtype.itemsize)
