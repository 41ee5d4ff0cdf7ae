"""What a stage depends on is what the network computes: its graph, its constants, the recipe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.command_line import TinyProject, reptrt
from tests.pipeline.test_stages import nodes, stages_that_ran


def test_a_helper_that_the_networks_module_imports_counts_too(
    tiny: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    network = (tiny.folder / "tiny_models.py").read_text().replace("nn.ReLU()", "activation()")
    (tmp_path / "helped_models.py").write_text(f"from my_helper import activation\n{network}")
    options = ["helped_models:build", *tiny.options[1:], "--workspace", tmp_path / "build"]
    files = tmp_path / "build" / "helped_models-build" / "minmax-w8a8" / "tensorrt-rtx"
    for op in ("Relu", "HardSwish"):
        kind = {"Relu": "ReLU", "HardSwish": "Hardswish"}[op]
        (tmp_path / "my_helper.py").write_text(f"from torch.nn import {kind} as activation\n")
        for name in ("helped_models", "my_helper"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        for command in ("calibrate", "export"):
            assert reptrt(command, *options).code == 0
            assert stages_that_ran(files) == [command]
        assert nodes(files / "model.fp32.onnx", op)
    for name in ("helped_models", "my_helper"):
        monkeypatch.delitem(sys.modules, name)


def test_a_calibration_of_other_weights_is_not_exported(
    tiny: TinyProject, workspace: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    state = {name: torch.randn(shape) for name, shape in (
        ("0.weight", (8, 3, 3, 3)), ("0.bias", (8,)), ("3.weight", (8, 8, 3, 3)), ("3.bias", (8,)),
        ("7.weight", (2, 8)), ("7.bias", (2,)), ("1.weight", (8,)), ("1.bias", (8,)),
        ("1.running_mean", (8,)),
    )}  # fmt: skip
    torch.save({**state, "1.running_var": torch.ones(8)}, tmp_path / "other.pt")
    outcome = reptrt(
        "export", *tiny.options, "--weights", tmp_path / "other.pt", "--workspace", workspace
    )
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert "what calibrate left there is of another network; run `reptrt calibrate MODEL`" in line
