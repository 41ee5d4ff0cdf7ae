"""YOLOv6: published sizes, equality of train and deploy form, layout of the outputs."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.fuse import reparameterize
from models.yolov6 import Yolov6, yolov6n, yolov6n_demo, yolov6s, yolov6t
from models.yolov6_blocks import BN_EPS, RepVggBlock

CHECKPOINT = Path(__file__).parents[2] / "models" / "demo" / "yolov6n_demo.safetensors"


def randomize_batch_norms(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)


def randomize_predictions(model: Yolov6) -> None:
    for layer in [*model.detect.cls_preds, *model.detect.reg_preds]:
        nn.init.normal_(layer.weight)


def deployed_on_meta(build) -> Yolov6:
    with torch.device("meta"):
        return reparameterize(build())


@pytest.mark.parametrize(
    ("build", "published"), [(yolov6n, 4.65), (yolov6t, 9.70), (yolov6s, 18.54)]
)
def test_deploy_form_has_the_published_number_of_parameters(build, published):
    # Counted: RepVGG blocks merged, batch norms of the other convolutions still there. The tables
    # say 4.7 and 18.5: two decimals rounded again.
    count = sum(p.numel() for p in deployed_on_meta(build).parameters())
    assert round(count / 1e6, 2) == published


@pytest.mark.parametrize(
    ("build", "published"), [(yolov6n, 11.4), (yolov6t, 24.9), (yolov6s, 45.3)]
)
def test_deploy_form_has_the_published_flops_at_640(build, published):
    # Two per multiply-add. The tables' counter takes a transposed convolution for four times what
    # it is, which makes up the rest: 11.32 + 0.08, 24.73 + 0.18 and 44.97 + 0.31.
    model = deployed_on_meta(build)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 640, 640, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride", "groups"),
    [(6, 6, 1, 1), (4, 6, 1, 1), (6, 6, 2, 1), (6, 6, 1, 3), (6, 6, 1, 6), (6, 12, 2, 6)],
)
def test_rep_vgg_block_equals_its_deploy_form(in_channels, out_channels, stride, groups):
    torch.manual_seed(0)
    block = RepVggBlock(in_channels, out_channels, stride, groups).double().eval()
    randomize_batch_norms(block)
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


@torch.no_grad()
def test_whole_detector_equals_its_deploy_form():
    torch.manual_seed(0)
    model = yolov6n_demo().double().eval()
    randomize_batch_norms(model)
    randomize_predictions(model)
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    expected = model.forward_raw(images)
    assert float(expected[0][0].std()) > 0.1
    for mine, wanted in zip(reparameterize(model).forward_raw(images), expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-8)


def test_every_batch_norm_uses_the_epsilon_of_yolov6():
    norms = [m for m in yolov6t().modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {BN_EPS} == {1e-3}


@pytest.mark.parametrize("build", [yolov6n_demo, yolov6t])
def test_outputs_are_one_map_per_stride_with_scores_then_distances(build):
    model = build(5).eval()
    maps = model(torch.rand(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 9, 8, 12), (2, 9, 4, 6), (2, 9, 2, 3)]
    # Untrained heads predict their bias: the prior 0.01, and boxes two cells wide.
    torch.testing.assert_close(maps[0][:, :5], torch.full((2, 5, 8, 12), 0.01))
    torch.testing.assert_close(maps[2][:, 5:], torch.ones(2, 4, 2, 3))


@pytest.mark.parametrize(
    "name",
    [
        "backbone.stem.rbr_dense.conv.weight",
        "backbone.ERBlock_2.0.rbr_1x1.bn.running_mean",
        "backbone.ERBlock_2.1.conv1.rbr_identity.weight",
        "backbone.ERBlock_4.1.block.4.rbr_dense.bn.bias",
        "backbone.ERBlock_5.2.cspsppf.cv7.block.conv.weight",
        "neck.Bifusion0.upsample.upsample_transpose.bias",
        "neck.Rep_p4.block.2.rbr_dense.conv.weight",
        "neck.reduce_layer0.block.conv.weight",
        "detect.cls_convs.0.block.bn.weight",
        "detect.reg_preds.2.bias",
    ],
)
def test_parameters_have_the_names_of_the_official_checkpoints(name):
    assert name in yolov6n().state_dict()


def test_exported_program_accepts_another_batch_size():
    model = yolov6n_demo().eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(model, (torch.rand(2, 3, 64, 64),), dynamic_shapes=shapes)
    images = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(program.module()(images), model(images))


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
