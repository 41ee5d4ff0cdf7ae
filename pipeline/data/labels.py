"""Which class each image of a classification set shows: by folder name or by `labels.csv`."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reptrt.engines.foreign.border import read_bytes, reading
from reptrt.engines.foreign.limits import MAX_TABLE_BYTES
from reptrt.engines.foreign.text import one_line, visible
from reptrt.pipeline.data.image_folder import ImageFile, find_images
from reptrt.pipeline.data.preprocess import DataError
from reptrt.pipeline.data.shards import Labelled

if TYPE_CHECKING:
    from timm.data.imagenet_info import ImageNetInfo

logger = logging.getLogger(__name__)

LABELS_FILE = "labels.csv"
_COLUMNS = ("file", "label")
_IMAGENET_CLASSES = 1000
_WNID = re.compile(r"n\d{8}")


def read_labels_file(
    path: Path, num_classes: int, classes: Sequence[str] | None = None
) -> list[tuple[Path, int]]:
    """Read `file,label` rows; files are relative to the folder of `path`.

    A label is a number that counts from 0, one of the checkpoint's `classes`, or a WordNet id where
    the model has ImageNet's 1000 classes.

    Raises:
        DataError: A column or a file is missing, or a label is no class of the model.
    """
    with reading(path, DataError, "unreadable"):
        text = read_bytes(path, MAX_TABLE_BYTES, DataError).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        _check_columns(path, reader.fieldnames)
        rows = [
            (reader.line_num, row[_COLUMNS[0]], row[_COLUMNS[1]])
            for row in reader
        ]  # fmt: skip
        if not rows:
            raise DataError(f"{path}: names no images; needs one row 'file,label' per image")
        names = _names_of_classes(num_classes, classes)
        return [
            _labelled(path.parent, name, _index(label, num_classes, names, where), where)
            for line, name, label in rows
            for where in [f"{path}:{line}"]
        ]


def read_class_folders(
    folder: Path, num_classes: int, classes: Sequence[str] | None
) -> list[tuple[Path, int]]:
    """Label images by the subfolder they are in.

    A subfolder is a class by its name, if the checkpoint states `classes`; by its WordNet id, if the
    model has ImageNet's 1000 classes; else by its position in sorted order, numbers as numbers, and
    then there must be as many subfolders as classes.

    Raises:
        DataError: There is no subfolder with images, or one that is no class of the model.
    """
    found = {
        sub.name: images
        for sub in _sorted_folders(folder)
        if sub.is_dir() and not sub.name.startswith(".") and (images := find_images(sub))
    }
    if not found:
        raise DataError(
            f"{folder}: no labels; needs {LABELS_FILE} ('file,label') or one subfolder of images"
            f" per class, found {len(find_images(folder))} images beside each other"
        )
    indices = _class_indices(folder, list(found), num_classes, classes)
    return [(image, indices[name]) for name, images in found.items() for image in images]


def label_shards(
    labelled: Sequence[Labelled], num_classes: int, classes: Sequence[str] | None
) -> list[tuple[ImageFile, int]]:
    """Class of each image of shards; labels are what they may be in `labels.csv`.

    Raises:
        DataError: there is no image, or a label is no class of the model.
    """
    names = _names_of_classes(num_classes, classes)
    return [
        (image, _index(label, num_classes, names, visible(str(image)))) for image, label in labelled
    ]


def _sorted_folders(folder: Path) -> list[Path]:
    """Entries by name, or by number where every visible folder is called one: 2 before 10."""
    entries = list(folder.iterdir())
    visible = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    if visible and all(name.isdecimal() for name in visible):
        return sorted(
            (e for e in entries if e.name in visible), key=lambda e: (int(e.name), e.name)
        )
    return sorted(entries, key=lambda entry: entry.name)


def _check_columns(path: Path, columns: Sequence[str] | None) -> None:
    missing = [name for name in _COLUMNS if name not in (columns or ())]
    if missing:
        raise DataError(
            f"{path}:1: no column '{missing[0]}'; the first line must be '{','.join(_COLUMNS)}',"
            f" found '{one_line(','.join(columns or ()))}'"
        )


def _labelled(folder: Path, name: str | None, label: int, where: str) -> tuple[Path, int]:
    if not name or not (folder / name).is_file():
        raise DataError(f"{where}: no file '{one_line(name or '')}' in {folder}")
    return folder / name, label


def class_titles(
    num_classes: int, classes: Sequence[str] | None, is_imagenet: bool
) -> tuple[str, ...]:
    """What people call the classes: WordNet ids by their first word, those without a name by their number.

    Args:
        num_classes: of the network.
        classes: as its checkpoint names them.
        is_imagenet: 1000 classes without names are ImageNet's.
    """
    if classes is None and is_imagenet:
        classes = _imagenet_wnids(num_classes) or None
    if classes is None:
        return tuple(f"class {index}" for index in range(num_classes))
    if not all(_WNID.fullmatch(name) for name in classes):
        return tuple(classes)
    known: Any = _imagenet("imagenet-22k").label_descriptions(as_dict=True)
    return tuple(str(known.get(name, name)).partition(",")[0] for name in classes)


def _names_of_classes(num_classes: int, classes: Sequence[str] | None) -> dict[str, int]:
    """What a class may be called: as the checkpoint says, or by its WordNet id."""
    names = {wnid: index for index, wnid in enumerate(_imagenet_wnids(num_classes))}
    return names | {name: index for index, name in enumerate(classes or ())}


def _imagenet_wnids(num_classes: int) -> list[str]:
    if num_classes != _IMAGENET_CLASSES:
        return []
    info = _imagenet("imagenet-1k")
    return [info.index_to_label_name(index) for index in range(num_classes)]


def _imagenet(subset: str) -> ImageNetInfo:
    from timm.data.imagenet_info import ImageNetInfo  # here: it brings PyTorch, which takes seconds

    return ImageNetInfo(subset)


def _index(label: str | None, num_classes: int, names: Mapping[str, int], where: str) -> int:
    text = (label or "").strip()
    if text in names:
        return names[text]
    try:
        index = int(text)
    except ValueError:
        known = list(names)[:2]
        what = f"no integer, nor a class like {', '.join(known)}" if known else "no integer"
        raise DataError(f"{where}: label '{one_line(text)}' is {what}") from None
    if not 0 <= index < num_classes:
        raise DataError(
            f"{where}: label {index} is out of range; the model has the classes"
            f" 0..{num_classes - 1}"
        )
    return index


def _class_indices(
    folder: Path, names: Sequence[str], num_classes: int, classes: Sequence[str] | None
) -> Mapping[str, int]:
    if classes is not None and set(names) & set(classes):
        return _known_indices(folder, names, classes, "the checkpoint's classes")
    if num_classes == _IMAGENET_CLASSES and all(_WNID.fullmatch(name) for name in names):
        wnids = _imagenet_wnids(num_classes)
        return _known_indices(folder, names, wnids, "ImageNet's 1000 classes")
    if classes is not None and len(names) == num_classes:
        logger.warning(
            "%s: no folder is named like a class of the checkpoint; taken in sorted order: %s, ...",
            folder, ", ".join(names[:3]),
        )  # fmt: skip
    if len(names) != num_classes:
        raise DataError(
            f"{folder}: {len(names)} class folders for a model of {num_classes} classes, so their"
            f" order says nothing; give one folder per class, or {LABELS_FILE} ('file,label')"
        )
    return {name: index for index, name in enumerate(names)}


def _known_indices(
    folder: Path, names: Sequence[str], known: Sequence[str], what: str
) -> Mapping[str, int]:
    indices = {name: index for index, name in enumerate(known)}
    unknown = [name for name in names if name not in indices]
    if unknown:
        raise DataError(
            f"{folder / one_line(unknown[0])}: not one of {what} ({known[0]}, {known[1 % len(known)]}, ...);"
            f" rename or remove the folder"
        )
    return indices
