import json
from io import StringIO
from pathlib import Path

from rich.console import Console

from reptrt.engines.comparison_record import ComparisonRow
from reptrt.engines.report_schema import Accuracy, OutputNumerics
from reptrt.pipeline.compare import comparison_table
from tests.command_line import TinyProject, reptrt


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


def test_within_a_budget_every_calibrator_searches_and_the_page_shows_what_was_tried(
    tiny: TinyProject, red_and_blue: Path, tmp_path: Path
) -> None:
    """INT8 sees nothing beside the outlier of `collapsing`; FP16 is the answer there."""
    options = [
        "tiny_models:collapsing",
        "--image-size",
        32,
        "--data",
        red_and_blue,
        "--max-drop",
        10,
    ]
    options += ["--channel-scaling", "none", "--quantize", "all", "--target", "tensorrt-rtx"]
    outcome = reptrt("compare", *options, "--workspace", tmp_path, "--calibrators", "minmax,mse")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "tiny_models-collapsing"
    first, second = json.loads((folder / "compare-w8a8.json").read_text())["rows"]
    for row in (first, second):
        assert row["attempts"][0]["outcome"] == "missed"
        assert row["attempts"][-1]["outcome"] == "met"
        assert row["accuracy"] is None
        assert row["likeness"]["agreement"] == row["attempts"][-1]["agreement"] == 100.0
    page = (folder / "compare-w8a8.html").read_text()
    assert page.count("(chosen): 100.00") == 2
    assert "What INT8 keeps of FP32" in page
