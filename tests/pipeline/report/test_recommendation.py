"""INT8 has to earn its place: the choice, by measurements that a report may hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reptrt.engines.report_schema import (
    Accuracy,
    Deploy,
    DeviceLatency,
    Gate,
    ModelLatency,
    OutputNumerics,
    Percentiles,
    Report,
)
from reptrt.pipeline.report.recommendation import choose_deployment
from reptrt.pipeline.report.summary import deployment_note
from tests.reports import make_report


def report(
    int8: float,
    float_: float,
    drop: float | None = 0.2,
    limit: float | None = None,
    *,
    cosine: float | None = 0.9999,
) -> Report:
    """On a GPU, with its copies an order of magnitude slower."""
    both = DeviceLatency(Percentiles(float_), Percentiles(int8))
    accuracy = None if drop is None else Accuracy("top1", drop=drop)
    passed = None if limit is None else drop is not None and drop <= limit
    return make_report(
        backend="tensorrt 11.1", accuracy=accuracy,
        latency_ms=ModelLatency(fp16=Percentiles(10.0), quantized=Percentiles(20.0),
                                device_only=both),
        fp16_numerics={"logits": OutputNumerics(60.0, cosine)},
        gate=Gate(limit, passed),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "deploy", "reason"),
    [
        (report(0.2, 0.3), "int8", "INT8 is 1.50× faster than FP16 (0.200 ms against 0.300 ms), and"
         " loses 0.20 points of top-1"),
        (report(0.2, 0.3, drop=-0.1), "int8", "loses no top-1"),
        (report(0.2, 0.3, drop=None), "int8", "its accuracy was not measured"),
        (report(0.2, 0.3, 1.0, limit=1.0), "int8", "1.50× faster"),
        (report(0.3, 0.2), "fp16", "INT8 is 1.50× slower than FP16"),
        (report(0.2, 0.203), "fp16", "INT8 is not faster than FP16 (0.200 ms against 0.203 ms)"),
        (report(0.2, 0.205), "int8", "1.02× faster"),
        (report(0.2, 0.3, 3.1, limit=1.0), "fp16", "INT8 loses 3.10 points of top-1, and the limit is 1.00"),
        (report(0.2, 0.3, None, limit=1.0), "fp16", "its accuracy was not measured, and the limit is 1.00"),
        (report(0.3, 0.2, cosine=None), "int8", "FP16 overflows; INT8 is 1.50× slower"),
        (report(0.2, 0.3, 3.1, limit=1.0, cosine=None), None, "FP16 overflows"),
    ],
)  # fmt: skip
def test_on_a_gpu_int8_must_beat_fp16(content: Report, deploy: Deploy, reason: str) -> None:
    chosen = choose_deployment(content)
    assert chosen.deploy == deploy
    assert reason in chosen.reason.replace("\u00a0", " ")


def test_a_loss_is_said_with_its_interval() -> None:
    accuracy = Accuracy("top1", drop=0.2, drop_interval=(-0.31, 0.74))
    reason = choose_deployment(replace(report(0.2, 0.3), accuracy=accuracy)).reason
    assert "loses 0.20 points of top-1 (95 %: −0.31 to 0.74)" in reason.replace("\u00a0", " ")


def test_where_no_layer_pays_in_int8_fp16_is_deployed() -> None:
    content = replace(report(0.2, 0.3), calibrator="none")
    assert choose_deployment(content) == ("fp16", "INT8 is not predicted to be faster on any layer")


@pytest.mark.parametrize(("int8", "deploy"), [(0.6, "int8"), (1.1, "fp32")])
def test_on_a_cpu_int8_must_beat_fp32(int8: float, deploy: Deploy) -> None:
    content = make_report(
        weight_bits=6, activation_bits=6, backend="onnxruntime 1.31",
        latency_ms=ModelLatency(fp32=Percentiles(1.0), quantized=Percentiles(int8)),
    )  # fmt: skip
    chosen = choose_deployment(content)
    assert chosen.deploy == deploy
    assert chosen.reason.startswith("W6A6 is ")
    assert "than FP32" in chosen.reason


@pytest.mark.parametrize(
    "latency", [None, ModelLatency(fp32=Percentiles(1.0), quantized=Percentiles(0.5))]
)
def test_onnx_runtime_says_nothing_about_an_engine(latency: ModelLatency | None) -> None:
    chosen = choose_deployment(make_report(backend="tensorrt_rtx 1.7", latency_ms=latency))
    assert chosen.deploy is None
    assert chosen.reason == (
        "INT8 was not compared with FP16: no GPU here runs the engine, and the target has no data"
        " sheet to predict by"
    )


def test_the_note_begins_with_the_choice() -> None:
    slow = make_report(deploy="fp16", deploy_reason="slow")
    assert deployment_note(slow) == "Deploy FP16: slow"
    assert deployment_note(make_report(deploy_reason="no GPU")) == "no GPU"
    assert deployment_note(make_report()) == ""
