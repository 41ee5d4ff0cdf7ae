"""What the stages hand each other, and the report that they end in: frozen records.

Field names are the keys of report.json, fusion.json and validation.json, which are stable; a value
that may be absent is None. Accuracies are in percent, `drop` and `max_drop` in points
(fp32 - quantized), SNR in dB, latencies in milliseconds, sizes in bytes, times in seconds,
`peak_rss_mb` in 10^6 bytes. Standard library only: a build kit writes its report on a device that
has no pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from reptrt.engines.budget_record import BudgetSearch
from reptrt.engines.cost.records import Comparison
from reptrt.engines.foreign.ranges import Amount, Cosine, Count, Percent
from reptrt.engines.inspection.kernel import Kernel
from reptrt.engines.inspection.traffic import Traffic
from reptrt.engines.likeness_record import Likeness

Deploy = Literal["int8", "fp16", "fp32"]
Reference = Literal["float", "file"]  # what INT8 is compared with: its float model, or its own file
Interval = tuple[float, float]
"""Lower and upper end, in percent or points."""


@dataclass(frozen=True)
class MetricPair:
    """One metric of both models, in percent."""

    fp32: float | None = None
    quantized: float | None = None


@dataclass(frozen=True)
class Accuracy:
    """The main metric, such as `top1` or `map_50_95`; `extra` holds further ones by name.

    Intervals hold the true value with 95 % confidence. `chance`: what answers as frequent as FP32's reach on labels
    in another order. `lost`, `gained`: images that FP32, INT8, alone gets right. `divergence`: KL of the classes, nats.
    """

    metric: str
    fp32: float | None = None
    quantized: float | None = None
    drop: float | None = None
    agreement: Percent | None = None
    num_images: Count | None = None
    extra: Mapping[str, MetricPair] | None = None
    fp32_interval: Interval | None = None
    drop_interval: Interval | None = None
    chance: Percent | None = None
    lost: Count | None = None
    gained: Count | None = None
    divergence: float | None = None

    @property
    def standard_error(self) -> float | None:
        """Of FP32's own share of right images, in points; None for what is no such share."""
        if self.metric != "top1" or self.fp32 is None or not self.num_images:
            return None
        variance = self.fp32 * (100 - self.fp32) / self.num_images
        return float(variance**0.5) if variance >= 0 else None

    @property
    def pairs(self) -> dict[str, MetricPair]:
        """Every metric by name, the main one first."""
        return {self.metric: MetricPair(self.fp32, self.quantized), **(self.extra or {})}


@dataclass(frozen=True)
class OutputNumerics:
    """One output, or part of one, of a model against that of another; `cosine` is in -1..1.

    `largest_fp32` and `largest_quantized` are told of what lies in 0..1, as scores do. `is_background`:
    the reference never leaves what it says where nothing is: scores near 0, logits below 0.
    """

    snr_db: float | None = None
    cosine: Cosine | None = None
    largest_fp32: float | None = None
    largest_quantized: float | None = None
    is_background: bool = False


Numerics = Mapping[str, OutputNumerics]
"""By output; a value that is not finite is None."""


@dataclass(frozen=True)
class LayerSnr:
    """One layer's output in the Q/DQ model against the same layer in FP32.

    `is_finite`: neither holds NaN or infinity.
    """

    layer: str
    op: str
    snr_db: float | None = None
    is_finite: bool = True


@dataclass(frozen=True)
class BlockLoss:
    """One block that a calibrator fitted: mean distance of its outputs from float, and what it took.

    `snr_db`: of the block alone, before it learned. `reason`: why it took no more `steps`, of `batch_size` images.
    """

    name: str
    stage: int
    before: Amount | None = None
    after: Amount | None = None
    seconds: Amount | None = None
    steps: Count | None = None
    batch_size: Count | None = None
    snr_db: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Percentiles:
    """Latency of one inference, in milliseconds."""

    p50: Amount | None = None
    p90: Amount | None = None
    p99: Amount | None = None


@dataclass(frozen=True)
class DeviceLatency:
    """Latency of two engines on the GPU's clock, without the copies to and from it."""

    fp16: Percentiles | None = None
    quantized: Percentiles | None = None


@dataclass(frozen=True)
class ModelLatency:
    """Latency of the models, and where it was measured; engines on a GPU, ONNX files on a CPU.

    An engine's holds the copies; `device_only` does not.
    """

    fp32: Percentiles | None = None
    fp16: Percentiles | None = None
    quantized: Percentiles | None = None
    device_only: DeviceLatency | None = None
    backend: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class FloatIsland:
    """A weighted layer that runs in float, and why."""

    layer: str
    op: str
    reason: str


@dataclass(frozen=True)
class OperatorIsland:
    """Nodes that stay as they are in the user's file, in float.

    `role` is "tail" where they sort, select or decide behind the last layers, else "island";
    `weight_bytes` is what they hold.
    """

    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    role: str
    reason: str
    weight_bytes: Count = 0


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """What the compiled engine does; `int8_coverage` is in percent of `quantizable_layers`.

    `fused_attention` of the `attention_blocks` are one kernel each: both products and the softmax.
    `traffic` is None where the kernels have no shapes: a processor's, or an engine for several batches.
    """

    int8_layers: Count
    quantizable_layers: Count
    int8_coverage: Percent
    kernels: Count
    attention_blocks: Count | None = None
    fused_attention: Count | None = None
    float_islands: tuple[FloatIsland, ...] | None = None
    operator_islands: tuple[OperatorIsland, ...] = ()
    traffic: Traffic | None = None


@dataclass(frozen=True, kw_only=True)
class FusionReport(Fusion):
    """Content of fusion.json; `backend` names the builder and its version."""

    attention_blocks: Count
    fused_attention: Count
    float_islands: tuple[FloatIsland, ...]
    backend: str = ""
    fused_kernels: tuple[Kernel, ...] = ()

    @property
    def summary(self) -> Fusion:
        """What report.json holds of it."""
        return Fusion(**{field.name: getattr(self, field.name) for field in fields(Fusion)})


@dataclass(frozen=True)
class End2End:
    """What decoding and NMS inside the engine keep, and how that compares with NumPy's.

    `identical`: percent of `num_images` with the same classes, scores to 1e-4 and boxes to 0.01 pixel.
    `agreement`: their mean F1 in percent. `backend` ran the engine, or its graph.
    """

    score_threshold: float
    iou_threshold: float
    max_detections: int
    identical: Percent
    agreement: Percent
    num_images: Count
    backend: str


@dataclass(frozen=True)
class FileSizes:
    """Sizes in bytes."""

    fp32_onnx: Count | None = None
    trt_onnx: Count | None = None
    engine: Count | None = None


@dataclass(frozen=True)
class Gate:
    """The accuracy gate; `max_drop` is None where none was asked for."""

    max_drop: float | None = None
    passed: bool | None = None


Decision = Literal["passed", "failed", "not judged"]


@dataclass(frozen=True)
class Check:
    """One condition of the verdict; `passed` is None where it could not be judged.

    `measured` and `bound` are in the unit of what `name` says: percent, points or dB. `images`: how
    many labelled images would decide, about; None where it is decided, or no number would.
    """

    name: str
    passed: bool | None
    reason: str
    measured: float | None = None
    bound: float | None = None
    images: Count | None = None


@dataclass(frozen=True)
class Shortfall:
    """The output, or part of one, that is furthest below its bound.

    `snr_db` and `bound` are in dB; `num_short` of the `num_outputs` outputs and parts are below it.
    `remedy` says what to do next.
    """

    output: str
    snr_db: float
    bound: float
    num_short: Count
    num_outputs: Count
    remedy: str


@dataclass(frozen=True)
class Verdict:
    """Whether the quantized model is good enough, what to deploy, and why.

    `decision` is `not judged` where no gate was asked for; what could not be judged then fails.
    `forced`: it failed, and was written all the same on the user's word. `shortfall` is None where
    every output is close enough to FP32's, or accuracy shows that it need not be.
    """

    decision: Decision = "not judged"
    reason: str = ""
    checks: tuple[Check, ...] = ()
    images: int | None = None
    forced: bool = False
    shortfall: Shortfall | None = None
    deploy: Deploy | None = None
    deploy_reason: str = ""

    @property
    def stops(self) -> bool:
        """Whether nothing may be deployed."""
        return self.decision == "failed" and not self.forced


NOT_JUDGED = Verdict(reason="no gate was asked for")


@dataclass(frozen=True)
class Validation:
    """Content of validation.json.

    `numerics` compares the Q/DQ model with FP32, `engine_numerics` the engine with the Q/DQ model, and
    `fp16_numerics` the FP16 engine with FP32; the last two are None for an engine with NMS, whose boxes
    `end2end` compares. `shown`: of each labelled image, how many boxes both detectors show and how many only one
    has. `changed`: labelled images whose class, or the classes of whose pixels, changed most, worst first.
    `is_constant_input`: every pixel that was compared has the same value. `reference`: what accuracy and `numerics`
    compare with: the float model, or a quantized file as it came; `file_numerics` is against that file. `likeness`:
    where a gate was asked for without labels.
    """

    accuracy: Accuracy | None = None
    numerics: Numerics | None = None
    engine_numerics: Numerics | None = None
    fp16_numerics: Numerics | None = None
    layers: tuple[LayerSnr, ...] = ()
    latency_ms: ModelLatency | None = None
    end2end: End2End | None = None
    shown: tuple[tuple[Count, Count], ...] | None = None
    changed: tuple[Count, ...] = ()
    is_constant_input: bool = False
    reference: Reference = "float"
    file_numerics: Numerics | None = None
    likeness: Likeness | None = None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Entries of report.json that are known before an engine is built; a build kit carries them.

    `calibrator` is None, and `num_samples` 0, where a file brought its own scales.
    """

    model: str
    calibrator: str | None
    weight_bits: int
    activation_bits: int
    precision: str
    softmax: str
    num_samples: Count
    seed: Count
    accuracy: Accuracy | None = None
    verdict: Verdict = NOT_JUDGED
    versions: Mapping[str, str | None] | None = None


@dataclass(frozen=True, kw_only=True)
class Report(RunFacts):
    """Content of report.json.

    The numerics are those of `Validation`. `calibrators_db`: SNR at the outputs on calibration images by each
    calibrator that was tried, `calibrator` among them. `gate`, `deploy` and `deploy_reason` are those of the verdict.
    """

    target: str
    backend: str
    accuracy_note: str | None = None
    likeness: Likeness | None = None
    reference: Reference = "float"
    numerics: Numerics | None = None
    file_numerics: Numerics | None = None
    engine_numerics: Numerics | None = None
    fp16_numerics: Numerics | None = None
    layers: tuple[LayerSnr, ...] = ()
    blocks: tuple[BlockLoss, ...] = ()
    calibrators_db: Mapping[str, float | None] | None = None
    latency_ms: ModelLatency | None = None
    end2end: End2End | None = None
    fusion: Fusion | None = None
    cost: Comparison | None = None
    size_bytes: FileSizes | None = None
    seconds: Mapping[str, Amount | None] | None = None
    peak_rss_mb: Amount | None = None
    gate: Gate = Gate()
    budget: BudgetSearch | None = None
    deploy: Deploy | None = None
    deploy_reason: str = ""
    notes: tuple[str, ...] = ()
    plan: Mapping[str, object] | None = None
    command: str | None = None

    @property
    def agreement(self) -> float | None:
        """With FP32 in percent, on labelled images or others."""
        answers = self.accuracy or self.likeness
        return answers.agreement if answers else None
