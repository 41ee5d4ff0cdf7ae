"""The archive, and its program run to the end as on a device: no PyTorch, no ONNX, no Pillow."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.build.builder import BuildOptions
from reptrt.engines.device import find_gpu
from reptrt.engines.inspection.graph_tensors import read_tensors
from reptrt.engines.inspection.kernels import Kernel, Tensor
from reptrt.engines.kit.archive import PROGRAM, needed_modules, pack_program, write_kit
from reptrt.engines.kit.manifest import MANIFEST_FILE, Manifest, Tolerances, read_manifest
from reptrt.engines.kit.program import check_version
from reptrt.engines.kit.report import layer_precisions
from reptrt.engines.kit.verification import (
    ReferenceFileError,
    References,
    read_references,
    write_references,
)
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from reptrt.engines.target import TARGETS, MissingComponentError
from tests.engines.conftest import QdqGraph
from tests.reports import FACTS

ON_A_DEVICE = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ABSENT = {
    *("torch", "onnx", "onnx_graphsurgeon", "PIL", "polygraphy", "click", "rich", "yaml"),
    *("pydantic", "models", "calibrators", "engines", "pipeline"),
}
REHEARSAL = ("--backend", "tensorrt_rtx", "--verify", "onnxruntime", "--seconds", "0.01")


def make_kit(folder: Path, target: str = "jetson-orin-nx") -> Path:
    """A kit of one INT8 convolution and one in float."""
    graph = QdqGraph()
    stem = graph.relu(graph.conv(graph.qdq("images"), "stem", (32, 3, 3, 3)))
    head = graph.conv(stem, "head", (16, 32, 1, 1), axis=None)
    onnx = graph.save(folder / "model.trt.onnx", head, ["N", 3, 16, 16])
    values = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    with OnnxRuntimeRunner(onnx, optimize=False) as runner:
        outputs = runner.infer({"images": values})
    write_references(References({"images": values}, outputs), folder / "references.npz")
    inputs, declared = read_tensors(onnx)
    manifest = Manifest(
        name="tiny",
        model="tiny",
        task="generic",
        target=target,
        onnx=onnx.name,
        references="references.npz",
        build=BuildOptions(batch=(1, 1, 2)),
        inputs=inputs,
        outputs=declared,
        classes=None,
        strides=(),
        preprocess={},
        layers={"stem": "int8", "head": "int8"},
        layers_source="a wrong guess about the head",
        tolerances=Tolerances({head: 30.0}),
        run=replace(FACTS, model="tiny"),
        files={},
    )
    files: dict[str, bytes | Path] = {
        onnx.name: onnx,
        "references.npz": folder / "references.npz",
    }
    archive = folder / "tiny-kit.tar.gz"
    write_kit(archive, manifest, files)
    return archive


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make_kit(tmp_path)


@pytest.fixture
def kit(archive: Path, tmp_path: Path) -> Path:
    return unpack(archive, tmp_path / "device")


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "tiny-kit"


def build(kit: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the kit's program in a bare interpreter, in the folder above the kit."""
    arguments = [str(kit / PROGRAM), *options]
    code = ON_A_DEVICE.format(absent=ABSENT, arguments=arguments)
    return subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=kit.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip


def installed(kit: Path) -> list[str]:
    folder = kit.parent / "engines"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def change_manifest(kit: Path, **values: object) -> None:
    path = kit / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")


def test_a_kit_is_built_verified_and_installed_without_torch(kit: Path):
    rtx()
    effort = ("--optimization-level", "1", "--workspace-limit", "256", "--max-batch", "3")
    outcome = build(kit, *REHEARSAL, *effort)
    assert outcome.returncode == 0, outcome.stderr
    assert installed(kit) == ["report.json", "report.txt", "tiny.engine"]
    report = json.loads((kit.parent / "engines" / "report.json").read_text())
    engine = kit.parent / "engines" / "tiny.engine"
    assert report["engine_sha256"] == file_sha256(engine)
    assert report["size_bytes"]["engine"] == engine.stat().st_size
    assert report["gate"] == {"max_drop": None, "passed": True}
    assert report["numerics"]["head_y"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert report["verification"]["ran"] == "onnxruntime"
    assert report["fusion"] == {
        "int8_layers": 1, "quantizable_layers": 2, "int8_coverage": 50.0,
        "kernels": report["fusion"]["kernels"],
        "attention_blocks": None, "fused_attention": None, "float_islands": None,
        "operator_islands": [], "traffic": None,
    }  # fmt: skip
    assert report["layer_differences"] == [{"layer": "head", "expected": "int8", "found": "float"}]
    assert "layer head: int8 expected, float found" in outcome.stdout
    assert "note: the engine was built, not run" in outcome.stdout
    assert outcome.stdout == (kit.parent / "engines" / "report.txt").read_text()


def test_an_engine_that_fails_is_refused_and_the_installed_one_stays(kit: Path):
    rtx()
    folder = kit.parent / "engines"
    folder.mkdir()
    (folder / "tiny.engine").write_bytes(b"of last week")
    manifest = json.loads((kit / MANIFEST_FILE).read_text())
    path = kit / "references.npz"
    with np.load(path) as arrays:
        values = dict(arrays)
    values["output:head_y"] = values["output:head_y"] * 1.1  # 20.8 dB
    np.savez(path, **values)
    change_manifest(kit, files={**manifest["files"], path.name: file_sha256(path)})
    outcome = build(kit, *REHEARSAL)
    assert outcome.returncode == 1, outcome.stderr
    assert "FAILED: output head_y: 20.8 dB, at least 30.0 dB wanted" in outcome.stdout
    assert outcome.stdout.endswith("REFUSED: nothing is installed\n")
    assert (folder / "tiny.engine").read_bytes() == b"of last week"
    assert "tiny.engine.refused" in installed(kit)
    assert json.loads((folder / "report.json").read_text())["gate"]["passed"] is False


@pytest.mark.parametrize("name", ["model.trt.onnx", "references.npz", "build.pyz"])
def test_a_damaged_file_stops_it_before_the_build(kit: Path, name: str):
    content = bytearray((kit / name).read_bytes())
    if name == PROGRAM:
        content += b"\0"  # it still runs
    else:
        content[100] ^= 1
    (kit / name).write_bytes(content)
    outcome = build(kit, *REHEARSAL)
    assert outcome.returncode == 2
    assert outcome.stderr == (
        f"build.pyz: {kit / name}: differs from the manifest; unpack the kit again\n"
    )
    assert installed(kit) == []


def test_without_a_gpu_it_says_so_before_the_build(kit: Path):
    rtx()
    if find_gpu() is not None:
        pytest.skip("this machine has a GPU")
    outcome = build(kit, "--backend", "tensorrt_rtx")
    assert outcome.returncode == 4
    assert outcome.stderr.startswith("build.pyz: no NVIDIA GPU here")
    assert outcome.stderr.count("\n") == 1


def test_an_engine_that_triton_cannot_load_is_not_built_for_it(kit: Path):
    outcome = build(kit, *REHEARSAL, "--triton", "models")
    assert outcome.returncode == 2
    assert "Triton's TensorRT backend cannot load engines of TensorRT-RTX" in outcome.stderr
    assert installed(kit) == []


def test_the_same_contents_give_the_same_bytes(tmp_path: Path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    archives = [make_kit(tmp_path / name) for name in ("first", "second")]
    assert archives[0].read_bytes() == archives[1].read_bytes()
    assert archives[0].read_bytes()[4:8] == bytes(4)  # gzip's time


def test_the_archive_holds_plain_files_in_one_folder_with_their_hashes(archive: Path, kit: Path):
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert all(member.isreg() and member.mtime == 0 for member in members)
    listed = json.loads((kit / MANIFEST_FILE).read_text())["files"]
    assert listed == {
        path.name: file_sha256(path) for path in kit.iterdir() if path.name != MANIFEST_FILE
    }
    readme = (kit / "README.md").read_text()
    assert "python3 tiny-kit/build.pyz --install engines" in readme


def test_the_program_is_python_3_10_and_needs_nothing_but_numpy_at_the_start():
    allowed = {*sys.stdlib_module_names, "numpy", "reptrt"}
    with zipfile.ZipFile(io.BytesIO(pack_program())) as packed:
        sources = {name: packed.read(name).decode() for name in packed.namelist()}
    assert "reptrt/engines/build/builder.py" in sources
    for name, source in sources.items():
        tree = ast.parse(source, name, feature_version=(3, 10))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert {part.partition(".")[0] for part in names} <= allowed, name


def test_the_program_calls_nothing_that_python_3_10_lacks(tmp_path: Path):
    pytest.importorskip("vermin", reason="vermin is not installed here")
    with zipfile.ZipFile(io.BytesIO(pack_program())) as packed:
        packed.extractall(tmp_path)
    code = "from vermin import main; main()"
    options = ["--target=3.10-", "--no-tips", "--violations", "--eval-annotations"]
    outcome = subprocess.run(
        [sys.executable, "-c", code, *options, str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stdout


def test_the_program_brings_what_it_imports_and_no_more():
    modules = needed_modules("kit.program")
    assert {"build.builder", "runtime.runners", "kit.verification", "target_table"} <= modules
    assert not {"kit.archive", "inspection.fusion", "inspection.qdq_graph"} & modules


def test_tensorrt_that_is_too_old_is_refused_and_a_newer_one_noted():
    orin = TARGETS["jetson-orin-nx"]
    with pytest.raises(MissingComponentError, match=r"needs tensorrt 10\.3 or newer, and 8\.6\.2"):
        check_version(orin, SimpleNamespace(__version__="8.6.2"))
    assert check_version(orin, SimpleNamespace(__version__="10.3.0.30")) == []
    assert check_version(orin, SimpleNamespace(__version__="10.7.1")) == []
    (note,) = check_version(orin, SimpleNamespace(__version__="10.13.3"))
    assert note == "tensorrt 10.13.3 is newer than 10.7, the last known to serve it"
    assert check_version(replace(orin, tensorrt=None), SimpleNamespace(__version__="8.6.2")) == []


def test_a_layer_is_int8_where_every_kernel_that_multiplies_for_it_is():
    def kernel(dtype: str, layer: str, kind: str = "conv") -> Kernel:
        return Kernel("k", kind, (Tensor("x", dtype),), (Tensor("w", dtype),), (), (layer,))

    kernels = [
        kernel("Int8", "a"), kernel("Int8", "b"), kernel("Half", "b"), kernel("Float", "c"),
        kernel("Float", "a", "kgen"), kernel("Int8", "d", "kgen"),
    ]  # fmt: skip
    assert layer_precisions(["a", "b", "c", "d"], kernels) == {
        "a": "int8", "b": "float", "c": "float", "d": "absent",
    }  # fmt: skip


def test_pickled_references_are_never_loaded(kit: Path):
    manifest = json.loads((kit / MANIFEST_FILE).read_text())
    assert manifest["references"] == "references.npz"
    path = kit / "references.npz"
    np.savez(path, **{"input:images": np.array([object()]), "output:head_y": np.zeros(1)})
    change_manifest(kit, files={**manifest["files"], path.name: file_sha256(path)})
    with pytest.raises(ReferenceFileError, match="no reference inputs and outputs"):
        read_references(path, read_manifest(kit))
