"""Reconstruct one block: learn its quantizers so that its output is the float network's again.

The inner loop that `repapq` and the methods it is compared with share; they differ in `settings`.
Learning rates and schedule are reconstructed: the paper states none (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import fx

from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.quantized.fake_quant import broadcast_scale
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import TensorQuantizer
from reptrt.calibrators.reconstruction.blocks import Block
from reptrt.calibrators.reconstruction.effort import LEAST_GAIN, Budget, judged_images
from reptrt.calibrators.reconstruction.learned import LearnedLayer, LearnedScale, StraightThrough
from reptrt.calibrators.reconstruction.objective import BlockDistances, Distances
from reptrt.calibrators.settings import Reconstruction

# Adam, with a cosine to 0. Codes have a rate of their own in the settings; the others move relative to
# themselves or the output.
RATES = {"logit": 0.02, "gain": 6e-3, "bias": 6e-3, "shift": 6e-3, "scale": 0.015}

MIN_DISTANCE = 1e-12

# AdaRound's own schedule (arXiv:2004.10568): no pull at first, then a sharper and sharper one.
ROUNDING_WEIGHT, ROUNDING_START = 0.2, 0.2
SHARPNESS_FROM, SHARPNESS_TO = 20.0, 2.0


class LearnedBlock:
    """The learnable parts of a block, and how they replace its nodes.

    Args:
        model: its current scales and weights are where the learning starts.
        block: what to learn.
        affines: layer name -> start of QPRep's affine map.
        units: layer name -> typical size of its output.
        settings: what is learned.
        final: quantizers that are learned already and stay as they are: those of a weight or a
            scale that an earlier block shares.

    Attributes:
        model: as given.
        settings: as given.
        overrides: node of the block -> learnable computation.
    """

    def __init__(
        self,
        model: QuantizedModel,
        block: Block,
        affines: Mapping[str, ChannelAffine],
        units: Mapping[str, float],
        settings: Reconstruction,
        final: set[TensorQuantizer],
    ) -> None:
        self.model, self.settings = model, settings
        self._layers: dict[str, LearnedLayer] = {}
        self._biases: dict[str, str] = {}
        self._calls: dict[fx.Node, str] = {}
        self._scales: dict[str, LearnedScale] = {}
        self.overrides: dict[fx.Node, Callable[..., torch.Tensor]] = {}
        for node in block.nodes:
            if node.name in block.layers:
                layer = block.layers[node.name]
                if model.weight_quantizers[layer] not in final:
                    self._learn_layer(node, layer, affines[layer], units[layer])
            elif node.op == "call_module" and model.quantizer_at(node) not in final:
                self._learn_scale(node)

    def _learn_layer(self, node: fx.Node, layer: str, affine: ChannelAffine, unit: float) -> None:
        model, weight = self.model, node.args[1]
        assert isinstance(weight, fx.Node)
        bias = node.args[2] if len(node.args) > 2 else None
        if isinstance(bias, fx.Node):
            self._biases[layer] = str(bias.target)
        if layer not in self._layers:
            self._layers[layer] = LearnedLayer(
                model.weight_of(layer),
                model.graph_module.get_parameter(self._biases[layer]) if bias is not None else None,
                model.weight_quantizers[layer],
                affine,
                self.settings.rounding,
                unit,
            )
        learned = self._layers[layer]
        self.overrides[weight] = lambda _: learned.weight()
        if isinstance(bias, fx.Node):
            self.overrides[bias] = learned.bias
            self._calls[node] = layer

    def _learn_scale(self, node: fx.Node) -> None:
        target, quantizer = str(node.target), self.model.quantizer_at(node)
        if not quantizer.is_uniform:
            self.overrides[node] = StraightThrough(quantizer)
            return
        if target not in self._scales:
            self._scales[target] = LearnedScale(quantizer)
        self.overrides[node] = self._scales[target]

    def parameter_groups(self) -> list[dict[str, object]]:
        """What Adam learns, and how fast."""
        rates = {"codes": self.settings.code_rate, **RATES}
        groups: dict[str, list[torch.nn.Parameter]] = {name: [] for name in rates}
        for layer in self._layers.values():
            name, parameter = layer.rounding_parameter
            if parameter.requires_grad:
                groups[name].append(parameter)
            if self.settings.affine != "none":
                groups["gain"].append(layer.log_gain)
                groups["shift"].append(layer.shift)
            groups["bias"].append(layer.inner_bias)
        groups["scale"] = [scale.log_scale for scale in self._scales.values()]
        return [{"params": found, "lr": rates[name]} for name, found in groups.items() if found]

    def rounding_penalty(self, progress: float) -> torch.Tensor | float:
        """AdaRound's regulariser at `progress` 0..1 of the steps; 0 for the other schemes."""
        if self.settings.rounding != "adaround" or progress < ROUNDING_START or not self._layers:
            return 0.0
        share = (progress - ROUNDING_START) / (1 - ROUNDING_START)
        sharpness = SHARPNESS_FROM + (SHARPNESS_TO - SHARPNESS_FROM) * share
        penalties = [layer.indecision(sharpness) for layer in self._layers.values()]
        return ROUNDING_WEIGHT * torch.stack(penalties).mean()

    @torch.no_grad()
    def commit(self) -> None:
        """Write what was learned into the model: integer weights times their scale, biases, scales."""
        model = self.model
        for name, layer in self._layers.items():
            codes, scale, bias = layer.folded()
            model.weight_quantizers[name].scale.copy_(scale)
            model.weight_of(name).copy_(codes * broadcast_scale(scale, 0, codes.ndim))
            if name in self._biases:
                model.graph_module.get_parameter(self._biases[name]).copy_(bias)
        for target, learned in self._scales.items():
            quantizer = model.graph_module.get_submodule(target)
            assert isinstance(quantizer, TensorQuantizer)
            quantizer.scale.copy_(learned.scale())

    @property
    def scales(self) -> list[LearnedScale]:
        """Activation quantizers that are learned, in graph order."""
        return list(self._scales.values())

    @property
    def layers_with_bias(self) -> list[tuple[fx.Node, LearnedLayer]]:
        """First call of every layer that can take an offset, in graph order."""
        calls = {layer: node for node, layer in reversed(self._calls.items())}
        return [(node, self._layers[layer]) for layer, node in reversed(calls.items())]

    @property
    def has_gain(self) -> bool:
        """Whether a gain per channel is learned."""
        return self.settings.affine != "none"

    def snapshot(self) -> list[torch.Tensor]:
        """Copies of everything that is learned."""
        return [parameter.detach().clone() for parameter in self._parameters()]

    @torch.no_grad()
    def restore(self, snapshot: Sequence[torch.Tensor]) -> None:
        """Put everything back to a `snapshot`."""
        for parameter, value in zip(self._parameters(), snapshot, strict=True):
            parameter.copy_(value)

    def _parameters(self) -> list[torch.nn.Parameter]:
        modules = (*self._layers.values(), *self._scales.values())
        return [parameter for module in modules for parameter in module.parameters()]

    @property
    def quantizers(self) -> set[TensorQuantizer]:
        """Quantizers that this block learns."""
        modules = [self.model.graph_module.get_submodule(target) for target in self._scales]
        scales = [module for module in modules if isinstance(module, TensorQuantizer)]
        return {*scales, *(self.model.weight_quantizers[layer] for layer in self._layers)}

    @property
    def tensor_names(self) -> list[str]:
        """State-dict names of everything that `commit` writes."""
        model = self.model
        weights = [model.weight_paths[layer] for layer in self._layers]
        scales = [f"{model.weight_target(layer)}.scale" for layer in self._layers]
        scales += [f"{target}.scale" for target in self._scales]
        return [*weights, *self._biases.values(), *scales]


def reconstruct(
    learned: LearnedBlock,
    distances: BlockDistances,
    num_samples: int,
    budget: Budget,
    generator: torch.Generator,
    step_done: Callable[[], None],
) -> int:
    """Learn `learned` in place; the model itself does not change before `commit`.

    A round that leaves the held-out images worse than they were is undone, and none follows a round that
    gained less than `LEAST_GAIN`.

    Args:
        learned: what is learned.
        distances: of the block, computed with what is learned.
        num_samples: calibration images.
        budget: steps, images of a step, images that are held out.
        generator: draws the images of each step.
        step_done: called after each step.

    Returns:
        Steps taken.
    """
    groups = learned.parameter_groups()
    if not groups or not sum(budget.rounds):
        return 0
    judged, weight = judged_images(num_samples, budget), learned.settings.stage_weight
    with torch.no_grad():
        first = distances(judged)
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, falling_rates(budget.rounds).__getitem__
    )
    best, done, total = objective(first, first, weight), 0, sum(budget.rounds)
    for steps in budget.rounds:
        before = learned.snapshot()
        for step in range(done, done + steps):
            shape = (budget.batch_size,)
            indices = torch.randint(num_samples - budget.held_out, shape, generator=generator)
            has_stage = step % budget.stage_every == 0
            found = distances(indices, mixed=True, stage=has_stage)
            loss = objective(found, first, weight)
            loss = loss + learned.rounding_penalty(step / total)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
            schedule.step()
            step_done()
        done += steps
        with torch.no_grad():
            reached = objective(distances(judged), first, weight)
        if not reached <= best:  # NaN too
            learned.restore(before)
        if not reached <= (1 - LEAST_GAIN) * best:
            break
        best = reached
    return done


def falling_rates(rounds: Sequence[int]) -> list[float]:
    """Factor of the learning rate before every step, and behind the last: a cosine from 1 to 0 in each round."""
    rates = [
        (1 + math.cos(math.pi * step / steps)) / 2 for steps in rounds for step in range(steps)
    ]
    return [*rates, 0.0]


def objective(found: Distances, first: Distances, stage_weight: float) -> torch.Tensor:
    """Block distance plus `stage_weight` times stage distance, each relative to `first`."""
    total = found.block / first.block.clamp_min(MIN_DISTANCE)
    if found.stage is not None and first.stage is not None:
        total = total + stage_weight * found.stage / first.stage.clamp_min(MIN_DISTANCE)
    return total
