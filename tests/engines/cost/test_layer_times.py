from __future__ import annotations

import numpy as np
import onnx
import pytest

from reptrt.engines.cost.estimate import EngineCost, KernelCost
from reptrt.engines.cost.layer_times import layer_neighbours, layer_times
from reptrt.engines.inspection.kernel import Kernel

GRAPH = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["": 17]>
    chain (float[1,4,8,8] x) => (float[1,4,8,8] y)
    {
        [first] a = Conv(x, w)
        [act] r = Relu(a)
        [second] b = Conv(r, w)
        [sum] y = Add(b, r)
    }""").graph
GRAPH.initializer.append(onnx.numpy_helper.from_array(np.zeros((4, 4, 1, 1), np.float32), "w"))


def cost_of(**microseconds: float) -> EngineCost:
    kernels = tuple(
        KernelCost(name, "", us, 0.0, 0.0, "", "memory") for name, us in microseconds.items()
    )
    return EngineCost("GPU", 0.0, 0.0, 0.0, 0.0, "memory", kernels)


def kernel(name: str, *nodes: str) -> Kernel:
    return Kernel(name, "", (), (), (), nodes)


def test_a_kernel_without_a_product_belongs_to_the_layer_in_front() -> None:
    kernels = [kernel("k1", "first"), kernel("k2", "act"), kernel("k3", "second", "sum")]
    times = layer_times(kernels, cost_of(k1=5.0, k2=2.0, k3=7.0), GRAPH)
    assert times == {"first": 7.0, "second": 7.0}


def test_a_kernel_of_two_layers_is_shared() -> None:
    times = layer_times([kernel("k", "first", "act", "second")], cost_of(k=6.0), GRAPH)
    assert times == {"first": 3.0, "second": 3.0}


def test_what_nobody_knows_costs_no_layer() -> None:
    assert layer_times([kernel("k", "other")], cost_of(k=6.0), GRAPH) == {}


def test_neighbours_feed_each_other_without_a_layer_between() -> None:
    assert layer_neighbours(GRAPH) == {"first": {"second"}, "second": {"first"}}


def test_times_add_up_to_the_kernels_that_are_known() -> None:
    kernels = [kernel("k1", "first"), kernel("k2", "act", "sum")]
    times = layer_times(kernels, cost_of(k1=5.0, k2=2.0), GRAPH)
    assert sum(times.values()) == pytest.approx(7.0)
