from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from engines import target as target_module
from engines.device import Gpu, cpu_name
from engines.target import (
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
    assert all(name in str(caught.value) for name in TARGETS)


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
    monkeypatch.setitem(sys.modules, "tensorrt", sys)
    monkeypatch.setattr(target_module, "find_gpu", lambda: None)
    with pytest.raises(
        MissingComponentError,
        match=r"jetson-orin-nx.* run this there, or choose --target tensorrt-rtx",
    ):
        load_backend(TARGETS["jetson-orin-nx"])


def test_a_classic_target_refuses_another_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", sys)
    monkeypatch.setattr(target_module, "find_gpu", lambda: Gpu("NVIDIA T4", (7, 5)))
    with pytest.raises(MissingComponentError, match=r"8\.9, and NVIDIA T4 has 7\.5"):
        load_backend(TARGETS["server-l4"])


def test_the_processor_has_a_name():
    assert cpu_name().strip()


def test_engines_import_without_torch_or_tensorrt():
    modules = [f"engines.{path.stem}" for path in sorted((ROOT / "engines").glob("[a-z]*.py"))]
    blocked = ("torch", "torchvision", "timm", "tensorrt", "tensorrt_rtx")
    script = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        f"import importlib\nfor name in {modules}: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", sorted((ROOT / "engines").glob("*.py")), ids=lambda p: p.name)
def test_engines_use_only_python_3_10_syntax(path):
    ast.parse(path.read_text(), feature_version=(3, 10))
