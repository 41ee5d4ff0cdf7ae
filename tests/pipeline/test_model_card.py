from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.model_card import ModelCardError, read_card, write_card

PREPROCESS = Preprocess((32, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", 0.9, "letterbox")
CARDS = {
    "classifier": ModelCard(
        "timm:tiny", "classification", PREPROCESS, 3, ("cat", "dog", "emu"), ("logits",)
    ),
    "nameless": ModelCard("user:net", "classification", PREPROCESS, 3, None, ("logits",)),
    "detector": ModelCard("yolo", "detection", PREPROCESS, 2, None, ("p3", "p4"), (8, 16)),
}


def empty_model() -> onnx.ModelProto:
    return onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 19]>
        nothing (float[1] images) => (float[1] logits) { logits = Identity(images) }""")


@pytest.mark.parametrize("kind", CARDS)
def test_a_card_comes_back_from_the_file_as_it_was_written(kind: str, tmp_path: Path) -> None:
    proto = empty_model()
    write_card(CARDS[kind], proto)
    onnx.save(proto, tmp_path / "model.onnx")
    card = read_card(tmp_path / "model.onnx")
    assert card == CARDS[kind]
    assert hash(card) == hash(CARDS[kind])


def test_a_foreign_file_has_no_card_and_the_error_says_what_writes_one(tmp_path: Path) -> None:
    onnx.save(empty_model(), tmp_path / "foreign.onnx")
    with pytest.raises(ModelCardError, match=r"no model card.*reptrt export") as caught:
        read_card(tmp_path / "foreign.onnx")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", [b"", b"not a protobuf at all", b"\x08\x0a\x12\xff\xff"])
def test_a_damaged_file_gives_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelCardError) as caught:
        read_card(path)
    assert "\n" not in str(caught.value)
    assert "damaged.onnx" in str(caught.value)
