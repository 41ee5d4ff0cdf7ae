"""What reconstruction minimises: how far a block, and its stage behind it, are from float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from reptrt.calibrators.importance import NO_IMPORTANCE, Importance
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.calibrators.quantized.run_nodes import Overrides, run_nodes
from reptrt.calibrators.reconstruction.block_inputs import BlockInputs
from reptrt.calibrators.reconstruction.blocks import Block, compared_outputs, rest_of_stage
from reptrt.calibrators.reconstruction.learned import LearnedScale, StraightThrough
from reptrt.calibrators.settings import Loss, Reconstruction

aten = torch.ops.aten

Values = Mapping[fx.Node, torch.Tensor]


@dataclass(frozen=True)
class Distances:
    """Means over all elements, summed over outputs.

    Attributes:
        block: of the block's outputs from their float values, [].
        stage: of the stage's outputs; None where the block ends its stage or no such term is asked.
    """

    block: torch.Tensor
    stage: torch.Tensor | None


@dataclass(frozen=True)
class Sample:
    """What the distances on some images are computed from.

    Attributes:
        count: images.
        inputs: of the block.
        expected: float outputs of the block.
        others: further inputs of the rest of its stage.
        stage: float outputs of the stage; None leaves its distance out.
    """

    count: int
    inputs: Values
    expected: Values
    others: Values
    stage: Values | None


class BlockDistances:
    """Distances of one block while it is learned.

    Args:
        model: owner of the graph.
        overrides: learnable replacements of the block's nodes.
        block_inputs: stands before the block, with its float outputs computed.
        index: of the block in `block_inputs.blocks`.
        chosen: loss, stage term, precision of the suffix, share of float inputs.
        generator: draws the elements that are float.
    """

    def __init__(
        self,
        model: QuantizedModel,
        overrides: Overrides,
        block_inputs: BlockInputs,
        index: int,
        chosen: Reconstruction,
        generator: torch.Generator,
    ) -> None:
        self._graph_module, self._overrides = model.graph_module, overrides
        self._block_inputs, self._block = block_inputs, block_inputs.blocks[index]
        self._chosen, self._generator = chosen, generator
        self._rest = rest_of_stage(block_inputs.blocks, index) if chosen.stage_weight else None
        self._dropping = overrides
        if chosen.float_inside:
            self._dropping = {
                node: self._drop(one) if isinstance(one, LearnedScale) else one
                for node, one in overrides.items()
            }
        self._is_autocast = has_fast_bf16(block_inputs.device)
        self._is_coarse = is_coarse(model, self._block)
        self._suffix: Overrides = block_inputs.float_network
        if self._rest is not None and chosen.suffix == "quantized":
            self._suffix = straight_through(model, self._rest.nodes)

    def __call__(
        self, indices: torch.Tensor, *, mixed: bool = False, stage: bool = True
    ) -> Distances:
        """Distances on the calibration images `indices` [n], differentiable; see `sample`."""
        return self.measure(self.sample(indices, mixed=mixed, stage=stage), mixed=mixed)

    def sample(self, indices: torch.Tensor, *, mixed: bool = False, stage: bool = True) -> Sample:
        """Read what belongs to the calibration images `indices` [n].

        Args:
            indices: of images, repeats too.
            mixed: some elements of the block's input are the float network's (`float_inputs`).
            stage: whether the stage counts, where it is asked for at all.
        """
        read = self._block_inputs
        inputs = read.read_quantized(self._block.inputs, indices)
        if mixed and self._chosen.float_inputs:
            self._mix(inputs, read.read_float(self._block.inputs, indices))
        expected = read.read_target(compared_outputs(self._block), indices)
        if self._rest is None or not stage:
            return Sample(len(indices), inputs, expected, {}, None)
        made = {*inputs, *self._block.nodes}
        others = read.read_quantized([n for n in self._rest.inputs if n not in made], indices)
        return Sample(len(indices), inputs, expected, others, read.read_stage(self._rest, indices))

    def measure(self, sample: Sample, *, mixed: bool = False) -> Distances:
        """Distances on `sample`, differentiable; `mixed` leaves some elements inside the block float."""
        overrides = self._dropping if mixed else self._overrides
        values = self._run(sample, overrides)
        block = distance(self._chosen.loss, values, sample.expected, self._block_inputs.importance)
        return Distances(block, None if sample.stage is None else self._stage(values, sample))

    def run(self, sample: Sample, *, in_float: bool = False) -> Values:
        """Every value of the block on `sample`, as it is learned or in float on the same inputs."""
        return self._run(sample, self._block_inputs.float_network if in_float else self._overrides)

    def _run(self, sample: Sample, overrides: Overrides) -> Values:
        values = dict(sample.inputs)
        with self._rounding(self._is_coarse):
            run_nodes(self._graph_module, self._block.nodes, values, overrides, sample.count)
        return values

    def _rounding(self, allowed: bool) -> torch.autocast:
        """Products in bf16 where that is `allowed` and fast: a step may be rounded, a judgement is exact."""
        rounds = allowed and self._is_autocast and torch.is_grad_enabled()
        return torch.autocast(self._block_inputs.device.type, torch.bfloat16, enabled=rounds)

    def _stage(self, values: Values, sample: Sample) -> torch.Tensor:
        """Run what the block made through the rest of its stage."""
        assert self._rest is not None
        assert sample.stage is not None
        known = {node: values[node] for node in self._rest.inputs if node in values}
        known.update(sample.others)
        with self._rounding(True):
            run_nodes(self._graph_module, self._rest.nodes, known, self._suffix, sample.count)
        return distance(self._chosen.loss, known, sample.stage, self._block_inputs.importance)

    def _drop(self, learned: LearnedScale) -> Callable[[torch.Tensor], torch.Tensor]:
        """`learned`, but some elements stay float, with the chosen probability to 1/256."""
        most = max(1, round(256 * self._chosen.float_inside)) - 1

        def quantize(x: torch.Tensor) -> torch.Tensor:
            # Bytes of 64-bit numbers: on a CPU a tenth of the time of one draw for each element.
            numbers = torch.empty(-(-x.numel() // 8), dtype=torch.int64)
            numbers.random_(-(2**63), None, generator=self._generator)
            drawn = numbers.view(torch.uint8)[: x.numel()].view(x.shape)
            kept = (drawn <= most).to(x.device)
            quantized: torch.Tensor = learned(x, kept)
            return quantized

        return quantize

    def _mix(self, values: dict[fx.Node, torch.Tensor], floats: Values) -> None:
        for node, value in values.items():
            draw = torch.rand(value.shape, generator=self._generator)
            is_float = (draw < self._chosen.float_inputs).to(value.device)
            values[node] = torch.where(is_float, floats[node], value)


def distance(
    loss: Loss, found: Values, expected: Values, importance: Importance = NO_IMPORTANCE
) -> torch.Tensor:
    """Mean absolute (`l1`) or squared (`l2`) difference, summed over the tensors of `expected`; `fisher` weighs squares."""
    means = []
    for node, target in expected.items():
        error = found[node] - target
        power = error.abs() if loss == "l1" else error.square()
        if loss == "fisher" and node in importance:
            power = power * importance[node]
        means.append(power.mean())
    return torch.stack(means).sum()


def is_coarse(model: QuantizedModel, block: Block) -> bool:
    """Whether a step of `block` may multiply in bf16: it holds linears alone, and codes of fewer than 8 bits.

    At 8 bits codes lie as close as the numbers of bf16; convolutions gain little time by it (docs/effort.md).
    """
    layers = [node for node in block.nodes if node.name in block.layers]
    quantizers = [model.weight_quantizers[layer] for layer in block.layers.values()]
    quantizers += [model.quantizer_at(node) for node in block.nodes if is_activation_call(node)]
    fewest = min(quantizer.grid.num_bits for quantizer in quantizers)
    return fewest < 8 and all(layer.target is aten.linear.default for layer in layers)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 faster than FP32: a GPU, or a processor with AVX512-BF16 or AMX."""
    if device.type != "cpu":
        return device.type == "cuda"
    capabilities: Callable[[], Mapping[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    able = capabilities()  # older PyTorch cannot say, and steps in FP32
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def straight_through(model: QuantizedModel, nodes: Sequence[fx.Node]) -> Overrides:
    """The quantized `nodes` as they are, but with a gradient: rounding counts as the identity."""
    quantizers = {node: model.quantizer_at(node) for node in nodes if is_activation_call(node)}
    return {
        node: LearnedScale(one) if one.is_uniform else StraightThrough(one)
        for node, one in quantizers.items()
    }
