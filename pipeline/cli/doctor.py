"""What this machine has, what works on it, and what to install for the rest."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from importlib.util import find_spec

from reptrt.engines.device import Gpu, cpu_name, find_gpu
from reptrt.engines.target import INSTALL_HINTS, resolve_target
from reptrt.pipeline.workspace.run_records import installed_versions

_CUDA_LIBRARIES = ("pycuda.driver", "cuda.bindings.runtime")
_DRIVER = "an NVIDIA GPU and its driver"


@dataclass(frozen=True)
class Ability:
    """Something reptrt does; `remedy` says what it takes here, empty where it works."""

    name: str
    remedy: str


def found_components() -> list[tuple[str, str]]:
    """Names and versions of what decides a result: Python, packages, processor, GPU, driver."""
    gpu = find_gpu()
    return [
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *installed_versions().items(),
        ("processor", cpu_name()),
        ("GPU", "none: engines are built, not run" if gpu is None else describe_gpu(gpu)),
        ("CUDA driver", "none" if gpu is None else "CUDA {}.{}".format(*gpu.driver_cuda)),
        ("CUDA for Python", _first_that_imports(_CUDA_LIBRARIES) or "none"),
        ("--target auto", resolve_target("auto").name),
    ]


def abilities() -> list[Ability]:
    """What works on this machine, and what does not, with what to do about it."""
    gpu = find_gpu()
    torch = _imports("torch")
    rtx, classic = _imports("tensorrt_rtx"), _imports("tensorrt")
    cuda = _first_that_imports(_CUDA_LIBRARIES)
    return [
        Ability("calibrate on the CPU", "" if torch else "pip install torch torchvision"),
        Ability("calibrate on a GPU (--device cuda)", _cuda_torch_remedy(torch, gpu)),
        Ability("build TensorRT-RTX engines", "" if rtx else INSTALL_HINTS["tensorrt_rtx"]),
        Ability(
            "build TensorRT engines",
            _all_of((gpu is not None, _DRIVER), (classic, INSTALL_HINTS["tensorrt"])),
        ),
        Ability(
            "run and time engines",
            _all_of(
                (gpu is not None, _DRIVER),
                (classic or rtx, "a TensorRT"),
                (cuda is not None, "pip install 'cuda-bindings>=12.6'"),
            ),
        ),
        Ability(
            "run on the CPU (--target cpu)",
            "" if _imports("onnxruntime") else INSTALL_HINTS["onnxruntime"],
        ),
        Ability("make build kits (reptrt kit)", "" if _imports("onnx") else "pip install onnx"),
        Ability(
            "check Triton repositories (reptrt triton)",
            "" if _imports("tritonclient.grpc") else "pip install 'tritonclient[grpc]'",
        ),
    ]


def describe_gpu(gpu: Gpu) -> str:
    """Name, compute capability and memory in a few words."""
    major, minor = gpu.compute_capability
    return f"{gpu.name}, compute capability {major}.{minor}, {gpu.memory_bytes / 2**30:.0f} GiB"


def _cuda_torch_remedy(torch: bool, gpu: Gpu | None) -> str:
    if not torch or gpu is None:
        return _all_of((gpu is not None, _DRIVER), (torch, "pip install torch torchvision"))
    if importlib.import_module("torch").cuda.is_available():
        return ""
    return "a PyTorch with CUDA that fits the driver: pytorch.org/get-started"


def _all_of(*needs: tuple[bool, str]) -> str:
    """Return what is missing of (is there, how to get it)."""
    return " and ".join(remedy for there, remedy in needs if not there)


def _first_that_imports(modules: tuple[str, ...]) -> str | None:
    return next((name.partition(".")[0] for name in modules if _imports(name)), None)


def _imports(name: str) -> bool:
    """Whether a module imports: packages can be there and their libraries not."""
    if find_spec(name.partition(".")[0]) is None:
        return False
    try:
        importlib.import_module(name)
    except Exception:  # half-installed packages raise what they like
        return False
    return True
