"""A node is blamed for what it makes of the values that ONNX Runtime gives it, not for what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.models.onnx_import.test_islands import network

CONSTANTS = "float many = {200000}, float half = {0.5}"


def test_rounding_that_a_network_enlarges_is_nobodys_fault(tmp_path: Path) -> None:
    body = "m = Mul(c, many) s = Sin(m) a = Abs(s) y = Sub(a, half)"
    imported = network(tmp_path, body, CONSTANTS)
    assert imported.islands == ()
    assert imported.relative_error < 1e-5


def test_what_differs_before_rounding_is_enlarged_is_an_island(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Hardsigmoid, "forward", lambda self, x: torch.sigmoid(x))
    body = "b = HardSigmoid<alpha = 0.16666667>(c) m = Mul(b, many) s = Sin(m) y = Sub(s, half)"
    imported = network(tmp_path, body, CONSTANTS)
    assert "HardSigmoid" in imported.islands[0].op_types
    assert imported.relative_error < 1e-5
