"""What only a GPU can show: calibration on CUDA."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.command_line import TinyProject, reptrt

CALIBRATORS = ("minmax", "percentile", "entropy", "mse", "mae")

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch finds no CUDA GPU on this machine"
)


def scales(workspace: Path, tiny: TinyProject, calibrator: str, device: str) -> list[float]:
    options = ("--calibrator", calibrator, "--device", device, "--workspace", workspace / device)
    outcome = reptrt("calibrate", *tiny.options, *options)
    assert outcome.code == 0, outcome.err
    (file,) = (workspace / device).rglob(f"{calibrator}-w8a8/*/scales.json")
    return [entry["scale"] for entry in json.loads(file.read_text())["activations"].values()]


@needs_cuda
@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_calibration_on_cuda_agrees_with_the_cpu(
    tiny: TinyProject, tmp_path: Path, calibrator: str
) -> None:
    on_cpu = scales(tmp_path, tiny, calibrator, "cpu")
    on_cuda = scales(tmp_path, tiny, calibrator, "cuda")
    # A clip is chosen among candidates 3 % apart, and float32 sums differ in their last bits.
    np.testing.assert_allclose(on_cuda, on_cpu, rtol=0.035)
