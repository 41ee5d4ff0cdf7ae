"""What is raised where a layer list cannot be read, and how nodes are named in one."""

from __future__ import annotations

import re


class LayerListError(ValueError):
    """The text is not a layer list this version knows; `reptrt.engines.inspection.kernels` names what it reads."""

    exit_code = 2


ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:\[ONNX Layer: |[\x1e\x1f]|$))")
"""One node in the metadata of a layer; 10.x puts separators between them."""
