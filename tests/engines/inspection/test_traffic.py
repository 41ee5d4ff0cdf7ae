from __future__ import annotations

import pytest

from reptrt.engines.inspection.kernel import Kernel, Product, Tensor
from reptrt.engines.inspection.traffic import measure_traffic

X = Tensor("x", "Int8", (1, 1000, 10, 100))  # one megabyte
Y = Tensor("y", "Half", (1, 1000, 10, 100))
W = Tensor("w", "Int8", (500_000,))
PRODUCT = Product(1000, 1000, 500)


def test_activations_weights_and_operations_are_added_up_by_type():
    int8 = Kernel("a", "correlation", (X,), (W,), (X,), (), product=PRODUCT)
    half = Kernel(
        "b", "correlation", (Y,), (Tensor("w", "Half", (10,)),), (Y,), (), product=PRODUCT
    )
    pointwise = Kernel("c", "kgen", (Y,), (), (X,), ())
    view = Kernel("d", "NoOp", (Y,), (), (Y,), ())
    found = measure_traffic([int8, half, pointwise, view])
    assert found is not None
    assert found.kernels == 3
    assert found.activation_megabytes == pytest.approx(2 + 4 + 3)
    assert found.weight_megabytes == pytest.approx(0.50002)
    assert found.megabytes == pytest.approx(9.50002)
    assert found.gigaoperations == {"Half": 1.0, "Int8": 1.0}
    assert found.int8_writers == 50


def test_an_engine_for_a_range_of_batches_has_no_figures():
    open_batch = Kernel("a", "kgen", (Tensor("x", "Half", (-1, 3)),), (), (X,), ())
    assert measure_traffic([open_batch]) is None
