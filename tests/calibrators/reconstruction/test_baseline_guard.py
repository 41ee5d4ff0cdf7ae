from __future__ import annotations

import logging

import pytest
import torch

from reptrt.calibrators.guard import Guard
from reptrt.calibrators.histogram import best
from reptrt.calibrators.histogram.best import BY_TENSOR, CANDIDATES
from reptrt.calibrators.histogram.methods import scale_weights
from reptrt.calibrators.output_noise import GUARD_BATCHES, guard_images, output_noise
from reptrt.calibrators.progress import no_progress
from reptrt.calibrators.quantized.half_range import shiftable_points
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import IntegerGrid
from reptrt.calibrators.reconstruction import baseline_guard
from reptrt.calibrators.reconstruction.baseline_guard import (
    start_at_best_baseline,
    use_all_codes,
    weights_of_8_bits,
)
from reptrt.calibrators.settings import Reconstruction
from tests.reconstructing import baseline, batches, differing, state_of, typical, with_outliers
from tests.tiny_networks import quantized, traced

CHOSEN = Reconstruction()
NAMES = [*(candidate.name for candidate in CANDIDATES), BY_TENSOR]


def guarded(
    bits: tuple[int, int] = (6, 6), chosen: Reconstruction = CHOSEN
) -> tuple[QuantizedModel, Guard]:
    model = quantized(with_outliers(), bits)
    model.graph_module.requires_grad_(False)
    return model, start_at_best_baseline(model, batches(), chosen, no_progress)


@torch.no_grad()
def noise_of(model: QuantizedModel) -> float:
    """Noise-to-signal power of the logits on the calibration images."""
    images = torch.cat(batches())
    expected = with_outliers()(images)
    return typical(model(images)[0] - expected, expected)


def best_of_all(bits: tuple[int, int] = (6, 6)) -> str:
    noise = {name: noise_of(baseline(name, bits, 32)) for name in NAMES}
    return min(noise, key=lambda name: noise[name])


@pytest.mark.parametrize("bits", [(6, 6), (4, 4)], ids=["w6a6", "w4a4"])
def test_learning_starts_at_the_best_baseline_on_untouched_weights(bits: tuple[int, int]) -> None:
    model, _ = guarded(bits)
    assert differing(state_of(model), state_of(baseline(best_of_all(bits), bits, 32))) == set()


@pytest.mark.parametrize(
    ("bits", "least", "start"),
    [(4, 1.0, "mae"), (4, 0.99, "minmax"), (8, 1.0, "minmax")],
    ids=["no signal", "a signal", "8 bits"],
)
def test_where_weights_leave_no_signal_learning_starts_at_the_best_behind_8_bits(
    monkeypatch: pytest.MonkeyPatch, bits: int, least: float, start: str
) -> None:
    widths = []

    def compare(
        model: QuantizedModel, _: object, scales: dict[str, object], *__: object
    ) -> dict[str, float]:
        widths.append({q.grid.num_bits for q in model.weight_quantizers.values()})
        found = {"minmax": least} if len(widths) <= 2 else {"mae": 0.1}
        return {name: found.get(name, 5.0) for name in scales}

    for module in (best, baseline_guard):
        monkeypatch.setattr(module, "compare_scales", compare)
    model, _ = guarded((bits, 6))
    assert differing(state_of(model), state_of(baseline(start, (bits, 6), 32))) == set()
    assert widths == ([{4}, {4}, {8}] if start == "mae" else [{bits}, {bits}])


def test_weights_have_8_bits_for_a_while_and_are_as_before_behind_it() -> None:
    model = baseline("minmax", (4, 4), 32)
    before, grids = state_of(model), {n: q.grid for n, q in model.weight_quantizers.items()}
    worse = noise_of(model)
    with weights_of_8_bits(model):
        assert noise_of(model) < 0.8 * worse
    assert differing(before, state_of(model)) == set()
    assert {n: q.grid for n, q in model.weight_quantizers.items()} == grids


def test_a_worse_model_is_replaced_by_the_best_baseline_bit_for_bit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, guard = guarded()
    for name in model.weight_quantizers:
        model.weight_of(name).zero_()
    for quantizer in model.activation_quantizers.values():
        quantizer.scale.mul_(3)
    with caplog.at_level(logging.WARNING):
        method, decibels = guard.keep_better("repapq")
    assert method == best_of_all()
    assert differing(state_of(model), state_of(baseline(method, (6, 6), 32))) == set()
    found = decibels
    assert list(found) == ["repapq", *NAMES]
    assert found[method] == max(found.values()) > 10 > abs(found["repapq"])  # no signal is left
    assert f"kept {method}" in caplog.text


def test_what_is_better_than_every_baseline_stays(caplog: pytest.LogCaptureFixture) -> None:
    model, guard = guarded()
    for quantizer in model.activation_quantizers.values():
        quantizer.enabled = False
    before = state_of(model)
    with caplog.at_level(logging.WARNING):
        method, decibels = guard.keep_better("repapq")
    assert method == "repapq"
    assert differing(before, state_of(model)) == set()
    found = decibels
    assert found["repapq"] == max(found.values())
    assert caplog.text == ""


def test_what_is_better_becomes_what_is_gone_back_to_and_what_is_worse_goes() -> None:
    model, guard = guarded()
    start = state_of(model)
    model.weight_of("6").mul_(3)
    guard.take_if_better("worse")
    assert differing(state_of(model), start) == set()
    for layer in model.weight_quantizers:  # their rounding is most of the noise
        model.weight_quantizers[layer].enabled = False
    guard.take_if_better("better")
    model.weight_of("6").mul_(3)
    method, decibels = guard.keep_better("repapq")
    assert method == "better"
    assert decibels["better"] == max(decibels.values())
    assert {"repapq", "worse", "better"} < decibels.keys()


def test_a_model_that_computes_nan_is_replaced() -> None:
    model, guard = guarded()
    model.weight_of("6")[0, 0] = float("nan")
    method, _ = guard.keep_better("repapq")
    assert method in NAMES
    assert differing(state_of(model), state_of(baseline(method, (6, 6), 32))) == set()


def test_the_reference_is_the_float_network_of_before_the_learning() -> None:
    model, guard = guarded((8, 8))
    first = guard.keep_better("repapq")[1]
    for name in model.weight_quantizers:
        model.weight_of(name).mul_(1.05)
    scale_weights(model)
    second = guard.keep_better("repapq")[1]
    assert second["repapq"] < 25 < first["repapq"]
    assert {k: v for k, v in first.items() if k != "repapq"} == {
        k: v for k, v in second.items() if k != "repapq"
    }


@pytest.mark.parametrize(
    ("bits", "half_range", "expected"),
    [((8, 8), True, {"relu_2"}), ((8, 8), False, set()), ((6, 6), True, set())],
    ids=["all", "unwanted", "narrow"],
)
def test_all_codes_are_used_at_8_bits_where_that_is_free_and_wanted(
    bits: tuple[int, int], half_range: bool, expected: set[str]
) -> None:
    model, _ = guarded(bits, Reconstruction(half_range=half_range))
    wide = IntegerGrid.unsigned(8)
    found = {name for name, q in model.activation_quantizers.items() if q.grid == wide}
    assert found == expected
    assert shiftable_points(model) == {"relu_2"}


def test_the_wide_grid_halves_the_step_of_the_baselines() -> None:
    plain, wide = (
        guarded((8, 8), Reconstruction(half_range=wanted))[0].activation_quantizers["relu_2"]
        for wanted in (False, True)
    )
    assert 0.3 < float(wide.scale) / float(plain.scale) < 0.7


def test_points_below_8_bits_and_those_that_cannot_shift_keep_their_grid() -> None:
    model = quantized(traced("detector"))
    grids = {name: q.grid for name, q in model.activation_quantizers.items()}
    use_all_codes(model)
    changed = {name for name, q in model.activation_quantizers.items() if q.grid != grids[name]}
    assert changed == shiftable_points(model)


def test_the_images_are_read_in_one_pass_and_a_few_batches() -> None:
    read = []

    class Counted(list):
        def __iter__(self):
            for batch in super().__iter__():
                read.append(len(batch))
                yield batch

    images = Counted(batches(count=64, size=8))
    start_at_best_baseline(quantized(traced("plain"), (6, 6)), images, CHOSEN, no_progress)
    assert 64 < sum(read) <= 2 * 64
    assert torch.cat(list(images)).shape[0] == 64


def test_the_guard_compares_on_the_first_batches() -> None:
    images = batches(count=8 * (GUARD_BATCHES + 2), size=8)
    found = guard_images(images)
    assert len(found) == GUARD_BATCHES
    assert all(a is b for a, b in zip(found, images, strict=False))
    assert len(guard_images(images[:1])) == 1


def test_output_noise_by_hand_leaves_the_scales() -> None:
    model, _ = guarded()
    before, images = state_of(model), batches()
    noise = output_noise(model, images, lambda x: (with_outliers()(x).detach(),))
    assert noise == pytest.approx(noise_of(model), rel=1e-4)
    assert differing(before, state_of(model)) == set()


def test_a_guard_without_baselines_returns_to_where_it_was_made() -> None:
    """As the transformers' methods use it: one method, zero points and weights of its own."""
    model, _ = guarded()
    quantizer = model.activation_quantizers["relu"]
    quantizer.grid = IntegerGrid.unsigned(6)
    quantizer.set_range(torch.tensor(-0.2), torch.tensor(2.0))
    before, images = state_of(model), batches()
    guard = Guard(model, lambda x: (with_outliers()(x),), images, {"repq-vit": 0.01})
    quantizer.set_range(torch.tensor(-50.0), torch.tensor(2.0))
    model.weight_of("6").zero_()
    method, decibels = guard.keep_better("repquant")
    assert method == "repq-vit"
    assert decibels["repq-vit"] == pytest.approx(20.0, abs=0.05)
    assert differing(before, state_of(model)) == set()
