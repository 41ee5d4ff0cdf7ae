"""The ATen operators that move values become ONNX operators of the one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import nn

from reptrt.calibrators.quantized.moving import MOVING
from reptrt.engines.commuting import CARRIED_OPS
from reptrt.models.graph import trace
from reptrt.pipeline.export.export import export_float
from tests.exported import card
from tests.tiny_networks import SIZE

NOT_RECORDED = {
    *("aten.chunk.default", "aten.flatten.using_ints", "aten.view.default"),
    "aten.upsample_nearest2d.default",
}
"""Others stand for them in the graphs of today's PyTorch: reshape, split, upsample_nearest2d.vec."""


class Moves(nn.Module):
    """Every operator of `MOVING` on a map [N, 8, 16, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = F.relu(self.conv(images))
        return (
            torch.cat([x, x], 1),
            F.max_pool2d(x, 2),
            F.interpolate(x, scale_factor=2.0, mode="nearest"),
            x.reshape(-1, 4, 2, 256),
            x.flatten(1),
            x.permute(0, 2, 3, 1),
            x.transpose(1, 2),
            x[:, :, 1:5],
            x[:, 3],
            x[:, :1].squeeze(1),
            x[:, :1, :1].squeeze((1, 2)),
            x.unsqueeze(1).expand(-1, 3, -1, -1, -1),
            x.unbind(1)[2],
            x.split(4, 1)[1],
            x.split([2, 6], 1)[1],
            x.chunk(2, 1)[1],
            x.roll((1, 2), (2, 3)),
        )


def test_tensorrt_carries_codes_through_them_but_for_the_resize(tmp_path: Path) -> None:
    module = trace(Moves().eval(), (SIZE, SIZE), batch_size=2)
    recorded = {node.target for node in module.graph.nodes}
    assert {str(target) for target in MOVING - recorded} <= NOT_RECORDED
    outputs = tuple(f"output_{index}" for index in range(17))
    export_float(module, tmp_path / "model.onnx", replace(card("plain"), outputs=outputs), 2)
    ops = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert ops - {"Conv", "Relu"} <= CARRIED_OPS | {"Concat", "Resize"}
    assert {"Concat", "MaxPool", "Resize", "Transpose"} <= ops
