"""No input file makes a traceback: 200 inputs at each border; `make regress` reads 2,000."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.borders import BORDERS
from tests.hostile.limited import FEW


@pytest.mark.parametrize("name", BORDERS)
def test_what_comes_in_is_read_or_refused_on_one_line(name: str, tmp_path: Path) -> None:
    BORDERS[name].check(tmp_path / "files", FEW)
