"""Pages that people read pass axe: narrow and wide, light and dark.

`REPTRT_AXE` is the path of axe.min.js (`npm pack axe-core` has it); without it, or without a browser, nothing
is checked.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reptrt.engines.histogram_record import Histogram, LayerHistograms
from reptrt.engines.report_schema import BlockLoss
from reptrt.pipeline.report.examples import Examples
from reptrt.pipeline.report.html import write_html
from tests import browser
from tests.pipeline.report.test_html import KERNELS, example

ROOT = Path(__file__).parents[1]
AXE = os.environ.get("REPTRT_AXE")
LOOKS = [(width, dark) for width in (1400, 390) for dark in (False, True)]
FINDINGS = """axe.run(document, {resultTypes: ["violations"]}).then(({violations}) =>
    violations.flatMap(({id, nodes}) => nodes.map((node) => `${id}: ${node.target}`)))"""

pytestmark = [
    pytest.mark.skipif(AXE is None, reason="REPTRT_AXE does not name a file axe.min.js"),
    pytest.mark.skipif(browser.program() is None, reason=browser.MISSING),
]
each_look = pytest.mark.parametrize(
    ("width", "dark"),
    LOOKS,
    ids=[f"{width}-{'dark' if dark else 'light'}" for width, dark in LOOKS],
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Tab]:
    with browser.browser() as tab:
        yield tab


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    pages = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("index.html"))
    with browser.served(folder) as address:
        yield [f"{address}/{page}" for page in pages]


def findings(tab: browser.Tab, page: Path | str, width: int, dark: bool) -> list[str]:
    tab.open(page, width, dark)
    tab.run(Path(str(AXE)).read_text(encoding="utf-8") + ";0")
    tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    tab.run("document.querySelectorAll('tr[data-detail] button').forEach((one) => one.click())")
    return [f"{page}: {one}" for one in tab.run(FINDINGS)]


@each_look
def test_a_report_has_no_finding(
    chromium: browser.Tab, tmp_path: Path, width: int, dark: bool
) -> None:
    seen = LayerHistograms(
        Histogram(-2.0, 2.0, (1, 8)),
        0.01,
        (-1.0, 1.0),
        2.0,
        Histogram(-128.5, 127.5, (2, 2)),
        (-2.0, 2.0),
    )
    blocks = (
        BlockLoss("stem", 0, 0.0024, 0.0018, 70.0),
        BlockLoss("stages.0", 1, 0.09, 0.099, 30.0),
    )
    report = example(blocks=blocks, calibrators_db={"minmax": 20.0, "mse": 25.0}, calibrator="mse")
    page = tmp_path / "report.html"
    write_html(report, KERNELS, Examples(), page, {"conv_1": seen})
    assert findings(chromium, page, width, dark) == []


@each_look
def test_the_site_has_no_finding(
    chromium: browser.Tab, site: list[str], width: int, dark: bool
) -> None:
    assert len(site) > 20
    assert [one for page in site for one in findings(chromium, page, width, dark)] == []
