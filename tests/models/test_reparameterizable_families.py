"""Every family of timm whose modules fuse: the same function in float64, once and again."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import nn

from reptrt.models.fuse import ReparameterizationError, fusing_method, reparameterize
from reptrt.models.fuse_check import require_same_function
from reptrt.models.load import load_model, load_random
from reptrt.models.spec import PreprocessOverrides
from tests.families import PUBLISHED, published, trained


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_a_family_computes_the_same_in_deploy_form(name: str) -> None:
    module = published(name)
    side = PUBLISHED[name]
    deployed = reparameterize(module)
    require_same_function(module, deployed, (side, side))
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    expected, once = module(images), deployed(images)
    assert relative_error(once, expected) < 1e-5
    assert torch.equal(reparameterize(deployed)(images), once)
    assert sum(isinstance(m, nn.Conv2d) for m in deployed.modules()) <= sum(
        isinstance(m, nn.Conv2d) for m in module.modules()
    )


def timm_files_of_blocks() -> Iterator[str]:
    for file in pkgutil.iter_modules(timm.models.__path__):
        source = importlib.import_module(f"timm.models.{file.name}")
        own = (c for c in vars(source).values() if getattr(c, "__module__", "") == source.__name__)
        classes = [c for c in own if inspect.isclass(c) and issubclass(c, nn.Module)]
        if any(hasattr(c, m) for c in classes for m in ("fuse", "reparameterize")):
            yield source.__name__


def test_no_family_of_timm_is_forgotten() -> None:
    tested = {
        type(block).__module__
        for name in PUBLISHED
        for block in timm.create_model(name).modules()
        if fusing_method(block) is not None
    }
    assert set(timm_files_of_blocks()) <= tested


def test_a_wrong_layer_scale_is_noticed() -> None:
    module = published("fastvit_t8")
    deployed = reparameterize(module)
    with torch.no_grad():
        deployed.stages[1].blocks[0].token_mixer.reparam_conv.weight[:, :, 1, 1] -= 1  # no identity
    with pytest.raises(ReparameterizationError, match=r"^stages\.1\.blocks\.0\.token_mixer: "):
        require_same_function(module, deployed, (64, 64))


def test_a_checkpoint_in_deploy_form_loads_and_is_left_alone(tmp_path) -> None:
    overrides = PreprocessOverrides(image_size=(64, 64))
    module = trained(load_random("timm:fastvit_t8", overrides, num_classes=5).module)
    deployed = reparameterize(module)
    torch.save(deployed.state_dict(), tmp_path / "deployed.pt")
    loaded = load_model("timm:fastvit_t8", tmp_path / "deployed.pt", overrides).module
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(reparameterize(loaded)(images), deployed(images))
