"""The stages in front of calibration: which layers are quantized, and which channels are scaled."""

from __future__ import annotations

import torch

from reptrt.calibrators.channels.choose import PRODUCT_GAIN, choose_factors
from reptrt.calibrators.channels.file import save_factors
from reptrt.calibrators.quantized.far_concats import find_far_concats
from reptrt.calibrators.sensitivity import Aim, Sensitivity
from reptrt.engines.artifacts import replace_when_done, write_json
from reptrt.engines.cost.constants import FITTED
from reptrt.pipeline.data.torch_batches import calibration_batches, naming_images
from reptrt.pipeline.engine.cost_placement import choose_by_cost
from reptrt.pipeline.export.prepare import Choices, prepare_network
from reptrt.pipeline.recipe import Quantization
from reptrt.pipeline.run import Run
from reptrt.pipeline.workspace.folder import discard
from reptrt.pipeline.workspace.run_records import sha256_or_none

APART_PRODUCT_GAIN = 3.0
"""dB that factors must gain for classic TensorRT where they need a multiplication: its fusion rules keep
one by a vector out of the convolution's kernel."""


def network_inputs(run: Run) -> dict[str, object]:
    """What placement depends on: known to every stage that traces the network."""
    return {
        "network": run.network_sha256,
        "quantization": run.plan.section(Quantization),
        "batch_size": run.plan.batch_size,
    }


def image_inputs(run: Run) -> dict[str, object]:
    """A placed network and its images."""
    return {
        **network_inputs(run),
        "images": run.samples.fingerprint,
        "costly": sorted(run.costly),
        "pools": run.pools,
        "fp8_attention": run.is_faster_in_fp8,
        "apart": run.apart,
        "channels": sha256_or_none(run.workspace.channels),
    }


def choose_apart_concats(run: Run) -> None:
    """Write `concats.json`: concats whose sources keep scales of their own, if there are concats."""
    plan, workspace, graph_module = run.plan, run.workspace, run.recording.float_graph
    if not any(node.target is torch.ops.aten.cat.default for node in graph_module.graph.nodes):
        discard(workspace.concats)
        return

    def work() -> None:
        batches = calibration_batches(run.samples, plan.batch_size, plan.device)
        write_json(find_far_concats(graph_module, next(iter(batches))), workspace.concats)

    inputs = {
        "network": run.network_sha256, "images": run.samples.fingerprint, "device": plan.device,
        "batch_size": plan.batch_size,
    }  # fmt: skip
    run.stage("concats", inputs, "concats", shared=True).run(work)


def place(run: Run) -> None:
    """Write `placement.json`, the layers that stay FP16 since INT8 is not faster there."""
    plan, workspace, sheet = run.plan, run.workspace, run.target.data_sheet
    if plan.quantize == "all" or sheet is None:
        discard(workspace.placement)
        return
    inputs = {
        **network_inputs(run),
        "target": run.target.name,
        "end2end": plan.end2end,
        "opt_batch": plan.opt_batch,
        "may_use_fp8": plan.may_use_fp8,
        "cost": repr(FITTED),
    }
    run.stage("placement", inputs, "placement", shared=True).run(
        lambda: write_json(choose_by_cost(run, sheet), workspace.placement)
    )


def choose_channel_factors(run: Run) -> None:
    """Write `channels.safetensors`, factors of channels in front of their quantizers, unless the plan says none."""
    plan, workspace = run.plan, run.workspace
    if plan.channel_scaling == "none" or run.is_float:
        discard(workspace.channels)
        return
    gain = PRODUCT_GAIN if run.target.backend != "tensorrt" else APART_PRODUCT_GAIN

    def work() -> None:
        choices = Choices(costly=run.costly, apart=run.apart, pools=run.pools)
        network = prepare_network(run.loaded, plan, run.recording, choices)
        batches = calibration_batches(run.samples, network.card.batch_size, plan.device)
        found = choose_factors(network.quantized, batches, gain, run.progress)
        with replace_when_done(workspace.channels) as path:
            save_factors(found, path)

    inputs = {
        **network_inputs(run),
        "images": run.samples.fingerprint,
        "device": plan.device,
        "costly": sorted(run.costly),
        "pools": run.pools,
        "apart": run.apart,
        "gain": gain,
    }
    with naming_images(run.samples):
        run.stage("channels", inputs, "channels", shared=True).run(work)


def keep_layers(run: Run, aim: Aim) -> None:
    """Write `sensitivity.json` where no layer is float for accuracy, but attention is, as `aim` says."""
    workspace = run.workspace
    if not aim.float_attention:
        discard(workspace.sensitivity)
        return
    found = Sensitivity({}, float_attention=True)
    stage = run.stage("sensitivity", {**image_inputs(run), "layers": None}, "sensitivity")
    stage.run(lambda: write_json(found, workspace.sensitivity))
