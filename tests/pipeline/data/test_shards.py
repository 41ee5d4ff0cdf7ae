"""Images in tar shards and Parquet files are the images of a folder."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.datasets import (
    ClassificationSet,
    DataError,
    FolderImages,
    open_classification,
    open_images,
)
from reptrt.pipeline.data.shards import TarMember

PREPROCESS = Preprocess((8, 8), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
COUNT, CLASSES = 10, 4
LABELS = [(3 * index) % CLASSES for index in range(COUNT)]


def encoded(index: int) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def samples(start: int, stop: int) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for index in range(start, stop):
        files[f"set/{index:02}.png"] = encoded(index)
        files[f"set/{index:02}.cls"] = f"{LABELS[index]}\n".encode()
        files[f"set/{index:02}.json"] = b"{}"  # as WebDataset may have it
    return files


def tar_folder(folder: Path) -> Path:
    write_tar(folder / "b.tar", samples(6, COUNT))
    write_tar(folder / "a.tar", samples(0, 6))
    return folder


def write_parquet(path: Path, columns: dict[str, list[object]], rows_a_group: int = 3) -> Path:
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_a_group)
    return path


def structs() -> list[object]:
    return [{"bytes": encoded(index), "path": f"{index:02}.png"} for index in range(COUNT)]


def parquet_structs(folder: Path) -> Path:
    return write_parquet(folder / "x.parquet", {"id": [0] * COUNT, "label": LABELS, "image": structs()})  # type: ignore[dict-item]  # fmt: skip


def parquet_bytes(folder: Path) -> Path:
    names = [f"c{label}" for label in LABELS]
    return write_parquet(
        folder / "x.parquet",
        {"jpg": [encoded(index) for index in range(COUNT)], "class": [*names]},
        rows_a_group=100,
    )


def plain_folder(folder: Path) -> Path:
    folder.mkdir()
    rows = ["file,label"]
    for index, label in enumerate(LABELS):
        (folder / f"{index:02}.png").write_bytes(encoded(index))
        rows.append(f"{index:02}.png,{label}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def opened(path: Path) -> ClassificationSet:
    return open_classification(path, PREPROCESS, CLASSES, [f"c{index}" for index in range(CLASSES)])


@pytest.fixture(params=[tar_folder, parquet_structs, parquet_bytes])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = request.param(tmp_path / "shards")
    return path


def test_shards_hold_what_a_folder_holds(shards: Path, tmp_path: Path) -> None:
    found, expected = opened(shards), opened(plain_folder(tmp_path / "plain"))
    assert found.labels.tolist() == expected.labels.tolist() == LABELS
    for one, other in zip(found.batches(4), expected.batches(4), strict=True):
        assert np.array_equal(one.images, other.images)
        assert one.image_sizes == other.image_sizes


def test_a_part_is_read_by_another_process(shards: Path) -> None:
    whole = np.concatenate([batch.images for batch in opened(shards).batches(3)])
    part = pickle.loads(pickle.dumps(opened(shards).part(4, 9)))
    assert np.array_equal(np.concatenate([batch.images for batch in part.batches(2)]), whole[4:9])


def test_calibration_draws_the_images_that_it_would_draw_of_a_folder(
    shards: Path, tmp_path: Path
) -> None:
    found, expected = (
        open_images(path, PREPROCESS, limit=5, seed=3)
        for path in (shards, plain_folder(tmp_path / "plain"))
    )
    for one, other in zip(found.batches(2), expected.batches(2), strict=True):
        assert np.array_equal(one, other)


def test_a_fingerprint_changes_with_a_pixel(tmp_path: Path) -> None:
    files = samples(0, 6)
    before = opened(write_tar(tmp_path / "x.tar", files)).fingerprint
    assert opened(tmp_path / "x.tar").fingerprint == before
    files["set/03.png"] = encoded(99)
    assert opened(write_tar(tmp_path / "x.tar", files)).fingerprint != before


def test_images_are_named_with_their_shard(tmp_path: Path) -> None:
    images = open_images(tar_folder(tmp_path / "shards"), PREPROCESS)
    assert images.name_of(7) == f"{tmp_path}/shards/b.tar:set/07.png"


def test_an_unreadable_image_of_a_shard_is_left_out_of_the_calibration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {**samples(0, 3), "set/01.png": b"no image"}
    images = open_images(write_tar(tmp_path / "x.tar", files), PREPROCESS)
    assert isinstance(images, FolderImages)
    assert [file.name for file in images.files] == ["set/00.png", "set/02.png"]
    assert "x.tar:set/01.png: not an image" in caplog.text


def test_loose_images_come_before_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", samples(0, 3))
    (tmp_path / "y.png").write_bytes(encoded(0))
    assert len(open_images(tmp_path, PREPROCESS)) == 1


def test_links_and_sparse_members_are_no_images(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"x\.tar: holds no image"):
        open_images(tmp_path / "x.tar", PREPROCESS)


def test_what_cannot_be_read_is_said_on_one_line(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", samples(0, 6)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "text.tar").write_text("no tar")
    (tmp_path / "text.parquet").write_text("no parquet")
    write_tar(tmp_path / "packed.tar", samples(0, 2), "w:gz")
    write_tar(tmp_path / "bare.tar", {"a.png": encoded(0), "b.png": encoded(1), "b.cls": b"1"})
    write_tar(tmp_path / "far.tar", {"a.png": encoded(0), "a.cls": b"7"})
    write_parquet(tmp_path / "unlabelled.parquet", {"image": structs()})
    write_parquet(tmp_path / "numbers.parquet", {"label": [1], "x": [2]})
    write_parquet(tmp_path / "none.parquet", {"image": structs()[:2], "label": [1, None]})
    said = {
        "cut.tar": "cut short",
        "text.tar": "not a tar file",
        "text.parquet": "not a Parquet file",
        "packed.tar": "not a tar file",
        "bare.tar": "a.png: has no label; .* 1 of 2 have none",
        "far.tar": "a.png: label 7 is out of range",
        "unlabelled.parquet": "no labels; needs a column called label, cls, class, and has image",
        "numbers.parquet": "no column of images; .* has label, x",
        "none.parquet": "01.png: has no label",
    }
    for name, words in said.items():
        with pytest.raises(DataError, match=rf"{name}.*{words}") as caught:
            opened(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_member_is_read_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    assert TarMember(tmp_path / "x", "m", 3, 4).open().read() == b"3456"
