"""From an ONNX graph to the layers that classic TensorRT is predicted to build from it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx

from reptrt.engines.fusion_rules.clean import (
    ChooseHalf,
    DropCastsAroundQuantizers,
    DropNoOps,
    FoldBatchNorm,
    FoldPad,
    FoldScale,
)
from reptrt.engines.fusion_rules.concats import RemoveConcat
from reptrt.engines.fusion_rules.convolutions import (
    FuseActivation,
    FuseMaxPool,
    FusePointwise,
    FuseResidual,
    MergeTwins,
)
from reptrt.engines.fusion_rules.forms import InsertReformats, OutputForms
from reptrt.engines.fusion_rules.int8_layers import (
    QuantizeBatchedProducts,
    QuantizePointwise,
    QuantizePools,
    QuantizeProducts,
)
from reptrt.engines.fusion_rules.layers import list_layers
from reptrt.engines.fusion_rules.points import ProductOfPoint, ReduceToPool
from reptrt.engines.fusion_rules.pointwise import FuseNeighbours
from reptrt.engines.fusion_rules.quantizers import (
    CancelPairs,
    MergeEqualQuantizers,
    MoveDequantizeDown,
    MoveQuantizeUp,
)
from reptrt.engines.fusion_rules.read_onnx import read_network
from reptrt.engines.fusion_rules.rule import Build, Rule
from reptrt.engines.fusion_rules.transformers import (
    FuseAttention,
    FuseMoves,
    FuseNormalization,
    FuseProductResidual,
)
from reptrt.engines.inspection.kernel import Kernel

Remainder = Literal["as typed", "fp16"]

RULES: tuple[Rule, ...] = (
    ChooseHalf(),
    DropNoOps(),
    DropCastsAroundQuantizers(),
    ReduceToPool(),
    FoldBatchNorm(),
    FoldPad(),
    MergeEqualQuantizers(),
    MoveQuantizeUp(),
    CancelPairs(),
    MoveDequantizeDown(),
    MergeEqualQuantizers(),
    CancelPairs(),
    FuseAttention(),
    FoldScale(),
    FuseActivation(),
    FuseResidual(),
    FuseProductResidual(),
    MergeTwins(),
    FuseNeighbours(),
    FusePointwise(),
    FuseNormalization(),
    QuantizeProducts(),
    QuantizeBatchedProducts(),
    QuantizePools(),
    QuantizePointwise(),
    FuseMaxPool(),
    ProductOfPoint(),
    FuseMoves(),
    RemoveConcat(),
    InsertReformats(),
    OutputForms(),
)


def predict_kernels(
    model: onnx.ModelProto | Path,
    *,
    batch: int | None = None,
    compute_capability: tuple[int, int] = (8, 0),
    remainder: Remainder = "as typed",
) -> tuple[Kernel, ...]:
    """Return the layers of a classic TensorRT engine of `model`, in order of execution.

    They are what the engine's inspector would list, NoOp layers (views, without a kernel) included,
    as far as rules can know it: `RULES` names them, and each says whether a real engine has shown
    it. Which of several kernels the builder's timing picks is not known, so tactics are empty.

    Args:
        model: plain float, or with explicit Q/DQ; a file's external weights are not read.
        batch: size of axis 0 of every input; None keeps the file's, 1 where it is open.
        compute_capability: of the GPU, (major, minor).
        remainder: of what is not INT8. "as typed": the types of the graph, as a strongly typed
            build has it. "fp16": FP32 tensors inside become FP16 where a layer has it, as a weakly
            typed build with `--fp16` does it (TensorRT 8 to 10).

    Raises:
        UnpredictableModelError: not an ONNX model, or a size other than the batch is open.
    """
    network = read_network(model, batch)
    build = Build(compute_capability, is_weakly_typed=remainder == "fp16")
    for rule in RULES:
        rule.apply(network, build)
    return list_layers(network)
