from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from reptrt.models.fuse import reparameterize
from reptrt.models.weights.state_dict import WeightsMismatchError, load_weights, match_weights


def _small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


def _fill(module: nn.Module) -> dict[str, torch.Tensor]:
    """Give each tensor of `module` a value of its own."""
    return {
        name: torch.full_like(tensor, index) if tensor.is_floating_point() else tensor
        for index, (name, tensor) in enumerate(module.state_dict().items())
    }


def _error(module: nn.Module, tensors: dict[str, torch.Tensor]) -> str:
    with pytest.raises(WeightsMismatchError) as caught:
        load_weights(match_weights(module, tensors), "tiny", "w.pth")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _as_apple(name: str) -> str:
    """Rename timm's MobileOne keys to those that apple/ml-mobileone publishes."""
    head, _, rest = name.partition(".")
    if head == "stages":
        stage, _, rest = rest.partition(".")
        head = f"stage{int(stage) + 1}"
    name = f"{head}.{rest}".replace("stem.", "stage0.").replace("head.fc.", "linear.")
    for ours, theirs in (("conv_kxk", "rbr_conv"), ("conv_scale", "rbr_scale")):
        name = name.replace(ours, theirs)
    name = name.replace("attn.fc1", "se.reduce").replace("attn.fc2", "se.expand")
    return name.replace("identity", "rbr_skip")


def _as_repvgg_authors(name: str) -> str:
    name = _as_apple(name).replace("rbr_conv", "rbr_dense").replace("conv_1x1", "rbr_1x1")
    return name.replace("rbr_skip", "rbr_identity").replace("reparam_conv", "rbr_reparam")


def test_equal_names_load_every_tensor() -> None:
    tensors = _fill(_small())
    loaded = load_weights(match_weights(_small(), tensors), "tiny", "w.pth")
    torch.testing.assert_close(loaded.state_dict(), tensors, rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module._orig_mod.model."])
def test_prefixes_of_wrappers_are_stripped(prefix: str) -> None:
    tensors = {prefix + name: tensor for name, tensor in _fill(_small()).items()}
    assert match_weights(_small(), tensors).num_faults == 0


def test_a_prefix_that_belongs_to_the_model_is_kept() -> None:
    wrapped = nn.ModuleDict({"model": _small()})
    assert match_weights(wrapped, _fill(wrapped)).num_faults == 0


def test_a_missing_batch_count_is_forgiven() -> None:
    tensors = {k: v for k, v in _fill(_small()).items() if "num_batches" not in k}
    assert match_weights(_small(), tensors).num_faults == 0


@pytest.mark.parametrize("variant", ["mobileone_s0", "mobileone_s4"])
@pytest.mark.parametrize("fused", [False, True], ids=["train form", "deploy form"])
def test_apples_names_load_into_mobileone(variant: str, fused: bool) -> None:
    module = timm.create_model(variant, num_classes=4)
    source = reparameterize(module) if fused else module
    tensors = _fill(source)
    match = match_weights(module, {_as_apple(name): t for name, t in tensors.items()})
    assert any("rbr_scale" in _as_apple(name) for name in tensors) is not fused
    loaded = load_weights(match, variant, "w.pth")
    torch.testing.assert_close(loaded.state_dict(), tensors, rtol=0, atol=0)


@pytest.mark.parametrize("fused", [False, True], ids=["train form", "deploy form"])
def test_the_repvgg_authors_names_load_into_repvgg(fused: bool) -> None:
    module = timm.create_model("repvgg_a0", num_classes=4)
    tensors = _fill(reparameterize(module) if fused else module)
    match = match_weights(module, {_as_repvgg_authors(name): t for name, t in tensors.items()})
    loaded = load_weights(match, "repvgg_a0", "w.pth")
    torch.testing.assert_close(loaded.state_dict(), tensors, rtol=0, atol=0)


def test_microsofts_names_load_into_swin_through_timms_filter() -> None:
    module = timm.create_model("swin_tiny_patch4_window7_224", num_classes=4)
    tensors = {}
    for name, tensor in _fill(module).items():
        stage, dot, rest = name.removeprefix("layers.").partition(".downsample.")
        renamed = f"layers.{int(stage) - 1}.downsample.{rest}" if dot else name
        tensors[renamed.replace("head.fc.", "head.")] = tensor
    tensors["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    assert match_weights(module, tensors).num_faults == 0


def test_a_vit_resamples_its_positions_but_never_its_patches() -> None:
    tensors = timm.create_model("vit_tiny_patch16_224", num_classes=2, depth=1).state_dict()
    smaller = timm.create_model("vit_tiny_patch16_224", num_classes=2, depth=1, img_size=96)
    assert match_weights(smaller, tensors).num_faults == 0
    patches = timm.create_model(
        "vit_tiny_patch16_224", num_classes=2, depth=1, img_size=96, patch_size=8
    )
    assert "patch_embed.proj.weight" in match_weights(patches, tensors).misshapen


def test_a_head_of_another_size_implies_its_class_count() -> None:
    tensors = _fill(nn.Sequential(*list(_small())[:-1], nn.Linear(4, 12)))
    assert match_weights(_small(), tensors).implied_num_classes() == 12


def test_another_width_implies_no_class_count() -> None:
    tensors = _fill(_small())
    tensors["0.weight"] = torch.zeros(4, 2, 3, 3)
    match = match_weights(_small(), tensors)
    assert match.implied_num_classes() is None
    assert "0.weight [4, 2, 3, 3] instead of [4, 3, 3, 3]" in _error(_small(), tensors)


def test_parameters_without_statistics_are_said_to_be_that() -> None:
    message = _error(_small(), dict(_small().named_parameters()))
    assert "2 missing (1.running_mean; 1.running_var)" in message
    assert message.endswith(
        "; it holds parameters without BatchNorm's statistics: save model.state_dict()"
    )


def test_missing_and_unexpected_names_are_listed_with_the_nearest() -> None:
    tensors = _fill(_small())
    tensors["3.weigth"] = tensors.pop("3.weight")
    message = _error(_small(), tensors)
    assert "1 missing (3.weight, nearest 3.weigth)" in message
    assert "1 unexpected (3.weigth, nearest 3.weight)" in message
    assert "another architecture" not in message


def test_another_architecture_is_called_so_and_the_list_is_short() -> None:
    message = _error(timm.create_model("repvgg_a0"), _fill(_small()))
    assert "another architecture" in message
    assert "; ...)" in message
    assert len(message) < 600
