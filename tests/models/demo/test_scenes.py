"""Scenes are deterministic and their boxes tight; datasets are valid COCO and written once."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reptrt.models.demo import scenes
from reptrt.models.demo.dataset import (
    DatasetFolderError,
    _end,
    write_dataset,
    written_ahead,
)
from reptrt.models.demo.scenes import CALIBRATION, EVALUATION, TRAIN, generate_scene
from reptrt.models.demo.shapes import CLASSES, shape_mask


def test_a_seed_always_draws_the_same_scene():
    first, second = generate_scene(7, 96), generate_scene(7, 96)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert not np.array_equal(first.image, generate_scene(8, 96).image)


def test_the_first_scene_is_the_one_the_checkpoint_was_trained_on():
    scene = generate_scene(0, 192)
    assert [CLASSES[label] for label in scene.labels] == ["square"]
    np.testing.assert_allclose(scene.boxes, [[69, 0, 136, 58]], atol=1)
    # Pillow may round a filter differently from release to release.
    np.testing.assert_allclose(scene.image.mean(axis=(0, 1)), [144.4, 70.6, 42.6], atol=0.5)


@pytest.mark.parametrize("seed", range(20))
def test_boxes_lie_inside_the_image_and_every_class_is_known(seed):
    scene = generate_scene(seed, 96)
    assert scene.image.shape == (96, 96, 3)
    assert (scene.image.dtype, scene.boxes.dtype, scene.labels.dtype) == (
        np.uint8,
        np.float32,
        np.int64,
    )
    assert len(scene.boxes) == len(scene.labels)
    assert ((scene.boxes >= 0) & (scene.boxes <= 96)).all()
    assert (scene.boxes[:, 2:] - scene.boxes[:, :2] >= 2).all()
    assert set(scene.labels.tolist()) <= set(range(len(CLASSES)))


def test_a_box_touches_the_visible_pixels_on_all_four_sides(monkeypatch):
    owners = []
    tight_box = scenes._tight_box
    monkeypatch.setattr(scenes, "_tight_box", lambda mask: owners.append(mask) or tight_box(mask))
    scene = generate_scene(1, 96)
    assert len(owners) == len(scene.boxes) > 1
    for mask, (x1, y1, x2, y2) in zip(owners, scene.boxes.astype(int), strict=True):
        assert mask.sum() == mask[y1:y2, x1:x2].sum()
        inside = mask[y1:y2, x1:x2]
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()


def test_seed_ranges_do_not_meet():
    assert TRAIN.stop <= CALIBRATION.start
    assert CALIBRATION.stop <= EVALUATION.start
    assert len(EVALUATION) == 500


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("disc", math.pi / 4),
        ("square", 0.5),
        ("hexagon", 3 * math.sqrt(3) / 8),
        ("ring", math.pi / 4 * (1 - 0.55**2)),
        ("cross", 2 * 0.3 * math.cos(math.asin(0.3)) - 0.3**2),
    ],
)
def test_a_shape_covers_its_share_of_the_square_around_its_circle(name, share):
    mask = shape_mask(CLASSES.index(name), 60.0, angle=0.4)
    assert mask.sum() / 60**2 == pytest.approx(share, rel=0.05)


def test_dataset_is_coco_json_beside_its_images(tmp_path):
    path = write_dataset(tmp_path / "scenes", range(3, 6), 64)
    coco = json.loads(path.read_text())
    assert [image["file_name"] for image in coco["images"]] == [
        f"0000000{n}.png" for n in (3, 4, 5)
    ]
    assert [category["name"] for category in coco["categories"]] == list(CLASSES)
    scene = generate_scene(3, 64)
    stored = np.asarray(Image.open(path.parent / "00000003.png"))
    np.testing.assert_array_equal(stored, scene.image)
    mine = [a for a in coco["annotations"] if a["image_id"] == 1]
    boxes = np.array([a["bbox"] for a in mine])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_array_equal(boxes, scene.boxes)
    assert [a["category_id"] - 1 for a in mine] == scene.labels.tolist()
    ids = [a["id"] for a in coco["annotations"]]
    assert ids == list(range(1, len(ids) + 1))


def test_a_complete_dataset_is_not_written_again(tmp_path):
    image = write_dataset(tmp_path / "scenes", range(2), 64).parent / "00000000.png"
    before = image.stat().st_mtime_ns
    write_dataset(tmp_path / "scenes", range(2), 64)
    assert image.stat().st_mtime_ns == before
    image.unlink()
    write_dataset(tmp_path / "scenes", range(2), 64)
    assert image.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scenes.lock", "scenes"]


def test_datasets_can_be_written_by_a_second_process_meanwhile(tmp_path):
    with written_ahead({tmp_path / "first": range(3), tmp_path / "second": range(5, 6)}):
        _wait_for(tmp_path / "second")
        assert (tmp_path / "first").exists()
    write_dataset(tmp_path / "here", range(3))
    for one in (tmp_path / "here").iterdir():
        assert one.read_bytes() == (tmp_path / "first" / one.name).read_bytes()
    assert [path.name for path in (tmp_path / "second").glob("*.png")] == ["00000005.png"]


def test_what_is_there_is_not_written_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    (tmp_path / "scenes").mkdir()
    with written_ahead({tmp_path / "scenes": range(3)}):
        pass


def test_who_writes_ahead_ends_with_the_block_and_leaves_nothing(tmp_path):
    with written_ahead({tmp_path / "scenes": range(1_000_000)}):
        _wait_for(tmp_path / ".scenes.lock")
    assert [path.name for path in tmp_path.iterdir()] == [".scenes.lock"]


def test_a_writer_that_misses_the_first_signal_is_asked_again(tmp_path):
    code = (
        "import pathlib, signal, sys, time; asked = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1) if asked else asked.append(1))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "while True: time.sleep(0.01)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as writer:
        _wait_for(tmp_path / "ready")
        _end(writer)
    assert writer.returncode == 1


def _wait_for(path: Path) -> None:
    limit = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "holiday.png").touch()
    with pytest.raises(DatasetFolderError, match="give another folder"):
        write_dataset(tmp_path, range(1), 64)
    assert (tmp_path / "holiday.png").exists()


@pytest.mark.parametrize(
    "text", ["[" * 9000, "[]", "{}", '{"info": 3}', '{"info": {"description": "reptrt.models.demo.scenes"}}']
)  # fmt: skip
def test_a_forged_dataset_is_one_line_or_made_anew(tmp_path, text):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "annotations.json").write_text(text)
    if "description" in text:
        assert write_dataset(tmp_path / "s", range(1), 64).stat().st_size > 100
        return
    with pytest.raises(DatasetFolderError, match="give another folder") as caught:
        write_dataset(tmp_path / "s", range(1), 64)
    assert str(caught.value).isprintable()
