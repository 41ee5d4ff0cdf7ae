"""The operator of PyTorch that runs a piece of an ONNX file in ONNX Runtime: an island.

An island is what no importer knows. It runs in float while calibrating, no gradient passes it, and
export puts its own nodes back in its place (`reptrt.pipeline.export.put_back`). The piece travels as a
tensor of bytes, so a graph with islands can be copied, pickled and recorded by `torch.export` as any
other. Importing ONNX Runtime waits until an island runs: it starts threads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from reptrt.engines.foreign.text import one_line

_MOST_SESSIONS = 64


class IslandError(ValueError):
    """ONNX Runtime cannot run an island."""

    exit_code = 2


@dataclass(frozen=True)
class IslandOutput:
    """One tensor that an island makes.

    Attributes:
        dtype: NumPy's name of its type.
        sides: Each side as (pixels that every batch has, more for each image of the batch).
    """

    dtype: str
    sides: tuple[tuple[int, int], ...]


def write_outputs(outputs: Sequence[IslandOutput]) -> str:
    """`outputs` as the text that the operator takes."""
    return json.dumps([[output.dtype, output.sides] for output in outputs])


def read_outputs(text: str) -> list[IslandOutput]:
    """What `write_outputs` wrote."""
    return [
        IslandOutput(dtype, tuple((int(fixed), int(each)) for fixed, each in sides))
        for dtype, sides in json.loads(text)
    ]


class Island(nn.Module):
    """Nodes of an ONNX file that ONNX Runtime runs.

    Args:
        model: Bytes of the piece as a ModelProto, uint8 [bytes].
        outputs: What `write_outputs` says of its outputs.
        op_types: Operators in it, for people.
    """

    model: torch.Tensor

    def __init__(self, model: torch.Tensor, outputs: str, op_types: str) -> None:
        super().__init__()
        self.outputs, self.op_types = outputs, op_types
        self.register_buffer("model", model)

    def forward(
        self, images: torch.Tensor, *inputs: torch.Tensor
    ) -> torch.Tensor | list[torch.Tensor]:
        """Run on `inputs`; `images` [N, ...] tell the batch."""
        made: list[torch.Tensor] = torch.ops.reptrt.island(
            list(inputs), self.model, self.outputs, images.shape[0]
        )
        return made[0] if len(made) == 1 else made

    def extra_repr(self) -> str:
        """Operators in it."""
        return self.op_types


def is_island(node: torch.fx.Node) -> bool:
    """Whether a node of an ATen graph runs an island."""
    return node.target is torch.ops.reptrt.island.default


@torch.library.custom_op(
    "reptrt::island",
    mutates_args=(),
    schema="(Tensor[] inputs, Tensor model, str outputs, SymInt batch) -> Tensor[]",
)
def _island(
    inputs: Sequence[torch.Tensor], model: torch.Tensor, outputs: str, batch: int
) -> list[torch.Tensor]:
    session = _session(model.cpu().numpy().tobytes())
    feeds: dict[str, Any] = {
        slot.name: np.ascontiguousarray(tensor.detach().cpu().numpy()).astype(
            _DTYPES[slot.type], copy=False
        )
        for slot, tensor in zip(session.get_inputs(), inputs, strict=True)
    }
    try:
        made = session.run(None, feeds)
    except Exception as error:  # ONNX Runtime's own errors have no common class
        raise IslandError(f"ONNX Runtime cannot run an island: {one_line(error)}") from None
    device = inputs[0].device if inputs else model.device
    return [torch.from_numpy(np.array(values)).to(device) for values in made]


@_island.register_fake
def _fake(
    inputs: Sequence[torch.Tensor], model: torch.Tensor, outputs: str, batch: int
) -> list[torch.Tensor]:
    return [
        model.new_empty(
            [fixed + each * batch if each else fixed for fixed, each in output.sides],
            dtype=getattr(torch, output.dtype),
        )
        for output in read_outputs(outputs)
    ]


def _keep_count(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.count = len(inputs[0])


def _no_gradient(ctx: Any, *gradients: Any) -> tuple[list[None], None, None, None]:
    return [None] * ctx.count, None, None, None


_island.register_autograd(_no_gradient, setup_context=_keep_count)

_DTYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(int16)": np.int16,
    "tensor(int8)": np.int8, "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_,
}  # fmt: skip


@lru_cache(maxsize=_MOST_SESSIONS)
def _session(model: bytes) -> Any:
    import onnxruntime  # here: importing it starts threads, which no process that forks may have

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], enable_fallback=False
    )


def read_model(model: torch.Tensor) -> onnx.ModelProto:
    """The piece of an ONNX file that an island holds."""
    return onnx.load_model_from_string(model.cpu().numpy().tobytes())
