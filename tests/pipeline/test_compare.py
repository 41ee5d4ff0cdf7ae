from io import StringIO

from rich.console import Console

from reptrt.engines.report_schema import Accuracy, ComparisonRow, OutputNumerics
from reptrt.pipeline.compare import comparison_table


def test_the_table_fits_a_terminal_and_names_what_a_fallback_chose() -> None:
    rows = [
        ComparisonRow(
            calibrator="auto", method="percentile", num_samples=256,
            accuracy=Accuracy("top1", 78.857, 79.0, drop=-0.143, agreement=88.5),
            numerics={"a": OutputNumerics(30.0), "b": OutputNumerics(18.9)}, seconds=201.5,
            peak_rss_mb=2150.4,
        ),
        ComparisonRow(
            calibrator="mae", method="mae", num_samples=128, accuracy=None,
            numerics={"a": OutputNumerics()}, seconds=9.0, peak_rss_mb=None,
        ),
    ]  # fmt: skip
    console = Console(width=100, file=StringIO())
    console.print(comparison_table(rows))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    header, first, second = written.splitlines()
    assert header.split() == [
        *("calibrator", "FP32", "INT8", "drop", "agreement", "SNR", "dB", "seconds", "peak", "MB")
    ]
    assert first.split() == [
        *("auto", "(percentile)", "78.86", "79.00", "-0.14", "88.50", "18.90", "201.50", "2150")
    ]
    assert second.split() == ["mae", "–", "–", "–", "–", "–", "9.00", "–"]
