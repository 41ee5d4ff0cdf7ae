"""A PyTorch or ONNX vision model in, an INT8 TensorRT engine as accurate as FP32 out.

    import reptrt

    result = reptrt.quantize("repvgg_a0", "images", weights="weights.pth", evaluate="labelled")
    result.report.accuracy.drop  # points of top-1 that INT8 loses
    result.engine, result.onnx   # paths
    result.save("build/mine")

`quantize` also takes a network in memory, arrays, tensors and DataLoaders, and a metric of your own.
Names are imported when they are first used: `import reptrt` needs no PyTorch. It sets how OpenMP's threads
wait, where the environment does not say so (`reptrt.engines.processors`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from reptrt.engines.processors import share_processors

if TYPE_CHECKING:
    from reptrt.engines.report_schema import Report
    from reptrt.models.load import LoadedModel
    from reptrt.pipeline.api import Result, compare, lint, load, quantize
    from reptrt.pipeline.data.in_memory import MetricFunction
    from reptrt.pipeline.sweep.api import sweep

__all__ = [
    "LoadedModel",
    "MetricFunction",
    "Report",
    "Result",
    "compare",
    "lint",
    "load",
    "quantize",
    "sweep",
]

share_processors()

_HOMES = {
    "LoadedModel": "reptrt.models.load",
    "MetricFunction": "reptrt.pipeline.data.in_memory",
    "Report": "reptrt.engines.report_schema",
    "sweep": "reptrt.pipeline.sweep.api",
}


def __getattr__(name: str) -> Any:
    """Import what `__all__` names when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'reptrt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "reptrt.pipeline.api")), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
