"""Which class each image of a classification set shows: by folder name or by `labels.csv`."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from timm.data.imagenet_info import ImageNetInfo

from reptrt.engines.foreign.border import read_bytes, reading
from reptrt.engines.foreign.limits import MAX_TABLE_BYTES
from reptrt.engines.foreign.text import one_line
from reptrt.pipeline.data.image_folder import find_images
from reptrt.pipeline.data.preprocess import DataError

logger = logging.getLogger(__name__)

LABELS_FILE = "labels.csv"
_COLUMNS = ("file", "label")
_IMAGENET_CLASSES = 1000
_WNID = re.compile(r"n\d{8}")


def read_labels_file(path: Path, num_classes: int) -> list[tuple[Path, int]]:
    """Read `file,label` rows; files are relative to the folder of `path`, labels count from 0.

    Raises:
        DataError: A column or a file is missing, or a label is no integer in 0..num_classes-1.
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
        return [
            _labelled(path.parent, name, label, num_classes, where=f"{path}:{line}")
            for line, name, label in rows
        ]


def read_class_folders(
    folder: Path, num_classes: int, classes: Sequence[str] | None
) -> list[tuple[Path, int]]:
    """Label images by the subfolder they are in.

    A subfolder is a class by its name, if the checkpoint states `classes`; by its WordNet id, if the
    model has ImageNet's 1000 classes; else by its position in sorted order, and then there must be
    as many subfolders as classes.

    Raises:
        DataError: There is no subfolder with images, or one that is no class of the model.
    """
    found = {
        sub.name: images
        for sub in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if sub.is_dir() and not sub.name.startswith(".") and (images := find_images(sub))
    }
    if not found:
        raise DataError(
            f"{folder}: no labels; needs {LABELS_FILE} ('file,label') or one subfolder of images"
            f" per class, found {len(find_images(folder))} images beside each other"
        )
    indices = _class_indices(folder, list(found), num_classes, classes)
    return [(image, indices[name]) for name, images in found.items() for image in images]


def _check_columns(path: Path, columns: Sequence[str] | None) -> None:
    missing = [name for name in _COLUMNS if name not in (columns or ())]
    if missing:
        raise DataError(
            f"{path}:1: no column '{missing[0]}'; the first line must be '{','.join(_COLUMNS)}',"
            f" found '{one_line(','.join(columns or ()))}'"
        )


def _labelled(
    folder: Path, name: str | None, label: str | None, num_classes: int, where: str
) -> tuple[Path, int]:
    if not name or not (folder / name).is_file():
        raise DataError(f"{where}: no file '{one_line(name or '')}' in {folder}")
    try:
        index = int(label or "")
    except ValueError:
        raise DataError(f"{where}: label '{one_line(label or '')}' is no integer") from None
    if not 0 <= index < num_classes:
        raise DataError(
            f"{where}: label {index} is out of range; the model has the classes"
            f" 0..{num_classes - 1}"
        )
    return folder / name, index


def _class_indices(
    folder: Path, names: Sequence[str], num_classes: int, classes: Sequence[str] | None
) -> Mapping[str, int]:
    if classes is not None and set(names) & set(classes):
        return _known_indices(folder, names, classes, "the checkpoint's classes")
    if num_classes == _IMAGENET_CLASSES and all(_WNID.fullmatch(name) for name in names):
        info = ImageNetInfo("imagenet-1k")
        wnids = [info.index_to_label_name(index) for index in range(num_classes)]
        return _known_indices(folder, names, wnids, "ImageNet's 1000 classes")
    if classes is not None and len(names) == num_classes:
        logger.warning(
            "%s: no folder is named like a class of the checkpoint; taken in sorted order", folder
        )
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
