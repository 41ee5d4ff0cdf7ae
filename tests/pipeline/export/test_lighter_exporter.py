"""An export costs less than PyTorch's own, and is the same file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter import _fx_passes, _registration

from reptrt.models.card import ModelCard
from reptrt.models.graph import trace
from reptrt.models.spec import Preprocess
from reptrt.pipeline.export import export
from reptrt.pipeline.export.export import export_float
from reptrt.pipeline.export.lighter_exporter import lighten_exporter

CARD = ModelCard(
    "toy", "classification", Preprocess((8, 8), (0.5,) * 3, (0.2,) * 3), 3, None, ("y",)
)


class Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.norm = nn.LayerNorm(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.norm(self.up(self.conv(x))))


class Pooled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2)


def write(module: nn.Module, path: Path) -> bytes:
    torch.manual_seed(0)
    export_float(trace(module.eval(), (8, 8)), path, CARD)
    return path.read_bytes()


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows whenever PyTorch decomposes a program."""
    lighten_exporter()
    calls: list[str] = []
    decompose = _fx_passes.decompose_with_registry.args[0]

    def counted(program: torch.export.ExportedProgram, registry: object) -> object:
        calls.append("decomposed")
        return decompose(program, registry)

    some = _fx_passes.decompose_with_registry.func
    monkeypatch.setattr(_fx_passes, "decompose_with_registry", partial(some, counted))
    return calls


def test_the_file_is_that_of_pytorchs_own_export(
    decomposed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Upsampled()
    light = write(network, tmp_path / "model.onnx")
    assert not decomposed
    own = _fx_passes.decompose_with_registry.args[0]
    monkeypatch.setattr(_fx_passes, "decompose_with_registry", own)
    monkeypatch.setattr(export, "is_recorded", lambda _module: False)
    heavy = write(network, tmp_path / "model.onnx")
    assert content(heavy) == content(light)
    assert decomposed


def content(file: bytes) -> list[object]:
    """All of a file but the names of tensors between nodes, which PyTorch's exporter gives."""
    graph = onnx.load_model_from_string(file).graph
    stated = [*graph.input, *graph.output, *graph.initializer]
    known = {one.name for one in stated}
    nodes = [(one.op_type, {*one.input} & known, list(one.attribute)) for one in graph.node]
    return [nodes, [one.SerializeToString() for one in stated]]


def test_what_has_no_onnx_form_is_decomposed(decomposed: list[str], tmp_path: Path) -> None:
    write(Pooled(), tmp_path / "model.onnx")
    assert decomposed
    images = torch.rand(1, 3, 8, 8)
    (found,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(
        None, {"images": images.numpy()}
    )
    np.testing.assert_allclose(found, Pooled()(images).numpy(), rtol=1e-6)


def test_a_transposed_convolution_keeps_its_values(tmp_path: Path) -> None:
    network = Upsampled()
    write(network, tmp_path / "model.onnx")
    images = torch.rand(2, 3, 8, 8)
    (found,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(
        None, {"images": images.numpy()}
    )
    np.testing.assert_allclose(found, network(images).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_the_table_is_read_once() -> None:
    lighten_exporter()
    apis = _registration.onnxscript_apis
    assert apis.get_torchlib_ops() is apis.get_torchlib_ops()


def test_a_pytorch_that_keeps_them_elsewhere_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        pass

    monkeypatch.setattr(_registration, "onnxscript_apis", Elsewhere())
    monkeypatch.delattr(_fx_passes, "decompose_with_registry")
    lighten_exporter.__wrapped__()
    assert not vars(_registration.onnxscript_apis)
    assert not hasattr(_fx_passes, "decompose_with_registry")
