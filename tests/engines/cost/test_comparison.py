from __future__ import annotations

import json

import pytest

from reptrt.engines.cost.comparison import compare_layers, comparison_entry
from reptrt.engines.cost.sources import Layers
from reptrt.engines.data_sheet import A100
from reptrt.engines.inspection.kernel import Kernel, Tensor


def layers(dtype: str, kernels: int, batch: int = 1) -> Layers:
    image = Tensor("x", dtype, (batch, 64, 500, 500))
    one = Kernel("k", "kgen", (image,), (), (image,), ())
    return Layers((one,) * kernels, batch, "test")


def test_int8_is_set_against_fp16_at_its_own_batch():
    found = compare_layers(layers("Int8", 3, batch=4), layers("Half", 2), A100)
    assert found.batch == 4
    assert found.byte_ratio == pytest.approx(3 * 1 / (2 * 2))
    assert found.kernel_ratio == 1.5
    assert found.time_ratio == pytest.approx(
        found.int8.cost.milliseconds / found.fp16.cost.milliseconds
    )
    assert 0.7 < found.time_ratio < 0.9


def test_the_entry_can_be_read_by_others():
    entry = comparison_entry(compare_layers(layers("Int8", 1), layers("Half", 1), A100))
    assert json.loads(json.dumps(entry)) == entry
    assert entry["byte_ratio"] == 0.5
    assert entry["int8"]["traffic"]["activation_megabytes"] == 32
    assert entry["int8"]["milliseconds"] < entry["fp16"]["milliseconds"]
