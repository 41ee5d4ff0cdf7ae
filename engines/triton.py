"""Put an engine, or an ONNX file, into a model repository of Triton Inference Server.

    <repository>/<name>/config.pbtxt   schema: Triton's model_config.proto
    <repository>/<name>/labels.txt     one class name per line
    <repository>/<name>/<version>/model.plan or model.onnx, and verdict.json

A version appears whole, under a number that was free; nothing that is there is ever changed, but
config.pbtxt, which gets a line for each version: its verdict.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from reptrt.engines.artifacts import folder_when_done, replace_when_done, write_json, writing
from reptrt.engines.file_lock import hold_lock
from reptrt.engines.foreign.border import read_bytes
from reptrt.engines.foreign.limits import MAX_SIDECAR_BYTES
from reptrt.engines.foreign.text import one_line
from reptrt.engines.report_schema import NOT_JUDGED, Verdict
from reptrt.engines.target import Target
from reptrt.engines.tensor_spec import Tensor

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
VERDICT = "verdict.json"
_VERDICT_LINE = 'parameters { key: "reptrt.verdict.'
_TYPES = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "int8": "TYPE_INT8", "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32", "int64": "TYPE_INT64", "bool": "TYPE_BOOL",
}  # fmt: skip
_QUEUE_DELAY_US = 100
_LONGEST_LABEL = 1000
_VERSION = re.compile(r"[0-9]{1,9}")


class RepositoryError(ValueError):
    """The repository cannot take this model as it is."""

    exit_code = 2


@dataclass(frozen=True)
class ServedModel:
    """What Triton has to know.

    Attributes:
        name: of the model.
        file: the engine, or the ONNX file.
        is_engine: whether it is an engine of TensorRT, and not an ONNX file for ONNX Runtime on CPUs.
        inputs: of the file.
        outputs: of the file.
        max_batch: largest batch, where the first dimension of all inputs and outputs is dynamic.
        instances: how many of it run at once on each GPU, or on the CPU.
        classes: names in the order of the logits; None when nobody named them.
        labelled_output: output whose index is a class, so that Triton can name it; None for none.
        verdict: whether it is good enough.
        sizes: usual sides, without the batch, of inputs that leave some open; they warm it up.
    """

    name: str
    file: Path
    is_engine: bool
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int
    instances: int = 1
    classes: tuple[str, ...] | None = None
    labelled_output: str | None = None
    verdict: Verdict = NOT_JUDGED
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def batches(self) -> bool:
        """Whether Triton may put requests together."""
        return all(tensor.has_dynamic_batch for tensor in (*self.inputs, *self.outputs))


def require_servable(target: Target) -> None:
    """Say before the work that Triton could not use its result.

    Raises:
        RepositoryError: engines of `target` are TensorRT-RTX's.
    """
    if target.backend == "tensorrt_rtx":
        raise RepositoryError(
            f"target '{target.name}': Triton's TensorRT backend cannot load engines of TensorRT-RTX;"
            ' build on the server with `target="tensorrt"`, or serve from the CPU with `target="cpu"`'
        )


def add_version(
    repository: Path, model: ServedModel, version: int | None = None, keep_config: bool = False
) -> Path:
    """Add `model` to `repository` and return the folder of its version.

    Args:
        repository: made where it is missing.
        model: what to serve.
        version: its number; None for one more than the highest.
        keep_config: leave a config.pbtxt and a labels.txt that are there and differ, edited ones perhaps.

    Raises:
        RepositoryError: the version exists, the config.pbtxt or labels.txt that is there differs, Triton
            has no such data type, or the repository is read-only.
        WriteError: the disk is full.
    """
    folder, text = _make_folder(repository, model.name), config_text(model)
    with hold_lock(folder / ".lock"):
        number = version or max(list_versions(folder), default=0) + 1
        final = folder / str(number)
        if final.exists():
            raise RepositoryError(f"{final}: exists; leave `version` out, or give a free number")
        labels = "".join(f"{_label(name)}\n" for name in model.classes or ())
        _require_labels(folder / LABELS, labels, keep_config)
        _write_config(folder, text, _verdict_line(number, model.verdict), keep_config)
        if labels and not (folder / LABELS).exists():
            _write(folder / LABELS, labels)
        with writing(final), folder_when_done(final) as partial:
            with replace_when_done(
                partial / ("model.plan" if model.is_engine else "model.onnx")
            ) as file:
                shutil.copyfile(model.file, file)
            write_json(model.verdict, partial / VERDICT)
    return final


def _require_labels(path: Path, labels: str, keep: bool) -> None:
    """Refuse other names than those that are there, unless `keep`: all versions share one labels.txt."""
    if labels and not keep and path.exists() and _read(path) != labels:
        raise RepositoryError(
            f"{path}: names other classes than this model has: keep it with `keep_config`, or choose"
            " another `name`"
        )


def list_versions(folder: Path) -> list[int]:
    """Return the numbers of the versions in the folder of a model, ascending."""
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if _VERSION.fullmatch(name))


def _label(name: str) -> str:
    """A class name as one line, however it is written: the n-th line names class n."""
    return one_line(name, _LONGEST_LABEL) or "?"


def config_text(model: ServedModel) -> str:
    """Return config.pbtxt for `model`.

    Raises:
        RepositoryError: Triton has no such data type.
    """
    lines = [
        f"name: {_quoted(model.name)}",
        f'platform: "{"tensorrt_plan" if model.is_engine else "onnxruntime_onnx"}"',
        f"max_batch_size: {model.max_batch if model.batches else 0}",
        _tensors("input", model.inputs, model),
        _tensors("output", model.outputs, model),
        "instance_group [",
        f"  {{ kind: {'KIND_GPU' if model.is_engine else 'KIND_CPU'} count: {model.instances} }}",
        "]",
    ]
    if model.batches and model.max_batch > 1:
        sizes = ", ".join(map(str, _preferred(model.max_batch)))
        lines += [
            "dynamic_batching {",
            f"  preferred_batch_size: [ {sizes} ]",
            f"  max_queue_delay_microseconds: {_QUEUE_DELAY_US}",
            "}",
        ]
    for size in sorted({1, model.max_batch} if model.batches else {1}):
        lines.append(_warmup(model, size))
    return "\n".join(lines) + "\n"


def require_name(name: str) -> None:
    """Check that a folder of a repository can be called `name`.

    Raises:
        RepositoryError: it is a path, or empty.
    """
    if Path(name).name != name or name in ("", "..") or not name.isprintable():
        raise RepositoryError(
            f"`name` {one_line(name)!r}: must be the name of a folder, not a path"
        )


def _make_folder(repository: Path, name: str) -> Path:
    require_name(name)
    folder = repository / name
    for path in (folder, *(folder / file for file in (".lock", CONFIG, LABELS))):
        if path.is_symlink():
            raise RepositoryError(
                f"{path}: is a link, which may lead out of the repository: remove it"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise RepositoryError(
            f"{folder}: cannot be written ({error.strerror}); choose another `output`"
        ) from None
    return folder


def _read(path: Path) -> str:
    return read_bytes(path, MAX_SIDECAR_BYTES, RepositoryError).decode(errors="replace")


def _verdict_line(version: int, verdict: Verdict) -> str:
    """Parameter of config.pbtxt that says how good a version is."""
    decision = f"{verdict.decision}, forced" if verdict.forced else verdict.decision
    value = json.dumps(f"{decision}: {verdict.reason}".removesuffix(": "))
    return f'{_VERDICT_LINE}{version}" value {{ string_value: {value} }} }}\n'


def _write_config(folder: Path, text: str, verdict: str, keep: bool) -> None:
    """Write config.pbtxt, or add the line `verdict` to the one that is there and says the same."""
    path = folder / CONFIG
    there = _read(path) if path.exists() else text
    lines = there.splitlines(keepends=True)
    verdicts = [line for line in lines if line.startswith(_VERDICT_LINE)]
    if "".join(line for line in lines if line not in verdicts) == text:
        of_version = verdict[: verdict.index(" value ")]
        others = [line for line in verdicts if not line.startswith(of_version)]
        _write(path, text + "".join(others) + verdict)
    elif not keep:
        raise RepositoryError(
            f"{path}: is not what this model needs: it was edited, or is of another model. Keep it with"
            " `keep_config`, delete it to have it written again, or choose another `name`"
        )


def _write(path: Path, text: str) -> None:
    with replace_when_done(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _tensors(kind: str, tensors: Sequence[Tensor], model: ServedModel) -> str:
    entries = []
    for tensor in tensors:
        fields = [f"    name: {_quoted(tensor.name)}", *_type_and_dims(tensor, model)]
        if tensor.name == model.labelled_output and model.classes is not None:
            fields.append(f'    label_filename: "{LABELS}"')
        entries.append("  {\n" + "\n".join(fields) + "\n  }")
    return f"{kind} [\n" + ",\n".join(entries) + "\n]"


def _quoted(name: str) -> str:
    """`name` as protobuf's text format has it.

    Raises:
        RepositoryError: it holds what no configuration should.
    """
    if not name.isprintable():
        raise RepositoryError(
            f"tensor {one_line(name)}: its name holds characters that cannot be shown: rename it in"
            " the model"
        )
    return json.dumps(name, ensure_ascii=False)


def _warmup(model: ServedModel, batch: int) -> str:
    """One request with random values before the model counts as loaded."""
    inputs = [
        f"  inputs {{\n    key: {_quoted(tensor.name)}\n    value {{\n"
        + "\n".join(f"  {line}" for line in _type_and_dims(_usual(tensor, model), model))
        + "\n      random_data: true\n    }\n  }"
        for tensor in model.inputs
    ]
    head = ["model_warmup {", f'  name: "batch {batch}"', f"  batch_size: {batch}"]
    return "\n".join([*head, *inputs, "}"])


def _usual(tensor: Tensor, model: ServedModel) -> Tensor:
    """`tensor` with its usual sides, where some are open: a request states them all."""
    if tensor.name not in model.sizes:
        return tensor
    sides = model.sizes[tensor.name]
    return replace(tensor, shape=(*tensor.shape[: len(tensor.shape) - len(sides)], *sides))


def _type_and_dims(tensor: Tensor, model: ServedModel) -> list[str]:
    """Data type and dimensions of `tensor`, without the batch where Triton counts it itself."""
    if tensor.dtype not in _TYPES:
        raise RepositoryError(f"{tensor.name}: Triton has no type for {tensor.dtype}")
    dims = ", ".join(map(str, tensor.shape[1 if model.batches else 0 :]))
    return [f"    data_type: {_TYPES[tensor.dtype]}", f"    dims: [ {dims} ]"]


def _preferred(largest: int) -> list[int]:
    """Powers of two up to `largest`, and that."""
    powers = [1 << exponent for exponent in range(1, largest.bit_length())]
    return sorted({*powers, largest})
