"""Which layers pay in INT8: a layer is quantized where the engine is predicted to be faster for it.

Each round prices the engine of the present choice and takes out every layer that costs more in it than in
the FP16 engine, with what its quantizers cost the layers around it. What a layer costs depends on its
neighbours, so the next round prices again. The best of all rounds wins, and the first round is INT8 on
all layers; the result is therefore never predicted slower than that. Where even the best round is slower
than FP16, nothing pays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

ROUNDS = 6
"""Most engines that are priced; each has fewer INT8 layers than the one before."""


@dataclass(frozen=True)
class Priced:
    """A predicted engine.

    Attributes:
        milliseconds: of all its kernels.
        layers: microseconds by weighted layer, with what stands behind it.
    """

    milliseconds: float
    layers: Mapping[str, float]


@dataclass(frozen=True)
class LayerPrice:
    """Why a layer stays FP16: microseconds in INT8, where it was last tried, and in FP16."""

    int8_us: float
    fp16_us: float

    @property
    def reason(self) -> str:
        """For people."""
        return (
            f"FP16 is as fast here: {self.fp16_us:.1f} µs against {self.int8_us:.1f} µs in INT8,"
            ' predicted (`quantize="all"` quantizes it all the same)'
        )


@dataclass(frozen=True)
class CostPlacement:
    """What pays.

    Attributes:
        float_layers: layers that stay FP16, and why.
        milliseconds: predicted for this choice.
        int8_milliseconds: predicted with every layer in INT8.
        fp16_milliseconds: predicted for the FP16 engine.
    """

    float_layers: Mapping[str, LayerPrice]
    milliseconds: float
    int8_milliseconds: float
    fp16_milliseconds: float


def place_by_cost(
    layers: Collection[str],
    price: Callable[[frozenset[str]], Priced],
    fp16: Priced,
    neighbours: Mapping[str, Collection[str]],
) -> CostPlacement:
    """Choose the layers that stay FP16.

    Args:
        layers: that may be INT8.
        price: prices the engine in which the given layers stay FP16.
        fp16: the FP16 engine of the same network.
        neighbours: layer -> layers that feed it or that it feeds.
    """
    kept: dict[str, LayerPrice] = {}
    everything = best = price(frozenset())
    chosen = dict(kept)
    present = everything
    for _ in range(ROUNDS - 1):
        dear = _dear(set(layers) - kept.keys(), present, fp16, neighbours)
        if not dear:
            break
        kept |= dear
        if len(kept) == len(layers):
            break
        present = price(frozenset(kept))
        if present.milliseconds < best.milliseconds:
            best, chosen = present, dict(kept)
    return CostPlacement(chosen, best.milliseconds, everything.milliseconds, fp16.milliseconds)


def _dear(
    candidates: Collection[str],
    present: Priced,
    fp16: Priced,
    neighbours: Mapping[str, Collection[str]],
) -> dict[str, LayerPrice]:
    """Layers whose INT8 costs more than their FP16, alone or together with the border they stand at.

    A float neighbour that became slower pays for a quantizer: its loss is shared by the INT8 layers
    around it.
    """
    found = {}
    for layer in sorted(candidates):
        own = present.layers.get(layer, 0.0)
        border = sum(
            max(0.0, present.layers.get(one, 0.0) - fp16.layers.get(one, 0.0))
            / max(1, len(set(neighbours.get(one, ())) & set(candidates)))
            for one in neighbours.get(layer, ())
            if one not in candidates
        )
        in_float = fp16.layers.get(layer, 0.0)
        if own + border > in_float:
            found[layer] = LayerPrice(own + border, in_float)
    return found
