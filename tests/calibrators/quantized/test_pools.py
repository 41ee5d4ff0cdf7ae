"""Average pools on request: INT8 where a quantized layer reads what they return."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from reptrt.calibrators.quantized.placement import Placement, place_quantizers
from reptrt.models.graph import trace
from tests.placing import Forward, Network, conv, edges


def place_pools(forward: Forward, *keep_float: str, **layers: nn.Module) -> Placement:
    graph_module = trace(Network(forward, **layers).eval(), (8, 8))
    return place_quantizers(graph_module.graph, keep_float, pools=True)


def pooled(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m.fc(F.adaptive_avg_pool2d(F.relu(m.a(x)), 1).flatten(1))


def test_the_input_of_a_global_average_pool_is_quantized() -> None:
    for forward in (pooled, lambda m, x: m.fc(F.relu(m.a(x)).mean((-2, -1)))):
        placement = place_pools(forward, a=conv(), fc=nn.Linear(3, 2))
        (pool,) = placement.pools
        assert {("relu", pool)} in edges(placement)
        assert len(placement.points) == 3


def test_a_window_reads_what_a_convolution_beside_it_reads() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        r = F.relu(m.a(x))
        return m.b(F.avg_pool2d(r, 2)) + m.c(r)[:, :, ::2, ::2]

    found = edges(place_pools(forward, a=conv(), b=conv(), c=conv()))
    assert {("relu", "avg_pool2d"), ("relu", "c")} in found


def test_a_pool_before_a_float_layer_stays_float() -> None:
    placement = place_pools(pooled, "fc", a=conv(), fc=nn.Linear(3, 2))
    assert placement.pools == ()
    assert edges(placement) == [{("x", "a")}]


def test_a_mean_over_other_sides_is_no_pool() -> None:
    placement = place_pools(
        lambda m, x: m.fc(F.relu(m.a(x)).mean((1, 2))), a=conv(), fc=nn.Linear(8, 2)
    )
    assert placement.pools == ()
