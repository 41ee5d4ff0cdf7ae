"""Attention in FP8: on request, and within an accuracy that is stated where it is predicted faster."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from timm.models.vision_transformer import VisionTransformer

from reptrt.calibrators.quantized.quantizers import Fp8Quantizer
from reptrt.calibrators.sensitivity import Aim
from reptrt.models.load import load_module
from reptrt.models.spec import PreprocessOverrides
from reptrt.pipeline.open_run import Caller, open_run
from reptrt.pipeline.placing import place
from reptrt.pipeline.recipe import Recipe, RecipeError
from reptrt.pipeline.run import Run
from reptrt.pipeline.stages import choose_float_layers
from tests.pipeline.test_budget import store_images
from tests.tiny_networks import randomize, smooth_images

SIZE = 64
L4 = "server-l4"


@contextmanager
def opened(folder: Path, target: str = L4, **options: object) -> Iterator[Run]:
    """A transformer of 257 tokens, whose attention takes a good part of the time."""
    net = VisionTransformer(
        img_size=(SIZE, SIZE), patch_size=4, embed_dim=128, depth=1, num_heads=4, num_classes=4
    )
    network = load_module(randomize(net), "net", PreprocessOverrides((SIZE, SIZE), None, None))
    images = store_images(smooth_images(8, seed=0, size=SIZE), folder, 8)
    known = {"max_drop": 5.0, "opt_batch": 8, "evaluation": images}
    recipe = Recipe(model="net", data=images, target=target, **{**known, **options})
    with open_run(recipe, folder, Caller("test"), network) as run:
        yield run


def num_fp8(run: Run) -> int:
    quantizers = run.make_network().quantized.activation_quantizers.values()
    return sum(isinstance(one, Fp8Quantizer) for one in quantizers)


def test_it_is_taken_where_it_is_predicted_faster_until_accuracy_asks_for_float(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as run:
        place(run)
        assert run.priced is not None
        assert run.priced.fp8_attention
        assert run.priced.milliseconds < run.priced.fp16_milliseconds
        assert (num_fp8(run), run.final_plan.softmax) == (4, "fp8")
        choose_float_layers(run, Aim(0.0, 0.0, float_attention=True))
        assert (num_fp8(run), run.final_plan.softmax) == (0, "float")
        assert run.make_network().quantized.weight_quantizers
        choose_float_layers(run, Aim(0.0, 0.0))
        assert num_fp8(run) == 4
        choose_float_layers(run, Aim(math.inf, math.inf, float_attention=True))
        assert run.make_network().quantized.activation_quantizers == {}


@pytest.mark.parametrize(
    ("target", "options", "may"),
    [
        (L4, {}, True),
        ("server-t4", {}, False),
        ("cpu", {}, False),
        (L4, {"max_drop": None}, False),
        (L4, {"softmax": "float"}, False),
    ],
)
def test_it_is_tried_within_an_accuracy_on_a_gpu_that_has_it_where_nobody_says_otherwise(
    tmp_path: Path, target: str, options: dict[str, object], may: bool
) -> None:
    with opened(tmp_path, target, **options) as run:
        assert run.plan.may_use_fp8 == may


def test_it_is_refused_where_the_target_has_none(tmp_path: Path) -> None:
    with (
        opened(tmp_path, "server-t4", softmax="fp8") as run,
        pytest.raises(RecipeError, match="server-t4 has no FP8") as caught,
    ):
        run.plan  # noqa: B018  # is made when it is read
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
