"""Labels from `labels.csv` and from folder names."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image

from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.datasets import ClassificationSet, DataError, open_classification
from reptrt.pipeline.data.labels import class_titles

PREPROCESS = Preprocess((4, 4), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def add_images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def labels_of(opened: ClassificationSet) -> dict[str, int]:
    return {file.name: int(label) for file, label in zip(opened.files, opened.labels, strict=True)}


def test_a_labels_file_is_read_in_its_order_with_files_relative_to_it(tmp_path: Path) -> None:
    add_images(tmp_path, "b.png", "sub/a.png")
    (tmp_path / "labels.csv").write_text(
        "﻿split,label,file\nval,2,b.png\n\nval, 0 ,sub/a.png\n", encoding="utf-8"
    )
    opened = open_classification(tmp_path, PREPROCESS, 3)
    assert [file.name for file in opened.files] == ["b.png", "a.png"]
    assert opened.labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,label\na.png,0\n", "labels.csv:1: no column 'file'.*found 'name,label'"),
        ("file\na.png\n", "labels.csv:1: no column 'label'"),
        ("", "labels.csv:1: no column 'file'"),
        ("file,label\n", "labels.csv: names no images"),
        ("file,label\na.png,0\na.png,cat\n", "labels.csv:3: label 'cat' is no integer"),
        ("file,label\na.png,1.0\n", "labels.csv:2: label '1.0' is no integer"),
        ("file,label\na.png\n", "labels.csv:2: label '' is no integer"),
        ("file,label\na.png,3\n", r"labels.csv:2: label 3 is out of range.*0\.\.2"),
        ("file,label\na.png,-1\n", "labels.csv:2: label -1 is out of range"),
        ("file,label\nb.png,0\n", "labels.csv:2: no file 'b.png'"),
        ("file,label\n,0\n", "labels.csv:2: no file ''"),
    ],
)
def test_a_faulty_labels_file_is_refused_with_its_line(
    tmp_path: Path, text: str, reason: str
) -> None:
    add_images(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=reason) as caught:
        open_classification(tmp_path, PREPROCESS, 3)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_labels_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00file")
    with pytest.raises(DataError, match=r"labels\.csv: unreadable"):
        open_classification(tmp_path, PREPROCESS, 3)


def test_as_many_folders_as_classes_are_classes_in_sorted_order(tmp_path: Path) -> None:
    add_images(tmp_path, "dog/1.png", "cat/2.png", "cat/deep/3.PNG")
    (tmp_path / "empty").mkdir()
    opened = open_classification(tmp_path, PREPROCESS, 2)
    assert labels_of(opened) == {"2.png": 0, "3.PNG": 0, "1.png": 1}


def test_fewer_folders_than_classes_say_nothing_about_the_labels(tmp_path: Path) -> None:
    add_images(tmp_path, "dog/1.png", "cat/2.png")
    with pytest.raises(DataError, match="2 class folders for a model of 3 classes"):
        open_classification(tmp_path, PREPROCESS, 3)


def test_wordnet_ids_name_imagenet_classes_when_the_model_has_all_thousand(tmp_path: Path) -> None:
    add_images(tmp_path, "n01440764/a.png", "n02102040/b.png", "n03888257/c.png")
    opened = open_classification(tmp_path, PREPROCESS, 1000)
    assert labels_of(opened) == {"a.png": 0, "b.png": 217, "c.png": 701}


def test_a_wordnet_id_outside_imagenet_is_named(tmp_path: Path) -> None:
    add_images(tmp_path, "n01440764/a.png", "n99999999/b.png")
    with pytest.raises(DataError, match="n99999999: not one of ImageNet's 1000 classes"):
        open_classification(tmp_path, PREPROCESS, 1000)


def test_folders_are_classes_by_name_when_the_checkpoint_names_its_classes(tmp_path: Path) -> None:
    add_images(tmp_path, "cat/a.png", "dog/b.png")
    opened = open_classification(tmp_path, PREPROCESS, 3, ("dog", "bird", "cat"))
    assert labels_of(opened) == {"a.png": 2, "b.png": 0}


def test_a_folder_that_the_checkpoint_does_not_know_is_named(tmp_path: Path) -> None:
    add_images(tmp_path, "cat/a.png", "cow/b.png")
    with pytest.raises(DataError, match=r"cow: not one of the checkpoint's classes \(dog, cat"):
        open_classification(tmp_path, PREPROCESS, 2, ("dog", "cat"))


def test_other_names_than_the_checkpoints_are_taken_in_order_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_images(tmp_path, "0/a.png", "1/b.png")
    with caplog.at_level(logging.WARNING):
        opened = open_classification(tmp_path, PREPROCESS, 2, ("dog", "cat"))
    assert labels_of(opened) == {"a.png": 0, "b.png": 1}
    assert "sorted order" in caplog.text


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    add_images(tmp_path, "a.png", "b.png")
    with pytest.raises(DataError, match=r"no labels; needs labels\.csv .*found 2 images"):
        open_classification(tmp_path, PREPROCESS, 2)


def test_classes_have_the_names_that_people_know() -> None:
    assert class_titles(2, ("cat", "dog"), is_imagenet=True) == ("cat", "dog")
    assert class_titles(2, ("n01440764", "n99999999"), is_imagenet=False) == ("tench", "n99999999")
    assert class_titles(1000, None, is_imagenet=True)[:2] == ("tench", "goldfish")
    assert class_titles(1000, None, is_imagenet=False)[999] == "class 999"
    assert class_titles(2, None, is_imagenet=True) == ("class 0", "class 1")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such folder"):
        open_classification(tmp_path / "absent", PREPROCESS, 2)
