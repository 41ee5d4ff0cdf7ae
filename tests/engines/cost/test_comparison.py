from __future__ import annotations

from dataclasses import asdict

import pytest

from reptrt.engines.cost.comparison import compare_layers
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
    assert found.time_ratio == pytest.approx(found.int8.milliseconds / found.fp16.milliseconds)
    assert 0.7 < found.time_ratio < 0.9


def test_the_record_holds_what_is_compared():
    found = asdict(compare_layers(layers("Int8", 1), layers("Half", 1), A100))
    assert (found["gpu"], found["byte_ratio"]) == (A100.gpu, 0.5)
    assert found["int8"]["traffic"]["activation_megabytes"] == 32
    assert found["int8"]["low"] < found["int8"]["milliseconds"] < found["fp16"]["milliseconds"]
