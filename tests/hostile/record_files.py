"""What a workspace, a kit or a profiler holds: what may be in it, and who reads it."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from rich.console import Console

from reptrt.engines.artifacts import file_sha256, write_json
from reptrt.engines.build.builder import BuildOptions
from reptrt.engines.cost.choose_sheet import choose_sheet
from reptrt.engines.cost.estimate import estimate_cost
from reptrt.engines.cost.result import cost_result
from reptrt.engines.cost.sources import Layers, read_layers
from reptrt.engines.data_sheet import DataSheet
from reptrt.engines.inspection.kernels import parse_kernels
from reptrt.engines.kit.manifest import (
    Manifest,
    Tolerances,
    check_files,
    manifest_text,
    read_manifest,
)
from reptrt.engines.kit.verification import read_references
from reptrt.engines.report_schema import Accuracy, OutputNumerics, Report, RunFacts, Validation
from reptrt.engines.target import TARGETS
from reptrt.engines.tensor_spec import Tensor
from reptrt.engines.triton import ServedModel, add_version, config_text
from reptrt.models.demo.dataset import write_dataset
from reptrt.pipeline.cli import cost_command
from reptrt.pipeline.regression.baselines import Baseline, Expected
from reptrt.pipeline.regression.record import record_run
from reptrt.pipeline.regression.regress import judge
from reptrt.pipeline.report.examples import Examples
from reptrt.pipeline.report.html import write_html
from reptrt.pipeline.report.terminal import terminal_table
from reptrt.pipeline.sweep.cell import CellResult, finished_result
from reptrt.pipeline.sweep.grid import Sweep, cells_of
from reptrt.pipeline.sweep.table import rows_of, write_tables
from reptrt.pipeline.workspace.records import read_record
from reptrt.pipeline.workspace.run_records import RunRecords, StageRecord, read_records
from tests.hostile.border import Border, json_like
from tests.hostile.strategies import damaged
from tests.pipeline.report.test_html import example

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


RECORDS = RunRecords(stages={"export": StageRecord(
    inputs={"a": 1}, artifacts={"model.onnx": "00"}, seed=0, seconds=1.0, peak_rss_mb=1.0,
    versions={"torch": "2"}, command="reptrt export m",
)}).model_dump(mode="json")  # fmt: skip
EXPORTED: dict[str, object] = RECORDS["stages"]["export"]
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


BUILD_LOG = (Path(__file__).parents[1] / "engines" / "data" / "rtx_1_7_1_layers.txt").read_bytes()


def read_cost(path: Path) -> None:
    """What `reptrt cost` makes of a file, for a GPU whose engines are predicted."""
    target = TARGETS["server-t4"]
    assert target.data_sheet is not None
    _show_cost(read_layers(path, target, target.data_sheet), target.data_sheet)


def _read_device(path: Path) -> None:
    """What `reptrt cost --device-info` makes of a file."""
    sheet = choose_sheet(None, path)
    _show_cost(Layers(parse_kernels(json.dumps(LAYERS)), 1, "a layer list"), sheet)


def _show_cost(layers: Layers, sheet: DataSheet) -> None:
    output = Console(file=io.StringIO(), width=100)
    predicted = estimate_cost(layers.kernels, sheet)
    json.dumps(cost_result(predicted, layers.batch, layers.origin), allow_nan=False)
    cost_command._show(predicted, layers, output)
    cost_command._show_sweep(layers, sheet, (32,), False, output)


# Reports and sweeps

(CELL,) = cells_of(Sweep(grid={"model": ["repvgg_a0"]}))
BASELINE = Baseline(
    recipe={"model": "mobileone_s0"}, accuracy=Expected(value=80.0, tolerance=1.0),
    latency_ratio={"Some CPU": Expected(value=0.5, tolerance=0.1)},
)  # fmt: skip


REPORT = example(layers=example().layers[:2])


def _read_report(path: Path) -> object:
    """What `reptrt report`, a sweep and `regress` make of a report."""
    report = read_record(path, Report)
    write_html(report, (), Examples(), path.with_name("report.html"))
    Console(file=io.StringIO(), width=100).print(terminal_table(report))
    result = CellResult(CELL.name, CELL.key, "done", folder=str(path.parent))
    (path.parent / "recipe.yaml").write_text("model: repvgg_a0\n")
    made = {"report.json": file_sha256(path)}
    recipe = {"recipe": file_sha256(path.with_name("recipe.yaml"))}
    write_json(
        {"stages": {"report": {**EXPORTED, "artifacts": made, "inputs": recipe}}},
        path.with_name("run.json"),
    )
    rows_of([CELL], [result], path.parent, "")
    (path.parent / "baselines.yaml").write_text("a:\n  recipe:\n    model: x\n")
    judge(path.parent / "baselines.yaml", "a", BASELINE, report)
    (path.parent / "new.yaml").unlink(missing_ok=True)
    return record_run(path.parent, path.parent / "new.yaml", path.parent)


RESULT = asdict(CellResult(CELL.name, CELL.key, "done", folder="."))


def _read_result(path: Path) -> object:
    """A finished cell is asked for again; what is no such result runs anew."""
    finished_result(path.parents[2], CELL)
    return write_tables(
        rows_of([CELL], [read_record(path, CellResult)], path.parent, ""), path.parent, "c"
    )


MODEL = ServedModel(
    name="net", file=Path("engine"), is_engine=True, inputs=(Tensor("x", "float32", (-1, 3)),),
    outputs=(Tensor("y", "float32", (-1, 3)),), max_batch=4,
)  # fmt: skip


@st.composite
def configurations(draw: st.DrawFn) -> bytes:
    text = config_text(MODEL)
    line = 'parameters { key: "reptrt.verdict.1" value { string_value: "passed" } }\n'
    return draw(damaged(draw(st.sampled_from([text, text + line, text + line * 3, "x"])).encode()))


def _add_version(path: Path) -> object:
    engine = path.parents[2] / "engine"
    engine.write_bytes(b"x")
    return add_version(path.parents[1], replace(MODEL, file=engine))


SCENES: dict[str, object] = {
    "info": {"description": "reptrt.models.demo.scenes", "version": 1, "size": 64, "seeds": [0]},
    "images": [{"id": 1, "file_name": "00000000.png", "width": 64, "height": 64}],
    "annotations": [], "categories": [{"id": 1, "name": "x"}],
}  # fmt: skip

BORDERS: dict[str, Border] = {
    "kit": Border("kit/manifest.json", json_like(MANIFEST), _read_kit),
    "references": Border("kit/references.npz", reference_files(), _read_references),
    "run.json": Border("run.json", json_like(RECORDS), lambda path: read_records(path.parent)),
    "validation.json": Border("x.json", json_like(VALIDATION), lambda path: read_record(path, Validation)),
    "report.json": Border("report.json", json_like(asdict(REPORT)), _read_report),
    "result.json": Border(f"cells/{CELL.name}/result.json", json_like(RESULT), _read_result),
    "layer list": Border("graph.json", json_like(LAYERS), read_cost),
    "build log": Border("build.log", damaged(BUILD_LOG), read_cost),
    "fusion.json": Border("fusion.json", json_like(FUSION), read_cost),
    "device info": Border("profile.json", json_like(DEVICE), _read_device),
    "config.pbtxt": Border("repository/net/config.pbtxt", configurations(), _add_version),
    "demo scenes": Border("scenes/annotations.json", json_like(SCENES),
                          lambda path: write_dataset(path.parent, [0], 64)),
}  # fmt: skip
