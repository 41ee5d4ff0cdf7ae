"""Factors of channels on disk, as safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from reptrt.calibrators.channels.rewrite import ChannelFactors
from reptrt.engines.foreign.border import reading, require_file


class ChannelFileError(ValueError):
    """The file holds no factors of channels."""

    exit_code = 2


def save_factors(factors: ChannelFactors, path: Path) -> None:
    """Write `factors` to `path`; not atomic, so give a temporary name."""
    save_file(dict(factors), path)


def load_factors(path: Path) -> ChannelFactors:
    """What `save_factors` wrote.

    Raises:
        ChannelFileError: damaged, or a factor is no number above 0.
    """
    with reading(path, ChannelFileError, "holds no factors of channels; calibrate again"):
        require_file(path, ChannelFileError)
        found = load_file(path)
        for name, factors in found.items():
            is_legal = factors.dim() == 1 and factors.is_floating_point()
            if not is_legal or not (factors.isfinite() & (factors > 0)).all():
                raise ValueError(f"the factors of {name} are not all numbers above 0")
    return found
