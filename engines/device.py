"""This machine's processor and, through the CUDA driver, its first GPU."""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_COMPUTE_CAPABILITY_MAJOR = 75  # CUdevice_attribute
_COMPUTE_CAPABILITY_MINOR = 76
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """One CUDA device.

    Attributes:
        name: as its vendor calls it.
        compute_capability: (major, minor), such as (8, 9).
        memory_bytes: of the device; 0 where the driver does not tell.
        driver_cuda: newest CUDA that the driver serves, as (major, minor); (0, 0) where unknown.
    """

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int = 0
    driver_cuda: tuple[int, int] = (0, 0)


def find_gpu() -> Gpu | None:
    """Return the first CUDA device the driver offers, or None without driver or device."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return None
    if count.value == 0:
        return None
    name = ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGetName(name, _NAME_BYTES, 0)
    major, minor = (
        _device_attribute(driver, attribute)
        for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR)
    )
    memory = ctypes.c_size_t(0)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), 0)
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return Gpu(
        name.value.decode(errors="replace"),
        (major, minor),
        memory.value,
        (version.value // 1000, version.value % 1000 // 10),
    )


def cpu_name() -> str:
    """Return the processor's marketing name, or the architecture where the system hides it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device_attribute(driver: ctypes.CDLL, attribute: int) -> int:
    value = ctypes.c_int(0)
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0)
    return value.value
