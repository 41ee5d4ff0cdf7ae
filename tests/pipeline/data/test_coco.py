"""COCO files: what is read, where images are found, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.datasets import DataError, open_detection

PREPROCESS = Preprocess((16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), layout="letterbox")


def content() -> dict[str, object]:
    """Two images of 8x4 pixels; category ids with gaps, not in order."""
    return {
        "images": [
            {"id": 30, "file_name": "b.png", "width": 8, "height": 4},
            {"id": 7, "file_name": "a.png"},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 2, "name": "bicycle"}],
        "annotations": [
            {"id": 0, "image_id": 7, "category_id": 90, "bbox": [1, 2, 3.5, 2], "area": 5},
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [0, 0, 2, 2], "iscrowd": 1},
        ],
    }


def write(folder: Path, coco: object, images: str = ".", name: str = "annotations.json") -> Path:
    (folder / images).mkdir(parents=True, exist_ok=True)
    for image in ("a.png", "b.png"):
        Image.new("RGB", (8, 4)).save(folder / images / image)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(coco if isinstance(coco, str) else json.dumps(coco))
    return folder


def test_sparse_category_ids_become_consecutive_classes_in_the_order_of_ids(tmp_path: Path) -> None:
    opened = open_detection(write(tmp_path, content()), PREPROCESS, 2)
    assert [file.name for file in opened.files] == ["b.png", "a.png"]
    assert opened.class_names == ("bicycle", "toothbrush")
    empty, objects = opened.annotations
    assert empty.boxes.shape == (0, 4)
    np.testing.assert_array_equal(objects.boxes, [[1, 2, 4.5, 4], [0, 0, 2, 2]])
    assert objects.labels.tolist() == [1, 0]
    assert objects.areas.tolist() == [5, 4]
    assert objects.crowd.tolist() == [False, True]


def test_categories_become_classes_by_name_when_the_checkpoint_names_them(tmp_path: Path) -> None:
    names = ("toothbrush", "car", "bicycle")
    opened = open_detection(write(tmp_path, content()), PREPROCESS, 3, names)
    assert opened.class_names == names
    assert opened.annotations[1].labels.tolist() == [0, 2]


def test_batches_say_where_each_image_lies_on_its_canvas(tmp_path: Path) -> None:
    batch = next(iter(open_detection(write(tmp_path, content()), PREPROCESS).batches(2)))
    assert batch.images.shape == (2, 3, 16, 16)
    assert batch.image_sizes == ((4, 8), (4, 8))
    assert [(place.scale, place.pad_x, place.pad_y) for place in batch.letterboxes] == [
        (2.0, 0, 4)
    ] * 2


@pytest.mark.parametrize(
    ("images", "name"),
    [
        (".", "instances.json"),
        ("images", "annotations.json"),
        ("val2017", "annotations.json"),
        ("val2017", "annotations/instances.json"),
    ],
)
def test_images_are_found_beside_below_and_next_to_the_annotations(
    tmp_path: Path, images: str, name: str
) -> None:
    write(tmp_path, content(), images, name)
    by_file = open_detection(tmp_path / name, PREPROCESS)
    by_folder = open_detection((tmp_path / name).parent, PREPROCESS)
    assert by_file.files == by_folder.files
    assert all(file.samefile(tmp_path / images / file.name) for file in by_file.files)


def changed(key: str, value: object) -> dict[str, object]:
    return {**content(), key: value}


def annotated(**fields: object) -> dict[str, object]:
    return changed(
        "annotations", [{"id": 5, "image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1], **fields}]
    )


@pytest.mark.parametrize(
    ("coco", "reason"),
    [
        ('{"images": [\n', "annotations.json:2: not valid JSON"),
        ("[]", "no COCO file"),
        ({}, "'categories' must be a list"),
        (changed("images", {}), "'images' must be a list"),
        (changed("annotations", []), "no annotated images"),
        (changed("annotations", [3]), "'annotations' must be a list of objects"),
        (changed("images", []), "no annotated images"),
        (changed("images", [{"id": 7}]), "'images' has no usable 'file_name'"),
        (changed("images", [{"id": 7, "file_name": "c.png"}]), "no image 'c.png'"),
        (changed("images", [{"id": 7, "file_name": "a.png"}] * 2), "share one id"),
        (changed("categories", [{"name": "car"}, {"id": 2}]), "needs an integer 'id'"),
        (changed("categories", [{"id": 2}]), "1 categories for a model of 2 classes"),
        (annotated(image_id=8), "of image 8, not in 'images'"),
        (annotated(category_id=3), "annotation 5: category_id 3 is not in"),
        (annotated(category_id=None), "annotation 5: category_id None is not in"),
        (annotated(bbox=[0, 0, 1]), "annotation 5: bbox must be"),
        (annotated(bbox=[0, 0, -1, 1]), "annotation 5: bbox must be"),
        (annotated(bbox=[0, 0, "1", 1]), "annotation 5: bbox must be"),
        (annotated(bbox=None), "annotation 5: bbox must be"),
        (annotated(bbox=[0, 0, float("nan"), 1]), "annotation 5: bbox must be"),
        (annotated(area="large"), "annotation 5: area must be a number"),
        (annotated(iscrowd="0"), "annotation 5: iscrowd must be 0 or 1, found '0'"),
        (annotated(image_id=[7]), "'annotations' has no usable 'image_id'"),
    ],
)
def test_a_faulty_annotation_file_is_refused(tmp_path: Path, coco: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        open_detection(write(tmp_path, coco), PREPROCESS, 2)
    assert "annotations.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_or_several_annotation_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="JSON files found: none"):
        open_detection(tmp_path, PREPROCESS)
    for name in ("train.json", "val.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"JSON files found: train\.json, val\.json"):
        open_detection(tmp_path, PREPROCESS)
    with pytest.raises(DataError, match="absent: does not exist"):
        open_detection(tmp_path / "absent", PREPROCESS)


def test_an_image_of_another_size_than_its_annotations_is_refused(tmp_path: Path) -> None:
    write(tmp_path, content())
    Image.new("RGB", (4, 8)).save(tmp_path / "b.png")
    opened = open_detection(tmp_path, PREPROCESS)
    with pytest.raises(DataError, match=r"b\.png: is 4x8 pixels, but its annotations are for 8x4"):
        list(opened.batches(1))
