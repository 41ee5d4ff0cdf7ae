import io
from dataclasses import replace

import pytest
from rich.console import Console

from reptrt.engines.report_schema import (
    Accuracy,
    FileSizes,
    Fusion,
    Gate,
    LayerSnr,
    MetricPair,
    ModelLatency,
    OutputNumerics,
    Percentiles,
    Report,
)
from reptrt.pipeline.report.terminal import terminal_table
from tests.reports import make_report


def render(report: Report, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(terminal_table(report))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def report() -> Report:
    percentiles = Percentiles(12.0, 13.0, 14.0)
    return make_report(
        model="mobileone_s0", target="auto",
        accuracy=Accuracy("top1", 83.5, 82.75, 0.75, 96.0, 744, {"top5": MetricPair(96.0)}),
        numerics={f"p{i}": OutputNumerics(20.0 + i, 0.99) for i in range(12)},
        layers=(LayerSnr("stem", "Conv", 9.5),),
        latency_ms=ModelLatency(fp32=percentiles, quantized=percentiles,
                                backend="onnxruntime 1.22.0", device="Some CPU"),
        fusion=Fusion(int8_layers=42, quantizable_layers=43, int8_coverage=97.67, kernels=88),
        size_bytes=FileSizes(fp32_onnx=8_400_000, engine=2_800_000),
        seconds={"calibrate": 200.0}, peak_rss_mb=1900.0, gate=Gate(0.5, passed=False),
    )  # fmt: skip


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_a_terminal_and_holds_the_numbers(report: Report, width: int) -> None:
    text = render(report, width)
    lines = text.splitlines()
    assert len(lines) <= 25
    assert max(len(line) for line in lines) <= width
    joined = " ".join(text.replace("\u00a0", " ").split())
    for fact in ("83.50 % 82.75 % −0.75 points", "96.00 %", "20.0 dB", "8 more outputs",
                 "42 of 43 97.67 %", "kernels 88", "2.8 MB", "Gate failed, limit 0.50 points",
                 "onnxruntime 1.22.0 on Some CPU", "calibrate 3 min 20 s"):  # fmt: skip
        assert fact in joined


def test_a_report_without_values_still_renders() -> None:
    assert "Accuracy was not measured" in render(make_report(), 80)


def test_names_bring_neither_markup_nor_control_sequences(report: Report) -> None:
    text = render(replace(report, model="[bold]m[/bold]\x1b]0;title\x07\r"), 100)
    assert "[bold]m[/bold]" in text
    assert "\x1b]" not in text
    assert "\r" not in text
