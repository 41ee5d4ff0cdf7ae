"""One line of TensorRT's error messages, and what to do about them.

The messages are TensorRT's own (10.x, 11.x and RTX 1.7); an unknown one is passed on without its
source positions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NOISE = ("Invalid Node - ", "Error Code 1: Cuda Runtime")
_LINT = "`reptrt lint FILE.onnx --fix REPAIRED.onnx` mends it"
_REBUILD = "engines run on the kind of GPU and the TensorRT that built them: build it again here"
_REMEDIES: tuple[tuple[str, str], ...] = (
    (r"non-zero zero point", f"TensorRT takes symmetric INT8 only; {_LINT}"),
    (r"has type Int32 but must have type", f"a bias is no INT8 tensor; {_LINT}"),
    (r"must all be positive", f"a scale is zero or vanished in FP16; {_LINT}"),
    (
        r"(must be of same type|is of type Half|type is Half)",
        "FP32 and FP16 meet there: export the whole float part in one type (`precision`)",
    ),
    (
        r"(ROIAlign|NonZero|DeformConv).*plugin",
        "TensorRT-RTX has no plugins, and this is one of TensorRT's: choose a target of classic TensorRT,"
        " or cut the model in front of it",
    ),
    (
        r"antialiasing is not supported|transformationMode ==",
        "TensorRT has no such interpolation: export the Resize without antialiasing, with `half_pixel`,"
        " `align_corners` or `asymmetric` coordinates",
    ),
    (
        r"than 1 outputs for MaxPool",
        "TensorRT's MaxPool does not say where its largest values are: export the model without them",
    ),
    (
        r"(no importer registered|unsupported operator|plugin not found|getPluginCreator)",
        "TensorRT has no such operator: export the model without it",
    ),
    (
        r"could not find any implementation",
        "this GPU has no kernel for it in that type: keep the layer float "
        "(`keep_float`), or raise `workspace_limit`",
    ),
    (
        r"(out of memory|insufficient memory|OutOfMemory)",
        "GPU memory is full: free some, or lower `max_batch`, `workspace_limit` or "
        "`optimization_level`",
    ),
    (
        r"no optimization profile|dynamic or shape inputs",
        "give the smallest, usual and largest size of its dynamic dimensions",
    ),
    (
        r"(unable to determine GPU memory|CUDA initialization failure|cuda(Error)?InsufficientDriver"
        r"|no CUDA-capable device)",
        "no usable GPU or driver here; `reptrt doctor` says what is missing",
    ),
    (
        r"host code|lean runtime",
        "it is version-compatible and carries code: give `trusted=True` if you know where it is from",
    ),
    (
        r"(not compatible with this version|expecting library version|version tag does not match"
        r"|serialization assertion|stdVersionRead)",
        _REBUILD,
    ),
    (r"(incompatible device|expecting compute|different (GPU|device|platform))", _REBUILD),
    (r"(magic tag|corrupt|invalid (engine|plan)|header is not)", f"no engine file; {_REBUILD}"),
)


def first_reason(messages: Sequence[str]) -> str:
    """Return the first message worth reading, without source positions, and its remedy if known."""
    useful = [line for line in messages if not any(noise in line for noise in _NOISE)]
    text = (useful or list(messages) or ["no reason given"])[0]
    text = re.sub(r"^.*?Error Code \d+: ", "", text)
    text = re.sub(r"\s+In \w+ at \S+:\d+", "", text)
    text = re.sub(r"^Assertion failed: .*?\): ", "", text)
    reason = " ".join(text.split())
    remedy = find_remedy(reason)
    return f"{reason.rstrip('.')}. {remedy[0].upper()}{remedy[1:]}" if remedy else reason


def find_remedy(reason: str) -> str:
    """Return what to do about `reason`; empty where that is unknown."""
    known = (remedy for pattern, remedy in _REMEDIES if re.search(pattern, reason, re.IGNORECASE))
    return next(known, "")
