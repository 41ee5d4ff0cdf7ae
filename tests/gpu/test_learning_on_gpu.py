"""Learning on a GPU gives a network as good as learning on the CPU."""

from __future__ import annotations

import math

import pytest
import torch

from reptrt.calibrators.reconstruction.across_block import AcrossBlockCalibrator
from reptrt.calibrators.settings import Reconstruction, Settings
from tests.reconstructing import batches, learn_gently, with_outliers
from tests.tiny_networks import quantized, smooth_images

gentle = pytest.fixture(scope="module", autouse=True)(learn_gently)


def output_snr(device: str) -> float:
    """SNR in dB, on unseen images, of a network that was calibrated on `device`."""
    model, images = quantized(with_outliers(), (6, 6)), smooth_images(64, seed=9).to(device)
    model.graph_module.to(device)
    with torch.no_grad(), model.float_mode():
        expected = model(images)[0]
    chosen = Settings(reconstruction=Reconstruction(iterations=40, batch_size=16))
    result = AcrossBlockCalibrator(chosen).calibrate(model, [b.to(device) for b in batches(64)])
    assert result.method == "repapq"
    assert {tensor.device.type for tensor in model.graph_module.state_dict().values()} == {device}
    with torch.no_grad():
        noise = (model(images)[0] - expected).square().sum() / expected.square().sum()
    return -10 * math.log10(float(noise))


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch finds no CUDA GPU on this machine"
)
def test_learning_on_cuda_is_as_good_as_on_the_cpu() -> None:
    assert output_snr("cuda") == pytest.approx(output_snr("cpu"), abs=1)
