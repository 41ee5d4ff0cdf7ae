"""The keys of report.json, which are stable, with their units; any value may be None.

Accuracies are in percent, `drop` and `max_drop` in points (fp32 - quantized), SNR in dB, latencies
in milliseconds, sizes in bytes, times in seconds, `peak_rss_mb` in 10^6 bytes.
"""

from __future__ import annotations

from typing import Literal, TypedDict

Deploy = Literal["int8", "fp16", "fp32"]


class MetricPair(TypedDict, total=False):
    """One metric of both models, in percent."""

    fp32: float | None
    quantized: float | None


class Accuracy(MetricPair, total=False):
    """The main metric; `extra` holds further ones by name."""

    metric: Literal["top1", "map_50_95"]
    drop: float | None
    agreement: float | None
    num_images: int | None
    extra: dict[str, MetricPair] | None


class OutputNumerics(TypedDict, total=False):
    """One output, or part of one, of a model against that of another; `cosine` is in -1..1.

    `largest_fp32` and `largest_quantized` are told of what lies in 0..1, as scores do.
    """

    snr_db: float | None
    cosine: float | None
    largest_fp32: float | None
    largest_quantized: float | None


class LayerSnr(TypedDict, total=False):
    """One layer's output in the Q/DQ model against the same layer in FP32."""

    layer: str
    op: str
    snr_db: float | None


class BlockLoss(TypedDict):
    """One block that a calibrator learned: mean distance of its outputs from float, its seconds."""

    name: str
    stage: int
    before: float | None
    after: float | None
    seconds: float | None


class Percentiles(TypedDict, total=False):
    """Latency of one inference, in milliseconds."""

    p50: float | None
    p90: float | None
    p99: float | None


class DeviceLatency(TypedDict, total=False):
    """Latency of two engines on the GPU's clock, without the copies to and from it."""

    fp16: Percentiles | None
    quantized: Percentiles | None


class Latency(TypedDict, total=False):
    """Latency of the models, and where it was measured; engines on a GPU, ONNX files on a CPU.

    An engine's holds the copies; `device_only` does not.
    """

    fp32: Percentiles | None
    fp16: Percentiles | None
    quantized: Percentiles | None
    device_only: DeviceLatency | None
    backend: str | None
    device: str | None


class Island(TypedDict, total=False):
    """A weighted layer that runs in float."""

    layer: str
    op: str
    reason: str


class OperatorIslandEntry(TypedDict, total=False):
    """Nodes that stay as they are in the user's file, in float; `role` is "island" or "tail"."""

    nodes: list[str]
    op_types: list[str]
    role: str
    reason: str
    weight_bytes: int


class Fusion(TypedDict, total=False):
    """What the compiled engine does; `int8_coverage` is in percent of `quantizable_layers`.

    `fused_attention` of the `attention_blocks` are one kernel each.
    """

    int8_layers: int | None
    quantizable_layers: int | None
    int8_coverage: float | None
    attention_blocks: int | None
    fused_attention: int | None
    kernels: int | None
    float_islands: list[Island] | None
    operator_islands: list[OperatorIslandEntry] | None


class TableKernel(TypedDict, total=False):
    """One kernel of fusion.json; tensors are [name, datatype] pairs."""

    name: str
    kind: str
    onnx_layers: list[str]
    inputs: list[list[str]]
    weights: list[list[str]]
    outputs: list[list[str]]


class End2End(TypedDict, total=False):
    """What decoding and NMS inside the engine keep, and how that compares with NumPy's.

    `identical`: percent of `num_images` with the same classes, scores to 1e-4 and boxes to 0.01 pixel.
    `agreement`: their mean F1 in percent. `backend` ran the engine, or its graph.
    """

    score_threshold: float
    iou_threshold: float
    max_detections: int
    identical: float
    agreement: float
    num_images: int
    backend: str


class Gate(TypedDict, total=False):
    """The accuracy gate; `max_drop` is None where none was asked for."""

    max_drop: float | None
    passed: bool | None


class Picture(TypedDict):
    """One image with the detections of both models drawn on it; PNG or JPEG bytes.

    `note` says why it is shown.
    """

    title: str
    note: str
    fp32_png: bytes
    quantized_png: bytes


class ComparisonRow(TypedDict):
    """One calibrator in compare-w8a8.json; `method` is what `auto` or a fallback chose."""

    calibrator: str
    method: str
    num_samples: int
    accuracy: Accuracy | None
    numerics: dict[str, OutputNumerics]
    seconds: float | None
    peak_rss_mb: float | None


class Report(TypedDict, total=False):
    """Content of report.json.

    `numerics` compares the Q/DQ model with FP32, `engine_numerics` the engine with the Q/DQ model, and
    `fp16_numerics` the FP16 engine with FP32; the last two are None for an engine with NMS, whose boxes
    `end2end` compares. `deploy` is None where `deploy_reason` says so.
    """

    model: str
    calibrator: str
    weight_bits: int
    activation_bits: int
    precision: str
    softmax: str
    target: str
    backend: str
    num_samples: int
    seed: int
    accuracy: Accuracy | None
    accuracy_note: str | None
    numerics: dict[str, OutputNumerics] | None
    engine_numerics: dict[str, OutputNumerics] | None
    fp16_numerics: dict[str, OutputNumerics] | None
    layers: list[LayerSnr] | None
    blocks: list[BlockLoss] | None
    latency_ms: Latency | None
    end2end: End2End | None
    fusion: Fusion | None
    size_bytes: dict[str, int | None] | None
    seconds: dict[str, float | None] | None
    peak_rss_mb: float | None
    versions: dict[str, str | None] | None
    gate: Gate | None
    deploy: Deploy | None
    deploy_reason: str
    notes: list[str] | None
    command: str | None
