from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reptrt.calibrators.channels.file import ChannelFileError, load_factors, save_factors


def test_factors_come_back_as_they_were_written(tmp_path: Path) -> None:
    factors = {"relu": torch.tensor([1.0, 0.25])}
    save_factors(factors, tmp_path / "f")
    assert torch.equal(load_factors(tmp_path / "f")["relu"], factors["relu"])
    save_factors({}, tmp_path / "f")
    assert load_factors(tmp_path / "f") == {}


@pytest.mark.parametrize(
    "wrong", [[0.0, 1.0], [-1.0, 1.0], [float("nan"), 1.0], [float("inf"), 1.0], [[1.0]], 1.0]
)
def test_factors_that_are_no_numbers_above_zero_are_refused(tmp_path: Path, wrong: object) -> None:
    save_file({"relu\n": torch.tensor(wrong)}, tmp_path / "f")
    with pytest.raises(ChannelFileError, match="relu are not all numbers above 0") as caught:
        load_factors(tmp_path / "f")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ChannelFileError, match="calibrate again"):
        load_factors(tmp_path / "f")
