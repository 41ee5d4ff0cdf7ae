"""What a manifest accepts: its own output, and no kit that was changed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.build.builder import BuildOptions
from reptrt.engines.kit.manifest import (
    MANIFEST_FILE,
    Manifest,
    ManifestError,
    SizedReferences,
    Tolerances,
    check_files,
    manifest_text,
    read_manifest,
)
from reptrt.engines.report_schema import Accuracy, MetricPair, RunFacts
from reptrt.engines.tensor_spec import Tensor

FACTS = RunFacts(
    model="net", calibrator="minmax", weight_bits=8, activation_bits=8, precision="fp32",
    softmax="float", num_samples=8, seed=0, versions={"onnx": "1.19"},
    accuracy=Accuracy("top1", 80.0, 79.0, 1.0, 95.0, 400, {"top5": MetricPair(95.0, 94.0)}),
)  # fmt: skip

TOLERANCES = {"snr_db": {"logits": 9.0}, "top1": [], "agreement": None}
BUILD = {
    "batch": [1, 2, 4], "workspace_bytes": None, "optimization_level": None,
    "version_compatible": False, "hardware_compatible": False,
}  # fmt: skip


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    for name in ("model.trt.onnx", "references.npz"):
        (tmp_path / name).write_text(name)
    return Manifest(
        name="net",
        model="net",
        task="classification",
        target="server-t4",
        onnx="model.trt.onnx",
        references="references.npz",
        build=BuildOptions(batch=(1, 2, 4), workspace_bytes=1 << 30, version_compatible=True),
        inputs=(Tensor("images", "float32", (-1, 3, 8, 8)),),
        outputs=(Tensor("logits", "float32", (-1, 2)),),
        classes=("cat", "dog"),
        strides=(),
        preprocess={"layout": "crop"},
        layers={"stem": "int8"},
        layers_source="the graph",
        tolerances=Tolerances({"logits": 12.5}, (0, None, 1), None),
        run=FACTS,
        files={path.name: file_sha256(path) for path in tmp_path.iterdir()},
    )


def write(manifest: Manifest, folder: Path) -> None:
    (folder / MANIFEST_FILE).write_text(manifest_text(manifest))


def test_a_manifest_comes_back_as_it_was_written(manifest: Manifest, tmp_path: Path):
    write(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest
    check_files(tmp_path, manifest)


def test_references_of_other_sizes_come_back_and_must_have_a_hash(
    manifest: Manifest, tmp_path: Path
):
    other = SizedReferences("at 8x8", "references.npz", Tolerances({"logits": 9.0}, (None,), None))
    write(replace(manifest, other_sizes=(other,)), tmp_path)
    found = read_manifest(tmp_path)
    assert found.other_sizes == (other,)
    check_files(tmp_path, found)
    absent = replace(other, references="references_8x8.npz")
    with pytest.raises(ManifestError, match=r"lists no hash of 'references_8x8\.npz'"):
        check_files(tmp_path, replace(manifest, other_sizes=(absent,)))


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/file", ".."])
def test_a_file_outside_of_the_kit_is_never_read(manifest: Manifest, tmp_path: Path, name: str):
    hostile = replace(manifest, files={**manifest.files, name: "0" * 64})
    with pytest.raises(ManifestError, match="a kit holds plain files only"):
        check_files(tmp_path, hostile)
    with pytest.raises(ManifestError, match="a kit holds plain files only"):
        check_files(tmp_path, replace(manifest, name=name))


def test_a_link_is_refused_whatever_it_points_to(manifest: Manifest, tmp_path: Path):
    path = tmp_path / "model.trt.onnx"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to("elsewhere")
    with pytest.raises(ManifestError, match=r"model\.trt\.onnx: a kit holds plain files only"):
        check_files(tmp_path, manifest)


def test_what_the_program_reads_must_have_a_hash(manifest: Manifest, tmp_path: Path):
    with pytest.raises(ManifestError, match=r"lists no hash of 'model\.trt\.onnx'"):
        check_files(tmp_path, replace(manifest, files={"references.npz": ""}))


def test_missing_and_changed_files_are_named(manifest: Manifest, tmp_path: Path):
    (tmp_path / "references.npz").write_text("other")
    with pytest.raises(ManifestError, match=r"references\.npz: differs from the manifest"):
        check_files(tmp_path, manifest)
    (tmp_path / "references.npz").unlink()
    with pytest.raises(ManifestError, match=r"references\.npz: missing"):
        check_files(tmp_path, manifest)


def damaged(text: str, key: str, value: object) -> str:
    return json.dumps({**json.loads(text), key: value})


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("format", 1, "not a manifest of format 2"),
        ("inputs", None, "damaged"),
        ("tolerances", {"snr_db": {"logits": "much"}}, "damaged"),
        ("files", [1], "damaged"),
        ("other_sizes", [{"label": "at 8x8"}], "damaged"),
        ("other_sizes", [{"label": 8, "references": "r", "tolerances": TOLERANCES}], "no text"),
        ("build", {"batch": 1}, "damaged"),
        ("build", {**BUILD, "workspace_bytes": "much"}, "none that TensorRT has"),
        ("build", {**BUILD, "optimization_level": 10**30}, "none that TensorRT has"),
        ("build", {**BUILD, "hardware_compatible": "yes"}, "none that TensorRT has"),
        ("strides", [0], "none that a tensor can have"),
        ("inputs", [{"name": "x", "dtype": "float32", "shape": [-2]}], "none that a tensor can"),
        ("inputs", [{"name": "x", "dtype": 3, "shape": [1]}], "no text"),
        ("run", {"model": "net", "accuracy": None}, "damaged"),
        ("run", {**asdict(FACTS), "accuracy": [80.0]}, "damaged"),
    ],
)
def test_a_damaged_manifest_is_one_line(
    manifest: Manifest, tmp_path: Path, key: str, value: object, complaint: str
):
    (tmp_path / MANIFEST_FILE).write_text(damaged(manifest_text(manifest), key, value))
    with pytest.raises(ManifestError, match=complaint) as raised:
        read_manifest(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\0"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str):
    (tmp_path / MANIFEST_FILE).write_text(text)
    with pytest.raises(ManifestError):
        read_manifest(tmp_path)


def test_a_folder_without_manifest_says_what_to_give(tmp_path: Path):
    with pytest.raises(ManifestError, match="give `kit` the folder"):
        read_manifest(tmp_path)
