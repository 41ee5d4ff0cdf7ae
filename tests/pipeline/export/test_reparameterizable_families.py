"""Each family of re-parameterizable networks from train form to an engine of TensorRT-RTX."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from torch import fx, nn

from reptrt.calibrators.auto import choose_calibrator
from reptrt.calibrators.quantized.biases import round_biases
from reptrt.calibrators.quantized.find_attention import has_attention
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.settings import Reconstruction, Settings
from reptrt.engines.build.builder import BuildOptions, build_engine
from reptrt.engines.inspection.fusion import fusion_report, parse_kernels
from reptrt.engines.surgery import clean
from reptrt.models.card import ModelCard
from reptrt.models.load import LoadedModel
from reptrt.models.spec import Preprocess
from reptrt.pipeline.export.export import Precision, export_qdq
from reptrt.pipeline.export.prepare import open_network
from reptrt.pipeline.recipe import Recipe
from tests import user_blocks
from tests.command_line import Outcome, TinyProject, reptrt
from tests.families import SIDE, SMALL, small
from tests.onnx_codes import agreement, forced_codes, largest_step, snr_db, torch_codes
from tests.tiny_networks import randomize, smooth_images

FEW_STEPS = Settings(reconstruction=Reconstruction(iterations=2, batch_size=4))
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{family: (lambda family=family: small(family)) for family in SMALL},
    "user": lambda: randomize(user_blocks.everything(5)),
}


@dataclass(frozen=True)
class Prepared:
    train_form: nn.Module
    float_graph: fx.Graph
    model: QuantizedModel
    card: ModelCard


@dataclass(frozen=True)
class Deployed:
    train_form: nn.Module
    model: QuantizedModel
    onnx_path: Path
    precision: Precision


@pytest.fixture(scope="module", params=NETWORKS)
def prepared(request: pytest.FixtureRequest) -> Prepared:
    """Fused, traced and placed; not to be calibrated."""
    module = NETWORKS[request.param]()
    network = open_network(loaded(module), Recipe(model="m"))
    return Prepared(module, network.float_graph.graph, network.quantized, network.card)


@pytest.fixture(scope="module")
def deployed(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """What `auto` makes of it with few steps, exported and cleaned."""
    model = copy.deepcopy(prepared.model)
    name = choose_calibrator(prepared.train_form, prepared.float_graph)
    assert name == "repapq"
    create_calibrator(name, FEW_STEPS).calibrate(model, [images(seed=1)])
    round_biases(model)
    precision: Precision = "fp16" if has_attention(prepared.float_graph) else "fp32"
    folder = tmp_path_factory.mktemp("onnx")
    export_qdq(model, folder / "qdq.onnx", prepared.card, precision=precision)
    clean(folder / "qdq.onnx", folder / "trt.onnx")
    return Deployed(prepared.train_form, model, folder / "trt.onnx", precision)


def loaded(module: nn.Module) -> LoadedModel:
    preprocess = Preprocess((SIDE, SIDE), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    return LoadedModel("m", module, "classification", preprocess, None, 5, None, "0" * 64)


def images(seed: int) -> torch.Tensor:
    return smooth_images(4, seed, SIDE)


@torch.no_grad()
def test_the_float_network_is_the_train_form(prepared: Prepared) -> None:
    with prepared.model.float_mode():
        (actual,) = prepared.model(images(5))
    assert snr_db(actual.numpy(), prepared.train_form(images(5)).numpy()) >= 100


@torch.no_grad()
def test_min_max_scales_keep_it_close(prepared: Prepared) -> None:
    model = copy.deepcopy(prepared.model)
    create_calibrator("minmax").calibrate(model, [images(1)])
    (actual,) = model(images(5))
    assert snr_db(actual.numpy(), prepared.train_form(images(5)).numpy()) >= 15


@torch.no_grad()
def test_learned_scales_keep_it_close(deployed: Deployed) -> None:
    (actual,) = deployed.model(images(5))
    assert snr_db(actual.numpy(), deployed.train_form(images(5)).numpy()) >= 15


def test_onnx_runtime_computes_pytorchs_codes(deployed: Deployed) -> None:
    proto = onnx.load(deployed.onnx_path)
    codes, (logits,) = torch_codes(deployed.model, proto, images(5))
    for optimized in (False, True):
        forced, (outputs,) = forced_codes(proto, images(5), codes, optimized=optimized)
        assert largest_step(forced, codes) <= 1
        # Half precision between the layers moves more values over a rounding tie.
        assert agreement(forced, codes) >= (0.999 if deployed.precision == "fp32" else 0.99)
        assert snr_db(outputs, logits) >= 35


def test_tensorrt_rtx_builds_it_with_every_convolution_in_int8(
    deployed: Deployed, tmp_path: Path
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")
    options = BuildOptions(compute_capabilities=((8, 6),), batch=(1, 1, 4))
    built = build_engine(deployed.onnx_path, tmp_path / "m.engine", rtx, options)
    report = fusion_report(parse_kernels(built.layers), deployed.onnx_path)
    islands = {island.layer for island in report.float_islands}
    assert islands == set(deployed.model.placement.float_layers)
    assert all("se." in name or "attn." in name or "conv_head" in name for name in islands)
    assert report.int8_layers == len(deployed.model.placement.layers)


def test_a_users_callable_of_blocks_is_calibrated(tiny: TinyProject, tmp_path: Path) -> None:
    outcome = calibrate("everything", tiny, tmp_path)
    assert outcome.code == 0, outcome.err
    scales = next(tmp_path.rglob("scales.json")).read_text()
    assert "1.rbr_reparam" in scales
    assert "rbr_dense" not in scales


@pytest.mark.parametrize(
    ("callable_name", "complaint"),
    [
        ("broken", "2.0: switch_to_deploy() of Broken changes what the block computes, by "),
        ("unfinished", "2.0: switch_to_deploy() of Unfinished raises NotImplementedError: "),
        ("dangling", "1: switch_to_deploy() of Dangling leaves a block that does not run: "),
    ],
)
def test_a_users_wrong_block_ends_in_one_line(
    callable_name: str, complaint: str, tiny: TinyProject, tmp_path: Path
) -> None:
    outcome = calibrate(callable_name, tiny, tmp_path)
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert complaint in line


def calibrate(callable_name: str, tiny: TinyProject, workspace: Path) -> Outcome:
    options = [f"tests.user_blocks:{callable_name}", *tiny.options[1:]]
    return reptrt("calibrate", *options, "--workspace", workspace)
