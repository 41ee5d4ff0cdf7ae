"""Every border at which files of others come in: what may be in the file, and who reads it."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from reptrt.calibrators.state import read_result
from reptrt.engines.build.builder import BuildOptions
from reptrt.engines.cost.device_info import read_device_info
from reptrt.engines.cost.estimate import estimate_cost
from reptrt.engines.cost.result import cost_result
from reptrt.engines.cost.sources import read_layers
from reptrt.engines.kit.manifest import (
    Manifest,
    Tolerances,
    check_files,
    manifest_text,
    read_manifest,
)
from reptrt.engines.kit.verification import read_references
from reptrt.engines.lint import lint_file
from reptrt.engines.lint.repair import repair_file
from reptrt.engines.report_schema import Accuracy, OutputNumerics, RunFacts, Validation
from reptrt.engines.target import TARGETS
from reptrt.engines.tensor_spec import Tensor
from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.spec import Preprocess
from reptrt.models.weights.checkpoint import read_checkpoint
from reptrt.pipeline.cli.bench import bench_file
from reptrt.pipeline.data.datasets import open_evaluation, open_images
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.recipe import load_recipe
from reptrt.pipeline.regression.baselines import load_baselines
from reptrt.pipeline.workspace.records import read_record
from reptrt.pipeline.workspace.run_records import RunRecords, StageRecord, read_records
from tests.hostile.graphs import onnx_files
from tests.hostile.limited import MANY, PLANTED, bounded, read_or_refuse
from tests.hostile.strategies import NAMES, damaged, documents, json_text, nested

PREPROCESS = Preprocess((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Border:
    """A kind of file.

    Attributes:
        file: its name.
        contents: what is written into it.
        read: called with its path.
    """

    file: str
    contents: st.SearchStrategy[bytes]
    read: Callable[[Path], object]

    def check(self, folder: Path, count: int) -> None:
        """Read `count` inputs, each in one line, a minute and two gigabytes; nothing else is written."""
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        accepted: list[int] = []

        @settings(
            max_examples=count, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        )  # fmt: skip
        @given(self.contents)
        def run(content: bytes) -> None:
            path.write_bytes(content)
            outcome = read_or_refuse(lambda: self.read(path))
            accepted.append(outcome.accepted)
            if fault := outcome.fault:
                kept = path.with_name(f"{path.name}.fault")
                kept.write_bytes(content)
                pytest.fail(f"{fault} (input: {kept})", pytrace=False)

        with bounded(folder):
            run()
        # Of a few inputs, chance may refuse them all.
        assert any(accepted) or count < MANY, "every input was refused: nothing else was tried"


def _encoded(texts: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    return texts.map(lambda text: text.encode("utf-8", "surrogatepass"))


def _json(like: dict[str, object]) -> st.SearchStrategy[bytes]:
    whole = json.dumps(like).encode()
    changed = _encoded(documents(like).map(json_text))
    return st.one_of(changed, changed, changed, damaged(whole), _encoded(nested()))


# Checkpoints


def _state() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.ones(4, 3), "b": torch.arange(4)}


FACTS: dict[str, object] = {
    "classes": ["a", "b"], "image_size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [1.0, 1.0, 1.0]
}  # fmt: skip


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        facts = draw(documents(FACTS))
        texts = (
            {str(k).encode("utf-8", "replace").decode(): json_text(v) for k, v in facts.items()}
            if isinstance(facts, dict)
            else {}
        )
        return bytes(save(_state(), texts))
    tensor: dict[str, object] = {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}
    header = draw(documents({"a": tensor, "__metadata__": {"classes": '["x"]'}}))
    text = json_text(header).encode("utf-8", "surrogatepass")
    return draw(damaged(struct.pack("<Q", len(text)) + text + bytes(48)))


@st.composite
def torch_files(draw: st.DrawFn, is_new: bool) -> bytes:
    facts = draw(documents(FACTS))
    content = {"state_dict": _state(), **(facts if isinstance(facts, dict) else {"classes": facts})}
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=is_new)
    return draw(damaged(buffer.getvalue()))


# Documents

RECIPE = "model: x\nseed: 0\nweights: w.pt\nmean: [0, 0, 0]\nkeep_float: [a, b]\nmax_memory: 1GiB\n"


@st.composite
def yaml_files(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["lines", "lines", "json", "damaged", "nested", "aliases"]))
    if kind == "damaged":
        return draw(damaged(RECIPE.encode()))
    if kind == "nested":
        return b"seed: " + draw(nested()).encode()
    if kind == "json":
        return json_text(draw(documents({"seed": 0, "mean": [0, 0, 0], "weights": "w"}))).encode(
            "utf-8", "surrogatepass"
        )
    if kind == "aliases":
        levels = draw(st.integers(1, 9))
        rows = ["seed:", "- &a0 [x, x, x, x, x, x, x, x, x, x]"]
        rows += [f"- &a{k} [{','.join([f'*a{k - 1}'] * 10)}]" for k in range(1, levels)]
        return "\n".join(rows).encode()
    odd = ["2026-13-45", "!!int abc", "!!bool maybe", "9" * 5000, '"\\ud800"', "!!python/none x", "*a",
           "&a [*a]", "{<<: 3}", "? [1]", "0x", "1e999", ".nan", "'", "!!binary x", "!!timestamp x",
           '"\\0"', "12:30:45", "<<", "=", "!!set {a}", "!!omap [a]", "2001-12-14t21:59:43.10-05:00"]  # fmt: skip
    keys = st.one_of(st.sampled_from(["seed", "weights", "model", "mean", "image_size"]), NAMES)
    rows = draw(st.lists(st.tuples(keys, st.sampled_from(odd)), max_size=4))
    return "".join(f"{key}: {value}\n" for key, value in rows).encode("utf-8", "surrogatepass")


COCO: dict[str, object] = {
    "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}],
    "categories": [{"id": 1, "name": "cat"}],
}


def _read_coco(path: Path) -> object:
    found = open_evaluation(path, "detection", PREPROCESS, 1)
    return list(found.batches(1))


@st.composite
def label_files(draw: st.DrawFn) -> bytes:
    cells = st.one_of(st.sampled_from(["a.png", "0", "1", "9" * 5000, "-1", PLANTED]), NAMES)
    rows = draw(st.lists(st.lists(cells, max_size=3), max_size=4))
    head = draw(st.sampled_from(["file,label\n", "file,label\na.png,0\n", "", PLANTED + ",x\n"]))
    text = head + "".join(",".join(row) + "\n" for row in rows)
    return draw(damaged(text.encode("utf-8", "surrogatepass") or b"x"))


# Images


@cache
def _pictures() -> tuple[bytes, ...]:
    files = []
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    for mode in ("RGB", "L", "P", "I;16"):
        picture = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        for kind in ("PNG", "TIFF", "BMP", "PPM", "JPEG", "WEBP", "GIF", "EPS", "DDS", "ICO"):
            buffer = io.BytesIO()
            try:
                picture.save(buffer, kind)
            except (OSError, ValueError, KeyError):
                continue
            files.append(buffer.getvalue())
    for size in ((9000, 9000), (1, 60_000)):  # little to store, much to decode
        buffer = io.BytesIO()
        Image.new("1", size).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return tuple(files)


@st.composite
def image_files(draw: st.DrawFn) -> bytes:
    return draw(damaged(draw(st.sampled_from(_pictures()))))


def _read_images(path: Path) -> object:
    return list(open_images(path.parent, PREPROCESS).batches(2))


@st.composite
def array_files(draw: st.DrawFn, is_archive: bool) -> bytes:
    shape = draw(
        st.sampled_from([(2, 8, 8, 3), (2, 3, 8, 8), (0, 8, 8, 3), (2,), (1, 300, 300, 3)])
    )
    kind = draw(st.sampled_from([np.uint8, np.float32, np.float64, np.int64]))
    buffer = io.BytesIO()
    (np.savez_compressed if is_archive else np.save)(buffer, np.zeros(shape, kind))
    content = buffer.getvalue()
    if not is_archive and draw(st.booleans()):
        claim = draw(
            st.sampled_from(["(1, 45000, 45000, 3)", "(99999999999, 8, 8, 3)", "()", "(2,)*9"])
        )
        content = content.replace(str(shape).encode(), claim.encode())
    return draw(damaged(content))


def _read_array(path: Path) -> object:
    return list(open_images(path, PREPROCESS, limit=3).batches(2))


# Kits and what a workspace holds

MANIFEST: dict[str, object] = json.loads(manifest_text(Manifest(
    name="net", model="m", task="classification", target="tensorrt", onnx="m.onnx",
    references="references.npz", build=BuildOptions(batch=(1, 1, 8)),
    inputs=(Tensor("images", "float32", (-1, 3, 8, 8)),),
    outputs=(Tensor("logits", "float32", (-1, 5)),),
    classes=("a",), strides=(8,), preprocess={}, layers={"fc": "int8"}, layers_source="x",
    tolerances=Tolerances({"logits": 20.0}, (1,)),
    run=RunFacts(
        model="m", calibrator="minmax", weight_bits=8, activation_bits=8, precision="fp32",
        softmax="float", num_samples=8, seed=0, accuracy=Accuracy("top1", 80.0), versions={},
    ),
    files={name: hashlib.sha256(b"x").hexdigest() for name in ("m.onnx", "references.npz")},
)))  # fmt: skip


def _read_kit(path: Path) -> Manifest:
    for name in ("m.onnx", "references.npz"):
        (path.parent / name).write_bytes(b"x")
    manifest = read_manifest(path.parent)
    check_files(path.parent, manifest)
    return manifest


@st.composite
def reference_files(draw: st.DrawFn) -> bytes:
    good = st.just(np.ones((1, 5), np.float32))
    odd = st.sampled_from([np.full((1, 5), np.nan), np.ones(()), np.ones((0, 5)),
                           np.zeros((1500, 1500), np.uint8)])  # fmt: skip
    buffer = io.BytesIO()
    save_arrays = draw(st.sampled_from([np.savez, np.savez, np.savez_compressed]))
    names = ("input:images", "output:logits")
    save_arrays(buffer, **{name: draw(st.one_of(good, good, odd)) for name in names})
    return draw(damaged(buffer.getvalue()))


def _read_references(path: Path) -> object:
    (path.parent / "manifest.json").write_text(json.dumps(MANIFEST))
    return read_references(path, read_manifest(path.parent))


def _repair(path: Path) -> None:
    repair_file(path, path.with_name("fixed.onnx"))
    lint_file(path.with_name("fixed.onnx"))


@st.composite
def calibration_files(draw: st.DrawFn) -> bytes:
    result = draw(
        documents({"method": "minmax", "notes": {}, "num_samples": 3, "blocks": [{"name": "a"}]})
    )
    return draw(damaged(bytes(save(_state(), {"result": json_text(result), "grids": "{}"}))))


RECORDS = RunRecords(stages={"export": StageRecord(
    inputs={"a": 1}, artifacts={"model.onnx": "00"}, seed=0, seconds=1.0, peak_rss_mb=1.0,
    versions={"torch": "2"}, command="reptrt export m",
)}).model_dump(mode="json")  # fmt: skip
VALIDATION = asdict(
    Validation(
        accuracy=Accuracy("top1", 80.0, 79.0, 1.0),
        numerics={"logits": OutputNumerics(30.0, 0.999)},
    )
)
TENSOR = {"Name": "x", "Dimensions": [1, 8, 16, 16], "Format/Datatype": "Row major Int8 format"}
LAYERS: dict[str, object] = {
    "Layers": [
        {"Name": "c", "LayerType": "CaskConvolution", "Inputs": [TENSOR], "Outputs": [TENSOR],
         "Kernel": [3, 3], "Stride": [1, 1], "Groups": 1, "OutMaps": 8, "PrePadding": [1, 1],
         "Weights": {"Type": "Int8", "Count": 576}, "TacticName": "t", "Metadata": ""}
    ],
    "Bindings": ["x"],
}  # fmt: skip
FUSION: dict[str, object] = {
    "backend": "tensorrt",
    "fused_kernels": [
        {"name": "c", "kind": "conv", "onnx_layers": ["c"], "tactic": "t", "weights": [],
         "inputs": [{"name": "x", "dtype": "Int8", "dims": [1, 8, 16, 16], "strides": [], "format": ""}],
         "outputs": [{"name": "y", "dtype": "Half", "dims": [1, 8, 16, 16]}],
         "product": {"rows": 256, "columns": 8, "depth": 72, "groups": 1, "window": [3, 3], "stride": [1, 1]}}
    ],
}  # fmt: skip
DEVICE: dict[str, object] = {
    "device_information": {
        "Selected Device": "NVIDIA T4", "Compute Capability": 7.5, "SMs": 40,
        "Compute Clock Rate": 1.59, "Memory Bus Width": 256, "Memory Clock Rate": 5.001,
    }
}  # fmt: skip


def _read_cost(path: Path) -> object:
    """What `reptrt cost` makes of a file, for a GPU whose engines are predicted."""
    target = TARGETS["server-t4"]
    assert target.data_sheet is not None
    layers = read_layers(path, target, target.data_sheet)
    return cost_result(
        estimate_cost(layers.kernels, target.data_sheet), layers.batch, layers.origin
    )


BORDERS: dict[str, Border] = {
    "lint": Border("m.onnx", onnx_files(), lint_file),
    "lint --fix": Border("m.onnx", onnx_files(), _repair),
    "MODEL.onnx": Border("m.onnx", onnx_files(), read_onnx),
    "bench": Border("m.onnx", onnx_files(), lambda path: bench_file(path, 1, 0.0)),
    "model card": Border("m.onnx", onnx_files(), read_card),
    "safetensors": Border("w.safetensors", safetensors_files(), read_checkpoint),
    "torch file": Border("w.pt", torch_files(is_new=True), read_checkpoint),
    "old torch file": Border("w.pt", torch_files(is_new=False), read_checkpoint),
    "recipe": Border("r.yaml", yaml_files(), lambda path: load_recipe("x", {}, path)),
    "baselines": Border("b.yaml", yaml_files(), load_baselines),
    "COCO": Border("coco.json", _json(COCO), _read_coco),
    "labels.csv": Border("set/labels.csv", label_files(),
                         lambda path: open_evaluation(path.parent, "classification", PREPROCESS, 2)),
    "image": Border("images/x.png", image_files(), _read_images),
    ".npy": Border("x.npy", array_files(is_archive=False), _read_array),
    ".npz": Border("x.npz", array_files(is_archive=True), _read_array),
    "kit": Border("kit/manifest.json", _json(MANIFEST), _read_kit),
    "references": Border("kit/references.npz", reference_files(), _read_references),
    "calibration": Border("calibration.safetensors", calibration_files(), read_result),
    "run.json": Border("run.json", _json(RECORDS), lambda path: read_records(path.parent)),
    "validation.json": Border("x.json", _json(VALIDATION), lambda path: read_record(path, Validation)),
    "cost": Border("m.onnx", onnx_files(), _read_cost),
    "layer list": Border("graph.json", _json(LAYERS), _read_cost),
    "fusion.json": Border("fusion.json", _json(FUSION), _read_cost),
    "device info": Border("profile.json", _json(DEVICE), read_device_info),
}  # fmt: skip
