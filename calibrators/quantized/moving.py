"""ATen operators that move, repeat or select values: a quantization grid holds behind them too.

This is `reptrt.engines.commuting` in the language of PyTorch graphs; a test exports every operator
and asks that table.
"""

from __future__ import annotations

from operator import getitem

import torch

aten = torch.ops.aten

SELECTING = (aten.cat.default, aten.max_pool2d.default)
"""Quantized in front of: TensorRT carries the codes through them."""

UPSAMPLING = (aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default)
"""Quantized behind, as NVIDIA's ModelOpt does: a Resize takes no codes, and with Q/DQ only in front
of it the layer behind it runs in float."""

LAYOUT = (
    aten.reshape.default,
    aten.view.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.transpose.int,
    aten.slice.Tensor,
    aten.select.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.expand.default,
    aten.unbind.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.roll.default,
    getitem,
)
"""The same values, only elsewhere. Quantized where they are read."""

MOVING = frozenset((*SELECTING, *UPSAMPLING, *LAYOUT))
"""All of them: what they read and what they write share one scale."""
