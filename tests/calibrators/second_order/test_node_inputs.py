from __future__ import annotations

import pytest
import torch
from torch import fx

from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.calibrators.quantized.run_nodes import activation_nodes
from reptrt.calibrators.second_order.node_inputs import NodeInputs
from tests.reconstructing import all_values, placeholder
from tests.tiny_networks import NETWORKS, calibrated, smooth_images


def uneven(batch_size: int | None) -> list[torch.Tensor]:
    """Nine images, or twelve in batches of 4."""
    if batch_size is None:
        return list(smooth_images(9, seed=3).split([3, 5, 1]))
    return list(smooth_images(12, seed=3).split(batch_size))


def result_of(model: QuantizedModel) -> fx.Node:
    (node,) = (n for n in model.graph_module.graph.nodes if n.op == "output")
    return node


def is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


@pytest.mark.parametrize("batch_size", [None, 4], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_is_that_of_a_run_of_the_network(name: str, batch_size: int | None) -> None:
    model, batches = calibrated(name, (6, 6), batch_size), uneven(batch_size)
    runs = [all_values(model, batch) for batch in batches]
    node_inputs, seen = NodeInputs(model, batches), set()
    results = result_of(model).all_input_nodes

    def compare(node: fx.Node) -> None:
        expected = [values[node] for values in runs]
        assert all(
            torch.equal(a, b) for a, b in zip(node_inputs.batches(node), expected, strict=True)
        )
        if len({part.shape[1:] for part in expected}) == 1:
            assert torch.equal(node_inputs.read(node), torch.cat(expected))
        seen.add(node)

    tensors = {n for n in activation_nodes(model.graph_module.graph) if is_tensor(n)}
    for node in node_inputs:
        for source in tensors.intersection(node.all_input_nodes):
            compare(source)
    for node in results:
        compare(node)
    assert seen == tensors


@pytest.mark.parametrize("name", NETWORKS)
def test_values_go_after_their_last_reader(name: str) -> None:
    model = calibrated(name)
    node_inputs = NodeInputs(model, [smooth_images(2, seed=3)])
    order = {node: index for index, node in enumerate(node_inputs.nodes)}
    assert placeholder(model) not in order
    last = {source: order[node] for node in node_inputs.nodes for source in node.all_input_nodes}
    for call in filter(is_activation_call, node_inputs.nodes):  # who reads it may ask for both
        (source,) = call.all_input_nodes
        last[source] = max(last[source], last.get(call, order[call]))
    for index, node in enumerate(node_inputs):
        assert order[node] == index
        for source, end in last.items():
            if end < index:
                with pytest.raises(KeyError):
                    node_inputs.read(source)
    with pytest.raises(KeyError):
        node_inputs.read(placeholder(model))


def test_a_node_is_computed_by_the_model_as_it_then_is() -> None:
    model, images = calibrated("plain"), smooth_images(4, seed=3)
    node_inputs, done = NodeInputs(model, [images]), []
    for node in node_inputs:
        if is_activation_call(node):
            done.append(node)
            quantizer = model.quantizer_at(node)
            quantizer.scale.mul_(2)
        if node.name in model.placement.layers:
            model.weight_of(model.placement.layers[node.name]).data.mul_(0.5)
    assert len(done) == 3
    with torch.no_grad():
        assert torch.equal(node_inputs.read(result_of(model).all_input_nodes[0]), model(images)[0])


def test_what_is_put_in_a_nodes_place_is_what_its_readers_get() -> None:
    model, images = calibrated("plain"), smooth_images(4, seed=3)
    node_inputs = NodeInputs(model, [images[:1], images[1:]])
    first = node_inputs.nodes[0]
    for node in node_inputs:
        if node is first:
            node_inputs.change(placeholder(model), [-images[:1], -images[1:]])
    with torch.no_grad():
        torch.testing.assert_close(
            node_inputs.read(result_of(model).all_input_nodes[0]), model(-images)[0]
        )


def test_nothing_is_recorded_for_a_gradient() -> None:
    model = calibrated("plain")
    node_inputs = NodeInputs(model, [smooth_images(2, seed=3)])
    assert len(list(node_inputs)) == len(node_inputs.nodes)
    assert not node_inputs.read(result_of(model).all_input_nodes[0]).requires_grad
