"""The names of the calibrators, without loading one: PyTorch takes seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

AUTO = "auto"
"""Not a calibrator: `choose_calibrator` says what it stands for."""

_HISTOGRAM = "reptrt.calibrators.histogram.methods"
_RECONSTRUCTION = "reptrt.calibrators.reconstruction.across_block"
MODULES: Mapping[str, str] = {
    "minmax": _HISTOGRAM,
    "percentile": _HISTOGRAM,
    "entropy": _HISTOGRAM,
    "mse": _HISTOGRAM,
    "mae": _HISTOGRAM,
    "best": "reptrt.calibrators.histogram.best",
    "repapq": _RECONSTRUCTION,
    "brecq": _RECONSTRUCTION,
    "qdrop": _RECONSTRUCTION,
    "repq-vit": "reptrt.calibrators.transformers.repq_vit",
    "repquant": "reptrt.calibrators.transformers.repquant",
    "smoothquant": "reptrt.calibrators.transformers.smoothquant",
    "gptq": "reptrt.calibrators.closed_form",
}
"""Name -> the module whose class registers itself under it; in the order of lists."""


class UnknownCalibratorError(ValueError):
    """No calibrator has this name."""

    exit_code = 2


def require_calibrator(name: str) -> None:
    """Check that `name` is `auto` or a calibrator.

    Raises:
        UnknownCalibratorError: the message lists the legal names.
    """
    require_one_of(name, [AUTO, *MODULES])


def require_one_of(name: str, legal: Sequence[str]) -> None:
    """Check that `name` is one of `legal`.

    Raises:
        UnknownCalibratorError: the message lists them.
    """
    if name not in legal:
        close = get_close_matches(name, legal, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownCalibratorError(
            f"calibrator {name!r} is unknown: choose from {', '.join(legal)}{hint}"
        )
