from __future__ import annotations

import pytest

from reptrt.engines.cost.placement import LayerPrice, Priced, place_by_cost

FP16 = Priced(0.06, {"a": 20.0, "b": 20.0, "c": 20.0})
CHAIN = {"a": {"b"}, "b": {"a", "c"}, "c": {"b"}}


class Engine:
    """Layers with a price in each type, and a price for every border between the types."""

    def __init__(self, int8: dict[str, float], border: float) -> None:
        self.int8, self.border = int8, border
        self.asked: list[frozenset[str]] = []

    def __call__(self, kept: frozenset[str]) -> Priced:
        self.asked.append(kept)
        times = {name: FP16.layers[name] if name in kept else us for name, us in self.int8.items()}
        for name in times:
            crossed = [one for one in CHAIN[name] if (one in kept) != (name in kept)]
            if name in kept:
                times[name] += self.border * len(crossed)  # it writes the codes
        return Priced(sum(times.values()) / 1e3, times)


def test_what_is_faster_in_fp16_stays_there() -> None:
    engine = Engine({"a": 5.0, "b": 30.0, "c": 5.0}, border=1.0)
    found = place_by_cost(engine.int8, engine, FP16, CHAIN)
    assert found.float_layers == {"b": LayerPrice(30.0, 20.0)}
    assert found.milliseconds == pytest.approx(0.032)
    assert (found.int8_milliseconds, found.fp16_milliseconds) == (0.04, 0.06)


def test_a_layer_whose_border_costs_more_than_it_saves_goes_too() -> None:
    engine = Engine({"a": 18.0, "b": 30.0, "c": 2.0}, border=5.0)
    found = place_by_cost(engine.int8, engine, FP16, CHAIN)
    assert sorted(found.float_layers) == ["a", "b"]
    assert found.milliseconds == pytest.approx(0.047)
    assert found.float_layers["a"] == LayerPrice(23.0, 20.0)


@pytest.mark.parametrize("border", [0.0, 50.0])
def test_it_is_never_slower_than_int8_everywhere(border: float) -> None:
    engine = Engine({"a": 19.0, "b": 21.0, "c": 19.0}, border=border)
    found = place_by_cost(engine.int8, engine, FP16, CHAIN)
    assert found.milliseconds <= found.int8_milliseconds
    assert len(engine.asked) <= 6


def test_where_everything_pays_one_engine_is_priced() -> None:
    engine = Engine({"a": 5.0, "b": 5.0, "c": 5.0}, border=1.0)
    assert place_by_cost(engine.int8, engine, FP16, CHAIN).float_layers == {}
    assert engine.asked == [frozenset()]
