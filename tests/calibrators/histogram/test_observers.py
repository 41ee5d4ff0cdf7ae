from __future__ import annotations

import pytest
import torch

from reptrt.calibrators.histogram.observers import (
    NUM_BINS,
    HistogramObserver,
    ObservationError,
    observing,
)
from reptrt.calibrators.quantized.quantizers import IntegerGrid, TensorQuantizer


def observe(*batches: torch.Tensor) -> HistogramObserver:
    observer = HistogramObserver()
    for batch in batches:
        observer.observe(batch)
    return observer


def normal(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def test_every_element_lands_in_the_bin_of_its_magnitude() -> None:
    x = torch.tensor([0.0, -1.0, 2.0, 4.0])
    observer = observe(x)
    assert observer.limit == 8.0  # above the largest value, which is a power of two
    assert observer.counts.nonzero().flatten().tolist() == [
        *(0, NUM_BINS // 8, NUM_BINS // 4, NUM_BINS // 2)
    ]
    assert (observer.amax, observer.minimum) == (4.0, -1.0)
    assert float(observer.centers()[0]) == 4.0 / NUM_BINS
    assert float(observer.centers()[-1]) == 8.0 - 4.0 / NUM_BINS


def test_a_larger_value_doubles_the_range_and_loses_no_count() -> None:
    bulk = normal(10000).clamp(-2.9, 2.9)
    observer = observe(torch.tensor([3.0]), bulk, torch.tensor([20.0]))
    assert observer.limit == 32.0
    # The same numbers into bins of the final width.
    index = (torch.cat([bulk.abs(), torch.tensor([3.0, 20.0])]) * (NUM_BINS / 32.0)).long()
    assert torch.equal(observer.counts, torch.bincount(index, minlength=NUM_BINS).double())


def assert_same(one: HistogramObserver, other: HistogramObserver) -> None:
    assert torch.equal(one.counts, other.counts)
    assert (one.limit, one.amax, one.minimum) == (other.limit, other.amax, other.minimum)


@pytest.mark.parametrize("size", [1, 7, 100, 999])
def test_the_histogram_depends_neither_on_batches_nor_on_their_order(size: int) -> None:
    values = torch.cat([normal(100), normal(1000, seed=1) * torch.linspace(0.1, 30, 1000)])
    values[500] = 64.0  # a power of two, which the range has to exceed
    whole, pieces = observe(values), observe(*values.split(size))
    assert_same(whole, pieces)
    assert_same(whole, observe(*reversed(values.split(size))))
    assert whole.counts.sum() == 1100


@pytest.mark.parametrize("scales", [(1, 1), (1, 300), (300, 1), (0, 1), (1, 0), (0, 0), (1e-40, 1)])
def test_observers_of_parts_add_up_to_the_one_of_all(scales: tuple[float, float]) -> None:
    parts = [normal(1000, seed) * scale for seed, scale in enumerate(scales)]
    merged = observe(parts[0])
    other = observe(parts[1])
    before = other.counts.clone()
    merged.merge(other)
    assert_same(merged, observe(*parts))
    assert torch.equal(other.counts, before)  # what was merged is left as it was


def test_memory_does_not_grow_with_the_images() -> None:
    observer = observe(normal(10))
    before = observer.counts.numel() * observer.counts.element_size()
    for seed in range(20):
        observer.observe(normal(1000, seed) * 2**seed)
    assert observer.counts.numel() * observer.counts.element_size() == before
    held = [value for value in vars(observer).values() if isinstance(value, torch.Tensor)]
    assert [tensor.numel() for tensor in held] == [NUM_BINS]
    assert observer.counts.sum() == 20010


@pytest.mark.parametrize("factor", [1e-44, 1e-38, 1e-36, 1.0, 1e36])
def test_values_of_any_magnitude_are_counted(factor: float) -> None:
    x = torch.tensor([1.0, 0.5, -1.0]) * factor
    observer = observe(x)
    assert observer.counts.sum() == 3
    assert observer.amax == float(x[0])
    assert factor < 1e-30 or observer.counts.max() == 2


def test_zeros_before_the_first_value_are_counted() -> None:
    assert torch.equal(
        observe(torch.zeros(5), torch.tensor([1.0])).counts,
        observe(torch.tensor([0.0] * 5 + [1.0])).counts,
    )


def test_a_dead_tensor_is_observed_without_an_error() -> None:
    observer = observe(torch.zeros(5), torch.zeros(5))
    assert (observer.amax, observer.minimum, observer.limit) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_gives_one_line(value: float) -> None:
    with pytest.raises(ObservationError, match="NaN or infinite") as caught:
        observe(torch.tensor([1.0, value]))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_observers_see_what_flows_into_their_quantizers_and_leave_no_hook() -> None:
    quantizers = {
        name: TensorQuantizer(IntegerGrid.for_activations(8, signed=True)) for name in "ab"
    }
    with observing(quantizers) as observers:
        quantizers["a"](torch.tensor([1.0, -2.0]))
        quantizers["b"](torch.tensor([5.0]))
    quantizers["a"](torch.tensor([100.0]))
    assert {name: o.amax for name, o in observers.items()} == {"a": 2.0, "b": 5.0}
    assert not any(quantizer._forward_pre_hooks for quantizer in quantizers.values())


def test_an_error_leaves_no_hook_behind() -> None:
    quantizer = TensorQuantizer(IntegerGrid.for_activations(8, signed=True))
    with pytest.raises(ObservationError), observing({"a": quantizer}):
        quantizer(torch.tensor([float("nan")]))
    assert not quantizer._forward_pre_hooks
