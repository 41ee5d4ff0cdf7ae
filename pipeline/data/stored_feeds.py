"""Feeds that come from Polygraphy's files, from a script or from memory, as a folder of `.npz`.

They are written once, so that every stage and a resumed run read the same samples. A loader script is the
user's own code and runs as it is, like MODEL as `package.module:callable`: never name one that you did not
write or read.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from polygraphy.mod import import_from_script

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.foreign.border import reading
from reptrt.engines.foreign.limits import MAX_FEED_BYTES
from reptrt.engines.foreign.text import one_line
from reptrt.engines.partial import partial_folder
from reptrt.models.inputs import Feed
from reptrt.pipeline.data.array_images import read_member_names
from reptrt.pipeline.data.feeds import as_mapping, has_feeds, list_feeds, read_feed
from reptrt.pipeline.data.polygraphy_json import read_polygraphy_feeds
from reptrt.pipeline.data.preprocess import DataError

MOST_STORED = 1024
"""Samples that are kept of a source that states no end."""
STORED = "images"
"""Folder beside the runs for samples from memory, scripts and JSON."""
_JSON, _SCRIPT, _ARRAYS = ".json", ".py", ".npz"
_FUNCTION = "load_data"
_FORMAT = b"reptrt feeds 1"


def is_feed_source(path: Path) -> bool:
    """Whether `data` names feeds and not pictures: see `feed_files`."""
    if path.is_dir():
        return has_feeds(path)
    if path.suffix.lower() == _ARRAYS and path.is_file():
        return _has_several(path)
    return path.suffix.lower() == _JSON or _split_script(path) is not None


def feed_files(path: Path, folder: Path, limit: int | None = None) -> list[Path]:
    """The `.npz` files that hold the feeds of `path`.

    Args:
        path: a folder of `.npz` files, one such file, JSON that Polygraphy saved (`--save-inputs`), or a
            script that has a function `load_data` which yields feeds; `script.py:function` names another.
        folder: where the feeds of JSON and scripts go.
        limit: most samples of a script that are kept.

    Raises:
        DataError: it is missing, damaged, or holds something else than feeds.
    """
    if path.is_dir():
        return list_feeds(path)
    if path.suffix.lower() == _ARRAYS:
        return [path]
    script = _split_script(path)
    if script is not None:
        with reading(path, DataError, "the loader script failed"):
            return list_feeds(store_feeds(_run(*script), folder, limit or MOST_STORED))
    with reading(path, DataError, "cannot be stored as feeds"):
        return list_feeds(store_feeds(read_polygraphy_feeds(path), folder))


def sample_feed(path: Path | None, folder: Path, limit: int | None = None) -> Feed | None:
    """One sample or batch of `path`, to learn from it what a network reads; None where pictures do."""
    if path is None or not is_feed_source(path):
        return None
    return read_feed(feed_files(path, folder, limit)[0])


def store_feeds(feeds: Iterable[object], folder: Path, limit: int | None = None) -> Path:
    """Write feeds into a folder inside `folder` that is named after their content; return it.

    Args:
        feeds: mappings of input names to arrays or tensors.
        folder: made where it is missing.
        limit: most feeds that are read; None reads all.

    Raises:
        DataError: there are none, one is something else, or they have more than 1 GiB each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest, count = hashlib.sha256(_FORMAT), 0
    with partial_folder(folder, "feeds") as partial:
        for count, feed in enumerate(islice(feeds, limit), start=1):  # its last value
            arrays = {name: _as_array(v) for name, v in as_mapping(feed, "feeds").items()}
            if sum(array.nbytes for array in arrays.values()) > MAX_FEED_BYTES:
                raise DataError(f"feed {count - 1} has more than 1 GiB")
            for name, array in arrays.items():
                digest.update(f"{name}\0{array.dtype}{array.shape}".encode() + array.tobytes())
            digest.update(b"\n")
            _write(arrays, partial / f"{count - 1:06}{_ARRAYS}")
        if not count:
            raise DataError("feeds: there are none")
        final = folder / f"feeds-{digest.hexdigest()[:16]}"
        partial.chmod(0o755)
        try:
            partial.rename(final)
        except OSError:
            if not final.is_dir():  # else it is there, perhaps since a moment ago
                raise
            _require_same_files(final, partial)
    return final


def _require_same_files(stored: Path, made: Path) -> None:
    """Refuse a folder that is named after a content which it has no more.

    Raises:
        DataError: a file was changed, removed or added.
    """
    before, now = (
        {path.name: file_sha256(path) for path in folder.iterdir()} for folder in (stored, made)
    )
    if before != now:
        raise DataError(f"{stored}: is not what was written there; remove it, and run again")


def _write(arrays: Feed, path: Path) -> None:
    """As `np.savez` does, which takes no array that is called `file`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                npy_format.write_array(entry, array, allow_pickle=False)


def _as_array(value: NDArray[Any]) -> NDArray[Any]:
    if value.dtype.hasobject or value.dtype.kind not in "fiub":
        raise DataError(f"a feed holds {value.dtype}, which no network reads")
    return np.ascontiguousarray(value).reshape(value.shape)


def _has_several(path: Path) -> bool:
    """Whether a single `.npz` file is one feed: it has several arrays, and none that is called `images`."""
    try:
        names = read_member_names(path)
    except Exception:  # of a damaged zip file; whoever reads it as images says what is wrong
        return False
    return len(names) > 1 and "images" not in names


def _split_script(path: Path) -> tuple[Path, str] | None:
    script, colon, function = str(path).rpartition(":")
    if colon and script.lower().endswith(_SCRIPT) and function.isidentifier():
        return Path(script), function
    return (path, _FUNCTION) if path.suffix.lower() == _SCRIPT else None


def _run(script: Path, function: str) -> Iterator[object]:
    if not script.is_file():
        raise DataError(f"{script}: no such loader script")
    try:
        yield from import_from_script(str(script), function)()
    except SystemExit as stop:  # else it would end this program, with a code that says nothing
        raise DataError(f"{script}: left with {one_line(stop)} instead of yielding feeds") from None
