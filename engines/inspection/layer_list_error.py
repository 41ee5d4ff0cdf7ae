"""What is raised where a layer list cannot be read, and how nodes are named in one."""

from __future__ import annotations

import re


class LayerListError(ValueError):
    """The text is not a layer list this version knows; `reptrt.engines.inspection.kernels` names what it reads."""

    exit_code = 2


_NODE = "[ONNX Layer: "
_NAME = re.compile(r"(.*?)\](?=\s*(?:[\x1e\x1f]|$))")


def onnx_layers(metadata: str) -> tuple[str, ...]:
    """Nodes that the metadata of a layer names; 10.x puts separators between them."""
    found = (_NAME.match(part) for part in metadata.split(_NODE)[1:])
    return tuple(match[1] for match in found if match)
