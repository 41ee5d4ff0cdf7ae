import re
from dataclasses import replace
from pathlib import Path

import pytest

from reptrt.engines.budget_record import Attempt
from reptrt.engines.comparison_record import ComparisonRow
from reptrt.engines.likeness_record import Likeness
from reptrt.engines.report_schema import Accuracy, OutputNumerics
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.report.comparison import write_comparison

HOSTILE = "<script>alert(1)</script>"


def row(
    calibrator: str, quantized: float | None, snr_db: float | None, seconds: float = 10.0
) -> ComparisonRow:
    accuracy = None if quantized is None else Accuracy(
        "top1", fp32=78.86, quantized=quantized, drop=78.86 - quantized, agreement=88.0,
        num_images=700,
    )  # fmt: skip
    return ComparisonRow(
        calibrator=calibrator, method=calibrator, num_samples=128, accuracy=accuracy,
        numerics={"logits": OutputNumerics(snr_db)}, seconds=seconds, peak_rss_mb=1200.0,
    )  # fmt: skip


def page(rows: list[ComparisonRow], folder: Path, command: str = "reptrt compare toy") -> str:
    path = folder / "compare-w8a8.html"
    write_comparison(rows, Recipe(model="toy"), command, path)
    assert list(folder.iterdir()) == [path]
    return path.read_text(encoding="utf-8").replace("\u00a0", " ")


def test_the_page_holds_every_number_of_the_table(tmp_path: Path) -> None:
    rows = [row("mae", 76.0, 11.25, 11.0), row("repapq", 79.0, 18.9, 200.0)]
    rows[1] = replace(rows[1], calibrator="auto")
    text = page(rows, tmp_path)
    cells = re.findall(r"<t[hd] class=\"(?:name|num|num strong)\"[^>]*>([^<]*)</t[hd]>", text)
    header = ["Images", "FP32", "INT8", "Drop", "Agreement", "SNR", "Time", "Peak memory"]
    assert cells[:8] == header
    assert cells[8:17] == [
        "mae", "128", "78.86 %", "76.00 %", "2.86", "88.00 %", "11.2 dB", "11.0 s", "1 200 MB",
    ]  # fmt: skip
    assert cells[17] == "auto (repapq)"
    assert cells[20:22] == ["79.00 %", "−0.14"]


def test_the_chart_has_one_named_point_per_calibrator_and_fp32(tmp_path: Path) -> None:
    text = page([row("mae", 76.0, 11.0), row("repapq", 79.0, 18.9, 200.0)], tmp_path)
    assert text.count("<circle") == 2
    assert "<title>repapq: 79.00 % after 3 min 20 s</title>" in text
    assert text.count('class="level"') == 1


def tried(int8_layers: int, drop: float, milliseconds: float) -> Attempt:
    return Attempt(
        gain=0.0, reached=0.0, int8_layers=int8_layers, layers=10, outcome="missed", reason="", trt_onnx="",
        drop=drop, snr_db=20 - drop, milliseconds=milliseconds, fp16_milliseconds=2.0,
    )  # fmt: skip


def test_the_picture_has_every_set_that_was_tried_beside_all_int8_and_fp16(tmp_path: Path) -> None:
    rows = [row("mae", 78.36, 19.5), row("repapq", 78.76, 19.9)]
    rows[0] = replace(rows[0], attempts=(tried(10, 3.0, 1.0), tried(8, 0.5, 1.4)))
    fp8 = replace(tried(10, 0.9, 0.9), fp8_attention=True)
    rows[1] = replace(rows[1], attempts=(fp8, tried(9, 0.1, 1.2)))
    text = page(rows, tmp_path)
    for point in (
        "mae all INT8: 75.86 % in 1 ms", "mae 8 INT8 (chosen): 78.36 % in 1.4 ms",
        "repapq 9 INT8 (chosen): 78.76 % in 1.2 ms",
        "repapq all INT8, FP8 attention: 77.96 % in 0.9 ms", "FP16: 78.86 % in 2 ms",
    ):  # fmt: skip
        assert f"<title>{point}</title>" in text
    unlabelled = [replace(one, accuracy=None) for one in rows]
    text = page(unlabelled, tmp_path)
    assert "<title>mae 8 INT8 (chosen): 19.5 dB in 1.4 ms</title>" in text
    assert "<title>FP16" not in text
    alike = [replace(one, likeness=Likeness("top1", 97.0, 50, 0, 3.0)) for one in unlabelled]
    assert "<title>mae all INT8: 97.00 % in 1 ms</title>" in page(alike, tmp_path)
    assert "agreement 97.00 %" in page(alike, tmp_path)


def test_the_page_begins_with_who_is_the_closest(tmp_path: Path) -> None:
    rows = [row("mae", 76.0, 11.0), row("repapq", 79.0, 18.9)]
    rows[1] = replace(rows[1], accuracy=replace(rows[1].accuracy, agreement=94.71))
    assert "repapq is the closest to FP32: agreement 94.71 %" in page(rows, tmp_path)
    unlabelled = [row("mae", None, 11.0), row("mse", None, 9.5)]
    assert "mae is the closest to FP32: 11.0 dB" in page(unlabelled, tmp_path)
    assert "closest" not in page([row("mae", None, None)], tmp_path)


def test_without_labels_the_chart_shows_the_worst_output(tmp_path: Path) -> None:
    text = page([row("mae", None, 11.0), row("mse", None, None)], tmp_path)
    assert "<title>mae: 11.0 dB after 10.0 s</title>" in text
    assert text.count("<circle") == 1  # an exact output has no place on the axis
    assert 'class="level"' not in text
    assert "Agreement" not in text


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    assert "Nothing was measured" in page([row("mae", None, None)], tmp_path)


@pytest.mark.parametrize("quantized", [76.0, None])
def test_the_page_is_self_contained_and_names_stay_text(
    quantized: float | None, tmp_path: Path
) -> None:
    text = page([row(HOSTILE, quantized, 9.0)], tmp_path, command=HOSTILE)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 4
    assert not re.search(r"https?://|@import|url\(|\ssrc=|href=", text)
