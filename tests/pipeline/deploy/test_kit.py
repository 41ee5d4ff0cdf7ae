"""`reptrt kit`: what goes into the archive."""

from __future__ import annotations

import json
import tarfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.inspection.qdq_graph import read_weighted_layers
from reptrt.engines.kit.manifest import check_files, read_manifest
from reptrt.engines.kit.verification import read_references
from tests.command_line import TinyProject, reptrt
from tests.engines.kit.test_archive import REHEARSAL, build
from tests.models.onnx_import.test_islands import CONV
from tests.onnx_files import from_text
from tests.run_records import edit_record, record_of


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (kit,) = folder.iterdir()
    return kit


@pytest.fixture(scope="module")
def made(tiny: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace of a kit for a Jetson; tests must not change it."""
    workspace = tmp_path_factory.mktemp("kit") / "build"
    options = [*tiny.options[:-1], "jetson-orin-nx"]
    outcome = reptrt("kit", *options, "--max-batch", 3, "--workspace", workspace)
    assert outcome.code == 0, outcome.err
    return workspace / "tiny_models-build" / "minmax-w8a8" / "jetson-orin-nx"


@pytest.fixture(scope="module")
def kit(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = made / "tiny_models-build-jetson-orin-nx-kit.tar.gz"
    return unpack(archive, tmp_path_factory.mktemp("device"))


def test_a_kit_needs_no_engine_and_no_gpu(made: Path, kit: Path):
    assert not (made / "model.engine").exists()
    assert sorted(path.name for path in kit.iterdir()) == [
        "LICENCES.txt", "README.md", "build.pyz", "manifest.json", "model.trt.onnx", "recipe.yaml",
        "references.npz",
    ]  # fmt: skip
    check_files(kit, read_manifest(kit))
    packed, exported = (onnx.load(folder / "model.trt.onnx") for folder in (kit, made))
    assert packed.graph == exported.graph  # only its metadata has more: the verdict


def test_the_manifest_says_what_the_engine_has_to_do(kit: Path):
    manifest = read_manifest(kit)
    assert (manifest.name, manifest.model) == ("tiny_models-build", "tiny_models:build")
    assert (manifest.task, manifest.target) == ("classification", "jetson-orin-nx")
    assert manifest.build.batch == (1, 1, 3)
    assert manifest.inputs[0].shape == (-1, 3, 32, 32)
    assert manifest.outputs[0].shape == (-1, 2)
    assert manifest.preprocess["image_size"] == [32, 32]
    assert len(manifest.tolerances.top1) == 8
    assert 3.0 <= manifest.tolerances.snr_db["logits"] <= 40.0
    assert manifest.run.calibrator == "minmax"
    assert manifest.run.num_samples == 12
    assert manifest.run.accuracy is None


def test_without_an_engine_the_graph_says_which_layers_are_int8(kit: Path):
    manifest = read_manifest(kit)
    assert manifest.layers_source == "the Q/DQ nodes of the graph"
    assert list(manifest.layers) == [
        layer.name for layer in read_weighted_layers(kit / "model.trt.onnx")
    ]
    assert set(manifest.layers.values()) == {"int8"}


def test_the_references_are_calibration_images_and_what_the_graph_makes_of_them(
    kit: Path, tiny: TinyProject
):
    references = read_references(kit / "references.npz", read_manifest(kit))
    images = np.load(tiny.data)
    assert references.inputs["images"].shape == (8, 3, 32, 32)
    assert all(
        any(np.array_equal(one, image) for image in images) for one in references.inputs["images"]
    )
    assert references.outputs["logits"].shape == (8, 2)


def test_the_recipe_names_files_without_their_folders(kit: Path):
    recipe = yaml.safe_load((kit / "recipe.yaml").read_text())
    assert recipe["data"] == "data.npy"
    assert recipe["max_batch"] == 3
    assert "tiny_models:build" in (kit / "LICENCES.txt").read_text()


def test_an_engine_of_the_same_file_says_which_layers_are_int8(
    tiny: TinyProject, workspace: Path, tmp_path: Path
):
    archive = tmp_path / "mine.tar.gz"
    outcome = reptrt(
        "kit", *tiny.options, "--eval", tiny.photos, "--workspace", workspace, "--output", archive
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err.strip().endswith("mine.tar.gz")
    kit = unpack(archive, tmp_path / "device")
    assert kit.name == "mine"
    manifest = read_manifest(kit)
    assert manifest.layers_source.startswith("the engine of tensorrt_rtx 1.")
    fusion = json.loads((tiny.files_of(workspace) / "fusion.json").read_text())
    floats = [name for name, precision in manifest.layers.items() if precision == "float"]
    assert len(manifest.layers) - len(floats) == fusion["int8_layers"]
    report = json.loads((tiny.files_of(workspace) / "report.json").read_text())
    assert json.loads(json.dumps(asdict(manifest.run.accuracy))) == report["accuracy"]


def test_an_engine_of_another_file_says_nothing(tiny: TinyProject, workspace: Path, tmp_path: Path):
    files = tiny.files_of(workspace)
    edit_record(files, "build", inputs={**record_of(files, "build")["inputs"], "onnx": "0" * 64})
    archive = tmp_path / "mine.tar.gz"
    assert reptrt("kit", *tiny.options, "--workspace", workspace, "--output", archive).code == 0
    manifest = read_manifest(unpack(archive, tmp_path / "device"))
    assert manifest.layers_source == "the Q/DQ nodes of the graph"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--target", "cpu"), "target 'cpu' builds no engine"),
        (("--target", "tensorrt-rtx", "--output", "kit.zip"), "kit.zip: a kit is a .tar.gz file"),
    ],
)
def test_what_cannot_be_a_kit_is_said_before_calibration(
    tiny: TinyProject, tmp_path: Path, options: tuple[str, ...], complaint: str
):
    outcome = reptrt("kit", *tiny.options[:-2], *options, "--workspace", tmp_path)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert not list(tmp_path.rglob("calibration.safetensors"))


NETWORK = """<ir_version: 8, opset_import: ["": 17]> net (float[N,3,H,W] x) => (float[N,4,A,B] y)
    <{conv}> {{ c = Conv<pads = [1, 1, 1, 1]>(x, w) y = Relu(c) }}"""


@pytest.mark.parametrize("damaged", [None, "references_32x40.npz"])
def test_an_open_size_is_verified_at_its_ends_too(damaged: str | None, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")
    network = from_text(NETWORK.format(conv=CONV), tmp_path / "net.onnx")
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), np.uint8))
    outcome = reptrt(
        "kit", network, "--data", images, "--calibrator", "minmax", "--quantize", "all",
        "--dynamic-size", "16,24,32x40", "--target", "rtx-40", "--workspace", tmp_path / "ws",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    (archive,) = (tmp_path / "ws").rglob("*-kit.tar.gz")
    kit = unpack(archive, tmp_path / "device")
    sizes = [one.label for one in read_manifest(kit).other_sizes]
    assert sizes == ["at 16x16", "at 32x40"]
    if damaged:
        with np.load(kit / damaged) as arrays:
            values = dict(arrays)
        np.savez(kit / damaged, **{**values, "output:y": values["output:y"] * 2})
        manifest = json.loads((kit / "manifest.json").read_text())
        manifest["files"][damaged] = file_sha256(kit / damaged)
        (kit / "manifest.json").write_text(json.dumps(manifest))
    built = build(kit, *REHEARSAL)
    assert built.returncode == bool(damaged), built.stderr
    report = json.loads((kit.parent / "engines" / "report.json").read_text())
    assert list(report["numerics"]) == ["y", "y at 16x16", "y at 32x40"]
    failures = report["verification"]["failures"]
    assert [line.partition(":")[0] for line in failures] == (["at 32x40"] if damaged else [])
