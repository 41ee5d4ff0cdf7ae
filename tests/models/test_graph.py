from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from reptrt.models.graph import TraceError, aten, fold_batch_norm, get_tensor, layer_name, trace
from tests.tiny_networks import NETWORKS, randomize, smooth_images, traced

BATCH_NORM = aten._native_batch_norm_legit_no_training.default

FOLDABLE = {
    "without bias": lambda: [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)],
    "with bias": lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=1e-2)],
    "affine-less norm": lambda: [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False)],
    "grouped, strided": lambda: [nn.Conv2d(3, 9, 3, stride=2, groups=3), nn.BatchNorm2d(9)],
    "padded, dilated": lambda: [
        nn.Conv2d(3, 8, 3, padding=2, dilation=2, bias=False),
        nn.BatchNorm2d(8),
    ],
}


def operators(graph_module: torch.fx.GraphModule) -> list[object]:
    return [node.target for node in graph_module.graph.nodes if node.op == "call_function"]


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class SharedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norms[1](self.conv(self.norms[0](self.conv(x))))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y.add_(1).relu_()
        y[:, 0] *= 2
        return y.contiguous()


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.sum() > 0 else x


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.conv(image[None])[0] for image in x])


@pytest.mark.parametrize("name", FOLDABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_folded_batch_norm_leaves_the_function_unchanged(name: str, dtype: torch.dtype) -> None:
    module = randomize(nn.Sequential(*FOLDABLE[name](), nn.ReLU())).to(dtype)
    images = smooth_images(2, seed=3).to(dtype)
    expected = module(images)
    program = torch.export.export(module, (images,)).run_decompositions({})
    graph_module = program.module(check_guards=False)
    assert fold_batch_norm(graph_module) == 1
    assert BATCH_NORM not in operators(graph_module)
    torch.testing.assert_close(graph_module(images), expected)
    assert expected.std() > 0.1


def test_folding_computes_gamma_over_sigma_by_hand() -> None:
    conv, norm = nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1, eps=0.0)
    nn.init.constant_(conv.weight, 3.0)
    nn.init.constant_(conv.bias, 1.0)
    nn.init.constant_(norm.weight, 2.0)
    nn.init.constant_(norm.bias, 0.5)
    norm.running_mean.fill_(5.0)
    norm.running_var.fill_(16.0)
    graph_module = trace(nn.Sequential(conv, norm).eval(), (4, 4))
    assert graph_module.get_parameter("0.weight").flatten().tolist() == [1.5, 1.5, 1.5]  # 3 * 2 / 4
    assert graph_module.get_parameter("0.bias").tolist() == [-1.5]  # (1 - 5) * 2 / 4 + 0.5


@pytest.mark.parametrize("network", [TwoReaders, SharedConv])
def test_a_batch_norm_that_cannot_be_folded_stays_and_computes_the_same(
    network: type[nn.Module],
) -> None:
    module = randomize(network())
    images = smooth_images(2, seed=3)
    graph_module = trace(module, (16, 16))
    assert BATCH_NORM in operators(graph_module)
    torch.testing.assert_close(graph_module(images), module(images))


def test_the_traced_module_does_not_share_its_folded_weights_with_the_original() -> None:
    module = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = copy.deepcopy(module.state_dict())
    trace(module, (8, 8))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_traced_network_computes_the_same_for_any_batch(name: str) -> None:
    module, graph_module = randomize(NETWORKS[name]()), traced(name)
    for batch in (1, 3):
        images = smooth_images(batch, seed=batch)
        torch.testing.assert_close(graph_module(images), module(images), rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_is_traced_as_asked() -> None:
    module = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)))
    graph_module = trace(module, (8, 8), batch_size=1)
    placeholder = next(n for n in graph_module.graph.nodes if n.op == "placeholder")
    assert tuple(placeholder.meta["val"].shape) == (1, 3, 8, 8)
    images = smooth_images(1, seed=0, size=8)
    torch.testing.assert_close(graph_module(images), module(images))


def test_in_place_operators_become_functional() -> None:
    module = InPlace().eval()
    graph_module = trace(module, (8, 8))
    names = {str(target) for target in operators(graph_module)}
    assert not [name for name in names if "_." in name or "copy_" in name], names
    assert not {"aten.clone.default", "aten.contiguous.default", "aten.view.default"} & names
    images = smooth_images(2, seed=0, size=8)
    torch.testing.assert_close(graph_module(images), module(images))


def test_dropout_and_identity_vanish() -> None:
    module = nn.Sequential(
        nn.Dropout(0.5), nn.Identity(), nn.Conv2d(3, 4, 3), nn.Dropout2d(0.5), nn.ReLU()
    )
    graph_module = trace(module.eval(), (8, 8))
    assert operators(graph_module) == [aten.conv2d.default, aten.relu.default]


def test_layers_are_named_as_in_the_state_dict() -> None:
    module = randomize(NETWORKS["residual"]())
    graph_module = trace(module, (16, 16))
    targets = (aten.conv2d.default, aten.linear.default)
    layers = [layer_name(n) for n in graph_module.graph.nodes if n.target in targets]
    weighted = (nn.Conv2d, nn.Linear)
    expected = {name for name, layer in module.named_modules() if isinstance(layer, weighted)}
    assert set(layers) == expected
    assert len(layers) == len(expected)


def test_a_weight_that_is_read_back_is_the_layers_own() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    graph_module = trace(module, (8, 8))
    node = next(n for n in graph_module.graph.nodes if n.target == "0.weight")
    torch.testing.assert_close(get_tensor(graph_module, node), module[0].weight, rtol=0, atol=0)


def test_a_network_that_fixes_its_batch_says_how_to_go_on() -> None:
    with pytest.raises(TraceError) as caught:
        trace(FixedBatch().eval(), (8, 8))
    assert "fixes its batch size" in str(caught.value)
    assert "`batch_size=1`" in str(caught.value)
    assert trace(FixedBatch().eval(), (8, 8), batch_size=1)(torch.zeros(1, 3, 8, 8)).shape[0] == 1


@pytest.mark.parametrize(
    ("module", "size", "word"),
    [
        (DataDependent(), (8, 8), "data-dependent"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 2)), (8, 8), "3, 8, 8"),
        (nn.Conv2d(1, 4, 3), (8, 8), "channels"),
    ],
    ids=["control flow", "wrong image size", "grayscale network"],
)
def test_what_cannot_be_recorded_gives_one_line(
    module: nn.Module, size: tuple[int, int], word: str
) -> None:
    with pytest.raises(TraceError) as caught:
        trace(module.eval(), size)
    assert "\n" not in str(caught.value)
    assert word in str(caught.value)
    assert caught.value.exit_code == 2
