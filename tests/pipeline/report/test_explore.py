"""The report's script, in a browser: tables sort and filter, layers open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from reptrt.engines.histogram_record import FloatWeights, Histogram, LayerHistograms
from reptrt.engines.inspection.kernel import Kernel, Tensor
from reptrt.engines.report_schema import FloatIsland, Fusion, LayerSnr
from reptrt.pipeline.report.examples import Examples
from reptrt.pipeline.report.html import write_html
from tests import browser
from tests.reports import make_report

pytestmark = pytest.mark.skipif(browser.program() is None, reason=browser.MISSING)

LAYERS = (
    LayerSnr("stem", "Conv", 9.0), LayerSnr("block.1", "Conv", 30.5),
    LayerSnr("block.2", "Conv"), LayerSnr("head", "Gemm", 120.0),
)  # fmt: skip
SEEN = LayerHistograms(
    activation=Histogram(-2.0, 2.0, (1, 8, 0, 3)), step=0.01, grid=(-1.0, 1.0), clipped=12.5,
    weights=Histogram(-128.5, 127.5, (2, 2)), start=(-2.0, 2.0), bits=(8, 8),
    float_weights=FloatWeights(Histogram(-255.0, 255.0, (1, 9, 9, 1)), 127.0, 10.0),
)  # fmt: skip
KERNEL = Kernel(
    "conv_kernel", "conv", (Tensor("x", "Int8"),), (), (Tensor("y", "Int8"),), ("stem",)
)
ROWS = "#layer-table tbody tr"
OPENER = f"{ROWS}:first-child button"


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Tab]:
    with browser.browser() as tab:
        yield tab


@pytest.fixture
def page(chromium: browser.Tab, tmp_path: Path) -> Iterator[browser.Tab]:
    report = make_report(
        layers=LAYERS,
        fusion=Fusion(int8_layers=3, quantizable_layers=4, int8_coverage=75.0, kernels=1,
                      float_islands=(FloatIsland("head", "Gemm", "it is the last"),)),
    )  # fmt: skip
    write_html(report, [KERNEL], Examples(), tmp_path / "report.html", {"stem": SEEN})
    chromium.errors.clear()
    chromium.open(tmp_path / "report.html")
    yield chromium
    assert chromium.errors == []


def shown(page: browser.Tab) -> list[str]:
    """Names of the layers that are to be seen, in their order."""
    return page.run(
        f"[...document.querySelectorAll('{ROWS}')].filter((row) => row.offsetHeight)"
        ".map((row) => (row.cells[0].querySelector('button') ?? row.cells[0]).textContent)"
    )


def header(column: int) -> str:
    return f"#layer-table thead th:nth-child({column}) button"


def test_a_press_on_a_header_sorts_numbers_as_numbers_and_unknown_ones_last(
    page: browser.Tab,
) -> None:
    assert shown(page) == ["stem", "block.1", "block.2", "head"]
    page.click(header(4))
    assert shown(page) == ["stem", "block.1", "head", "block.2"]
    page.click(header(4))
    assert shown(page) == ["head", "block.1", "stem", "block.2"]
    sorted_by = "document.querySelectorAll('#layer-table th[aria-sort]')"
    assert page.run(f"{sorted_by}.length + ' ' + {sorted_by}[0].ariaSort") == "1 descending"
    page.click(header(1))
    assert shown(page) == ["block.1", "block.2", "head", "stem"]


def test_what_is_typed_leaves_the_rows_that_have_it(page: browser.Tab) -> None:
    page.write("input[data-filters]", "BLOCK")
    assert shown(page) == ["block.1", "block.2"]
    page.write("input[data-filters]", ".2")
    assert shown(page) == ["block.2"]


def test_a_press_on_a_layer_shows_its_histograms_and_kernels(page: browser.Tab) -> None:
    page.click(OPENER)
    detail = "document.querySelector('tr.detail')"
    text = page.run(f"{detail}.textContent")
    for fact in ("Reads −2 to 2", "holds −1 to 1 in steps of 0.01, 12.5 % lie outside",
                 "changed the step from 0.02, by −50.0 %", "Runs in conv_kernel",
                 "steps of their channel: −255 to 255; the grid holds −127 to 127, 10 % lie outside"):  # fmt: skip
        assert fact in text
    assert page.run(f"{detail}.querySelectorAll('figure').length") == 2
    drawn = f"{detail}.querySelector('figure')"
    assert page.run(f"{drawn}.querySelector('.clip').getAttribute('d')") == "M90.0 0V90M270.0 0V90"
    assert page.run(f"{drawn}.querySelector('.start').getAttribute('d')") == "M0.0 0V90M360.0 0V90"
    weights = f"{detail}.querySelectorAll('figure')[1]"
    ends = page.run(f"{weights}.querySelector('.clip').getAttribute('d')")
    assert ends == "M90.0 0V90M270.0 0V90"  # 127.5 of 255
    bars = page.run(f"{drawn}.querySelector('.quantized').getAttribute('d')")
    assert [part.split(" ")[0] for part in bars.split("M")[1:]] == ["0.0", "90.0", "180.0", "270.0"]
    page.click(OPENER)
    assert page.run(f"{detail} === null")


def test_an_open_layer_closes_where_rows_move(page: browser.Tab) -> None:
    for act in (lambda: page.click(header(1)), lambda: page.write("input[data-filters]", "stem")):
        page.click("button[aria-expanded='false']")
        assert page.run("document.querySelectorAll('tr.detail').length") == 1
        act()
        assert page.run("document.querySelectorAll('tr.detail').length") == 0


def test_a_layer_without_histograms_says_what_it_runs_in(page: browser.Tab) -> None:
    page.click(f"{ROWS}:nth-child(2) button")
    assert page.run("document.querySelector('tr.detail').textContent") == "In no kernel of its own"
    assert json.loads(page.run(f"document.querySelector('{ROWS}').dataset.detail")) == {
        **json.loads(json.dumps(asdict(SEEN))), "kernels": ["conv_kernel"],
    }  # fmt: skip


def test_a_press_on_the_strip_opens_its_layer_though_the_filter_hides_it(page: browser.Tab) -> None:
    page.write("input[data-filters]", "head")
    page.click("svg[data-layers]", across=0.6)  # of four layers, in the third
    opened = "document.querySelector('tr:has([aria-expanded=\"true\"])')"
    assert page.run(f"{opened}.querySelector('button').textContent") == "block.2"
    assert page.run(f"{opened}.offsetHeight") > 0
