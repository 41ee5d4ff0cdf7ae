"""What the processor of the tests computes differently."""

from __future__ import annotations

import platform
from pathlib import Path


def sums_saturate() -> bool:
    """Whether ONNX Runtime adds INT8 products in 16 bits here: x86 without VNNI.

    Its INT8 results then differ from what ONNX says (`reptrt targets cpu`).
    """
    if platform.machine() != "x86_64":
        return False
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    return not {"avx512_vnni", "avx_vnni"} & set(flags)
