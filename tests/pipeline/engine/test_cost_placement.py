"""Variants of one Q/DQ graph, priced for a T4 by the fusion rules of classic TensorRT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reptrt.calibrators.histogram.methods import scale_weights
from reptrt.calibrators.quantized.placement import place_quantizers
from reptrt.calibrators.quantized.quantized_model import insert_quantizers
from reptrt.engines.cost.placement import Priced
from reptrt.engines.inspection.placement_notes import read_reasons
from reptrt.engines.target import TARGETS
from reptrt.models.card import ModelCard
from reptrt.models.graph import trace
from reptrt.models.load import load_module
from reptrt.models.spec import Preprocess, PreprocessOverrides
from reptrt.pipeline.engine.cost_placement import LayerCalls, Pricing, layer_kinds
from reptrt.pipeline.engine.fp16_engine import write_fp16_onnx
from reptrt.pipeline.export.export import export_qdq
from reptrt.pipeline.open_run import Caller, open_run
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.stages import calibrate
from tests.placing import Network, conv

SIZE = 16
CARD = ModelCard(
    "m", "classification", Preprocess((SIZE, SIZE), (0.5,) * 3, (0.2,) * 3), 4, None, ("y",)
)
T4 = TARGETS["server-t4"]


def pooled(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(m.b(F.relu(m.a(x))))
    return m.fc(F.adaptive_avg_pool2d(F.relu(m.c(y)), 1).flatten(1))


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Priced]:
    folder = tmp_path_factory.mktemp("priced")
    layers = {"a": conv(3, 32), "b": conv(32, 32), "c": conv(32, 32), "fc": nn.Linear(32, 4)}
    graph = trace(Network(pooled, **layers).eval(), (SIZE, SIZE))
    write_fp16_onnx(graph, CARD, folder / "fp16.onnx")
    kinds = layer_kinds(graph.graph)
    assert kinds["b"] == kinds["c"] != kinds["a"]
    model = insert_quantizers(graph, place_quantizers(graph.graph, pools=True))
    scale_weights(model)
    export_qdq(model, folder / "all.onnx", CARD, precision="fp16")
    assert T4.data_sheet is not None
    pricing = Pricing(folder / "all.onnx", T4, T4.data_sheet, 8, "half-scales")
    return {
        "fp16": pricing.file(folder / "fp16.onnx"),
        "nothing": pricing.variant(frozenset(layers)),
        "layers": pricing.variant(frozenset()),
        "layers and pools": pricing.variant(frozenset(), pools=True),
    }


def test_an_engine_of_which_every_layer_was_taken_out_is_the_fp16_engine(
    priced: dict[str, Priced],
) -> None:
    assert priced["nothing"] == priced["fp16"]


def test_an_int8_pool_pays_for_what_its_input_is_written_in(priced: dict[str, Priced]) -> None:
    float_pool, int8_pool = priced["layers"], priced["layers and pools"]
    assert int8_pool.milliseconds < float_pool.milliseconds
    assert int8_pool.megabytes < float_pool.megabytes < priced["fp16"].megabytes


def called_twice(m: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = F.relu(m.b(F.relu(m.a(x))))
    return [m.head(F.relu(m.c(y))), m.head(F.relu(m.c(F.max_pool2d(y, 2))))]


def test_a_layer_that_is_called_twice_is_left_float_by_its_own_name(tmp_path: Path) -> None:
    layers = {name: conv(3 if name == "a" else 8, 8) for name in ("a", "b", "c", "head")}
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((4, 3, SIZE, SIZE), np.float32))
    recipe = Recipe(
        model="m", data=tmp_path / "x.npy", calibrator="minmax", num_samples=4, target="server-t4"
    )
    model = load_module(
        Network(called_twice, **layers).eval(), "m", PreprocessOverrides((SIZE,) * 2)
    )
    with open_run(recipe, tmp_path, Caller("test"), model=model) as run:
        calibrate(run)
        assert set(run.costly) == {"a", "b", "c"}  # so small a network is as fast in FP16


def test_every_call_of_a_float_layer_has_its_reason(tmp_path: Path) -> None:
    layers = {name: conv(3 if name == "a" else 8, 8) for name in ("a", "b", "c", "head")}
    graph = trace(Network(called_twice, **layers).eval(), (SIZE, SIZE))
    model = insert_quantizers(graph, place_quantizers(graph.graph, left_float={"c": "asked for"}))
    export_qdq(model, tmp_path / "m.onnx", replace(CARD, outputs=("y", "z")))
    reasons = read_reasons(onnx.load(tmp_path / "m.onnx"))
    assert reasons["c"] == reasons["c.call_2"] == "asked for"


def test_the_calls_of_a_layer_have_one_price_and_its_neighbours() -> None:
    calls = LayerCalls({"a": "a", "c": "c", "c.call_2": "c"})
    assert calls.of({"c"}) == {"c", "c.call_2"}
    priced = Priced(1.0, 2.0, {"a": 1.0, "c": 2.0, "c.call_2": 4.0})
    assert calls.joined(priced) == Priced(1.0, 2.0, {"a": 1.0, "c": 6.0})
    found = calls.neighbours({"c": {"a"}, "c.call_2": {"c", "a"}, "a": {"c", "c.call_2"}})
    assert found == {"c": {"a"}, "a": {"c"}}
