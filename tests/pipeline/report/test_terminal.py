import io

import pytest
from rich.console import Console

from reptrt.engines.report_schema import Report
from reptrt.pipeline.report.terminal import terminal_table


def render(report: object, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(terminal_table(report))  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def report() -> Report:
    percentiles = {"p50": 12.0, "p90": 13.0, "p99": 14.0}
    return Report(
        model="mobileone_s0", calibrator="minmax", weight_bits=8, activation_bits=8, target="auto",
        accuracy={"metric": "top1", "fp32": 83.5, "quantized": 82.75, "drop": 0.75,
                  "agreement": 96.0, "num_images": 744, "extra": {"top5": {"fp32": 96.0}}},
        numerics={f"p{i}": {"snr_db": 20.0 + i, "cosine": 0.99} for i in range(12)},
        layers=[{"layer": "stem", "op": "Conv", "snr_db": 9.5}],
        latency_ms={"fp32": percentiles, "quantized": percentiles,
                    "backend": "onnxruntime 1.22.0", "device": "Some CPU"},
        fusion={"int8_layers": 42, "quantizable_layers": 43, "int8_coverage": 97.67, "kernels": 88},
        size_bytes={"fp32_onnx": 8_400_000, "engine": 2_800_000},
        seconds={"calibrate": 200.0}, peak_rss_mb=1900.0, gate={"max_drop": 0.5, "passed": False},
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


@pytest.mark.parametrize("empty", [{}, dict.fromkeys(Report.__annotations__)])
def test_a_report_without_values_still_renders(empty: object) -> None:
    assert "Accuracy was not measured" in render(empty, 80)


def test_names_bring_neither_markup_nor_control_sequences(report: Report) -> None:
    report["model"] = "[bold]m[/bold]\x1b]0;title\x07\r"
    text = render(report, 100)
    assert "[bold]m[/bold]" in text
    assert "\x1b]" not in text
    assert "\r" not in text
