from __future__ import annotations

import pytest

from reptrt.engines.foreign.text import one_line, path_part, visible, visible_tree
from tests.hostile.limited import PLANTED


def test_what_a_terminal_obeys_is_shown_as_question_marks() -> None:
    assert visible("a\x1b]0;b\x07c\u202ed\ud800e\u2028") == "a?]0;b?c?d?e?"
    assert visible("Zürich 猫 5\u00a0%") == "Zürich 猫 5\u00a0%"


def test_a_message_is_one_line_of_a_bounded_length() -> None:
    assert one_line(PLANTED).isprintable()
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line("x" * 10**6) == "x" * 157 + "..."
    assert one_line("x" * 160) == "x" * 160
    assert one_line(["x" * 100] * 100).isprintable()
    assert one_line(ValueError()) == "ValueError"


def test_a_number_of_too_many_digits_is_shown_by_its_type() -> None:
    assert one_line(10**5000) == "a int" or one_line(10**5000).startswith("<int")


def test_a_tree_is_shown_keys_and_all() -> None:
    assert visible_tree({"\x1b": ["\n", 1, None]}) == {"?": ["?", 1, None]}


@pytest.mark.parametrize(
    ("name", "part"),
    [("..", "model"), ("", "model"), (".hidden", "hidden"), ("../../etc/passwd", "etc-passwd"),
     ("a\x00b\nc", "a-b-c"), ("-rf", "rf"), ("net.v1", "net.v1"), ("ends.", "ends"),
     ("x" * 500, "x" * 100), ("\u202e", "model")],
)  # fmt: skip
def test_a_name_becomes_one_part_of_a_path(name: str, part: str) -> None:
    assert path_part(name) == part
