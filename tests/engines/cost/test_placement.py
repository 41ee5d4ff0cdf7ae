from __future__ import annotations

import random

import pytest

from reptrt.engines.cost.placement import KINDS, ROUNDS, TIE, LayerPrice, Priced, place_by_cost

FP16 = Priced(0.06, 6.0, {"a": 20.0, "b": 20.0, "c": 20.0})
CHAIN = {"a": {"b"}, "b": {"a", "c"}, "c": {"b"}}


class Engine:
    """Layers with a price in each type, and a price for every border between the types.

    An INT8 layer moves one megabyte, an FP16 layer two.
    """

    def __init__(self, int8: dict[str, float], border: float, fp16: Priced = FP16) -> None:
        self.int8, self.border, self.fp16 = int8, border, fp16
        self.asked: list[frozenset[str]] = []

    def __call__(self, kept: frozenset[str]) -> Priced:
        self.asked.append(kept)
        times = {
            name: self.fp16.layers[name] if name in kept else us for name, us in self.int8.items()
        }
        for name in times:
            crossed = [one for one in CHAIN[name] if (one in kept) != (name in kept)]
            if name in kept:
                times[name] += self.border * len(crossed)  # it writes the codes
        return Priced(sum(times.values()) / 1e3, len(times) + len(kept), times)


def test_what_is_faster_in_fp16_stays_there() -> None:
    engine = Engine({"a": 5.0, "b": 30.0, "c": 5.0}, border=1.0)
    found = place_by_cost(engine.int8, engine, FP16, CHAIN)
    assert found.float_layers == {"b": LayerPrice(30.0, 20.0)}
    assert found.milliseconds == pytest.approx(0.032)
    assert (found.int8_milliseconds, found.fp16_milliseconds) == (0.04, 0.06)
    assert found.savings == {"a": 14.0, "c": 14.0}  # each pays for a border of `b`


def test_a_layer_whose_border_costs_more_than_it_saves_goes_too() -> None:
    engine = Engine({"a": 18.0, "b": 80.0, "c": 2.0}, border=15.0)
    found = place_by_cost(engine.int8, engine, FP16, CHAIN)
    assert sorted(found.float_layers) == ["a", "b"]
    assert found.milliseconds == pytest.approx(0.057)
    assert found.float_layers["a"] == LayerPrice(33.0, 20.0)


def test_of_engines_that_times_do_not_tell_apart_the_lightest_is_taken() -> None:
    engine = Engine({"a": 5.0, "b": 20.5, "c": 5.0}, border=0.0)
    found = place_by_cost(engine.int8, engine, FP16, CHAIN)
    assert len(engine.asked) == 2
    assert found.float_layers == {}


def test_nothing_is_quantized_where_nothing_pays() -> None:
    engine = Engine({"a": 25.0, "b": 25.0, "c": 25.0}, border=1.0)
    found = place_by_cost(engine.int8, engine, FP16, CHAIN)
    assert found.float_layers == dict.fromkeys("abc", LayerPrice(25.0, 20.0))
    assert found.milliseconds == FP16.milliseconds


def test_layers_of_one_kind_are_taken_out_together_where_no_price_names_the_culprit() -> None:
    """A kernel between two layers costs more than both save, and is booked on the wrong one."""
    fp16 = Priced(0.06, 6.0, {"a": 20.0, "b": 20.0, "c": 20.0})

    def price(kept: frozenset[str]) -> Priced:
        times = {name: 20.0 if name in kept else 19.0 for name in "abc"}
        between = 0.0 if kept >= {"a", "c"} else 8.0  # a copy that only both can spare
        return Priced((sum(times.values()) + between) / 1e3, 3.0 + len(kept), times)

    alone = place_by_cost("abc", price, fp16, CHAIN)
    assert alone.milliseconds == fp16.milliseconds
    found = place_by_cost(
        "abc", price, fp16, CHAIN, {"a": "pointwise", "b": "dense", "c": "pointwise"}
    )
    assert sorted(found.float_layers) == ["a", "c"]
    assert found.milliseconds == pytest.approx(0.059)


@pytest.mark.parametrize("seed", range(50))
def test_it_is_never_slower_than_either_end(seed: int) -> None:
    chance = random.Random(seed)
    fp16 = {name: chance.uniform(1, 30) for name in "abc"}
    int8 = {name: chance.uniform(1, 30) for name in "abc"}
    whole = Priced(sum(fp16.values()) / 1e3, 6.0, fp16)
    engine = Engine(int8, chance.choice([0.0, 1.0, 50.0]), whole)
    found = place_by_cost(int8, engine, whole, CHAIN, {name: name for name in "abc"})
    assert found.milliseconds <= min(found.int8_milliseconds, found.fp16_milliseconds)
    assert found.int8_milliseconds == engine(frozenset()).milliseconds
    assert found.fp16_milliseconds == whole.milliseconds
    assert found.milliseconds <= TIE * min(engine(one).milliseconds for one in set(engine.asked))
    assert len(set(engine.asked)) <= 1 + ROUNDS + KINDS


def test_where_everything_pays_one_engine_is_priced() -> None:
    engine = Engine({"a": 5.0, "b": 5.0, "c": 5.0}, border=1.0)
    assert place_by_cost(engine.int8, engine, FP16, CHAIN).float_layers == {}
    assert engine.asked == [frozenset()]


def test_kinds_are_not_tried_where_all_that_they_lose_would_not_be_enough() -> None:
    engine = Engine({"a": 25.0, "b": 25.0, "c": 95.0}, border=0.0)
    kinds = {"a": "one", "b": "two"}
    place_by_cost(engine.int8, engine, FP16, CHAIN, kinds)  # 10 of the 85 that INT8 loses
    assert engine.asked == [frozenset()]
    engine = Engine({"a": 25.0, "b": 25.0, "c": 19.0}, border=0.0)
    place_by_cost(engine.int8, engine, FP16, CHAIN, kinds)
    assert {frozenset("a"), frozenset("ab")} <= set(engine.asked)


def test_a_network_without_layers_to_quantize_is_left_alone() -> None:
    found = place_by_cost((), Engine({}, 0.0), FP16, {})
    assert (found.float_layers, found.milliseconds) == ({}, FP16.milliseconds)
