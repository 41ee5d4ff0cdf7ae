"""Every build target, as data: which device, what it can compute, and which TensorRT it takes.

Sources, by the letter in `Target.source`:
  a  TensorRT 10.1 support matrix, "Hardware and Precision"
     (docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-1010/support-matrix)
  b  TensorRT 11.4.1 support matrix and "Migrating from 10.x to 11.x: Jetson"
     (docs.nvidia.com/deeplearning/tensorrt/11.4.1)
  c  TensorRT-RTX 1.5 support matrix, and what the builder of 1.7.1 accepts
  d  TensorRT release notes: Blackwell since 10.8, faster INT8 convolutions on it since 10.10;
     TensorRT 10.10 for DriveOS 7, "Hardware and Precision": Thor
  e  NVIDIA's data sheets: memory, compute capability
`tensorrt` is the range these sources name; where no end is known, it is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reptrt.engines import data_sheet as sheets
from reptrt.engines.data_sheet import ComputeCapability, DataSheet

Backend = Literal["tensorrt", "tensorrt_rtx", "onnxruntime"]
VersionRange = tuple[str, str | None]

_TURING, _A100, _AMPERE, _ORIN, _ADA, _HOPPER = (7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0)
_B200, _THOR_CUDA_12, _THOR, _BLACKWELL = (10, 0), (10, 1), (11, 0), (12, 0)
_JETPACK_6 = "JetPack 6 has TensorRT 10.3, upgradable to 10.7"


@dataclass(frozen=True)
class Target:
    """Where an engine will run.

    Attributes:
        name: what the option `target` takes.
        backend: module that makes what runs there: an engine, or the ONNX file itself.
        compute_capabilities: (major, minor) pairs. TensorRT-RTX compiles for all of them; a classic
            TensorRT target is built on a GPU that has one, or on any GPU where the tuple is empty.
        description: device, and where the engine is built.
        memory_gb: of the device; shared with the processor on a Jetson. None where it varies.
        tensorrt: first and last TensorRT that serve it; the last is None where no end is known.
        int8: whether convolutions run on INT8 tensor cores (or the processor's integer units).
        fp8: whether it has FP8 tensor cores.
        dla: number of deep learning accelerators, which the engines made here do not use.
        note: what to know before choosing it.
        source: letters of the module's list of sources.
        data_sheet: of the GPU, or of a typical one of a series; None where it is any.
    """

    name: str
    backend: Backend
    compute_capabilities: tuple[ComputeCapability, ...]
    description: str
    memory_gb: tuple[int, ...] | None = None
    tensorrt: VersionRange | None = None
    int8: bool = True
    fp8: bool = False
    dla: int = 0
    note: str = ""
    source: str = ""
    data_sheet: DataSheet | None = None

    @property
    def is_jetson(self) -> bool:
        """Whether it is an embedded board, where nothing but the engine side is installed."""
        return self.name.startswith("jetson-")


def _server(name: str, sheet: DataSheet, gpu: str, memory: tuple[int, ...],
            note: str = "") -> Target:  # fmt: skip
    capability = sheet.compute_capability
    is_blackwell = capability >= _B200
    return Target(
        name, "tensorrt", (capability,), f"NVIDIA {gpu}; built on the server",
        memory_gb=memory, tensorrt=("10.8" if is_blackwell else "10.3", None),
        fp8=capability >= _ADA, note=note, source="d e" if is_blackwell else "a e",
        data_sheet=sheet,
    )  # fmt: skip


def _orin(name: str, sheet: DataSheet, board: str, memory: tuple[int, ...], dla: int, last: str | None,
          note: str) -> Target:  # fmt: skip
    return Target(
        name, "tensorrt", (_ORIN,), f"Jetson {board}; built on the device",
        memory_gb=memory, tensorrt=("10.3", last), dla=dla, note=note, source="b e",
        data_sheet=sheet,
    )  # fmt: skip


def _geforce(name: str, sheet: DataSheet, series: str,
             memory: tuple[int, ...]) -> Target:  # fmt: skip
    capability = sheet.compute_capability
    return Target(
        name, "tensorrt_rtx", (capability,), f"GeForce {series} series; builds without a GPU",
        memory_gb=memory, tensorrt=("1.0", None), fp8=capability >= _ADA, source="c e",
        note="TensorRT-RTX documents INT8 for weights of matrix products only; its builder takes "
        "Q/DQ convolutions too", data_sheet=sheet,
    )  # fmt: skip


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "tensorrt-rtx",
            "tensorrt_rtx",
            (_A100, _AMPERE, _ADA, _BLACKWELL),
            "TensorRT-RTX, Ampere to Blackwell; builds without a GPU",
            tensorrt=("1.0", None),
            note="one engine for all four; Turing would have to be asked for, Hopper is not listed",
            source="c",
            data_sheet=sheets.RTX_4080,
        ),
        Target(
            "tensorrt",
            "tensorrt",
            (),
            "TensorRT 10 or 11, for the GPU of this machine",
            tensorrt=("10.3", None),
        ),
        Target(
            "cpu",
            "onnxruntime",
            (),
            "ONNX Runtime on x86-64 or Arm; nothing to build",
            note="INT8 pays where the processor has VNNI, AMX or Arm dot products; x86 without VNNI"
            " adds products in 16 bits, which may saturate: validate there",
        ),
        _server("server-t4", sheets.T4, "T4", (16,),
                "some layers have no INT8 kernel on Turing: 'could not find any implementation'"),
        _server("server-a100", sheets.A100, "A100", (40, 80)),
        _server("server-a10", sheets.A10, "A10", (24,)),
        _server("server-l4", sheets.L4, "L4", (24,)),
        _server("server-l40s", sheets.L40S, "L40S", (48,)),
        _server("server-h100", sheets.H100, "H100", (80, 94), "small batches gain little from INT8"),
        _server("server-h200", sheets.H200, "H200", (141,), "small batches gain little from INT8"),
        _server("server-b200", sheets.B200, "B200", (180, 192),
                "early access in TensorRT 10.8; INT8 convolutions are faster from 10.10 on"),
        _geforce("rtx-30", sheets.RTX_3080, "RTX 30", (8, 10, 12, 24)),
        _geforce("rtx-40", sheets.RTX_4080, "RTX 40", (8, 12, 16, 24)),
        _geforce("rtx-50", sheets.RTX_5080, "RTX 50", (8, 12, 16, 32)),
        _orin("jetson-orin", sheets.AGX_ORIN, "AGX Orin", (32, 64), 2, None,
              f"{_JETPACK_6}; JetPack 7.2.2 brings 11.4.1, nothing between"),
        _orin("jetson-orin-nx", sheets.ORIN_NX, "Orin NX", (8, 16), 1, "10.7",
              f"{_JETPACK_6}. The board with 16 GB has two accelerators"),
        _orin("jetson-orin-nano", sheets.ORIN_NANO, "Orin Nano", (4, 8), 0, "10.7", _JETPACK_6),
        Target(
            "jetson-thor",
            "tensorrt",
            (_THOR_CUDA_12, _THOR),
            "Jetson Thor; built on the device",
            memory_gb=(128,),
            tensorrt=("10.13", None),
            fp8=True,
            note="JetPack 7.1 has TensorRT 10.13; 11 comes as 11.4.1 with JetPack 7.2.2. "
            "Compute capability is 10.1 before CUDA 13 and 11.0 since",
            source="b d",
            data_sheet=sheets.THOR,
        ),
    )
}  # fmt: skip
