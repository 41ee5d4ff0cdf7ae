"""Every weight of a network in closed form, behind activations that are calibrated already."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from reptrt.calibrators.base import Batches
from reptrt.calibrators.feed import Batch, num_values
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.second_order.fit_layer import fit_read_layer
from reptrt.calibrators.second_order.node_inputs import NodeInputs

MOST_PIXELS = 64 * 224 * 224
"""Of the images together: all of them are at one layer at a time, and a sample of positions is read."""


@torch.no_grad()
def fit_weights(
    model: QuantizedModel, batches: Batches, seed: int, progress: Progress = no_progress
) -> None:
    """Fit the layers of `model` in order, each on what those before it make of the images, in place.

    Args:
        model: its activations are calibrated, its weights float; they become latents.
        batches: calibration images; the first are enough.
        seed: of the rows that are drawn.
        progress: called as work advances.
    """
    node_inputs = NodeInputs(model, list(_first_images(batches)))
    fitted: set[str] = set()
    for done, node in enumerate(node_inputs, start=1):
        layer = model.placement.layers.get(node.name)
        if layer is not None and layer not in fitted:  # a shared weight is the first one's
            fitted.add(layer)
            fit_read_layer(model, node, node_inputs, seed)
        progress("fit weights", done, len(node_inputs.nodes))


def _first_images(batches: Batches) -> Iterator[Batch]:
    """Whole batches up to `MOST_PIXELS` of three channels, one batch at least."""
    pixels = 0
    for batch in batches:
        own = num_values(batch) // 3
        if pixels and pixels + own > MOST_PIXELS:
            return
        pixels += own
        yield batch
