"""Histograms of a placed network's activations, made once for all baselines, bits and targets that read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reptrt.calibrators.base import Batches
from reptrt.calibrators.histogram.file import save_observers
from reptrt.calibrators.histogram.methods import observe_activations
from reptrt.engines.artifacts import replace_when_done
from reptrt.pipeline.export.prepare import Network
from reptrt.pipeline.placing import image_inputs
from reptrt.pipeline.recipe import Quantization
from reptrt.pipeline.run import Run
from reptrt.pipeline.workspace.folder import OBSERVATIONS
from reptrt.pipeline.workspace.stage import Stage

_NOT_READ = {"weight_bits", "activation_bits", "first_last_bits", "depthwise_bits", "min_snr"}
"""Of the section: which layers stay float for `min_snr` is told apart by themselves."""


def observed(run: Run, network: Network, batches: Batches) -> Path:
    """File of what every quantizer of `network` reads in `batches`, in float, so that bits do not matter.

    It lies in a folder of its own beside the runs of the model: `<model>/observations/<digest>`.

    Raises:
        ObservationError: an image gives a NaN or infinite activation.
    """
    plan, quantized = run.plan, network.quantized
    quantization = plan.section(Quantization)
    inputs = {
        **image_inputs(run),
        "quantization": {key: quantization[key] for key in quantization.keys() - _NOT_READ},
        "sensitive": sorted(run.sensitive.layers),
        "points": list(quantized.activation_quantizers),
        "device": plan.device,
        "threads": plan.threads,
    }
    stage = Stage("observe", run.command, plan.seed, inputs, (), shared=True)
    path = run.workspace.folder.parents[1] / "observations" / stage.digest / OBSERVATIONS

    def work() -> None:
        found = observe_activations(quantized, batches, run.progress)
        with replace_when_done(path) as temporary:
            save_observers(found, temporary)

    replace(stage, artifacts=(path,)).run(work)
    return path
