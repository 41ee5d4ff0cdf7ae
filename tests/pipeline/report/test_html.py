import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reptrt.engines.artifacts import write_json
from reptrt.engines.inspection.kernel import Kernel, Tensor
from reptrt.engines.report_schema import (
    Accuracy,
    BlockLoss,
    FileSizes,
    FloatIsland,
    Fusion,
    Gate,
    LayerSnr,
    MetricPair,
    ModelLatency,
    OutputNumerics,
    Percentiles,
    Report,
)
from reptrt.pipeline.report.changed_images import ChangedImage, Guess
from reptrt.pipeline.report.example_images import Picture
from reptrt.pipeline.report.examples import Examples
from reptrt.pipeline.report.html import write_html
from reptrt.pipeline.workspace.records import read_record
from tests.reports import make_report

NOTHING = Examples()
HOSTILE = "\"><script>alert(1)</script><img src='https://evil.example/x'>"
KERNELS = [
    Kernel("conv_1", "correlation", (Tensor("x", "Int8"),), (Tensor("w", "Int8"),),
           (Tensor("y", "Float"),), ("stem",)),
    Kernel("gemm_2", "correlation", (Tensor("y", "Half"),), (Tensor("v", "Half"),),
           (Tensor("z", "Half"),), ("head",)),
]  # fmt: skip


class Page(HTMLParser):
    """Collects tags, what they refer to, and the text of the page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        links = ("src", "href", "xlink:href", "srcset", "data", "action")
        self.references += [value or "" for name, value in attrs if name in links]

    def handle_data(self, data: str) -> None:
        self.text += data


def example(**values: Any) -> Report:
    known: dict[str, Any] = {
        "model": "mobileone_s0",
        "accuracy": Accuracy("top1", 83.5, 82.75, 0.75, 96.0, 400, {"top5": MetricPair(96.0, 95.5)}),
        "numerics": {"logits": OutputNumerics(24.3, 0.998)},
        "layers": tuple(LayerSnr(f"conv_{i}", "Conv", 50.0 - i) for i in range(40)),
        "latency_ms": ModelLatency(
            fp32=Percentiles(12.0, 13.0, 14.0), quantized=Percentiles(6.0, 6.5, 7.0),
            backend="onnxruntime 1.22.0", device="Some CPU"),
        "fusion": Fusion(int8_layers=1, quantizable_layers=2, int8_coverage=50.0, kernels=2,
                      float_islands=(FloatIsland("head", "Gemm", "not quantized"),)),
        "size_bytes": FileSizes(fp32_onnx=8_400_000, trt_onnx=2_400_000, engine=2_800_000),
        "seconds": {"calibrate": 200.0, "build": 25.5}, "peak_rss_mb": 1900.0,
        "versions": {"onnx": "1.19"}, "gate": Gate(1.0, passed=True),
        "notes": ("no GPU here",), "command": "reptrt engine mobileone_s0 --seed 0",
    }  # fmt: skip
    return make_report(**{**known, **values})


def render(
    report: Report,
    folder: Path,
    kernels: Sequence[Kernel] = (),
    examples: Examples = NOTHING,
) -> Page:
    write_html(report, kernels, examples, folder / "report.html")
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return Page(folder / "report.html")


def test_the_page_loads_nothing_but_the_images_it_carries(tmp_path: Path) -> None:
    examples = Examples([Picture("a.png", "1 box", b"\x89PNG...", b"\xff\xd8\xff")])
    page = render(example(), tmp_path, KERNELS, examples)
    outside = [one for one in page.references if not one.startswith("#")]
    assert [reference.split(";")[0] for reference in outside] == [
        "data:image/png", "data:image/jpeg", "model.trt.onnx", "report.json", "run.log",
    ]  # fmt: skip
    assert {"link", "iframe", "object", "base"}.isdisjoint(page.tags)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    script = source.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in source
    assert page.tags.count("script") == 1
    assert not re.search(r"https?://|//\w+\.|@import|url\(", source)


def test_names_from_users_files_stay_text(tmp_path: Path) -> None:
    report = example(
        model=HOSTILE, calibrator=HOSTILE, target=HOSTILE, command=HOSTILE, backend=HOSTILE,
        accuracy_note=HOSTILE, notes=(HOSTILE,), versions={HOSTILE: HOSTILE},
        layers=(LayerSnr(HOSTILE, HOSTILE, 3.0),), numerics={HOSTILE: OutputNumerics(1.0, 1.0)},
        blocks=(BlockLoss(HOSTILE, 0, 2.0, 1.0, 1.0),), seconds={HOSTILE: 1.0},
        accuracy=Accuracy(HOSTILE, 1.0, 1.0, extra={f"{HOSTILE}2": MetricPair(1.0, 1.0)}),
        latency_ms=ModelLatency(backend=HOSTILE, device=HOSTILE),
        fusion=Fusion(int8_layers=1, quantizable_layers=2, int8_coverage=50.0, kernels=2,
                      float_islands=(FloatIsland(HOSTILE, HOSTILE, HOSTILE),)),
    )  # fmt: skip
    kernel = Kernel(
        HOSTILE, HOSTILE, (Tensor("x", HOSTILE),), (), (Tensor("y", HOSTILE),), (HOSTILE,) * 9
    )
    guesses = (Guess(HOSTILE, 50.0, is_right=True),)
    changed = ChangedImage(HOSTILE, HOSTILE, b"", guesses, guesses)
    examples = Examples([Picture(HOSTILE, HOSTILE, b"", b"")], classes=[changed])
    page = render(report, tmp_path, [kernel], examples)
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == 3
    known = ("data:image/", "#", "model.trt.onnx", "report.json", "run.log")
    assert all(reference.startswith(known) for reference in page.references)
    assert page.text.count(HOSTILE) > 20


def test_the_page_states_the_evidence(tmp_path: Path) -> None:
    text = render(example(), tmp_path, KERNELS).text.replace("\u00a0", " ")
    for fact in (
        "INT8 loses 0.75 points of top-1: 82.75 % against 83.50 %",
        "Gate passed, limit 1.00 points",
        "96.00 %",
        "2.00× faster",
        "Measured with ONNX Runtime on the CPU (onnxruntime 1.22.0 on Some CPU)",
        "1 of 2 quantizable layers multiply in INT8 (50.00 %), in an engine of 2 kernels",
        "not quantized",
        "2.8 MB",
        "3 min 20 s",
        "reptrt engine mobileone_s0 --seed 0",
    ):
        assert fact in text


def test_images_whose_class_changed_show_what_both_models_made_of_them(tmp_path: Path) -> None:
    fp32 = (Guess("tench", 61.25, is_right=True), Guess("pike", 20.0, is_right=False))
    quantized = (Guess("pike", 48.0, is_right=False), Guess("tench", 44.0, is_right=True))
    changed = [ChangedImage("7.png", "tench", b"\xff\xd8", fp32, quantized)]
    page = render(example(), tmp_path, examples=Examples(classes=changed))
    shown = " ".join(page.text.partition("whose class changed")[2].split())
    places = [shown.index(one) for one in ("tench 7.png", "61.2 %", "48.0 %", "20.0 %", "44.0 %")]
    assert places == sorted(places)
    assert page.tags.count("img") == 1


def test_the_lowest_layers_come_worst_first(tmp_path: Path) -> None:
    text = render(example(), tmp_path).text
    listed = re.findall(r"conv_\d+", text[text.index("Lowest 10") :])
    assert listed == [f"conv_{i}" for i in range(39, 29, -1)]


def test_learned_blocks_are_shown_with_what_learning_brought(tmp_path: Path) -> None:
    report = example(
        blocks=(
            BlockLoss("stem", 0, 0.0024, 0.0018, 70.0),
            BlockLoss("stages.0.0", 1, 0.09, 0.099, 30.0),
            BlockLoss("stages.0.1", 1, 0.0, 0.0, 0.5),
        )
    )
    text = render(report, tmp_path).text.replace("\u00a0", " ")
    assert "3 blocks in 1 min 40 s, median change −7.5 %" in text
    assert "stem: 0.0024 → 0.0018, −25.0 %" in text
    assert re.findall(r"stages\.0\.\d", text) == ["stages.0.0", "stages.0.0", "stages.0.1"]
    assert "after, no closer" in text


def test_without_learned_blocks_there_is_no_reconstruction(tmp_path: Path) -> None:
    assert "Reconstruction" not in render(example(blocks=()), tmp_path).text


def test_only_kernels_that_multiply_int8_are_marked(tmp_path: Path) -> None:
    render(example(), tmp_path, KERNELS)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    kernels = source.partition("<h2>Kernels</h2>")[2]
    marked = [row for row in kernels.split("<tr>") if 'class="chip"' in row]
    assert len(marked) == 1
    assert "conv_1" in marked[0]


def test_a_report_without_values_still_renders(tmp_path: Path) -> None:
    text = render(make_report(), tmp_path).text
    assert "Accuracy was not measured" in text
    assert "None" not in text


def test_unknown_and_infinite_numbers_have_a_sign_of_their_own(tmp_path: Path) -> None:
    report = example(
        accuracy=Accuracy("top1", fp32=80.0, drop=math.nan),
        layers=tuple(
            LayerSnr(layer, "Conv", snr)
            for layer, snr in zip("abcde", (None, math.nan, math.inf, -4.0, 9.0), strict=True)
        ),
        numerics={"logits": OutputNumerics(math.inf)},
        latency_ms=ModelLatency(quantized=Percentiles(1.0)),
    )
    text = render(report, tmp_path).text.replace("\u00a0", " ")
    assert "The drop in top-1 is unknown: – % against 80.00 %" not in text
    assert "The drop in top-1 is unknown: – against 80.00 %" in text
    assert "∞ dB" in text
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_undecodable_bytes_in_a_path_do_not_stop_the_page(tmp_path: Path) -> None:
    report = example(command="reptrt engine m --data \udcff")
    render(report, tmp_path)
    write_json(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["command"] == report.command


def test_json_is_strict_and_reads_back_as_the_same_record(tmp_path: Path) -> None:
    report = example(
        numerics={"logits": OutputNumerics(math.inf, np.float32("nan"))},
        peak_rss_mb=np.float64(1.5), seed=np.int64(3),
    )  # fmt: skip
    path = tmp_path / "report.json"
    write_json(report, path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"not JSON: {constant}")

    written = json.loads(path.read_text(), parse_constant=refuse)
    assert list(written) == [field.name for field in fields(Report)]
    logits = written["numerics"]["logits"]
    assert (logits["snr_db"], logits["cosine"]) == (None, None)
    assert (written["peak_rss_mb"], written["seed"]) == (1.5, 3)
    assert written["fusion"]["float_islands"] == [
        {"layer": "head", "op": "Gemm", "reason": "not quantized"}
    ]
    assert read_record(path, Report) == replace(report, numerics={"logits": OutputNumerics()})


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json({"model": "old"}, path)
    with pytest.raises(TypeError):
        write_json({"model": object()}, path)
    assert json.loads(path.read_text()) == {"model": "old"}
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_screen_has_three_numbers(tmp_path: Path) -> None:
    text = render(example(), tmp_path).text.replace("\u00a0", " ")
    tiles = text.partition("Gate passed")[2].partition("Contents")[0]
    for fact in ("0.75 points", "of top-1 lost", "96.00 %", "agreement with FP32"):
        assert fact in tiles


def test_a_gain_is_no_negative_loss(tmp_path: Path) -> None:
    accuracy = Accuracy("top1", 79.43, 79.71, -0.28, 99.43, 700, drop_interval=(-1.04, 0.26))
    text = render(example(accuracy=accuracy), tmp_path).text.replace("\u00a0", " ")
    tiles = text.partition("Gate passed")[2].partition("Contents")[0]
    assert "0.28 points of top-1 gained95 % interval of the loss: −1.04 to 0.26" in tiles


def test_calibrators_that_were_tried_come_best_first(tmp_path: Path) -> None:
    tried = {"minmax": 20.0, "repapq": 30.5, "mse": 25.0, "exact": float("inf")}
    text = render(example(calibrator="repapq", calibrators_db=tried), tmp_path).text
    shown = text.partition("What the calibrator won")[2]
    shown = shown.partition("What the calibrator won")[2]  # the first one stands in the contents
    places = [shown.index(one) for one in ("repapq was kept", "30.5", "25.0", "20.0")]
    assert places == sorted(places)


def test_without_a_choice_there_is_no_chart_of_calibrators(tmp_path: Path) -> None:
    assert "What the calibrator won" not in render(example(), tmp_path).text
