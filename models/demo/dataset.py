"""Scenes on disk: PNG files beside a COCO `annotations.json`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from reptrt.engines.artifacts import make_folder_once
from reptrt.engines.foreign.border import read_json, reading
from reptrt.engines.foreign.limits import MAX_SIDECAR_BYTES
from reptrt.engines.foreign.text import one_line
from reptrt.models.demo.scenes import IMAGE_SIZE, Scene, generate_scene
from reptrt.models.demo.shapes import CLASSES

ANNOTATIONS = "annotations.json"
_GENERATOR = "reptrt.models.demo.scenes"
_NOT_OURS = "exists and holds no generated scenes; give another folder or remove it"
_VERSION = 1  # raise when the same seed draws another scene


class DatasetFolderError(ValueError):
    """The folder to write to holds something that is not a dataset of this generator."""

    exit_code = 2


def write_dataset(folder: Path, seeds: Sequence[int], size: int = IMAGE_SIZE) -> Path:
    """Write one PNG per seed and their COCO annotations; do nothing if they are there already.

    The folder appears under its name only when it is complete, and one process makes it. Category ids are label + 1.

    Args:
        folder: To create; an older or incomplete dataset of this generator is replaced.
        seeds: One scene each, in this order.
        size: Height and width of the images in pixels.

    Returns:
        The path of the annotations.

    Raises:
        DatasetFolderError: `folder` exists and was not written by this function.
    """
    info: dict[str, object] = {
        "description": _GENERATOR, "version": _VERSION, "size": size, "seeds": list(seeds)
    }  # fmt: skip
    make_folder_once(
        folder,
        lambda: _is_complete(folder, info),
        lambda unfinished: _write_scenes(unfinished, seeds, size, info),
    )
    return folder / ANNOTATIONS


@contextmanager
def written_ahead(datasets: Mapping[Path, range]) -> Iterator[None]:
    """Let a second process call `write_dataset` for each folder and its seeds during the block, in their order.

    The block does not depend on it: its own `write_dataset` of a folder waits while the other process
    writes that, and writes what is missing.
    """
    missing = [
        str(argument)
        for folder, seeds in datasets.items()
        if not folder.exists()
        for argument in (folder, seeds.start, seeds.stop)
    ]
    if not missing:
        yield
        return
    command = [sys.executable, "-m", __name__, *missing]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as writer:
        try:
            yield
        finally:
            _end(writer)


def _end(writer: subprocess.Popen[bytes]) -> None:
    """Ask until it has ended: what the signal raises is lost where Python ignores it, as in a destructor."""
    while writer.poll() is None:
        writer.terminate()
        with suppress(subprocess.TimeoutExpired):
            writer.wait(1.0)


def _is_complete(folder: Path, info: dict[str, object]) -> bool:
    """Tell whether `folder` holds exactly this dataset."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    with reading(folder, DatasetFolderError, _NOT_OURS):
        coco: Any = read_json(folder / ANNOTATIONS, MAX_SIDECAR_BYTES, ValueError)
        written = coco["info"]
        if written["description"] != _GENERATOR:
            raise ValueError(f"they are of {one_line(written['description'])}")
        return bool(written == info) and all(
            (folder / str(image["file_name"])).is_file() for image in coco["images"]
        )


def _write_scenes(folder: Path, seeds: Sequence[int], size: int, info: dict[str, object]) -> None:
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id, seed in enumerate(seeds, start=1):
        scene = generate_scene(seed, size)
        name = f"{seed:08d}.png"
        Image.fromarray(scene.image).save(folder / name, compress_level=0)
        images.append({"id": image_id, "file_name": name, "width": size, "height": size})
        for annotation in _annotate(scene, image_id):
            annotations.append({"id": len(annotations) + 1, **annotation})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    coco = {
        "info": info, "images": images, "annotations": annotations, "categories": categories
    }  # fmt: skip
    (folder / ANNOTATIONS).write_text(json.dumps(coco), encoding="utf-8")


def _annotate(scene: Scene, image_id: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for (x1, y1, x2, y2), label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
        width, height = x2 - x1, y2 - y1
        found.append(
            {
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [x1, y1, width, height],
                "area": width * height,
                "iscrowd": 0,
            }
        )
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves no unfinished folder behind
    for path, start, stop in zip(*[iter(sys.argv[1:])] * 3, strict=True):
        write_dataset(Path(path), range(int(start), int(stop)))
