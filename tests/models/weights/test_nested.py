from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from reptrt.models.weights.checkpoint import CheckpointError, read_checkpoint
from reptrt.models.weights.state_dict import load_weights, match_weights

RIGHT, WRONG = {"a.weight": torch.ones(2)}, {"a.weight": torch.zeros(2)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}

LEFT_BY = {
    "PyTorch's tutorial": {
        "epoch": 3,
        "model_state_dict": RIGHT,
        "optimizer_state_dict": OPTIMIZER,
    },
    "RT-DETR": {"model": WRONG, "ema": {"module": RIGHT, "updates": 100}, "last_epoch": 3},
    "BasicSR": {"params": WRONG, "params_ema": RIGHT},
    "a net": {"net": RIGHT, "acc": 90.0},
    "a teacher": {"student": WRONG, "teacher": RIGHT},
    "an unknown name": {"generator": RIGHT, "optimizer": OPTIMIZER},
}


@pytest.mark.parametrize("script", LEFT_BY)
def test_the_weights_that_are_evaluated_are_found(script: str, tmp_path: Path) -> None:
    torch.save(LEFT_BY[script], tmp_path / "w.pth")
    torch.testing.assert_close(read_checkpoint(tmp_path / "w.pth").tensors, RIGHT)


def test_two_networks_of_unknown_names_are_listed(tmp_path: Path) -> None:
    torch.save({"encoder": RIGHT, "decoder": RIGHT}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"encoder \(1 tensors\), decoder \(1 tensors\)"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("model.", {"criterion.weight": torch.ones(3), "acc.correct": torch.tensor(0)}),
        ("module.", {"n_averaged": torch.tensor(5)}),
        ("ema_model.module.", {"model.weight": torch.zeros(2, 3), "model.bias": torch.zeros(2)}),
    ],
)
def test_the_prefix_under_which_most_names_fit_is_taken(
    prefix: str, others: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    expected = nn.Linear(3, 2).state_dict()
    tensors = {**{prefix + name: value for name, value in expected.items()}, **others}
    module = load_weights(match_weights(nn.Linear(3, 2), tensors), "m", "w.pth")
    torch.testing.assert_close(module.state_dict(), expected)
    assert f"not under the prefix {prefix!r}: {', '.join(others)}" in caplog.text


def test_the_weights_of_an_exported_program_are_read_without_running_it(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    program = torch.export.export(module, (torch.zeros(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "m.pt2")
    torch.testing.assert_close(read_checkpoint(tmp_path / "m.pt2").tensors, module.state_dict())


@pytest.mark.parametrize("entry", [{}, {"use_pickle": True}, {"tensor_meta": {"dtype": 7}}])
def test_an_exported_program_with_endless_names_is_refused_on_a_short_line(
    tmp_path: Path, entry: dict[str, object]
) -> None:
    table = {"config": {"w": {"path_name": "x" * 5000, **entry}}}
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/data/weights/model_weights_config.json", json.dumps(table))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "m.pt2")
    assert len(str(caught.value)) < 500
