from __future__ import annotations

import pytest

from reptrt.engines.option_names import as_flags

FLAGS = {"image_size": "--image-size", "target": "--target", "end2end": "--end2end"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("give `image_size`, such as 224", "give --image-size, such as 224"),
        ("`image_size=8x9` needs an export", "--image-size 8x9 needs an export"),
        ('choose `target="cpu"`: here', "choose --target cpu: here"),
        ("`end2end=True`", "--end2end"),
        ("`seed` and `reptrt doctor` and image_size", "`seed` and `reptrt doctor` and image_size"),
    ],
)
def test_options_in_backquotes_become_flags_and_nothing_else_does(
    message: str, expected: str
) -> None:
    assert as_flags(message, FLAGS) == expected
