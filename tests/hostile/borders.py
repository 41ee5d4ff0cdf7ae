"""Every border at which files of others come in: what may be in the file, and who reads it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from hypothesis import strategies as st

from reptrt.engines.inspection.fusion import fusion_report
from reptrt.engines.lint import lint_file
from reptrt.engines.lint.repair import repair_file
from reptrt.models.card import ModelCard
from reptrt.models.inputs import NetworkInput
from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.spec import Preprocess
from reptrt.pipeline.cli.bench import bench_file
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.recipe import load_recipe
from reptrt.pipeline.regression.baselines import load_baselines
from reptrt.pipeline.sweep.grid import cells_of, load_sweep
from tests.hostile import data_files, record_files, weight_files
from tests.hostile.border import Border, json_like
from tests.hostile.graphs import external_files, onnx_files, quantized_model
from tests.hostile.record_files import read_cost
from tests.hostile.yaml_files import BASELINES, RECIPE, SWEEP, yaml_files


def _repair(path: Path) -> None:
    repair_file(path, path.with_name("fixed.onnx"))
    lint_file(path.with_name("fixed.onnx"))


CARD = asdict(ModelCard(
    "net", "detection", Preprocess((32, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", 0.9, "letterbox"),
    2, ("a", "b"), ("p3", "p4"), (8, 16), 1, ("c",), ((((0, 0, 4),),),), 80.0,
    (NetworkInput("images", "float32", (3, 32, 48), picture="chw"),),
))  # fmt: skip
ISLANDS = [
    {"nodes": ["a"], "op_types": ["NonZero"], "role": "tail", "reason": "x", "weight_bytes": 4}
]
NOTES: dict[str, object] = {
    "reptrt.model_card": CARD, "reptrt.islands": ISLANDS, "reptrt.float_layers": {"fc": "sensitive"},
}  # fmt: skip


@st.composite
def noted_files(draw: st.DrawFn) -> bytes:
    """A graph whose metadata says what export writes there, and other things."""
    model = quantized_model()
    for key, like in NOTES.items():
        entry = model.metadata_props.add()
        entry.key = key
        entry.value = draw(st.one_of(st.just(json.dumps(like).encode()), json_like(like))).decode(
            "utf-8", "replace"
        )
    return model.SerializeToString()


def _beside_data(path: Path) -> Path:
    """`path`, with the files that external data may name."""
    path.with_name("m.data").write_bytes(bytes(4096))
    outside = path.parents[1] / "outside"
    if not path.with_name("link").is_symlink():
        path.with_name("link").symlink_to(outside)
    return path


BORDERS: dict[str, Border] = {
    "lint": Border("m.onnx", onnx_files(), lint_file),
    "lint --fix": Border("m.onnx", onnx_files(), _repair),
    "MODEL.onnx": Border("m.onnx", onnx_files(), read_onnx),
    "bench": Border("m.onnx", onnx_files(), lambda path: bench_file(path, 1, 0.0)),
    "cost": Border("m.onnx", onnx_files(), read_cost),
    "external data, lint": Border("m.onnx", external_files(), lambda path: lint_file(_beside_data(path))),
    "external data, lint --fix": Border("m.onnx", external_files(), lambda path: _repair(_beside_data(path))),
    "external data, MODEL.onnx": Border("m.onnx", external_files(), lambda path: read_onnx(_beside_data(path))),
    "external data, bench": Border("m.onnx", external_files(), lambda path: bench_file(_beside_data(path), 1, 0.0)),
    "external data, cost": Border("m.onnx", external_files(), lambda path: read_cost(_beside_data(path))),
    "model card": Border("m.onnx", noted_files(), read_card),
    "notes on layers": Border("m.onnx", noted_files(), lambda path: fusion_report((), path)),
    "recipe": Border("r.yaml", yaml_files(RECIPE), lambda path: load_recipe("x", {}, path)),
    "run folder": Border("recipe.yaml", yaml_files(RECIPE), lambda path: load_recipe(str(path.parent), {})),
    "baselines": Border("b.yaml", yaml_files(BASELINES), load_baselines),
    "sweep": Border("s.yaml", yaml_files(SWEEP), lambda path: cells_of(load_sweep(path), path.parent)),
    **weight_files.BORDERS,
    **data_files.BORDERS,
    **record_files.BORDERS,
}  # fmt: skip
