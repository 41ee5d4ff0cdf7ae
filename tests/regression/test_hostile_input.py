"""As tests/hostile/test_borders.py, with 2,000 inputs at each border."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hostile.borders import BORDERS
from tests.hostile.limited import MANY


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("REPTRT_REGRESSION"), reason="minutes of work: `make regress` runs it"
)
@pytest.mark.parametrize("name", BORDERS)
def test_what_comes_in_is_read_or_refused_on_one_line(name: str, tmp_path: Path) -> None:
    BORDERS[name].check(tmp_path / "files", MANY)
