"""The tiny networks, calibrated and exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from reptrt.calibrators.quantized.find_attention import Softmax
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.export.export import Precision, export_qdq
from tests.tiny_networks import SIZE, calibrated, smooth_images


@dataclass(frozen=True)
class Case:
    network: str
    bits: tuple[int, int] = (8, 8)
    batch_size: int | None = None
    precision: Precision = "fp32"
    softmax: Softmax = "float"

    def __str__(self) -> str:
        name = f"{self.network}-{self.softmax}" if self.softmax != "float" else self.network
        return f"{name}-w{self.bits[0]}a{self.bits[1]}-{self.batch_size or 'N'}-{self.precision}"


@dataclass(frozen=True)
class Exported:
    case: Case
    model: QuantizedModel
    proto: onnx.ModelProto
    path: Path
    images: torch.Tensor


def card(name: str) -> ModelCard:
    preprocess = Preprocess((SIZE, SIZE), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    if name == "detector":
        return ModelCard(name, "detection", preprocess, 3, None, ("p1", "p2"), (2, 4))
    return ModelCard(name, "classification", preprocess, 10, None, ("logits",))


def export(case: Case, path: Path) -> Exported:
    """Calibrate with min-max and write `path`."""
    model = calibrated(case.network, case.bits, case.batch_size, case.softmax)
    export_qdq(model, path, card(case.network), case.batch_size, precision=case.precision)
    images = smooth_images(case.batch_size or 128, seed=5)
    return Exported(case, model, onnx.load(path), path, images)
