"""COCO annotations: one JSON file beside its images, read strictly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from reptrt.engines.foreign.border import read_json, reading
from reptrt.engines.foreign.limits import MAX_JSON_BYTES
from reptrt.engines.foreign.text import one_line
from reptrt.pipeline.data.preprocess import DataError

ANNOTATIONS_FILE = "annotations.json"
_FAULTS = {
    ("categories", "id"): "every entry of 'categories' needs an integer 'id', found {value}",
    ("annotations", "category_id"): "annotation {id}: category_id {value} is not in 'categories'",
    ("annotations", "bbox"): "annotation {id}: bbox must be [x, y, width, height] in pixels, found"
    " {value}",
    ("annotations", "area"): "annotation {id}: area must be a number of pixels, found {value}",
    ("annotations", "iscrowd"): "annotation {id}: iscrowd must be 0 or 1, found {value}",
}


class _Record(BaseModel):
    """What is read of an object in the file; its other keys are ignored, numbers are finite."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class _Image(_Record):
    id: int | str
    file_name: str
    height: Annotated[int, Strict(False)] | None = None
    width: Annotated[int, Strict(False)] | None = None


class _Category(_Record):
    id: int
    name: str | int | None = None


Size = Annotated[float, Field(ge=0)]


class _Annotation(_Record):
    id: Any = None
    image_id: int | str
    category_id: int
    bbox: Annotated[tuple[float, float, Size, Size], Strict(False)]
    area: Size | None = None
    iscrowd: bool | Annotated[int, Field(ge=0, le=1)] = False


class _File(_Record):
    categories: list[_Category]
    images: list[_Image]
    annotations: list[_Annotation]


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
    file = _parse(path)
    if not file.images or not file.annotations:
        raise DataError(f"{path}: no annotated images; 'images' and 'annotations' must hold some")
    indices, names = _class_indices(path, file.categories, num_classes, classes)
    by_image: dict[int | str, list[_Annotation]] = {image.id: [] for image in file.images}
    if len(by_image) != len(file.images):
        raise DataError(f"{path}: two images share one id; ids must be unique")
    for annotation in file.annotations:
        if annotation.image_id not in by_image:
            image = one_line(repr(annotation.image_id))
            raise DataError(f"{path}: an annotation is of image {image}, not in 'images'")
        if annotation.category_id not in indices:
            raise DataError(f"{path}: {_fault('annotations', 'category_id', dict(annotation))}")
        by_image[annotation.image_id].append(annotation)
    return CocoData(
        files=_find_files(path, [image.file_name for image in file.images]),
        sizes=tuple(_size(image) for image in file.images),
        annotations=tuple(_annotations(by_image[image.id], indices) for image in file.images),
        class_names=names,
    )


def _parse(path: Path) -> _File:
    root = read_json(path, MAX_JSON_BYTES, DataError)
    if not isinstance(root, dict):
        raise DataError(
            f"{path}: no COCO file; needs an object with images, annotations, categories"
        )
    try:
        return _File.model_validate(root)
    except ValidationError as error:
        key, *inside = error.errors(include_url=False)[0]["loc"]
        if len(inside) < 2:
            text = f"'{key}' must be a list of objects, as in COCO files"
        else:
            text = _fault(str(key), str(inside[1]), root[key][inside[0]])
        raise DataError(f"{path}: {text}") from None


def _fault(key: str, field: str, record: Mapping[str, object]) -> str:
    """What is wrong with `field` of an entry of the list `key`."""
    usual = "an entry of '{key}' has no usable '{field}' (found {value})"
    values = {name: one_line(repr(record.get(name))) for name in ("id", field)}
    found = _FAULTS.get((key, field), usual)
    return found.format(key=key, field=field, id=values["id"], value=values[field])


def _size(image: _Image) -> tuple[int, int] | None:
    return None if image.height is None or image.width is None else (image.height, image.width)


def _class_indices(
    path: Path,
    categories: Sequence[_Category],
    num_classes: int | None,
    classes: Sequence[str] | None,
) -> tuple[Mapping[int, int], tuple[str, ...]]:
    """Map category ids to class indices; also return the class names."""
    ordered = sorted(categories, key=lambda category: category.id)
    names = tuple(str(one.id if one.name is None else one.name) for one in ordered)
    if classes is not None and names and set(names) <= set(classes):
        by_name = {name: index for index, name in enumerate(classes)}
        pairs = zip(ordered, names, strict=True)
        return {category.id: by_name[name] for category, name in pairs}, tuple(classes)
    if num_classes is not None and len(ordered) != num_classes:
        raise DataError(
            f"{path}: {len(ordered)} categories for a model of {num_classes} classes; list in"
            f" 'categories' exactly the classes of the model, in its order"
        )
    return {category.id: index for index, category in enumerate(ordered)}, names


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


def _annotations(records: Sequence[_Annotation], indices: Mapping[int, int]) -> Annotations:
    """COCO's x, y, width, height as x1, y1, x2, y2; areas are those of the boxes where not stated."""
    boxes = np.array([one.bbox for one in records], dtype=np.float64).reshape(-1, 4)
    stated = np.array([one.area for one in records], dtype=np.float64)  # None becomes NaN
    return Annotations(
        boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        labels=np.array([indices[one.category_id] for one in records], dtype=np.int64),
        areas=np.where(np.isnan(stated), boxes[:, 2] * boxes[:, 3], stated),
        crowd=np.array([one.iscrowd for one in records], dtype=np.bool_),
    )
