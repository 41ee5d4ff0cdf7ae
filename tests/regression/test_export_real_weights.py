"""The exported MobileOne-S0 with its real weights, layer by layer against PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from reptrt.calibrators.quantized.biases import round_biases
from reptrt.calibrators.registry import create_calibrator
from reptrt.models.load import load_model
from reptrt.pipeline.data.datasets import open_images
from reptrt.pipeline.export.export import export_qdq
from reptrt.pipeline.export.prepare import open_network
from reptrt.pipeline.recipe import Recipe
from tests.onnx_codes import (
    agreement,
    forced_codes,
    largest_step,
    onnx_codes,
    snr_db,
    torch_codes,
)

DATA = Path(os.environ.get("REPTRT_DATA", "../shared/data"))
WEIGHTS = DATA / "weights" / "mobileone_s0_fused_imagenet1k.pth"
CALIBRATION, IMAGES = DATA / "images" / "imagenet_calib", DATA / "images" / "imagenet_val"


@pytest.mark.slow
@pytest.mark.skipif(
    not (WEIGHTS.exists() and CALIBRATION.exists() and IMAGES.exists()),
    reason=f"no {WEIGHTS} and {IMAGES}: set REPTRT_DATA to the folder of real weights and images",
)
def test_every_layer_of_mobileone_s0_computes_pytorchs_codes(tmp_path: Path) -> None:
    loaded = load_model("mobileone_s0", WEIGHTS)
    network = open_network(loaded, Recipe(model="mobileone_s0"))
    calibration = open_images(CALIBRATION, loaded.preprocess, limit=8).batches(8)
    batches = [torch.from_numpy(images) for images in calibration]
    create_calibrator("mae").calibrate(network.quantized, batches)
    round_biases(network.quantized)
    export_qdq(network.quantized, tmp_path / "model.onnx", network.card)
    proto = onnx.load(tmp_path / "model.onnx")
    images = torch.from_numpy(
        next(iter(open_images(IMAGES, loaded.preprocess, limit=8).batches(8)))
    )

    codes, (logits,) = torch_codes(network.quantized, proto, images)
    top = logits.argmax(1)
    plain, (plain_logits,) = forced_codes(proto, images, codes, optimized=False)
    optimized, _ = forced_codes(proto, images, codes, optimized=True)
    assert agreement(plain, codes) >= 0.999
    assert snr_db(plain_logits, logits) >= 100
    assert largest_step(optimized, codes) <= 1
    assert agreement(optimized, codes) >= 0.999

    figures = [
        f"each layer on its own: codes equal {agreement(plain, codes):.6f} without, "
        f"{agreement(optimized, codes):.6f} with graph optimizations"
    ]
    for name, fast in (("without", False), ("with", True)):
        free, (output,) = onnx_codes(proto, images, optimized=fast)
        figures.append(
            f"end to end {name}: SNR {snr_db(output, logits):.1f} dB, codes equal "
            f"{agreement(free, codes):.4f}, same top-1 {np.mean(output.argmax(1) == top):.3f}"
        )
    print("\n".join(figures))  # noqa: T201  # measured, not promised: pytest -rP shows them
