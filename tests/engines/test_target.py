from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from reptrt.engines import target as target_module
from reptrt.engines.device import Gpu, cpu_name
from reptrt.engines.target import (
    TARGETS,
    MissingComponentError,
    UnknownTargetError,
    load_backend,
    require_module,
    resolve_target,
)

ROOT = Path(__file__).parents[2]


def test_a_target_resolves_to_its_own_entry():
    assert resolve_target("server-l4") is TARGETS["server-l4"]
    assert resolve_target("server-l4").compute_capabilities == ((8, 9),)


def test_an_unknown_target_names_the_nearest_and_the_legal_ones():
    with pytest.raises(UnknownTargetError, match="did you mean 'server-l4'") as caught:
        resolve_target("serverl4")
    assert caught.value.exit_code == 2
    with pytest.raises(UnknownTargetError, match="legal: auto, ") as caught:
        resolve_target("quantum")
    assert all(name in str(caught.value) for name in TARGETS)


@pytest.mark.parametrize(
    ("part", "names"),
    [("t4", ["server-t4"]), ("ORIN", ["jetson-orin", "jetson-orin-nx", "jetson-orin-nano"])],
)
def test_part_of_a_name_suggests_the_targets_that_have_it(part, names):
    with pytest.raises(UnknownTargetError, match=" or ".join(map(repr, names))):
        resolve_target(part)


@pytest.mark.parametrize("name", ["server-t4", "server-a10", "server-a100", "server-l4",
    "server-l40s", "server-h100", "server-h200", "server-b200", "rtx-30", "rtx-40", "rtx-50",
    "jetson-orin-nano", "jetson-orin-nx", "jetson-orin", "jetson-thor", "cpu", "tensorrt",
    "tensorrt-rtx"])  # fmt: skip
def test_every_device_is_a_target_with_its_facts(name):
    target = TARGETS[name]
    if name in ("cpu", "tensorrt", "tensorrt-rtx"):
        return
    assert target.compute_capabilities
    assert target.memory_gb
    assert target.source
    assert target.tensorrt is not None
    assert target.fp8 == (min(target.compute_capabilities) >= (8, 9))


def test_the_rtx_targets_are_those_that_the_builder_compiles_for():
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")
    wanted = {pair for target in TARGETS.values() if target.backend == "tensorrt_rtx"
              for pair in target.compute_capabilities}  # fmt: skip
    assert all(hasattr(rtx.ComputeCapability, f"SM{major}{minor}") for major, minor in wanted)


def test_only_boards_whose_jetpack_has_tensorrt_11_are_open_ended():
    jetsons = {name: target.tensorrt for name, target in TARGETS.items() if target.is_jetson}
    assert jetsons == {
        "jetson-orin": ("10.3", None),
        "jetson-orin-nx": ("10.3", "10.7"),
        "jetson-orin-nano": ("10.3", "10.7"),
        "jetson-thor": ("10.13", None),
    }


def test_the_cpu_target_loads_onnx_runtime_and_asks_for_no_gpu(monkeypatch):
    monkeypatch.setattr(target_module, "find_gpu", lambda: None)
    assert load_backend(resolve_target("cpu")).__name__ == "onnxruntime"


def test_a_tensorrt_of_jetpack_5_is_too_old(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.5.2.2"))
    monkeypatch.setattr(target_module, "find_gpu", lambda: Gpu("Orin", (8, 7)))
    with pytest.raises(MissingComponentError, match=r"8\.5\.2\.2 is too old.*10\.3 or newer"):
        load_backend(TARGETS["jetson-orin"])


def test_auto_is_rtx_without_a_gpu_even_if_tensorrt_is_installed(monkeypatch):
    monkeypatch.setattr(target_module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(target_module, "find_gpu", lambda: None)
    assert resolve_target("auto").name == "tensorrt-rtx"


def test_auto_is_tensorrt_where_it_and_a_gpu_are_present(monkeypatch):
    monkeypatch.setattr(target_module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(target_module, "find_gpu", lambda: Gpu("NVIDIA L4", (8, 9)))
    assert resolve_target("auto").name == "tensorrt"


def test_a_missing_module_says_how_to_install_it():
    with pytest.raises(MissingComponentError, match="pip install 'absent'") as caught:
        require_module("no_such_tensorrt", "pip install 'absent'")
    assert caught.value.exit_code == 4


def test_a_classic_target_without_a_gpu_says_where_to_build(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as on a PC: it would be of no use
    monkeypatch.setattr(target_module, "find_gpu", lambda: None)
    with pytest.raises(
        MissingComponentError,
        match=r'jetson-orin-nx.* run this there, .*reptrt kit.* or choose `target="tensorrt-rtx"`',
    ):
        load_backend(TARGETS["jetson-orin-nx"])


def test_a_classic_target_refuses_another_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr(target_module, "find_gpu", lambda: Gpu("NVIDIA T4", (7, 5)))
    with pytest.raises(MissingComponentError, match=r"8\.9, and NVIDIA T4 has 7\.5.*reptrt kit"):
        load_backend(TARGETS["server-l4"])


def test_the_processor_has_a_name():
    assert cpu_name().strip()


def test_engines_import_without_torch_or_tensorrt():
    files = sorted((ROOT / "reptrt").glob("engines/**/[a-z]*.py"))
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    blocked = ("torch", "torchvision", "timm", "tensorrt", "tensorrt_rtx")
    script = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        f"import importlib\nfor name in {modules}: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", sorted((ROOT / "engines").rglob("*.py")), ids=lambda p: p.name)
def test_engines_use_only_python_3_10_syntax(path):
    ast.parse(path.read_text(), feature_version=(3, 10))
