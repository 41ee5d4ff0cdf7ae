"""Which layers pay in INT8: those that make the engine faster on the target, as it is predicted.

What a layer costs depends on its neighbours, which pay for quantizers and fuse or do not, so whole
engines are priced. The first has every layer in INT8 that the target's form has there (`reptrt.engines.form`;
depthwise convolutions may be FP16). Then rounds take out each layer that costs more
in it than in the FP16 engine, with what its quantizers cost the layers around it. What stands between
layers has no owner that is always right, so all layers of one kind, such as the projections of a
transformer, are taken out together, too, where the whole engine is faster without.

Of all engines that were priced, the one that moves the fewest bytes is taken among those within
`TIE` of the fastest: bytes are counted, and times that close are not told apart. The FP16 engine
competes, so that the choice is never predicted slower than that, nor than INT8 on all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field

from reptrt.engines.foreign.ranges import Amount

ROUNDS = 5
"""Most engines that rounds price; each has fewer INT8 layers than the one before."""

KINDS = 6
"""Most kinds of layers that are taken out, each at once."""

TIE = 1.1
"""Predicted ratios of two engines on one GPU are this far from measured ones (docs/cost.md)."""


@dataclass(frozen=True)
class Priced:
    """A predicted engine.

    Attributes:
        milliseconds: of all its kernels.
        megabytes: that they read and write, activations and weights.
        layers: microseconds by weighted layer, with what stands behind it.
    """

    milliseconds: float
    megabytes: float
    layers: Mapping[str, float]

    @property
    def unbooked(self) -> float:
        """Microseconds of kernels that no layer stands for."""
        return 1000 * self.milliseconds - sum(self.layers.values())


@dataclass(frozen=True)
class LayerPrice:
    """Why a layer stays FP16: microseconds in INT8, where it was last tried, and in FP16."""

    int8_us: Amount
    fp16_us: Amount

    @property
    def reason(self) -> str:
        """For people."""
        times = f"{self.fp16_us:.1f} µs against {self.int8_us:.1f} µs in INT8"
        return f"FP16 is as fast here: {times}, predicted"


@dataclass(frozen=True)
class CostPlacement:
    """What pays.

    Attributes:
        float_layers: layers that stay FP16, and why.
        milliseconds: predicted for this choice.
        int8_milliseconds: predicted for the first engine, of all layers.
        fp16_milliseconds: predicted for the FP16 engine.
        pools: whether average pools between INT8 layers are INT8 too.
        savings: microseconds less than in the FP16 engine, of each layer that is INT8 in this choice; what
            its quantizers cost float neighbours counts.
        fp8_attention: whether attention is in FP8.
    """

    float_layers: Mapping[str, LayerPrice]
    milliseconds: Amount
    int8_milliseconds: Amount
    fp16_milliseconds: Amount
    pools: bool = False
    savings: Mapping[str, float] = field(default_factory=dict)
    fp8_attention: bool = False


def place_by_cost(
    layers: Collection[str],
    price: Callable[[frozenset[str]], Priced],
    fp16: Priced,
    neighbours: Mapping[str, Collection[str]],
    kinds: Mapping[str, Hashable] | None = None,
) -> CostPlacement:
    """Choose the layers that stay FP16.

    Args:
        layers: that may be INT8.
        price: prices the engine in which the given layers stay FP16.
        fp16: the FP16 engine of the same network.
        neighbours: layer -> layers that feed it or that it feeds.
        kinds: layer -> what it computes; equal ones are taken out together. None: no such tries.
    """
    search = _Search(frozenset(layers), price, fp16, neighbours)
    everything = search.price(frozenset())
    search.take_out()
    search.take_out_kinds(kinds or {})
    chosen = search.choice(everything)
    return CostPlacement(
        {layer: search.prices[layer] for layer in sorted(chosen)},
        search.tried[chosen].milliseconds,
        everything.milliseconds,
        fp16.milliseconds,
        savings=search.savings(chosen),
    )


class _Search:
    """Engines that were priced, by the layers that stay FP16 in them."""

    def __init__(
        self,
        layers: frozenset[str],
        price: Callable[[frozenset[str]], Priced],
        fp16: Priced,
        neighbours: Mapping[str, Collection[str]],
    ) -> None:
        self._layers, self._price, self._fp16, self._neighbours = layers, price, fp16, neighbours
        self.tried: dict[frozenset[str], Priced] = {layers: fp16}
        self.prices: dict[str, LayerPrice] = {}

    def price(self, kept: frozenset[str]) -> Priced:
        """The engine in which `kept` stay FP16."""
        if kept not in self.tried:
            self.tried[kept] = self._price(kept)
            self.prices = self._prices(kept) | self.prices
        return self.tried[kept]

    def take_out(self) -> None:
        """Take out what costs more in INT8, round by round."""
        kept: frozenset[str] = frozenset()
        for _ in range(ROUNDS):
            prices = self._prices(kept)
            dear = {name for name, one in prices.items() if one.int8_us > one.fp16_us}
            if not dear:
                return
            self.prices |= {name: prices[name] for name in dear}
            kept |= dear
            self.price(kept)

    def take_out_kinds(self, kinds: Mapping[str, Hashable]) -> None:
        """Take out all layers of a kind, the dearest kind first, where the engine becomes faster.

        Nothing is tried where all that these kinds and no layer in particular lose would not be enough.
        """
        groups: dict[Hashable, set[str]] = {}
        for layer in sorted(self._layers & kinds.keys()):
            groups.setdefault(kinds[layer], set()).add(layer)
        best: frozenset[str] = frozenset()
        everything = self.tried[best].milliseconds
        pays = everything < self._fp16.milliseconds
        dear = [group for group in groups.values() if not pays or self._loss(group) > 0]
        tries = sorted(dear, key=self._loss, reverse=True)[:KINDS]
        hoped = sum(max(0.0, self._loss(group)) for group in tries)
        hoped += max(0.0, self.tried[best].unbooked - self._fp16.unbooked)
        if everything - hoped / 1000 > self._bound(everything):
            return  # no such engine could be chosen
        for group in tries:
            other = best.union(group)
            if self.price(other).milliseconds < self.tried[best].milliseconds:
                best = other

    def choice(self, everything: Priced) -> frozenset[str]:
        """The lightest of the engines that are as fast as the fastest, and slower than neither end."""
        bound = self._bound(everything.milliseconds)
        fit = {kept: one for kept, one in self.tried.items() if one.milliseconds <= bound}
        fastest = min(one.milliseconds for one in fit.values())
        tied = [kept for kept, one in fit.items() if one.milliseconds <= TIE * fastest]
        return min(tied, key=lambda kept: (fit[kept].megabytes, fit[kept].milliseconds))

    def _bound(self, everything: float) -> float:
        """Milliseconds that an engine may take to be chosen, where INT8 on all layers takes `everything`."""
        return min(everything, self._fp16.milliseconds)

    def savings(self, kept: frozenset[str]) -> dict[str, float]:
        """Microseconds that each INT8 layer saves in the engine in which `kept` stay FP16."""
        prices = self._prices(kept)
        return {layer: one.fp16_us - one.int8_us for layer, one in prices.items()}

    def _prices(self, kept: frozenset[str]) -> dict[str, LayerPrice]:
        """Layers that are INT8 where `kept` are not: alone, and with the border that they stand at.

        A float neighbour that became slower pays for a quantizer: its loss is shared by the INT8
        layers around it.
        """
        present, fp16 = self.tried[kept], self._fp16
        candidates = self._layers - kept
        return {
            layer: LayerPrice(
                present.layers.get(layer, 0.0)
                + sum(
                    max(0.0, present.layers.get(one, 0.0) - fp16.layers.get(one, 0.0))
                    / max(1, len(candidates.intersection(self._neighbours.get(one, ()))))
                    for one in self._neighbours.get(layer, ())
                    if one not in candidates
                ),
                fp16.layers.get(layer, 0.0),
            )
            for layer in sorted(candidates)
        }

    def _loss(self, group: Collection[str]) -> float:
        """Microseconds that `group` costs more in INT8 than in FP16."""
        return sum(self.prices[one].int8_us - self.prices[one].fp16_us for one in group)
