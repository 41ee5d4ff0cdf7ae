"""ONNX Runtime's default quantization of MobileOne-S0: refused by TensorRT, and after repair not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from reptrt.models.load import load_model
from reptrt.pipeline.data.datasets import open_images
from reptrt.pipeline.export.export import export_float
from reptrt.pipeline.export.prepare import open_network
from reptrt.pipeline.recipe import Recipe
from tests.command_line import reptrt
from tests.engines.lint.equal_codes import differences
from tests.engines.lint.rtx import needs_rtx

DATA = Path(os.environ.get("REPTRT_DATA", "../shared/data"))
WEIGHTS = DATA / "weights" / "mobileone_s0_fused_imagenet1k.pth"
CALIBRATION, IMAGES = DATA / "images" / "imagenet_calib", DATA / "images" / "imagenet_val"


class Reader(CalibrationDataReader):
    def __init__(self, images: np.ndarray) -> None:
        self._images = iter(images[:, None])

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {"images": image}


@pytest.mark.slow
@needs_rtx
@pytest.mark.skipif(
    not (WEIGHTS.exists() and CALIBRATION.exists() and IMAGES.exists()),
    reason=f"no {WEIGHTS} and {IMAGES}: set REPTRT_DATA to the folder of real weights and images",
)
def test_onnx_runtimes_default_of_mobileone_s0_is_repaired_within_a_step(tmp_path: Path) -> None:
    loaded = load_model("mobileone_s0", WEIGHTS)
    network = open_network(loaded, Recipe(model="mobileone_s0"))
    export_float(network.float_graph, tmp_path / "fp32.onnx", network.card)
    images = {
        folder: next(iter(open_images(folder, loaded.preprocess, limit=4).batches(4)))
        for folder in (CALIBRATION, IMAGES)
    }
    path, fixed = tmp_path / "ort.onnx", tmp_path / "fixed.onnx"
    quantize_static(tmp_path / "fp32.onnx", path, Reader(images[CALIBRATION]))

    refused = reptrt("lint", path)
    assert refused.code == 1
    assert "TensorRT refuses DequantizeLinear" in refused.out
    repaired = reptrt("lint", path, "--fix", fixed)
    assert repaired.code == 0
    assert "44 of 44 layers in INT8" in repaired.out

    steps = differences(onnx.load(path), onnx.load(fixed), images[IMAGES][:1])
    assert len(steps) == 45  # all but the output's, which is float now
    assert max(int(step.max()) for step in steps.values()) <= 1
    assert np.mean([(step > 0).mean() for step in steps.values()]) < 1e-3
