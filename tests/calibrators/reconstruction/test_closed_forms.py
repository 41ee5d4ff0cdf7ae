from __future__ import annotations

import math

import pytest
import torch

from reptrt.calibrators.reconstruction.closed_forms import (
    FACTORS,
    MOST_GAIN,
    fit_affine,
    fit_closed_forms,
    own_snr,
)
from reptrt.calibrators.settings import Reconstruction
from tests.reconstructing import Stand, with_outliers

IMAGES = torch.arange(16)


def test_an_affine_map_is_found_exactly() -> None:
    found = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    gain, offset = torch.tensor([0.8, 1.5, 1.0]), torch.tensor([0.1, -2.0, 0.0])
    expected = gain[:, None] * found + offset[:, None]
    for actual, wanted in zip(fit_affine(found, expected), (gain, offset), strict=True):
        torch.testing.assert_close(actual, wanted)


def test_the_affine_map_by_hand_and_its_limits() -> None:
    found = torch.tensor([[0.0, 2.0], [0.0, 1.0], [5.0, 5.0]])
    expected = torch.tensor([[1.0, 4.0], [0.0, 9.0], [1.0, 3.0]])
    gain, offset = fit_affine(found, expected)
    assert gain.tolist() == [1.5, MOST_GAIN, 1.0]
    assert offset.tolist() == [1.0, 4.5 - MOST_GAIN / 2, -3.0]
    gain, offset = fit_affine(found, expected, with_gain=False)
    assert gain.tolist() == [1, 1, 1]
    assert offset.tolist() == [1.5, 4.0, -3.0]


@pytest.mark.parametrize("affine", ["identity", "none"])
@pytest.mark.parametrize("index", [1, 2])
def test_a_block_alone_comes_closer_to_float(index: int, affine: str) -> None:
    stand = Stand.before(with_outliers(), index, Reconstruction(affine=affine))
    learned = stand.learned()
    distances = stand.distances(learned)
    sample = distances.sample(IMAGES, stage=False)
    before = own_snr(distances, sample)
    fit_closed_forms(learned, distances, IMAGES)
    assert own_snr(distances, sample) > before


def test_a_step_that_is_too_wide_is_narrowed() -> None:
    stand = Stand.before(with_outliers(), 1, Reconstruction())
    learned = stand.learned()
    (scale,) = learned.scales
    right = float(scale.scale().detach())
    scale.stretch(1 / min(FACTORS))
    fit_closed_forms(learned, stand.distances(learned), IMAGES)
    assert float(scale.scale().detach()) == pytest.approx(right, rel=0.3)


def test_a_snapshot_is_put_back_bit_for_bit() -> None:
    stand = Stand.before(with_outliers(), 2, Reconstruction())
    learned = stand.learned()
    before = learned.snapshot()
    fit_closed_forms(learned, stand.distances(learned), IMAGES)
    assert not all(map(torch.equal, before, learned.snapshot()))
    learned.restore(before)
    assert all(map(torch.equal, before, learned.snapshot()))


def test_the_snr_of_an_exact_block_is_infinite() -> None:
    stand = Stand.before(with_outliers(), 0, Reconstruction())
    distances = stand.distances(stand.learned())
    exact = type(distances)(
        *(stand.model, stand.block_inputs.float_network, stand.block_inputs, 0),
        *(stand.chosen, torch.Generator()),
    )
    assert own_snr(exact, exact.sample(IMAGES)) == math.inf
    assert own_snr(distances, distances.sample(IMAGES)) < 40
