"""What whole calibrations do at each effort."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from reptrt.calibrators.base import CalibrationResult
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.reconstruction.effort import MARGIN_DB
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.settings import Reconstruction, Settings
from tests.reconstructing import batches, differing, learn_gently, state_of, with_outliers
from tests.tiny_networks import quantized

SHORT = Reconstruction(iterations=6, batch_size=8)
LONG = Reconstruction(iterations=40, batch_size=16)

gentle = pytest.fixture(scope="module", autouse=True)(learn_gently)


def calibrate(
    settings: Settings, method: str = "repapq"
) -> tuple[QuantizedModel, CalibrationResult]:
    model = quantized(with_outliers(), (6, 6))
    return model, create_calibrator(method, settings).calibrate(model, batches(64))


@pytest.mark.parametrize("method", ["repapq", "brecq", "qdrop"])
def test_low_effort_learns_nothing_and_is_no_worse_than_the_best_baseline(method: str) -> None:
    _, result = calibrate(Settings(effort="low"), method)
    found = result.compared
    assert {fit.steps for fit in result.blocks} == {0}
    assert found[method] > max(snr for name, snr in found.items() if name not in (method, "gptq"))
    assert found[result.method] == max(found.values())
    assert all(fit.after <= fit.before for fit in result.blocks)


def test_effort_goes_where_the_block_alone_is_not_good_enough() -> None:
    _, result = calibrate(Settings(reconstruction=LONG, target_snr=19.0))
    enough = 19 + 10 * math.log10(4) - MARGIN_DB
    for fit in result.blocks:
        assert fit.snr_db is not None
        assert (fit.steps == 0) == (fit.snr_db >= round(enough, 1))
        assert fit.reason
    assert {fit.steps == 0 for fit in result.blocks} == {True, False}
    found = dict(result.compared)
    assert found.pop("repapq") > max(found.values()) + 1


def test_with_the_usual_effort_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    settings = Settings(reconstruction=SHORT, checkpoint=tmp_path, target_snr=40.0)
    first, result = calibrate(settings)
    sorted(tmp_path.iterdir())[-1].unlink()
    again, resumed = calibrate(settings)
    assert differing(state_of(first), state_of(again)) == set()
    untimed = [replace(fit, seconds=None) for fit in result.blocks]
    assert [replace(fit, seconds=None) for fit in resumed.blocks] == untimed
    assert any(fit.steps for fit in result.blocks)
