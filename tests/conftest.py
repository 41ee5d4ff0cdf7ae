"""What tests of the whole road share: a tiny project of a user, and the files of its run."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reptrt.pipeline.cli.main import COLLECT_AFTER
from tests.command_line import TINY_MODELS, TinyProject, reptrt

gc.set_threshold(*COLLECT_AFTER)  # tests trace and export as the command line does


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyProject]:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny_models.py").write_text(TINY_MODELS)
    random = np.random.default_rng(0)
    np.save(folder / "data.npy", random.standard_normal((12, 3, 32, 32)).astype(np.float32))
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(4):
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{index}.png")
    sys.path.insert(0, str(folder))
    yield TinyProject("tiny_models:build", folder, folder / "data.npy", folder / "photos")
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def red_and_blue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of 100 images that `tiny_models:colours` gets all right, far from the border."""
    folder, random = tmp_path_factory.mktemp("labelled"), np.random.default_rng(3)
    for name, colour in (("blue", (40, 100, 200)), ("red", (200, 100, 40))):
        (folder / name).mkdir()
        for index in range(50):
            pixels = np.clip(random.normal(colour, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def finished(tiny: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace of a whole run with evaluation; tests must not change it."""
    workspace = tmp_path_factory.mktemp("finished") / "build"
    outcome = reptrt("engine", *tiny.options, "--eval", tiny.photos, "--workspace", workspace)
    assert outcome.code == 0, outcome.err
    return workspace


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` to change; freshness depends on contents, so it is fresh too."""
    return Path(shutil.copytree(finished, tmp_path / "build"))


@pytest.fixture(scope="session")
def reptrt_data() -> Path:
    """Folder of real weights and images."""
    folder = Path(os.environ.get("REPTRT_DATA", "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set REPTRT_DATA to the folder of real weights and images")
    return folder
