"""What a GPU can do on paper: processors, clock, bandwidth, and operations by type.

Peaks follow from the operations a streaming multiprocessor finishes per clock, which NVIDIA's
architecture white papers give by compute capability, dense (not "with sparsity"); floats accumulate
in the type that TensorRT prefers, FP16 in FP16. Clocks are boost clocks of the data sheets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ComputeCapability = tuple[int, int]


@dataclass(frozen=True)
class _Rates:
    """Operations per SM and clock: on tensor cores by type, and on the FP32 cores.

    Attributes:
        half: FP16 and BF16.
        int8: 8-bit integers; on Volta by dot products of its ordinary cores.
        float32: TF32 from Ampere on, FP32 cores before.
        core: FP32 cores, which depthwise convolutions run on.
        fp8: 0 where there is none.
    """

    half: int
    int8: int
    float32: int
    core: int
    fp8: int = 0


_RATES: Mapping[ComputeCapability, _Rates] = {
    (7, 0): _Rates(1024, 512, 128, 128),  # V100 white paper
    (7, 5): _Rates(1024, 2048, 128, 128),  # Turing white paper
    (8, 0): _Rates(2048, 4096, 1024, 128),  # A100 white paper, table 1
    (8, 6): _Rates(1024, 2048, 256, 256),  # GA102 white paper, appendix A
    (8, 7): _Rates(2048, 4096, 1024, 256),  # Jetson AGX Orin technical brief: 85 dense INT8 TOPS
    (8, 9): _Rates(1024, 2048, 512, 256, 2048),  # Ada white paper, appendix A
    (9, 0): _Rates(4096, 8192, 2048, 256, 8192),  # H100 white paper, table 2
    (10, 0): _Rates(8192, 16384, 4096, 256, 16384),  # Blackwell architecture brief, B200
    (10, 1): _Rates(8192, 16384, 4096, 256, 16384),  # Jetson Thor data sheet
    (11, 0): _Rates(8192, 16384, 4096, 256, 16384),
    (12, 0): _Rates(1024, 2048, 512, 256, 2048),  # RTX Blackwell white paper, appendix A
}


@dataclass(frozen=True)
class DataSheet:
    """A GPU on paper.

    Attributes:
        gpu: its name.
        compute_capability: (major, minor).
        sms: streaming multiprocessors.
        clock_ghz: boost clock.
        bandwidth_gbs: of its memory, in 10^9 bytes a second.
        l2_mb: second-level cache that one SM can use, in 10^6 bytes.
        sustained: part of the clock that its power limit leaves to products.
        source: where the figures are from.
    """

    gpu: str
    compute_capability: ComputeCapability
    sms: int
    clock_ghz: float
    bandwidth_gbs: float
    l2_mb: float
    sustained: float = 1.0
    source: str = "NVIDIA data sheet"

    def peak(self, dtype: str) -> float:
        """Operations a second in products of `dtype`, at the boost clock.

        A type the GPU has no tensor cores for is computed in FP16 (8 bits) or FP32.
        """
        rates = self._rates
        per_clock = {
            "Half": rates.half, "BFloat16": rates.half if self.compute_capability >= (8, 0) else 0,
            "Int8": rates.int8, "UInt8": rates.int8, "FP8": rates.fp8 or rates.half,
            "FP4": rates.fp8 or rates.half, "Int4": rates.half,
        }.get(dtype, rates.float32)  # fmt: skip
        return (per_clock or rates.float32) * self._clocks

    @property
    def core_peak(self) -> float:
        """Operations a second without tensor cores."""
        return self._rates.core * self._clocks

    @property
    def dot_peak(self) -> float:
        """Operations a second in dot products of 4 bytes, on 64 integer lanes an SM."""
        return 4 * 2 * 64 * self._clocks

    @property
    def l2_bandwidth(self) -> float:
        """Bytes a second of the second-level cache: half a line of 64 bytes per SM and clock."""
        return 32 * self._clocks

    @property
    def _clocks(self) -> float:
        return self.sms * self.clock_ghz * 1e9

    @property
    def _rates(self) -> _Rates:
        known = [one for one in _RATES if one <= self.compute_capability]
        return _RATES[max(known)] if known else _RATES[7, 0]


V100 = DataSheet("V100 SXM2 16GB", (7, 0), 80, 1.53, 900, 6)
T4 = DataSheet(
    "T4", (7, 5), 40, 1.59, 320, 4, 0.55,
    "data sheet; sustained: a continuous product of 4096 reaches 24 of 65 TFLOPS under the 70 W limit "
    "(forums.developer.nvidia.com/t/264462), 0.47 of what is reached unlimited; a network, with layers "
    "that draw less, is put a little above",
)  # fmt: skip
A100 = DataSheet(
    "A100 80GB PCIe", (8, 0), 108, 1.41, 1935, 20, source="data sheet; L2 in two halves"
)
A10 = DataSheet("A10", (8, 6), 72, 1.695, 600, 6)
L4 = DataSheet(
    "L4", (8, 9), 58, 2.04, 300, 48, 0.55,
    "data sheet; sustained: assumed as for the T4, under 72 W",
)  # fmt: skip
L40S = DataSheet("L40S", (8, 9), 142, 2.52, 864, 96)
H100 = DataSheet(
    "H100 80GB SXM", (9, 0), 132, 1.83, 3350, 25, source="data sheet; L2 in two halves"
)
H200 = DataSheet("H200 SXM", (9, 0), 132, 1.83, 4800, 25, source="data sheet; L2 in two halves")
B200 = DataSheet("B200", (10, 0), 148, 1.85, 8000, 63, source="data sheet; L2 in two halves")
RTX_3080 = DataSheet("GeForce RTX 3080 10GB", (8, 6), 68, 1.71, 760, 5)
RTX_4080 = DataSheet("GeForce RTX 4080", (8, 9), 76, 2.505, 717, 64)
RTX_5080 = DataSheet("GeForce RTX 5080", (12, 0), 84, 2.617, 960, 64)
AGX_ORIN = DataSheet("Jetson AGX Orin 64GB", (8, 7), 16, 1.3, 204.8, 4)
ORIN_NX = DataSheet("Jetson Orin NX 16GB", (8, 7), 8, 0.918, 102.4, 4)
ORIN_NANO = DataSheet("Jetson Orin Nano 8GB", (8, 7), 8, 0.625, 68, 2)
THOR = DataSheet("Jetson T5000", (11, 0), 20, 1.575, 273, 32)


def known_sheets() -> tuple[DataSheet, ...]:
    """Every GPU of this module."""
    return tuple(value for value in globals().values() if isinstance(value, DataSheet))
