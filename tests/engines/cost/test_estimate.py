from __future__ import annotations

import pytest

from reptrt.engines.cost.estimate import CostError, estimate_cost, scale_batch
from reptrt.engines.cost.result import cost_result
from reptrt.engines.data_sheet import A100
from reptrt.engines.inspection.kernel import Kernel, Product, Tensor


def kernel(name: str, channels: int, kind: str = "kgen", product: Product | None = None) -> Kernel:
    image = Tensor("x", "Half", (2, channels, 100, 100))
    return Kernel(name, kind, (image,), (), (image,), (), product=product)


def test_an_engine_takes_the_sum_of_its_kernels_within_an_interval():
    small, large = kernel("small", 8), kernel("large", 800)
    cost = estimate_cost([small, large, kernel("view", 800, "NoOp")], A100, spread=0.25)
    parts = [one.microseconds for one in cost.kernels]
    assert cost.milliseconds == pytest.approx(sum(parts) / 1e3)
    assert (cost.low, cost.high) == (cost.milliseconds / 1.25, cost.milliseconds * 1.25)
    assert [one.name for one in cost.kernels] == ["small", "large"]
    assert [one.name for one in cost.slowest_first] == ["large", "small"]
    assert [one.bound for one in cost.kernels] == ["launch", "memory"]
    assert cost.bound == "memory"
    assert cost.megabytes == pytest.approx(2 * 2 * 2 * 1e4 * (8 + 800) / 1e6)


def test_the_result_has_what_the_issue_promises():
    found = cost_result(estimate_cost([kernel("k", 8)], A100), 2, "test")
    assert {"milliseconds", "low", "high", "kernels", "megabytes", "bound"} <= found.keys()
    assert found["kernels"][0]["bound"] == "launch"


def test_another_batch_scales_activations_and_rows_but_not_weights():
    image, weight = Tensor("x", "Half", (2, 4, 8, 8)), Tensor("w", "Half", (4, 4))
    one = Kernel(
        "k", "conv", (image,), (weight,), (image,), (), product=Product(128, 4, 4, 1, (1, 1))
    )
    (found,) = scale_batch([one], 3)
    assert found.inputs[0].dims == (6, 4, 8, 8)
    assert found.weights == (weight,)
    assert found.product == Product(384, 4, 4, 1, (1, 1))


def test_another_batch_has_more_attentions_not_longer_ones():
    one = kernel("mha", 8, product=Product(197, 197, 128, 3))
    (found,) = scale_batch([one], 4)
    assert found.product == Product(197, 197, 128, 12)


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        ([], "no kernels"),
        ([Kernel("k", "kgen", (Tensor("x", "Half"),), (), (), ())], "has no shapes"),
        (
            [Kernel("k", "kgen", (Tensor("x", "Half", (-1, 3)),), (), (), ())],
            "build it for one batch",
        ),
    ],
)
def test_kernels_without_shapes_have_no_cost(kernels, message):
    with pytest.raises(CostError, match=message):
        estimate_cost(kernels, A100)
