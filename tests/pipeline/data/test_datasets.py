"""Calibration folders, mixed and damaged ones too, and what evaluation does with the same."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.datasets import (
    ClassificationSet,
    DataError,
    FolderImages,
    open_classification,
    open_evaluation,
    open_images,
)

PREPROCESS = Preprocess((4, 4), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def write_grey(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(path)
    return path


def write_truncated(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def opened_names(folder: Path, limit: int | None = None, seed: int = 0) -> list[str]:
    images = open_images(folder, PREPROCESS, limit=limit, seed=seed)
    assert isinstance(images, FolderImages)
    return [file.name for file in images.files]


def test_images_are_found_at_any_depth_whatever_the_case_and_sorted(tmp_path: Path) -> None:
    for name in ("z.PNG", "b/c.Jpeg", "b/a/d.tif", "a.webp", "e.bmp", "f.ppm", ".hidden.png"):
        write_grey(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert opened_names(tmp_path) == ["a.webp", "d.tif", "c.Jpeg", "e.bmp", "f.ppm", "z.PNG"]


def test_modes_may_be_mixed_in_one_batch(tmp_path: Path) -> None:
    for mode in ("L", "RGB", "RGBA", "P", "CMYK", "I;16"):
        suffix = "tiff" if mode == "CMYK" else "png"
        Image.new(mode, (5, 7)).save(tmp_path / f"{mode.replace(';', '')}.{suffix}")
    (batch,) = open_images(tmp_path, PREPROCESS).batches(8)
    assert (batch.shape, batch.dtype) == ((6, 3, 4, 4), np.float32)


def test_a_sample_repeats_with_its_seed_and_keeps_the_order_of_names(tmp_path: Path) -> None:
    for index in range(20):
        write_grey(tmp_path / f"{index:02}.png")
    chosen = opened_names(tmp_path, limit=6, seed=1)
    assert chosen == sorted(chosen) == opened_names(tmp_path, limit=6, seed=1)
    assert len(set(chosen)) == 6
    assert chosen != opened_names(tmp_path, limit=6, seed=2)
    assert len(opened_names(tmp_path, limit=99)) == 20


def test_every_pass_yields_the_same_images_in_the_same_order(tmp_path: Path) -> None:
    for index in range(5):
        write_grey(tmp_path / f"{index}.png", level=51 * index)
    images = open_images(tmp_path, PREPROCESS)
    batches = images.batches(2)
    assert (len(images), len(batches)) == (5, 3)
    for _ in range(2):
        levels = np.concatenate([batch[:, 0, 0, 0] for batch in batches])
        np.testing.assert_allclose(levels, [0, 0.2, 0.4, 0.6, 0.8], rtol=1e-6)


def test_unreadable_calibration_images_are_left_out_with_one_warning_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_grey(tmp_path / "good.png")
    write_truncated(tmp_path / "cut.jpg")
    (tmp_path / "text.png").write_text("no image")
    with caplog.at_level(logging.WARNING):
        images = open_images(tmp_path, PREPROCESS)
        for _ in range(2):
            assert len(list(images.batches(1))) == len(images) == 1
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert str(tmp_path / "cut.jpg") in messages[0]
    assert str(tmp_path / "text.png") in messages[1]


@pytest.mark.parametrize(
    ("names", "found"),
    [((), "found nothing"), (("a.txt", "b.txt", "c.csv"), r"found 2 \.txt, 1 \.csv")],
)
def test_a_folder_without_images_says_what_it_holds_and_what_is_legal(
    tmp_path: Path, names: tuple[str, ...], found: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"{found}; give a folder of images.*jpg.*npy") as caught:
        open_images(tmp_path, PREPROCESS)
    assert caught.value.exit_code == 2
    assert str(tmp_path) in str(caught.value)


def test_a_folder_of_unreadable_images_only_is_refused(tmp_path: Path) -> None:
    write_truncated(tmp_path / "cut.jpg")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"none of 2 images is readable .*cut\.jpg") as caught:
        open_images(tmp_path, PREPROCESS)
    assert "\n" not in str(caught.value)


def test_a_missing_path_and_a_file_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: does not exist; give a folder"):
        open_images(tmp_path / "absent", PREPROCESS)
    with pytest.raises(DataError, match=r"one\.png: cannot be calibrated with; give a folder"):
        open_images(write_grey(tmp_path / "one.png"), PREPROCESS)


def test_images_are_decoded_only_as_far_as_batches_are_taken(tmp_path: Path) -> None:
    for index in range(12):
        write_grey(tmp_path / f"{index:02}.png")
    batches = iter(open_images(tmp_path, PREPROCESS).batches(2))
    next(batches)
    (tmp_path / "11.png").unlink()  # not read yet, or this would go unnoticed
    with pytest.raises(DataError, match=r"11\.png: no such image"):
        list(batches)


def test_an_unreadable_evaluation_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_grey(tmp_path / "a" / "good.png")
    write_truncated(write_grey(tmp_path / "b" / "cut.jpg"))
    opened = open_classification(tmp_path, PREPROCESS, 2)
    with pytest.raises(DataError, match=r"cut\.jpg: unreadable image"):
        list(opened.batches(2))


def test_evaluation_batches_carry_indices_into_the_labels(tmp_path: Path) -> None:
    for index, name in enumerate(("a/1.png", "a/2.png", "b/3.png")):
        write_grey(tmp_path / name, level=51 * index)
    opened = open_evaluation(tmp_path, "classification", PREPROCESS, 2)
    assert isinstance(opened, ClassificationSet)
    passed = list(opened.batches(2))
    assert [opened.labels[batch.indices].tolist() for batch in passed] == [[0, 0], [1]]
    assert passed[0].letterboxes == ()
    unlabelled = np.concatenate(list(opened.images.batches(3)))
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in passed]), unlabelled)


def test_a_detector_is_evaluated_on_coco_annotations(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs one COCO file"):
        open_evaluation(tmp_path, "detection", PREPROCESS, 2)


def test_a_fingerprint_follows_the_images_and_labels_and_not_the_folder(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        write_grey(tmp_path / folder / "a" / "1.png")
        write_grey(tmp_path / folder / "b" / "2.png", level=9)
    first, second = tmp_path / "first", tmp_path / "second"
    before = open_images(first, PREPROCESS).fingerprint
    labelled = open_classification(first, PREPROCESS, 2, ("a", "b")).fingerprint
    assert open_images(second, PREPROCESS).fingerprint == before
    assert open_images(first, PREPROCESS, limit=1).fingerprint != before
    assert open_classification(first, PREPROCESS, 2, ("b", "a")).fingerprint != labelled
    write_grey(second / "b" / "2.png", level=10)
    assert open_images(second, PREPROCESS).fingerprint != before
