"""YOLOv6: published sizes, equality of train and deploy form, layout of the outputs."""

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reptrt.models.fuse import reparameterize
from reptrt.models.graph import trace
from reptrt.models.yolov6.blocks import BN_EPS, BepC3, RepVggBlock, conv_relu
from reptrt.models.yolov6.config import Yolov6Config
from reptrt.models.yolov6.head import Integral
from reptrt.models.yolov6.network import CONFIGS, Yolov6, build_yolov6, yolov6n_demo
from tests.random_detectors import random_images, randomize_detector

CHECKPOINT = Path(__file__).parents[3] / "models" / "demo" / "yolov6n_demo.safetensors"
# Millions of parameters and GFLOPs at 640x640: README of https://github.com/meituan/YOLOv6; for the T
# model, whose row there is of release 1.0, issue 659; for the base models configs/base/README.md.
PUBLISHED = {
    "yolov6n": ("4.7", "11.4"),
    "yolov6s": ("18.5", "45.3"),
    "yolov6m": ("34.9", "85.8"),
    "yolov6l": ("59.6", "150.7"),
    "yolov6n_v2": ("4.3", "11.1"),
    "yolov6t": ("9.7", "24.9"),
    "yolov6s_v2": ("17.2", "44.2"),
    "yolov6m_v2": ("34.3", "82.2"),
    "yolov6l_relu": ("58.5", "144.0"),
    "yolov6l_v2": ("58.5", "144.0"),
    "yolov6n_base": ("4.65", "11.46"),
    "yolov6s_base": ("13.14", "30.6"),
    "yolov6m_base": ("28.33", "72.30"),
    "yolov6l_base": ("59.61", "150.89"),
}
# One of every kind, narrow: the layouts of M and L with all modes, both necks and both poolings.
TINY = {
    "single path, release 2": Yolov6Config(0.1, 0.05, bidirectional=False),
    "single path, release 3": Yolov6Config(0.1, 0.05, bidirectional=True, csp_pooling=True),
    "csp, release 2": Yolov6Config(0.2, 0.05, False, csp_expansion=2 / 3, reg_max=16),
    "csp, release 3": Yolov6Config(0.2, 0.05, True, csp_expansion=2 / 3, reg_max=16),
    "csp, silu": Yolov6Config(0.2, 0.05, True, csp_expansion=1 / 2, mode="conv_silu", reg_max=16),
    "csp, plain": Yolov6Config(0.2, 0.05, True, True, csp_expansion=1 / 2, mode="conv_relu"),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def deployed(request: pytest.FixtureRequest) -> tuple[str, Yolov6]:
    with torch.device("meta"):
        return request.param, reparameterize(build_yolov6(request.param))


def _relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def test_every_published_size_is_checked():
    assert CONFIGS.keys() - PUBLISHED.keys() == {"yolov6n_demo"}


def test_deploy_form_has_the_published_number_of_parameters(deployed):
    # With every batch norm folded into its convolution: one bias for its weight and bias.
    name, model = deployed
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    count = sum(p.numel() for p in model.parameters()) - sum(n.num_features for n in norms)
    published = Decimal(PUBLISHED[name][0])
    hundredths = Decimal(f"{count / 1e6:.2f}")  # 4.65 is 4.7 in the tables: rounded twice
    assert hundredths.quantize(published, ROUND_HALF_UP) == published


def test_deploy_form_has_the_published_flops_at_640(deployed):
    # Two per multiply-add. The tables' counter takes a transposed convolution for four times what
    # it is; with that, all but the base models' agree to the digit.
    name, model = deployed
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 640, 640, device="meta"))
    transposed = [m for m in model.modules() if isinstance(m, nn.ConvTranspose2d)]
    cells = (20 * 20, 40 * 40)
    extra = sum(3 * 2 * m.weight.numel() * n for m, n in zip(transposed, cells, strict=True))
    gflops = (counter.get_total_flops() + extra) / 1e9
    published = PUBLISHED[name][1]
    if name.endswith("_base"):
        assert gflops == pytest.approx(float(published), rel=0.01)
    else:
        assert gflops == pytest.approx(float(published), abs=0.06)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride", "groups"),
    [(6, 6, 1, 1), (4, 6, 1, 1), (6, 6, 2, 1), (6, 6, 1, 3), (6, 6, 1, 6), (6, 12, 2, 6)],
)
def test_rep_vgg_block_equals_its_deploy_form(in_channels, out_channels, stride, groups):
    torch.manual_seed(0)
    block = RepVggBlock(in_channels, out_channels, stride, groups).double().eval()
    for layer in block.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    block.act = nn.Identity()
    x = torch.randn(2, in_channels, 8, 8, dtype=torch.float64)
    expected = block(x)
    block.reparameterize()
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
    assert sorted(block.state_dict()) == ["rbr_reparam.bias", "rbr_reparam.weight"]


def test_merging_a_block_twice_changes_nothing():
    block = RepVggBlock(4, 4).eval()
    block.reparameterize()
    weight = block.rbr_reparam.weight
    block.reparameterize()
    assert block.rbr_reparam.weight is weight


def test_identity_branch_exists_only_where_the_shape_stays():
    assert RepVggBlock(4, 4).rbr_identity is not None
    assert RepVggBlock(4, 4, stride=2).rbr_identity is None
    assert RepVggBlock(4, 8).rbr_identity is None


def test_a_csp_stage_has_half_as_many_bottles_as_blocks_and_weighs_their_shortcuts():
    stage = BepC3(8, 12, 5, 2 / 3, conv_relu, nn.ReLU).eval()
    bottles = [stage.m.conv1, *stage.m.block]
    assert len(bottles) == 2
    assert stage.cv1.block.conv.out_channels == 8
    x = torch.rand(1, 8, 4, 4)
    bottles[0].alpha.data.fill_(0.5)
    inner = bottles[0].conv2(bottles[0].conv1(x))
    torch.testing.assert_close(bottles[0](x), inner + 0.5 * x)


def test_the_integral_is_the_mean_of_each_sides_distribution():
    logits = torch.zeros(2, 4 * 5, 1, 3)
    logits[1, 5:10, 0, 2] = torch.tensor([0.0, 0.0, 0.0, 200.0, 0.0])  # side top: certainly 3
    distances = Integral(4)(logits)
    expected = torch.full((2, 4, 1, 3), 2.0)
    expected[1, 1, 0, 2] = 3.0
    torch.testing.assert_close(distances, expected)
    logits = torch.randn(1, 4 * 5, 1, 1, generator=torch.Generator().manual_seed(0)) * 3
    shares = logits[0, 10:15, 0, 0].exp() / logits[0, 10:15, 0, 0].exp().sum()
    mean = sum(index * float(share) for index, share in enumerate(shares))
    assert float(Integral(4)(logits)[0, 2]) == pytest.approx(mean, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", TINY)
def test_a_detector_equals_its_deploy_form(kind):
    torch.manual_seed(0)
    model = randomize_detector(Yolov6(TINY[kind], 3))
    images = random_images(3)
    expected = model(images)
    assert float(expected[0][:, :3].std()) > 0.02
    assert [tuple(m.shape) for m in expected] == [(3, 7, s, s) for s in (8, 4, 2)]
    for mine, wanted in zip(reparameterize(model)(images), expected, strict=True):
        assert _relative_error(mine, wanted) < 1e-4


@torch.no_grad()
def test_a_detector_with_distributions_is_traced_for_any_batch_size():
    torch.manual_seed(0)
    model = reparameterize(randomize_detector(Yolov6(TINY["csp, release 3"], 3)))
    graph = trace(model, (64, 64))
    for count in (1, 3):
        images = random_images(count)
        for mine, wanted in zip(graph(images), model(images), strict=True):
            assert _relative_error(mine, wanted) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", ["yolov6n", "yolov6s"])
def test_a_published_size_equals_its_deploy_form(name):
    torch.manual_seed(0)
    model = randomize_detector(build_yolov6(name))
    images = random_images(2)
    for mine, wanted in zip(reparameterize(model)(images), model(images), strict=True):
        assert _relative_error(mine, wanted) < 1e-4


def test_every_batch_norm_uses_the_epsilon_of_yolov6():
    with torch.device("meta"):
        norms = [m for m in build_yolov6("yolov6m").modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {BN_EPS} == {1e-3}


@pytest.mark.parametrize("name", ["yolov6n_demo", "yolov6t"])
def test_outputs_are_one_map_per_stride_with_scores_then_distances(name):
    model = build_yolov6(name, 5).eval()
    maps = model(torch.rand(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 9, 8, 12), (2, 9, 4, 6), (2, 9, 2, 3)]
    # Untrained heads predict their bias: the prior 0.01, and boxes two cells wide.
    torch.testing.assert_close(maps[0][:, :5], torch.full((2, 5, 8, 12), 0.01))
    torch.testing.assert_close(maps[2][:, 5:], torch.ones(2, 4, 2, 3))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("yolov6n", "backbone.stem.rbr_dense.conv.weight"),
        ("yolov6n", "backbone.ERBlock_2.0.rbr_1x1.bn.running_mean"),
        ("yolov6n", "backbone.ERBlock_2.1.conv1.rbr_identity.weight"),
        ("yolov6n", "backbone.ERBlock_4.1.block.4.rbr_dense.bn.bias"),
        ("yolov6n", "backbone.ERBlock_5.2.cspsppf.cv7.block.conv.weight"),
        ("yolov6n", "neck.Bifusion0.upsample.upsample_transpose.bias"),
        ("yolov6n", "neck.Rep_p4.block.2.rbr_dense.conv.weight"),
        ("yolov6n", "neck.reduce_layer0.block.conv.weight"),
        ("yolov6n", "detect.cls_convs.0.block.bn.weight"),
        ("yolov6n", "detect.reg_preds.2.bias"),
        ("yolov6m", "backbone.ERBlock_3.1.cv1.block.conv.weight"),
        ("yolov6m", "backbone.ERBlock_3.1.m.conv1.conv2.rbr_dense.conv.weight"),
        ("yolov6m", "backbone.ERBlock_3.1.m.block.0.alpha"),
        ("yolov6m", "backbone.ERBlock_5.2.sppf.cv2.block.bn.weight"),
        ("yolov6l", "backbone.stem.block.conv.weight"),
        ("yolov6l", "neck.Rep_n4.m.block.3.conv1.block.bn.running_var"),
        ("yolov6l_v2", "neck.upsample0.upsample_transpose.weight"),
    ],
)
def test_parameters_have_the_names_of_the_official_checkpoints(model, name):
    with torch.device("meta"):
        assert name in build_yolov6(model).state_dict()


def test_demo_checkpoint_has_every_tensor_of_the_train_form_in_ten_megabytes():
    model = yolov6n_demo(8)
    with safe_open(CHECKPOINT, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert shapes == wanted
    assert CHECKPOINT.stat().st_size <= 10_000_000
