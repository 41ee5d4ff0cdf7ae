"""Image files in a folder: found by their extensions, identified by their bytes."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal, Protocol

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.foreign.text import one_line

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFile(Protocol):
    """An encoded image with a name: a path, or a place in a shard. `str()` says where it is."""

    @property
    def name(self) -> str:
        """Without folders, most often."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]:
        """Read its bytes."""


def find_images(folder: Path) -> list[Path]:
    """List the images below `folder`, sorted by path; hidden files and folders are left out."""
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(path, folder) and path.is_file()
    ]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def describe_contents(folder: Path) -> str:
    """Say what files a folder holds, by extension, most frequent first."""
    counts = Counter(
        path.suffix.lower() or "(no extension)"
        for path in folder.rglob("*")
        if path.is_file() and not _is_hidden(path, folder)
    )
    listed = [f"{count} {one_line(suffix)}" for suffix, count in counts.most_common(4)]
    return ", ".join(listed) if listed else "nothing"


def fingerprint_files(files: Sequence[ImageFile], *more: bytes) -> str:
    """Hex digest of the names and bytes of `files`, in order, and of `more`; folders do not count."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(os.fsencode(path.name) + f"\0{_sha256(path)}\n".encode())
    for block in more:
        digest.update(block)
    return digest.hexdigest()


def _sha256(file: ImageFile) -> str:
    if isinstance(file, Path):
        return file_sha256(file)
    with file.open("rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
