"""Files of images, labels and feeds: what may be in them, and who reads them."""

from __future__ import annotations

import base64
import io
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from hypothesis import strategies as st
from PIL import Image

from reptrt.models.inputs import NetworkInput
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.datasets import open_evaluation, open_images, open_masks, open_samples
from tests.hostile.border import Border, json_like
from tests.hostile.limited import PLANTED
from tests.hostile.strategies import NAMES, damaged

PREPROCESS = Preprocess((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
INPUTS = (
    NetworkInput("image", "float32", (3, 2, 2), picture="chw"),
    NetworkInput("ids", "int64", (4,)),
)

COCO: dict[str, object] = {
    "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}],
    "categories": [{"id": 1, "name": "cat"}],
}


def _put_picture(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", size).save(path)


def _read_coco(path: Path) -> object:
    _put_picture(path.with_name("a.png"))
    found = open_evaluation(path, "detection", PREPROCESS, 1)
    return list(found.batches(1))


@st.composite
def label_files(draw: st.DrawFn) -> bytes:
    cells = st.one_of(st.sampled_from(["a.png", "0", "1", "9" * 5000, "-1", PLANTED]), NAMES)
    rows = draw(st.lists(st.lists(cells, max_size=3), max_size=4))
    head = draw(st.sampled_from(["file,label\n", "file,label\na.png,0\n", "", PLANTED + ",x\n"]))
    text = head + "".join(",".join(row) + "\n" for row in rows)
    return draw(damaged(text.encode("utf-8", "surrogatepass") or b"x"))


def _read_labels(path: Path) -> object:
    _put_picture(path.with_name("a.png"))
    return open_evaluation(path.parent, "classification", PREPROCESS, 2)


# Images


@cache
def _pictures() -> tuple[bytes, ...]:
    files = []
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    for mode in ("RGB", "L", "P", "I;16"):
        picture = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        for kind in ("PNG", "TIFF", "BMP", "PPM", "JPEG", "WEBP", "GIF", "EPS", "DDS", "ICO"):
            buffer = io.BytesIO()
            try:
                picture.save(buffer, kind)
            except (OSError, ValueError, KeyError):
                continue
            files.append(buffer.getvalue())
    for size in ((9000, 9000), (1, 60_000)):  # little to store, much to decode
        buffer = io.BytesIO()
        Image.new("1", size).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return tuple(files)


@st.composite
def image_files(draw: st.DrawFn) -> bytes:
    return draw(damaged(draw(st.sampled_from(_pictures()))))


@cache
def _masks() -> tuple[bytes, ...]:
    files = []
    for mode in ("1", "L", "P", "I", "I;16", "F", "RGB", "RGBA", "LA"):
        for kind in ("PNG", "TIFF", "BMP", "WEBP"):
            buffer = io.BytesIO()
            try:
                Image.new(mode, (12, 9)).save(buffer, kind)
            except (OSError, ValueError, KeyError):
                continue
            files.append(buffer.getvalue())
    return (*files, *_pictures())


@st.composite
def mask_files(draw: st.DrawFn) -> bytes:
    return draw(damaged(draw(st.sampled_from(_masks()))))


def _read_mask(path: Path) -> object:
    _put_picture(path.parents[1] / "images" / "x.png", (12, 9))
    return open_masks(path.parents[1], PREPROCESS, 3).classes_of(0)


def _read_images(path: Path) -> object:
    return list(open_images(path.parent, PREPROCESS).batches(2))


@st.composite
def array_files(draw: st.DrawFn, is_archive: bool) -> bytes:
    shape = draw(
        st.sampled_from([(2, 8, 8, 3), (2, 3, 8, 8), (0, 8, 8, 3), (2,), (1, 300, 300, 3)])
    )
    kind = draw(st.sampled_from([np.uint8, np.float32, np.float64, np.int64]))
    buffer = io.BytesIO()
    (np.savez_compressed if is_archive else np.save)(buffer, np.zeros(shape, kind))
    content = buffer.getvalue()
    if not is_archive and draw(st.booleans()):
        claim = draw(
            st.sampled_from(["(1, 45000, 45000, 3)", "(99999999999, 8, 8, 3)", "()", "(2,)*9"])
        )
        content = content.replace(str(shape).encode(), claim.encode())
    return draw(damaged(content))


def _read_array(path: Path) -> object:
    return list(open_images(path, PREPROCESS, limit=3).batches(2))


# Feeds


def _npy(values: object, dtype: str) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values, dtype))
    return buffer.getvalue()


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _stored_tensor(is_new: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.ones(1, 4, dtype=torch.int64), buffer, _use_new_zipfile_serialization=is_new)
    return buffer.getvalue()


@st.composite
def tar_shards(draw: st.DrawFn) -> bytes:
    """Samples of WebDataset; sizes and kinds that headers claim, too."""
    names = st.sampled_from(
        ["a.png", "a.cls", "b.jpg", "b.cls", "../c.png", "x" * 300, PLANTED, ""]
    )
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "png")
    contents = st.sampled_from([picture.getvalue(), b"0", b"1", b"9" * 5000, b"", b"\xff"])
    kinds = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE, b"Z"])
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in draw(st.lists(st.tuples(names, contents), max_size=5)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.type = draw(st.one_of(st.just(tarfile.REGTYPE), kinds))
            if draw(st.integers(0, 9)) == 0:
                member.pax_headers = {"size": draw(st.sampled_from(["9" * 30, "-1", "x"]))}
            archive.addfile(member, io.BytesIO(content))
    return draw(damaged(stream.getvalue()))


@st.composite
def parquet_shards(draw: st.DrawFn) -> bytes:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "png")
    images: list[object] = [picture.getvalue(), b"", None]
    rows = draw(st.integers(0, 4))
    cells = [draw(st.sampled_from(images)) for _ in range(rows)]
    structs: list[object] = [{"bytes": cell, "path": PLANTED} for cell in cells]
    labels = st.sampled_from([0, 1, -1, 1 << 60])
    columns: dict[str, list[object]] = {
        "image": draw(st.sampled_from([cells, structs])),
        draw(st.sampled_from(["label", "class", PLANTED])): [draw(labels) for _ in range(rows)],
    }
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), stream)
    return draw(damaged(stream.getvalue()))


def _read_shard(path: Path) -> object:
    calibration = list(open_images(path, PREPROCESS).batches(2))
    return calibration, list(open_evaluation(path, "classification", PREPROCESS, 2).batches(2))


@st.composite
def polygraphy_files(draw: st.DrawFn) -> bytes:
    image = _npy(np.ones((1, 3, 2, 2)), "float32")
    claims = [image.replace(b"(1, 3, 2, 2)", claim) for claim in (b"(9**9,)     ", b"(1<<60, 2)  ")]
    claims += [image.replace(b"(1, 3, 2, 2)", b"(1, 3, 2, 9999999)"), b"PK", b"", b"\x93NUMPY"]
    arrays = st.one_of(st.just(image), st.just(image), damaged(image), st.sampled_from(claims))
    tensors = st.one_of(st.just(_stored_tensor(True)), damaged(_stored_tensor(draw(st.booleans()))))
    marker = st.sampled_from(
        ["polygraphy_class", "polygraphy_class", "__polygraphy_encoded_ndarray"]
    )
    feed = {
        "image": {draw(marker): "ndarray", "array": _encode(draw(arrays))},
        "ids": {"polygraphy_class": "Tensor", "tensor": _encode(draw(tensors))},
        draw(st.sampled_from(["file", "x", PLANTED, "../x", "\x00", "y" * 70_000])): {
            "polygraphy_class": draw(
                st.sampled_from(["ndarray", "LazyArray", "RunResults", PLANTED])
            ),
            "array": _encode(_npy(draw(st.sampled_from([[[1, 2]], [], 3])), "float32")),
        },
    }
    return draw(json_like([feed]))


@st.composite
def feed_archives(draw: st.DrawFn) -> bytes:
    """`.npz` of named feeds."""
    good = {"image": np.ones((2, 3, 2, 2), np.float32), "ids": np.ones((2, 4), np.int64)}
    odd = st.sampled_from([
        np.full((2, 3, 2, 2), np.nan), np.ones(()), np.ones((0, 4)), np.ones((2, 4), bool),
        np.ones((2, 4), complex), np.array(["a"]), np.array([b"a"]), np.ones((2, 4), "M8[s]"),
        np.ones((3, 4)), np.ones(2, [("a", int)]), np.zeros((2000, 2000), np.uint8),
    ])  # fmt: skip
    for name in draw(st.sets(st.sampled_from(["image", "ids", "x", PLANTED, "../x"]), max_size=2)):
        good[name] = draw(odd)
    buffer = io.BytesIO()
    draw(st.sampled_from([np.savez, np.savez_compressed]))(buffer, **good)
    return draw(damaged(buffer.getvalue()))


def _read_feeds(path: Path) -> object:
    samples = open_samples(path, INPUTS, PREPROCESS, path.parent / "stored")
    return list(samples.feeds(2))


BORDERS: dict[str, Border] = {
    "COCO": Border("coco.json", json_like(COCO), _read_coco),
    "labels.csv": Border("set/labels.csv", label_files(), _read_labels),
    "image": Border("images/x.png", image_files(), _read_images),
    "mask": Border("set/masks/x.png", mask_files(), _read_mask),
    "tar shard": Border("x.tar", tar_shards(), _read_shard),
    "Parquet shard": Border("x.parquet", parquet_shards(), _read_shard),
    ".npy": Border("x.npy", array_files(is_archive=False), _read_array),
    ".npz": Border("x.npz", array_files(is_archive=True), _read_array),
    "feeds": Border("feeds.npz", feed_archives(), _read_feeds),
    "Polygraphy's feeds": Border("feeds.json", polygraphy_files(), _read_feeds),
}  # fmt: skip
