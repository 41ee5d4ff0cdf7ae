"""What tests of the learning calibrators share: a network with outliers, and what crosses into its first block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from reptrt.calibrators.histogram.best import BY_TENSOR, compare_baselines
from reptrt.calibrators.histogram.methods import clip_weights, observe_activations, scale_weights
from reptrt.calibrators.output_noise import set_activation_scales
from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import float_copy, float_overrides, run_nodes
from reptrt.calibrators.reconstruction import reconstruct as reconstruction
from reptrt.calibrators.reconstruction.across_block import size
from reptrt.calibrators.reconstruction.activation_cache import ActivationCache
from reptrt.calibrators.reconstruction.block_inputs import BlockInputs, Statistics
from reptrt.calibrators.reconstruction.blocks import find_blocks
from reptrt.calibrators.reconstruction.objective import BlockDistances, Distances
from reptrt.calibrators.reconstruction.reconstruct import LearnedBlock
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.settings import Reconstruction, Units
from tests.tiny_networks import quantized, smooth_images, traced

GIBIBYTE = 2**30

GENTLE_RATES = {"codes": 0.02, "logit": 0.01, "scale": 5e-3} | dict.fromkeys(
    ("gain", "bias", "shift"), 2e-3
)
"""Learning rates for layers of a few weights, whatever suits real networks best."""


class Twice(nn.Module):
    """One layer in two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.relu(self.conv(x)))


@torch.no_grad()
def with_outliers() -> fx.GraphModule:
    """The reparameterized network with channels that are 20 times as large and matter 10 times less."""
    module = traced("reparameterized")
    for layer, reader in (("0.rbr_reparam", "1.rbr_reparam"), ("3.reparam_conv", "6")):
        module.get_parameter(f"{layer}.weight")[:2] *= 20
        module.get_parameter(f"{layer}.bias")[:2] *= 20
        module.get_parameter(f"{reader}.weight")[:, :2] /= 200
    return module


def learn_gently() -> Iterator[None]:
    """Body of a fixture: inside, `RATES` are `GENTLE_RATES`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "RATES", reconstruction.RATES | GENTLE_RATES)
        yield


def batches(count: int = 32, size: int = 16) -> list[torch.Tensor]:
    """`count` images in batches of `size`."""
    return list(smooth_images(count, seed=1).split(size))


def baseline(name: str, bits: tuple[int, int], count: int) -> QuantizedModel:
    """The network with outliers by `gptq`, or by baseline `name`, weights clipped: where learning may start."""
    model = quantized(with_outliers(), bits)
    model.graph_module.requires_grad_(False)
    if name == BY_TENSOR:
        scale_weights(model)
        observers, images = observe_activations(model, batches(count)), batches(count)
        scales, _ = compare_baselines(model, observers, images, float_copy(model))
        set_activation_scales(model, scales[BY_TENSOR])
    else:
        create_calibrator(name).calibrate(model, batches(count))
    if name != "gptq":
        clip_weights(model)
    return model


def state_of(model: QuantizedModel) -> dict[str, torch.Tensor]:
    """Copy of the state dict."""
    return {name: tensor.clone() for name, tensor in model.graph_module.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    """Names of tensors that are not equal bit for bit."""
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def placeholder(model: QuantizedModel) -> fx.Node:
    """The node of the images."""
    return next(node for node in model.graph_module.graph.nodes if node.op == "placeholder")


def all_values(model: QuantizedModel, images: torch.Tensor) -> dict[fx.Node, torch.Tensor]:
    """Every intermediate value of one run of the whole graph."""
    values: dict[fx.Node, torch.Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            values[node] = super().run_node(node)
            return values[node]

    with torch.no_grad():
        Recorder(model.graph_module).run(images)
    return values


def float_values(model: QuantizedModel, images: torch.Tensor) -> dict[fx.Node, torch.Tensor]:
    """The same in the float network."""
    with model.float_mode():
        return all_values(model, images)


@dataclass
class Stand:
    """A model with baseline scales, and what crosses into block `index`.

    Attributes:
        model: calibrated by a baseline, as `Guard` leaves it.
        block_inputs: block `index` is passed in float.
        chosen: settings.
        index: of the block.
        statistics: of the block's layers in float.
    """

    model: QuantizedModel
    block_inputs: BlockInputs
    chosen: Reconstruction
    index: int
    statistics: Statistics

    @classmethod
    def before(
        cls,
        graph_module: fx.GraphModule,
        index: int,
        chosen: Reconstruction,
        bits: tuple[int, int] = (4, 4),
    ) -> Stand:
        """Calibrate 32 images by the baselines and pass everything before block `index`."""
        model = quantized(graph_module, bits)
        model.graph_module.requires_grad_(False)
        create_calibrator("mae").calibrate(model, batches())
        clip_weights(model)
        blocks = find_blocks(model, chosen.blocks, chosen.stages, chosen.units)
        block_inputs = BlockInputs(
            model, blocks, batches(), ActivationCache(GIBIBYTE), float_overrides(model)
        )
        for block in blocks[:index]:
            block_inputs.pass_in_float(block)
            block_inputs.pass_quantized(block)
        statistics = block_inputs.pass_in_float(blocks[index])
        return cls(model, block_inputs, chosen, index, statistics)

    def learned(self) -> LearnedBlock:
        """Learnable parts of the block, from the identity."""
        block = self.block_inputs.blocks[self.index]
        affines = {
            layer: ChannelAffine.identity(len(self.model.weight_of(layer)))
            for layer in block.layers.values()
        }
        return LearnedBlock(self.model, block, affines, self.units(), self.chosen, set())

    def units(self) -> dict[str, float]:
        """Typical size of the output of each layer of the block."""
        block = self.block_inputs.blocks[self.index]
        return {
            block.layers[node]: size(deviation) for node, (_, deviation) in self.statistics.items()
        }

    def measured(self, count: int = 16) -> Distances:
        """Distances of the block as the model now has it, on the first `count` images."""
        committed = BlockDistances(
            self.model, {}, self.block_inputs, self.index, self.chosen, torch.Generator()
        )
        with torch.no_grad():
            return committed(torch.arange(count))

    def distances(self, learned: LearnedBlock) -> BlockDistances:
        """Distances of the block while `learned` replaces its nodes."""
        generator = torch.Generator().manual_seed(0)
        return BlockDistances(
            self.model, learned.overrides, self.block_inputs, self.index, self.chosen, generator
        )


def run_blocks(
    model: QuantizedModel,
    images: torch.Tensor,
    overrides: dict[fx.Node, object],
    units: Units = "layers",
) -> Sequence[torch.Tensor]:
    """Outputs of the network, block by block: only what a block declares crosses its border."""
    known = {placeholder(model): images}
    for block in find_blocks(model, units=units):
        values = {node: known[node] for node in block.inputs}
        with torch.no_grad():
            run_nodes(model.graph_module, block.nodes, values, overrides, len(images))
        known |= {node: values[node] for node in block.outputs}
    results = next(n for n in model.graph_module.graph.nodes if n.op == "output").all_input_nodes
    return [known[node] for node in results]


def typical(noise: torch.Tensor, signal: torch.Tensor) -> float:
    """Noise-to-signal power of both, [images, ...]: the root of what noise is of the whole is averaged."""
    powers = [one.double().flatten(1).square().sum(1) for one in (noise, signal)]
    usual = powers[1].maximum(powers[1].mean())
    lost = float((powers[0] / (powers[0] + usual)).sqrt().mean()) ** 2
    return lost / (1 - lost)
