"""How much the outputs of a network depend on each element of what its layers and blocks make.

The Fisher information of a value, E[g^2] with g the derivative of a log-likelihood by it, says how much an error there
moves the outputs (BRECQ, https://arxiv.org/abs/2102.05426, section 3.3, weighs errors by g^2 of each image). Here it is a mean
over images, one weight for each position and channel, so that nothing is stored for each image; its mean is 1, and it is kept
between a tenth and ten: small errors move the outputs by their derivatives, those of 4 bits are not small (ours).

The outputs count as normally distributed, as any network's may: g is the derivative of a sum with random signs, as in
`reptrt.calibrators.first_order`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx

from reptrt.calibrators.base import Batches
from reptrt.calibrators.feed import Batch, first_images, tensors_of
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import Overrides, activation_nodes, run_nodes

NUM_IMAGES = 64
LEAST, MOST = 0.1, 10.0
_PIXELS = 8 * 224 * 224
"""At once: a backward pass holds every activation."""

Importance = Mapping[fx.Node, torch.Tensor]
"""Output of a layer or block -> weight of the squared error of each of its elements, without the axis of images; mean 1."""

NO_IMPORTANCE: Importance = {}


def find_importance(
    model: QuantizedModel,
    nodes: Sequence[fx.Node],
    batches: Batches,
    float_network: Overrides,
    seed: int,
) -> Importance:
    """Importance of every element of `nodes`, from one backward pass on `NUM_IMAGES`.

    Args:
        model: owner of the graph.
        nodes: of it: activations.
        batches: calibration images.
        float_network: overrides that make it the float network.
        seed: of the signs.

    Returns:
        Nothing for nodes on which the outputs do not depend.
    """
    total = sum_squares(model, nodes, batches, float_network, seed)
    return {node: _normalized(squares) for node, squares in total.items()}


def sum_squares(
    model: QuantizedModel,
    nodes: Sequence[fx.Node],
    batches: Batches | Sequence[Batch],
    float_network: Overrides,
    seed: int,
) -> dict[fx.Node, torch.Tensor]:
    """Squared derivatives of the outputs by `nodes`, summed over images; see `find_importance`.

    Returns:
        Node -> shape of its value without the axis of images; nothing for nodes on which the outputs do not depend.
    """
    generator = torch.Generator().manual_seed(seed)
    total: dict[fx.Node, torch.Tensor] = {}
    at_once = math.inf if model.is_fixed else _PIXELS
    for chunk in first_images(batches, NUM_IMAGES, at_once=at_once):
        for node, squares in _squared_gradients(model, chunk, nodes, float_network, generator):
            total[node] = total[node] + squares if node in total else squares
    return {node: squares for node, squares in total.items() if squares.any()}


def draw_positions(
    sizes: Sequence[int],
    count: int,
    chances: torch.Tensor | None,
    generator: torch.Generator,
) -> torch.Tensor:
    """Draw positions of a tensor that has them on all its axes.

    Args:
        sizes: its shape, images first.
        count: at most so many.
        chances: of the positions of one image, relative to each other; None: each position once.
        generator: draws.

    Returns:
        Indices into the flattened tensor, [min(count, positions)]; with `chances` some come more than once.
    """
    total = math.prod(sizes)
    if chances is None:
        return torch.randperm(total, generator=generator)[:count]
    shape = (min(count, total),)
    place = torch.multinomial(
        chances.flatten().cpu(), *shape, replacement=True, generator=generator
    )
    return torch.randint(sizes[0], shape, generator=generator) * chances.numel() + place


def _squared_gradients(
    model: QuantizedModel,
    batch: Batch,
    nodes: Sequence[fx.Node],
    float_network: Overrides,
    generator: torch.Generator,
) -> Iterator[tuple[fx.Node, torch.Tensor]]:
    """Squared derivative of the outputs by each of `nodes`, summed over `batch`."""
    graph = model.graph_module.graph
    computed = activation_nodes(graph)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    values = {
        node: tensor.detach().requires_grad_(tensor.is_floating_point())
        for node, tensor in zip(placeholders, tensors_of(batch), strict=True)
    }
    with torch.enable_grad():
        others = [node for node in computed if node not in values]
        run_nodes(model.graph_module, others, values, float_network, len(batch))
        outputs = [values[node] for node in graph.output_node().all_input_nodes]
        scalar = sum(_with_signs(value, generator) for value in outputs if value.requires_grad)
        found = [node for node in nodes if values[node].requires_grad]
        if not isinstance(scalar, torch.Tensor) or not found:
            return
        reached = [values[node] for node in found]
        gradients = torch.autograd.grad(scalar, reached, allow_unused=True)
    for node, gradient in zip(found, gradients, strict=True):
        if gradient is not None:
            yield node, gradient.square().sum(0)


def _with_signs(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sum of `output` with random signs, in units of its size."""
    signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
    size = math.sqrt(float(output.detach().square().sum()) / len(output)) or 1.0
    return (signs * output).sum() / size


def _normalized(squares: torch.Tensor) -> torch.Tensor:
    weight = (squares / squares.mean()).clamp(LEAST, MOST)
    return weight / weight.mean()
