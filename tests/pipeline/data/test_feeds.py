import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from polygraphy.json import save_json

from reptrt.models.inputs import NetworkInput, image_input
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.datasets import open_samples
from reptrt.pipeline.data.feeds import FeedSet, NamedFeeds
from reptrt.pipeline.data.preprocess import DataError
from reptrt.pipeline.data.stored_feeds import feed_files, is_feed_source, store_feeds

IMAGE = NetworkInput("image", "float32", (3, 2, 2), picture="chw")
SCALE = NetworkInput("scale", "float32", (1,), batched=False)
IDS = NetworkInput("ids", "int64", (4,))
PLAIN = Preprocess((2, 2), (0.0,) * 3, (1.0,) * 3)
LOADER = """
import numpy as np

def load_data():
    for index in range(3):
        yield {"ids": np.full((1, 4), index)}
"""


def feeds(folder: Path, *samples: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    for index, sample in enumerate(samples):
        np.savez(folder / f"{index}.npz", **sample)  # type: ignore[arg-type]
    return folder


def opened(path: Path, *inputs: NetworkInput) -> FeedSet:
    return open_samples(path, inputs, PLAIN, path.parent / "stored")


def test_samples_are_batched_across_files_in_order(tmp_path: Path) -> None:
    whole = np.arange(12).reshape(3, 4)
    folder = feeds(tmp_path / "f", {"ids": whole[:2]}, {"ids": whole[2]})  # a batch, and one sample
    samples = opened(folder, IDS)
    assert [feed["ids"].tolist() for feed in samples.feeds(2)] == [
        whole[:2].tolist(),
        [whole[2].tolist()],
    ]
    assert (len(samples), samples.sizes(2)) == (3, [2, 1])
    assert samples.name_of(2) == f"{folder / '1.npz'}, sample 0"


def test_samples_with_other_shared_values_are_in_other_batches(tmp_path: Path) -> None:
    image = np.ones((1, 3, 2, 2), np.float32)
    scales = [1.0, 1.0, 2.0]
    folder = feeds(tmp_path / "f", *({"image": image, "scale": np.array([s])} for s in scales))
    samples = opened(folder, IMAGE, SCALE)
    found = [(len(feed["image"]), feed["scale"].tolist()) for feed in samples.feeds(16)]
    assert found == [(2, [1.0]), (1, [2.0])]


def test_pictures_feed_the_image_and_everything_else_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "images.npy", np.full((2, 3, 2, 2), 0.5, np.float32))
    (feed,) = opened(tmp_path / "images.npy", IMAGE, SCALE).feeds(2)
    assert feed["image"].max() == 0.5
    assert feed["scale"].tolist() == [1.0]
    assert "pictures feed 'image' alone; 'scale': 1 everywhere" in caplog.text
    with pytest.raises(DataError, match="pictures cannot feed ids: int64"):
        opened(feeds(tmp_path, {"ids": np.ones((1, 4), int)}) / "none", IDS)


def test_pixels_get_the_layout_and_type_of_their_input(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2) + 0.4)
    pixels = NetworkInput("x", "uint8", (2, 2, 3), picture="hwc", peak=255)
    (feed,) = opened(tmp_path / "images.npy", pixels).feeds(1)
    assert feed["x"].dtype == np.uint8
    assert feed["x"][0, 0, 0].tolist() == [0, 4, 8]


def test_one_array_feeds_an_image_whatever_its_name_and_layout(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 2, 2, 3), dtype=np.float32)
    (feed,) = opened(feeds(tmp_path / "f", {"input_1": values}), image_input((2, 2))).feeds(2)
    assert np.array_equal(feed["images"], values.transpose(0, 3, 1, 2))


def test_polygraphys_json_and_a_loader_script_are_stored_once(tmp_path: Path) -> None:
    wanted = [{"ids": np.full((1, 4), index)} for index in range(3)]
    save_json(wanted, str(tmp_path / "inputs.json"))
    (tmp_path / "loader.py").write_text(LOADER)
    for name in ("inputs.json", "loader.py", "loader.py:load_data"):
        samples = opened(tmp_path / name, IDS)
        assert [feed["ids"][0, 0] for feed in samples.feeds(1)] == [0, 1, 2]
    assert len(list((tmp_path / "stored").iterdir())) == 1
    assert len(feed_files(tmp_path / "loader.py", tmp_path / "two", limit=2)) == 2


def test_polygraphys_json_may_hold_tensors_of_pytorch(tmp_path: Path) -> None:
    save_json([{"ids": torch.full((1, 4), 7)}], str(tmp_path / "inputs.json"))
    (feed,) = opened(tmp_path / "inputs.json", IDS).feeds(1)
    assert feed["ids"].tolist() == [[7] * 4]


def archive_of_zeros() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, np.zeros(1 << 24, np.uint8))
    return buffer.getvalue()


def claiming(shape: str) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((1, 4), int))
    return buffer.getvalue().replace(b"(1, 4), ", f"{shape:8}".encode())


@pytest.mark.parametrize(
    ("content", "expected"),
    [(archive_of_zeros(), "magic string"), (claiming("(9**9,)"), "is no JSON that Polygraphy"),
     (claiming("(99, 9)"), r"array of \[99, 9\] int64 is cut off"), (b"", "is no JSON that Polygraphy")],
)  # fmt: skip
def test_an_array_in_polygraphys_json_is_no_larger_than_its_text(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    array = {"polygraphy_class": "ndarray", "array": base64.b64encode(content).decode()}
    (tmp_path / "a.json").write_text(json.dumps([{"ids": array}]))
    with pytest.raises(DataError, match=expected):
        opened(tmp_path / "a.json", IDS)


@pytest.mark.parametrize("kind", ["LazyArray", "RunResults", "\x1b]0;x"])
def test_no_other_class_of_polygraphy_is_made(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"ids": {"polygraphy_class": kind, "values": 1}}]))
    with pytest.raises(DataError, match=r"'ids' is a .*, and no array") as caught:
        opened(tmp_path / "a.json", IDS)
    assert str(caught.value).isprintable()


def test_an_input_may_have_any_name(tmp_path: Path) -> None:
    names = NetworkInput("file", "int64", (4,)), NetworkInput("a/../b", "int64", (4,))
    folder = store_feeds([{one.name: np.ones((1, 4), int) for one in names}], tmp_path / "stored")
    assert [list(feed) for feed in NamedFeeds(list(folder.iterdir()), names).feeds(1)] == [
        ["file", "a/../b"]
    ]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ({"ids": np.ones((1, 4), int), "other": np.ones(1)}, "has ids, other, and lacks image"),
        ({"image": np.ones((1, 3, 2, 3), np.float32)}, r"'image' is \[1, 3, 2, 3\]"),
        ({"image": np.full((1, 3, 2, 2), np.nan, np.float32)}, "holds NaN or infinity"),
        ({"image": np.ones((1, 3, 2, 2), complex)}, "'image' is complex128"),
    ],
)
def test_feeds_that_do_not_fit_are_named(
    tmp_path: Path, sample: dict[str, np.ndarray], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        opened(feeds(tmp_path / "f", sample), IMAGE)


def test_numbers_that_the_type_of_an_input_cannot_hold_are_refused(tmp_path: Path) -> None:
    folder = feeds(tmp_path / "f", {"ids": np.full((1, 4), 1 << 40)})
    with pytest.raises(DataError, match="holds numbers that int32 cannot"):
        NamedFeeds([folder / "0.npz"], [NetworkInput("ids", "int32", (4,))])


def test_bad_sources_say_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.npz").write_bytes(b"PK no archive")
    (tmp_path / "a.py").write_text("def load_data():\n    raise OSError('no camera')\n")
    (tmp_path / "c.py").write_text("import sys\n\ndef load_data():\n    sys.exit(0)\n")
    for name, expected in (
        ("a.json", "a.json"), ("a.npz", "array file"), ("a.py", "loader script failed"),
        ("c.py", "left with 0 instead of yielding feeds"), ("b.py", "no such loader script"), ("b.json", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=expected) as error:
            opened(tmp_path / name, IMAGE)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="there are none"):
        store_feeds([], tmp_path / "stored")


def test_a_folder_of_pictures_or_one_array_is_no_feed_source(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", images=np.ones((1, 3, 2, 2), np.float32))
    np.savez(tmp_path / "two.npz", a=np.ones(1), b=np.ones(1))
    assert not is_feed_source(tmp_path / "one.npz")
    assert is_feed_source(tmp_path / "two.npz")
    assert is_feed_source(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    assert not is_feed_source(tmp_path)
