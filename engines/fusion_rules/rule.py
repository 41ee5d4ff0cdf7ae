"""What a fusion rule is, and what it may know about the build."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from reptrt.engines.fusion_rules.network import Network


class Evidence(str, Enum):
    """Where a rule is known from, surest first."""

    SEEN = "seen"  # in layer lists of engines that classic TensorRT built
    REPORTED = "reported"  # in layer lists that users published in the thread named
    DOCUMENTED = "documented"  # by NVIDIA, and in none of the lists at hand
    ASSUMED = "assumed"  # from TensorRT-RTX, or by analogy; no classic engine has confirmed it


@dataclass(frozen=True)
class Build:
    """What the builder is told.

    Attributes:
        compute_capability: of the GPU, (major, minor).
        is_weakly_typed: the builder chooses between FP16 and FP32 (`--fp16`, TensorRT 8 to 10);
            else types are those of the graph.
    """

    compute_capability: tuple[int, int]
    is_weakly_typed: bool


class Rule(ABC):
    """One thing that classic TensorRT does to a network before it chooses kernels.

    The docstring of a rule names its source. "Guide" is NVIDIA's TensorRT developer guide;
    "A100" and "TITAN RTX" are engines of TensorRT 8: ResNet-18 in FP16, in FP32 and twice in INT8,
    and MobileNetV2 in INT8; owner/repository#number is a thread.

    Attributes:
        evidence: the surest that its source offers.
    """

    evidence: ClassVar[Evidence]

    @abstractmethod
    def apply(self, network: Network, build: Build) -> None:
        """Rewrite `network` in place, in time linear in its size."""
