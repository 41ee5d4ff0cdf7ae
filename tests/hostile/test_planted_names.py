"""Names with terminal sequences, markup, line breaks and marks that turn the writing, in every artifact."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from rich.console import Console

from reptrt.engines.foreign.log_format import VisibleFormatter
from reptrt.engines.lint import lint_file
from reptrt.engines.lint.rtx import RtxAnswer
from reptrt.engines.lint.show import lint_json, lint_lines
from reptrt.engines.runtime.runners import ModelFileError
from reptrt.engines.tensor_spec import Tensor
from reptrt.engines.triton import LABELS, RepositoryError, ServedModel, add_version
from reptrt.models.spec import Preprocess
from reptrt.models.weights.checkpoint import CheckpointError, read_checkpoint
from reptrt.pipeline.cli.bench import bench_file
from reptrt.pipeline.cli.console import print_path
from reptrt.pipeline.cli.explain import explain
from reptrt.pipeline.data.datasets import open_images
from reptrt.pipeline.recipe import slug
from reptrt.pipeline.report.page import _environment
from tests.hostile.graphs import quantized_model
from tests.hostile.limited import PLANTED


def assert_shown(text: str, lines: int | None = None) -> None:
    """No character of `text` but line ends is obeyed by a terminal, and it has `lines` of them."""
    assert text.replace("\n", "").isprintable(), ascii(text)
    assert lines is None or text.count("\n") == lines


def test_findings_about_planted_nodes_are_lines_of_visible_text(tmp_path: Path) -> None:
    onnx.save(quantized_model(name=PLANTED), tmp_path / "m.onnx")
    findings = lint_file(tmp_path / "m.onnx")
    assert any(PLANTED[:4] in finding.node for finding in findings)
    lines = lint_lines(tmp_path / "m.onnx", findings, RtxAnswer(skipped="not asked"), None)
    assert all(line.isprintable() for line in lines)
    assert_shown(json.dumps(lint_json(tmp_path / "m.onnx", findings, RtxAnswer(), None)))


def test_onnx_runtime_prints_nothing_of_what_it_refuses(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = quantized_model(name="AAAA")
    model.graph.node[4].op_type = "Nope"
    content = model.SerializeToString().replace(b"AAAA", b"\xd4\x1b]0")  # in no text of Python's
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        bench_file(tmp_path / "m.onnx", 1, 0.0)
    assert str(caught.value).isprintable()
    assert "EP Error" not in capfd.readouterr().out


def served(folder: Path, **changed: object) -> ServedModel:
    (folder / "engine").write_bytes(b"x")
    tensor = Tensor("images", "float32", (-1, 3, 8, 8))
    logits = Tensor("logits", "float32", (-1, 3))
    values: dict[str, object] = {
        "name": "net", "file": folder / "engine", "is_engine": True, "inputs": (tensor,),
        "outputs": (logits,), "max_batch": 1, "labelled_output": "logits",
        "classes": ("cat", PLANTED, "dog"),
    }  # fmt: skip
    return ServedModel(**{**values, **changed})  # type: ignore[arg-type]


def test_each_class_is_one_line_of_the_labels(tmp_path: Path) -> None:
    add_version(tmp_path / "repository", served(tmp_path))
    text = (tmp_path / "repository" / "net" / LABELS).read_text(encoding="utf-8")
    assert_shown(text, lines=3)
    assert text.split("\n")[::2] == ["cat", "dog"]


def test_a_planted_tensor_or_model_is_refused_by_a_repository(tmp_path: Path) -> None:
    for model in (
        served(tmp_path, inputs=(Tensor(PLANTED, "float32", (-1, 3)),)),
        served(tmp_path, name=PLANTED),
    ):
        with pytest.raises(RepositoryError) as caught:
            add_version(tmp_path / "repository", model)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [".lock", "config.pbtxt", "labels.txt", ""])
def test_a_link_in_a_repository_is_not_followed(tmp_path: Path, name: str) -> None:
    folder, outside = tmp_path / "repository" / "net", tmp_path / "outside"
    (folder if name else folder.parent).mkdir(parents=True)
    (folder / name if name else folder).symlink_to(outside)
    with pytest.raises(RepositoryError, match="is a link"):
        add_version(tmp_path / "repository", served(tmp_path))
    assert not outside.exists()


def test_a_page_shows_planted_text_as_text() -> None:
    template = _environment().from_string("<p>{{ name }}</p>")
    html = template.render(name=PLANTED)
    assert "<script>" not in html
    assert_shown(html)


def test_a_log_record_is_one_visible_line() -> None:
    record = logging.LogRecord("reptrt", logging.INFO, "", 0, "node %s", (PLANTED,), None)
    assert_shown(VisibleFormatter("%(message)s").format(record), lines=0)


def test_the_terminal_gets_visible_text(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(color_system=None)
    explain(CheckpointError(f"{PLANTED}: no"), console, str)
    print_path(console, Path(PLANTED))
    assert_shown(capsys.readouterr().out, lines=2)


def test_names_of_files_reach_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    planted = PLANTED.replace("/", "")
    (tmp_path / f"{planted}.png").write_bytes(b"no image")
    (tmp_path / "caf\udce9.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    images = open_images(tmp_path, Preprocess((8, 8), (0.0,) * 3, (1.0,) * 3))
    assert len(images) == 1
    assert len(images.fingerprint) == 64
    assert len(caplog.messages) == 2
    assert all(message.isprintable() for message in caplog.messages)


def test_planted_names_are_plain_folders(tmp_path: Path) -> None:
    for name in (PLANTED, f"{PLANTED}.onnx", "...onnx", "../../x.onnx"):
        folder = tmp_path / slug(name)
        assert folder.parent == tmp_path
        assert folder.name not in ("", ".", "..")
        assert folder.name.isascii()


def test_a_planted_checkpoint_is_refused_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(PLANTED.encode())
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).isprintable()
