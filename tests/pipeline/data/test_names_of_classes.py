from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reptrt.pipeline.data.labels import read_class_folders, read_labels_file
from reptrt.pipeline.data.preprocess import DataError, read_image


def add_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path)


def test_folders_that_are_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    for index in range(12):
        add_image(tmp_path / str(index) / "a.png")
    labels = {file.parent.name: label for file, label in read_class_folders(tmp_path, 12, None)}
    assert labels == {str(index): index for index in range(12)}


def test_labels_may_be_names_of_the_checkpoint_or_numbers(tmp_path: Path) -> None:
    add_image(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,dog\na.png,0\n")
    found = read_labels_file(tmp_path / "labels.csv", 2, ("cat", "dog"))
    assert [label for _, label in found] == [1, 0]


def test_labels_may_be_wordnet_ids(tmp_path: Path) -> None:
    add_image(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,n02102040\n")
    assert read_labels_file(tmp_path / "labels.csv", 1000)[0][1] == 217


def test_a_label_that_is_no_class_is_an_error(tmp_path: Path) -> None:
    add_image(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,cow\n")
    with pytest.raises(DataError, match="label 'cow' is no integer, nor a class like cat, dog"):
        read_labels_file(tmp_path / "labels.csv", 2, ("cat", "dog"))


@pytest.mark.parametrize("scale", [1.0, 255.0, 65535.0])
def test_float_samples_are_scaled_to_bytes(tmp_path: Path, scale: float) -> None:
    samples = np.array([[0.0, 0.5, 1.0]], dtype=np.float32) * scale
    Image.fromarray(samples).save(tmp_path / "a.tiff")
    assert np.asarray(read_image(tmp_path / "a.tiff"))[0, :, 0].tolist() == [0, 128, 255]
