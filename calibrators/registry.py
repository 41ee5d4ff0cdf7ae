"""Calibrators by the name that the command line uses."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from torch import fx, nn

from calibrators.attention import has_attention
from calibrators.base import DEFAULT_SETTINGS, Calibrator
from calibrators.scale_reparam import has_norm_sites
from calibrators.settings import Settings
from models.fuse import has_reparameterizable_blocks

AUTO = "auto"
"""Not a calibrator: `choose_calibrator` says what it stands for."""

_CALIBRATORS: dict[str, type[Calibrator]] = {}
_MODULES = (
    "calibrators.across_block",
    "calibrators.repquant",
    "calibrators.repq_vit",
    "calibrators.smoothquant",
    "calibrators.best_baseline",
    "calibrators.baselines",
)


class UnknownCalibratorError(ValueError):
    """No calibrator has this name."""

    exit_code = 2


def register_calibrator(calibrator: type[Calibrator]) -> type[Calibrator]:
    """Class decorator: make `calibrator` known under its `name`."""
    _CALIBRATORS[calibrator.name] = calibrator
    return calibrator


def list_calibrators() -> dict[str, type[Calibrator]]:
    """Every calibrator by name, in the order of registration."""
    for module in _MODULES:
        import_module(module)
    return dict(_CALIBRATORS)


def choose_calibrator(network: nn.Module, graph: fx.Graph, num_bits: int = 8) -> str:
    """What `auto` stands for: the name of what suits a network like this.

    A transformer has attention, and linears that read a LayerNorm. That decides first, for blocks
    that fuse may be mere convolutions with a BatchNorm. Measured on DeiT, MobileOne, RepVGG and YOLOv6Lite
    (docs/results.md); for mixtures of both kinds it is a rule, without a measurement.

    Args:
        network: as loaded.
        graph: `network` recorded (`models.graph.trace`).
        num_bits: of weights or activations, whichever has fewer.
    """
    if has_attention(graph) and has_norm_sites(graph):
        return "repq-vit" if num_bits == 8 else "repquant"
    if has_reparameterizable_blocks(network) or isinstance(network, fx.GraphModule):
        return "repapq"  # a graph from a file may have been re-parameterized before it was written
    return "best"


def require_calibrator(name: str) -> None:
    """Check that `name` is `auto` or a calibrator.

    Raises:
        UnknownCalibratorError: the message lists the legal names.
    """
    _require(name, [AUTO, *list_calibrators()])


def create_calibrator(name: str, settings: Settings = DEFAULT_SETTINGS) -> Calibrator:
    """Calibrator with this name (not `auto`); those that do not learn ignore `settings`.

    Raises:
        UnknownCalibratorError: the message lists the legal names.
    """
    known = list_calibrators()
    _require(name, list(known))
    return known[name](settings)


def _require(name: str, legal: Sequence[str]) -> None:
    if name not in legal:
        close = get_close_matches(name, legal, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownCalibratorError(
            f"calibrator {name!r} is unknown: choose from {', '.join(legal)}{hint}"
        )
