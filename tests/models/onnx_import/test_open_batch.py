"""Files that were written for one image take any number of them, each as ONNX Runtime takes it alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
import timm
import torch
from torch import nn

from reptrt.models.onnx_import.counted_axis import Place, moved_place
from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.importer import import_onnx
from reptrt.models.onnx_import.values import run_onnx_feeds
from tests.onnx_files import SIDE, seeded, write_onnx


class _Queries(nn.Module):
    """Sequences in front [T, N, C], a query for every image, and a class token joined along T."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.queries = nn.Parameter(torch.randn(7, 1, 16))
        self.attention = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patches(x).flatten(2).permute(2, 0, 1)
        y = torch.cat([self.token.expand(-1, len(x), -1), y])
        return self.attention(y, self.queries.repeat(1, len(x), 1)).transpose(0, 1)


class _OneQuery(nn.Module):
    """Sequences in front, of which one query reads them all, as in CLIP's attention pool."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 16, 8, 8), nn.MultiheadAttention(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patches(x).flatten(2).permute(2, 0, 1)
        y = torch.cat([y.mean(0, keepdim=True), y])
        return self.attention(y[:1], y, y, need_weights=False)[0][0]


class _Probe(nn.Module):
    """A query of every image's own that is no part of it, as in SigLIP's head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 16, 8, 8), nn.MultiheadAttention(16, 4)
        self.probe = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patches(x).flatten(2).permute(2, 0, 1)
        return self.attention(self.probe.repeat(1, len(x), 1), y, y)[0].squeeze(0)


class _Patches(nn.Module):
    """Patches, which are gathered along two axes more, and products that letters name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(len(x), 3, SIDE // 2, -1)
        y = torch.nn.functional.unfold(x, 4, stride=4)
        return torch.einsum("nct,ndt->ncd", y, y)


class _Recurrent(nn.Module):
    """First states that are given, and a last state that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.rnn = nn.Conv2d(3, 16, 8, 8), nn.GRU(16, 8, bidirectional=True)
        self.state = nn.Parameter(torch.randn(2, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patches(x)
        rows = y.permute(3, 0, 2, 1).flatten(1, 2)  # rows of images, as in Sequencer
        state = self.state.repeat(1, rows.shape[1], 1)
        across = self.rnn(rows, state)[0].reshape(-1, *y.shape[:1], y.shape[2], 16).mean((0, 2))
        every, last = self.rnn(y.flatten(2).permute(2, 0, 1), self.state.repeat(1, len(x), 1))
        return torch.cat([across, every.mean(0), last.permute(1, 0, 2).reshape(-1, 16)], 1)


class _Unfolded(nn.Module):
    """Windows in the first axis beside images, as MobileViT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        y = self.patches(x).reshape(batch * 8 * 4, 2, 4, 2).transpose(1, 2)
        y = y.reshape(batch, 8, 16, 4).transpose(1, 3).reshape(batch * 4, 16, 8)
        return (self.mix(y).softmax(1) * y).view(batch, 4, 16, 8).mean(2)


def _vit() -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=5
    )


def _swin() -> nn.Module:
    return timm.models.SwinTransformer(
        img_size=SIDE, patch_size=4, window_size=4, embed_dim=16, depths=(2, 1), num_heads=(2, 2),
        num_classes=5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("factory", "written_for"),
    [
        (_vit, 1), (_vit, 2), (_swin, 1), (_swin, 2), (_Queries, 1), (_OneQuery, 1), (_OneQuery, 2),
        (_Probe, 1), (_Probe, 2), (_Patches, 1), (_Patches, 2), (_Recurrent, 1), (_Recurrent, 2), (_Unfolded, 1), (_Unfolded, 2),
    ],
)  # fmt: skip
def test_files_for_a_fixed_batch_take_any(factory: type, written_for: int, tmp_path: Path) -> None:
    example = torch.rand(written_for, 3, SIDE, SIDE)
    reference = seeded(factory)
    path = write_onnx(reference, tmp_path / "m.onnx", dynamic=False, example=example)
    network = import_onnx(file := read_onnx(path), file.image_size(None))
    assert network.batch_size is None
    images = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    parts = [{"image": part.numpy()} for part in images.split(written_for)]
    wanted = [next(iter(run_onnx_feeds(file.proto, part).values())) for part in parts]
    with torch.no_grad():
        for count in (1, 3):
            found = network.module(images[:count]).numpy()
            np.testing.assert_allclose(found, np.concatenate(wanted)[:count], 1e-4, 1e-5)


@pytest.mark.parametrize(
    ("before", "after", "place", "expected"),
    [
        ((1, 196, 48), (1, 14, 14, 48), Place(0), Place(0)),
        ((197, 1, 48), (197, 12, 4), Place(1), Place(1)),  # heads behind images
        ((197, 1, 12, 4), (197, 48), Place(1), Place(0, 197)),  # features are no images
        ((197, 48), (197, 1, 48), Place(0, 197), Place(1)),
        ((1, 8, 4, 4), (32, 2, 2), Place(0), Place(0)),
        ((1, 1, 16), (1, 16), Place(1), Place(0, merged=1)),  # one query
        ((1, 16), (1, 1, 16), Place(0, merged=1), Place(1)),
    ],
)
def test_images_are_counted_where_they_are_row_by_row(
    before: tuple[int, ...], after: tuple[int, ...], place: Place, expected: Place
) -> None:
    x, y = gs.Variable("x"), gs.Variable("y")
    node = gs.Node("Reshape", inputs=[x], outputs=[y])
    shapes = {"x": before, "y": after}
    assert moved_place(node, [x], {"x": place}, shapes, batch=1) == expected
