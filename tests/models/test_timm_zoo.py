from __future__ import annotations

import pytest
import timm
import torch

from reptrt.models.fuse import reparameterize
from reptrt.models.names import TIMM
from reptrt.models.timm_zoo import has_timm_model, timm_spec, zoo_spec

# Published parameter counts in millions: timm's results table, and the papers for the deploy form.
TRAIN_FORM_PARAMETERS = {"repvgg_a0": 9.11, "mobileone_s0": 5.29, "deit_tiny": 5.72}
DEPLOY_FORM_PARAMETERS = {"repvgg_a0": 8.31, "mobileone_s0": 2.08, "deit_tiny": 5.72}


def _millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize("name", TIMM)
def test_an_entry_has_weights_with_their_licence_and_source(name: str) -> None:
    spec = zoo_spec(name)
    assert spec.weights is not None
    assert spec.weights.url.startswith("https://huggingface.co/timm/")
    assert spec.weights.url.endswith(spec.weights.filename)
    assert spec.weights.licence in {"apache-2.0", "mit", "mobileone-license"}
    assert "ImageNet" in spec.weights.source
    assert spec.num_classes == 1000
    assert TIMM[name].architecture in timm.list_pretrained()


def test_preprocessing_is_what_timm_evaluates_with() -> None:
    deit, vit = zoo_spec("deit_tiny").preprocess, zoo_spec("vit_tiny").preprocess
    assert (deit.image_size, deit.interpolation, deit.crop_pct) == ((224, 224), "bicubic", 0.9)
    assert deit.mean == (0.485, 0.456, 0.406)
    assert vit.mean == (0.5, 0.5, 0.5)
    assert zoo_spec("mobileone_s0").preprocess.crop_pct == 0.875


@pytest.mark.parametrize("name", TRAIN_FORM_PARAMETERS)
def test_both_forms_have_the_published_parameter_count(name: str) -> None:
    module = zoo_spec(name).build(None, (224, 224))
    assert _millions(module) == pytest.approx(TRAIN_FORM_PARAMETERS[name], abs=0.005)
    assert _millions(reparameterize(module)) == pytest.approx(
        DEPLOY_FORM_PARAMETERS[name], abs=0.005
    )


def test_a_tag_is_checked_like_the_name() -> None:
    assert has_timm_model("repvgg_a0")
    assert has_timm_model("repvgg_a0.rvgg_in1k")
    assert not has_timm_model("repvgg_a0.nobody")
    assert not has_timm_model("repvgg_a00")


def test_a_transformer_is_built_for_the_image_size_asked_for() -> None:
    module = timm_spec("deit_tiny_patch16_224").build(10, (96, 96))
    assert module(torch.zeros(1, 3, 96, 96)).shape == (1, 10)


def test_a_plain_link_carries_the_digest_in_its_name() -> None:
    weights = timm_spec("gcvit_xxtiny").weights
    assert weights is not None
    assert weights.hub_id is None
    assert weights.sha256 is not None
    assert f"-{weights.sha256}." in weights.filename


def test_a_backbone_without_a_classifier_has_no_published_weights() -> None:
    spec = timm_spec("vit_small_patch14_dinov2")
    assert spec.weights is None
    assert spec.num_classes == 1000
