"""COCO annotations: one JSON file beside its images, read strictly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reptrt.engines.foreign.border import read_json, reading
from reptrt.engines.foreign.limits import MAX_JSON_BYTES
from reptrt.engines.foreign.text import one_line
from reptrt.pipeline.data.preprocess import DataError

ANNOTATIONS_FILE = "annotations.json"

Record = Mapping[str, object]


@dataclass(frozen=True)
class Annotations:
    """The objects of one image.

    Attributes:
        boxes: `[n, 4]` float64, x1 y1 x2 y2 in pixels of the image.
        labels: `[n]` int64, class indices of the model.
        areas: `[n]` float64, in pixels; of the outline where the file states it, else of the box.
        crowd: `[n]` bool; detections in a crowd count neither way.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def as_bytes(self) -> bytes:
        """Return everything, one value after the other."""
        arrays = (self.boxes, self.labels, self.areas, self.crowd)
        return b"".join(array.tobytes() for array in arrays)


@dataclass(frozen=True)
class CocoData:
    """A whole annotation file, in the order of its images.

    Attributes:
        files: The images.
        sizes: Height and width that the file states, None where it does not.
        annotations: Of each image.
        class_names: By class index.
    """

    files: tuple[Path, ...]
    sizes: tuple[tuple[int, int] | None, ...]
    annotations: tuple[Annotations, ...]
    class_names: tuple[str, ...]


def find_annotations(path: Path) -> Path:
    """Return the JSON file itself, a folder's `annotations.json`, or its only JSON file.

    Raises:
        DataError: There is none, or there are several.
    """
    if path.is_file():
        return path
    if (path / ANNOTATIONS_FILE).is_file():
        return path / ANNOTATIONS_FILE
    found = sorted(path.glob("*.json"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found) or "none"
    raise DataError(
        f"{path}: needs one COCO file, {ANNOTATIONS_FILE}, beside its images; JSON files found:"
        f" {names}"
    )


def read_coco(path: Path, num_classes: int | None, classes: Sequence[str] | None) -> CocoData:
    """Read an annotation file and find its images.

    Categories become classes by name where the checkpoint's `classes` hold all their names, else by
    the order of their ids (COCO's own ids have gaps). Images are looked for beside the file, in
    `images/`, in its other subfolders, and in the folders beside its own.

    Args:
        path: JSON file.
        num_classes: Of the model; None accepts any number of categories.
        classes: Names stated by the checkpoint.

    Raises:
        DataError: The file is malformed, an image is missing, or nothing is annotated.
    """
    with reading(path, DataError, "cannot be used as COCO annotations"):
        return _read(path, num_classes, classes)


def _read(path: Path, num_classes: int | None, classes: Sequence[str] | None) -> CocoData:
    root = _parse(path)
    indices, names = _class_indices(path, _records(root, "categories", path), num_classes, classes)
    images = _records(root, "images", path)
    annotations = _records(root, "annotations", path)
    if not images or not annotations:
        raise DataError(f"{path}: no annotated images; 'images' and 'annotations' must hold some")
    by_image: dict[object, list[Record]] = {}
    for image in images:
        by_image[_field(image, "id", path, "images")] = []
    if len(by_image) != len(images):
        raise DataError(f"{path}: two images share one id; ids must be unique")
    for annotation in annotations:
        image_id = _field(annotation, "image_id", path, "annotations")
        if image_id not in by_image:
            raise DataError(
                f"{path}: an annotation is of image {one_line(image_id)}, not in 'images'"
            )
        by_image[image_id].append(annotation)
    return CocoData(
        files=_find_files(path, [_file_name(image, path) for image in images]),
        sizes=tuple(_size(image) for image in images),
        annotations=tuple(
            _annotations(by_image[image["id"]], indices, path) for image in images
        ),
        class_names=names,
    )  # fmt: skip


def _parse(path: Path) -> Record:
    root = read_json(path, MAX_JSON_BYTES, DataError)
    if not isinstance(root, dict):
        raise DataError(
            f"{path}: no COCO file; needs an object with images, annotations, categories"
        )
    return root


def _records(root: Record, key: str, path: Path) -> list[Record]:
    value = root.get(key)
    if not isinstance(value, list) or not all(isinstance(record, dict) for record in value):
        raise DataError(f"{path}: '{key}' must be a list of objects, as in COCO files")
    return value


def _field(record: Record, key: str, path: Path, place: str) -> object:
    value = record.get(key)
    if not isinstance(value, (int, str)):
        raise DataError(
            f"{path}: an entry of '{place}' has no usable '{key}' (found {one_line(value)})"
        )
    return value


def _file_name(image: Record, path: Path) -> str:
    return str(_field(image, "file_name", path, "images"))


def _size(image: Record) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    return None


def _class_indices(
    path: Path,
    categories: Sequence[Record],
    num_classes: int | None,
    classes: Sequence[str] | None,
) -> tuple[Mapping[object, int], tuple[str, ...]]:
    """Map category ids to class indices; also return the class names."""
    if not all(isinstance(category.get("id"), int) for category in categories):
        raise DataError(f"{path}: every entry of 'categories' needs an integer 'id'")
    ordered = sorted(categories, key=lambda category: int(str(category["id"])))
    names = tuple(str(category.get("name", category["id"])) for category in ordered)
    if classes is not None and names and set(names) <= set(classes):
        by_name = {name: index for index, name in enumerate(classes)}
        pairs = zip(ordered, names, strict=True)
        return {category["id"]: by_name[name] for category, name in pairs}, tuple(classes)
    if num_classes is not None and len(ordered) != num_classes:
        raise DataError(
            f"{path}: {len(ordered)} categories for a model of {num_classes} classes; list in"
            f" 'categories' exactly the classes of the model, in its order"
        )
    return {category["id"]: index for index, category in enumerate(ordered)}, names


def _find_files(path: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Return the images, all from the first folder that holds them all."""
    for folder in _candidate_folders(path.parent):
        if all((folder / name).is_file() for name in names):
            return tuple(folder / name for name in names)
    missing = next(name for name in names if not (path.parent / name).is_file())
    raise DataError(
        f"{path}: no image '{one_line(missing)}' in {path.parent}; all images must lie in one folder: beside"
        f" the JSON file, in images/, or in a folder next to it"
    )


def _candidate_folders(folder: Path) -> Iterator[Path]:
    yield folder
    yield folder / "images"
    for parent in (folder, folder.absolute().parent):
        yield from sorted(entry for entry in parent.iterdir() if entry.is_dir())


def _annotations(
    records: Sequence[Record], indices: Mapping[object, int], path: Path
) -> Annotations:
    boxes, labels, areas = [], [], []
    for record in records:
        box = _box(record, path)
        category = record.get("category_id")
        if not isinstance(category, int) or category not in indices:
            raise DataError(
                f"{path}: annotation {one_line(record.get('id'))}: category_id {one_line(category)} is not in"
                f" 'categories'"
            )
        area = record.get("area")
        boxes.append(box)
        labels.append(indices[category])
        areas.append(float(area) if isinstance(area, (int, float)) else _area(box))
    return Annotations(
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        areas=np.array(areas, dtype=np.float64),
        crowd=np.array([bool(record.get("iscrowd")) for record in records], dtype=np.bool_),
    )


def _box(record: Record, path: Path) -> tuple[float, float, float, float]:
    """Turn COCO's x, y, width, height into x1, y1, x2, y2."""
    value = record.get("bbox")
    numbers = [
        float(side)
        for side in (value if isinstance(value, list) else ())
        if isinstance(side, (int, float)) and math.isfinite(side)
    ]
    if not isinstance(value, list) or len(numbers) != 4 or len(value) != 4 or min(numbers[2:]) < 0:
        raise DataError(
            f"{path}: annotation {one_line(record.get('id'))}: bbox must be [x, y, width, height] in pixels,"
            f" found {one_line(value)}"
        )
    x, y, width, height = numbers
    return x, y, x + width, y + height


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
