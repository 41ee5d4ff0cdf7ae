"""The kernels of an engine, read from what TensorRT says about its own build.

Two sources: the "Layers:" message that TensorRT-RTX logs at VERBOSE with DETAILED profiling (no GPU
needed; its format is undocumented, and pinned by tests to 1.7), and the engine inspector's JSON of
classic TensorRT, where 8.x and 10.x join "Format/Datatype" and 11 splits the two.
"""

from __future__ import annotations

from reptrt.engines.inspection.inspector_json import parse_json
from reptrt.engines.inspection.kernel import Kernel, Product, Tensor, convolution
from reptrt.engines.inspection.layer_list_error import LayerListError
from reptrt.engines.inspection.rtx_log import LAYERS_PREFIX, parse_log

__all__ = ["Kernel", "LayerListError", "Product", "Tensor", "convolution", "parse_kernels"]


def parse_kernels(layers: str) -> tuple[Kernel, ...]:
    """Return the kernels listed in `BuildResult.layers`, in execution order.

    Raises:
        LayerListError: `layers` is neither the RTX message nor inspector JSON with details.
    """
    text = layers.strip()
    if text.startswith(LAYERS_PREFIX):
        return parse_log(text)
    if text.startswith("{"):
        return parse_json(text)
    raise LayerListError(
        "no layer list in this build log: build with DETAILED profiling, and with TensorRT-RTX log "
        "at VERBOSE (read: RTX 1.7 log, TensorRT 8 to 11 inspector JSON)"
    )
