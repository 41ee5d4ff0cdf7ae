import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from reptrt.engines.artifacts import write_json
from reptrt.engines.report_schema import Report
from reptrt.pipeline.report.html import write_html

HOSTILE = "\"><script>alert(1)</script><img src='https://evil.example/x'>"
KERNELS = [
    {"name": "conv_1", "kind": "correlation", "onnx_layers": ["stem"],
     "inputs": [["x", "Int8"]], "weights": [["w", "Int8"]], "outputs": [["y", "Float"]]},
    {"name": "gemm_2", "kind": "correlation", "onnx_layers": ["head"],
     "inputs": [["y", "Half"]], "weights": [["v", "Half"]], "outputs": [["z", "Half"]]},
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


def example() -> Report:
    return Report(
        model="mobileone_s0", calibrator="minmax", weight_bits=8, activation_bits=8,
        target="tensorrt-rtx", backend="tensorrt_rtx 1.7.0", num_samples=64, seed=0,
        accuracy={"metric": "top1", "fp32": 83.5, "quantized": 82.75, "drop": 0.75,
                  "agreement": 96.0, "num_images": 400,
                  "extra": {"top5": {"fp32": 96.0, "quantized": 95.5}}},
        numerics={"logits": {"snr_db": 24.3, "cosine": 0.998}},
        layers=[{"layer": f"conv_{i}", "op": "Conv", "snr_db": 50.0 - i} for i in range(40)],
        latency_ms={"fp32": {"p50": 12.0, "p90": 13.0, "p99": 14.0},
                    "quantized": {"p50": 6.0, "p90": 6.5, "p99": 7.0},
                    "backend": "onnxruntime 1.22.0", "device": "Some CPU"},
        fusion={"int8_layers": 1, "quantizable_layers": 2, "int8_coverage": 50.0, "kernels": 2,
                "float_islands": [{"layer": "head", "op": "Gemm", "reason": "not quantized"}]},
        size_bytes={"fp32_onnx": 8_400_000, "trt_onnx": 2_400_000, "engine": 2_800_000},
        seconds={"calibrate": 200.0, "build": 25.5}, peak_rss_mb=1900.0,
        versions={"onnx": "1.19"}, gate={"max_drop": 1.0, "passed": True},
        notes=["no GPU here"], command="reptrt engine mobileone_s0 --seed 0",
    )  # fmt: skip


def render(report: object, folder: Path, kernels: object = (), pictures: object = ()) -> Page:
    write_html(report, kernels, pictures, folder / "report.html")  # type: ignore[arg-type]
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return Page(folder / "report.html")


def test_the_page_loads_nothing_but_the_images_it_carries(tmp_path: Path) -> None:
    pictures = [
        {
            "title": "a.png",
            "note": "1 box",
            "fp32_png": b"\x89PNG...",
            "quantized_png": b"\xff\xd8\xff",
        }
    ]
    page = render(example(), tmp_path, KERNELS, pictures)
    assert [reference.split(";")[0] for reference in page.references] == [
        "data:image/png",
        "data:image/jpeg",
    ]
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(page.tags)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|//\w+\.|@import|url\(", source)


def test_names_from_users_files_stay_text(tmp_path: Path) -> None:
    report = example()
    report["model"] = report["calibrator"] = report["target"] = report["command"] = HOSTILE
    report["backend"] = report["accuracy_note"] = HOSTILE
    report["notes"], report["versions"] = [HOSTILE], {HOSTILE: HOSTILE}
    report["layers"] = [{"layer": HOSTILE, "op": HOSTILE, "snr_db": 3.0}]
    report["numerics"] = {HOSTILE: {"snr_db": 1.0, "cosine": 1.0}}
    report["blocks"] = [{"name": HOSTILE, "stage": 0, "before": 2.0, "after": 1.0, "seconds": 1.0}]
    report["seconds"], report["size_bytes"] = {HOSTILE: 1.0}, {HOSTILE: 1}
    report["accuracy"]["metric"] = HOSTILE  # type: ignore[index, typeddict-item]
    report["accuracy"]["extra"] = {HOSTILE: {"fp32": 1.0, "quantized": 1.0}}  # type: ignore[index]
    report["latency_ms"]["device"] = report["latency_ms"]["backend"] = HOSTILE  # type: ignore[index]
    island = {"layer": HOSTILE, "op": HOSTILE, "reason": HOSTILE}
    report["fusion"]["float_islands"] = [island]  # type: ignore[index, list-item]
    kernel = {"name": HOSTILE, "kind": HOSTILE, "onnx_layers": [HOSTILE] * 9,
              "inputs": [["x", HOSTILE]], "outputs": [["y", HOSTILE]]}  # fmt: skip
    pictures = [{"title": HOSTILE, "note": HOSTILE, "fp32_png": b"", "quantized_png": b""}]
    page = render(report, tmp_path, [kernel], pictures)
    assert "script" not in page.tags
    assert page.tags.count("img") == 2
    assert all(reference.startswith("data:image/") for reference in page.references)
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


def test_the_lowest_layers_come_worst_first(tmp_path: Path) -> None:
    text = render(example(), tmp_path).text
    listed = re.findall(r"conv_\d+", text[text.index("Lowest 15") :])
    assert listed == [f"conv_{i}" for i in range(39, 24, -1)]


def test_learned_blocks_are_shown_with_what_learning_brought(tmp_path: Path) -> None:
    report = example()
    report["blocks"] = [
        {"name": "stem", "stage": 0, "before": 0.0024, "after": 0.0018, "seconds": 70.0},
        {"name": "stages.0.0", "stage": 1, "before": 0.09, "after": 0.099, "seconds": 30.0},
        {"name": "stages.0.1", "stage": 1, "before": 0.0, "after": 0.0, "seconds": 0.5},
    ]
    text = render(report, tmp_path).text.replace("\u00a0", " ")
    assert "3 blocks in 1 min 40 s, median change −7.5 %" in text
    assert "stem: 0.0024 → 0.0018, −25.0 %" in text
    assert re.findall(r"stages\.0\.\d", text) == ["stages.0.0", "stages.0.0", "stages.0.1"]
    assert "after, no closer" in text


@pytest.mark.parametrize("blocks", [None, []])
def test_without_learned_blocks_there_is_no_reconstruction(blocks: object, tmp_path: Path) -> None:
    report = example()
    report["blocks"] = blocks  # type: ignore[typeddict-item]
    assert "Reconstruction" not in render(report, tmp_path).text


def test_only_kernels_that_multiply_int8_are_marked(tmp_path: Path) -> None:
    render(example(), tmp_path, KERNELS)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    marked = [row for row in source.split("<tr>") if 'class="chip"' in row]
    assert len(marked) == 1
    assert "conv_1" in marked[0]


@pytest.mark.parametrize("report", [{}, dict.fromkeys(Report.__annotations__)])
def test_a_report_without_values_still_renders(report: object, tmp_path: Path) -> None:
    text = render(report, tmp_path).text
    assert "Accuracy was not measured" in text
    assert "None" not in text


def test_unknown_and_infinite_numbers_have_a_sign_of_their_own(tmp_path: Path) -> None:
    report = example()
    report["accuracy"] = {"metric": "top1", "fp32": 80.0, "quantized": None, "drop": math.nan,
                          "agreement": None, "num_images": None, "extra": None}  # fmt: skip
    report["layers"] = [
        {"layer": layer, "op": "Conv", "snr_db": snr}
        for layer, snr in (("a", None), ("b", math.nan), ("c", math.inf), ("d", -4.0), ("e", 9.0))
    ]
    report["numerics"] = {"logits": {"snr_db": math.inf, "cosine": None}}
    report["latency_ms"] = {"fp32": None, "quantized": {"p50": 1.0}, "backend": None}
    text = render(report, tmp_path).text.replace("\u00a0", " ")
    assert "The drop in top-1 is unknown: – % against 80.00 %" not in text
    assert "The drop in top-1 is unknown: – against 80.00 %" in text
    assert "∞ dB" in text
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_undecodable_bytes_in_a_path_do_not_stop_the_page(tmp_path: Path) -> None:
    report = example()
    report["command"] = "reptrt engine m --data \udcff"
    render(report, tmp_path)
    write_json(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["command"] == report["command"]


def test_json_is_strict_and_keeps_keys_and_values(tmp_path: Path) -> None:
    report: dict[str, object] = {
        **example(),
        "numerics": {"logits": {"snr_db": math.inf, "cosine": np.float32("nan")}},
        "peak_rss_mb": np.float64(1.5), "seed": np.int64(3), "shape": (1, np.arange(2)),
    }  # fmt: skip
    write_json(report, tmp_path / "report.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"not JSON: {constant}")

    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert list(read) == list(report)
    assert read["numerics"] == {"logits": {"snr_db": None, "cosine": None}}
    assert (read["peak_rss_mb"], read["seed"], read["shape"]) == (1.5, 3, [1, [0, 1]])
    assert read["accuracy"] == example()["accuracy"]


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json({"model": "old"}, path)
    with pytest.raises(TypeError):
        write_json({"model": object()}, path)
    assert json.loads(path.read_text()) == {"model": "old"}
    assert list(tmp_path.iterdir()) == [path]
