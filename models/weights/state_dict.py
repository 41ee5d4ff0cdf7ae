"""Match a checkpoint's tensors to a module: other naming schemes, train or deploy form, what is off.

Published checkpoints of one architecture differ in names only. Known here: wrappers' prefixes, Apple's
MobileOne (https://github.com/apple/ml-mobileone), the RepVGG authors' (https://github.com/DingXiaoH/RepVGG),
the releases of YOLOv6, and whatever timm's own `checkpoint_filter_fn` of the model's file knows. The
naming that fits best is taken; loading is strict: a tensor that is not loaded is an error, or was
dropped by a rule that the log names.
"""

from __future__ import annotations

import difflib
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from reptrt.engines.foreign.text import visible
from reptrt.models.fuse import reparameterize
from reptrt.models.weights.nested import is_averaged
from reptrt.models.yolov6.checkpoint import (
    backbone_activations,
    drop_training_branches,
    fitting_names,
    is_yolov6,
    rename_tensors,
)

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]

_WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.")
_AUTHORS_NAMES = (
    (r"^stage0\.", "stem."),
    (r"^stage(\d+)\.", lambda match: f"stages.{int(match.group(1)) - 1}."),
    (r"\brbr_(conv|dense)\b", "conv_kxk"),
    (r"\brbr_scale\b", "conv_scale"),
    (r"\brbr_1x1\b", "conv_1x1"),
    (r"\brbr_(skip|identity)\b", "identity"),
    (r"\brbr_reparam\b", "reparam_conv"),
    (r"\bse\.(reduce|down)\b", "attn.fc1"),
    (r"\bse\.(expand|up)\b", "attn.fc2"),
    (r"^linear\.", "head.fc."),
)
# A fresh BatchNorm counts batches; nothing reads the count in eval mode, and old files lack it.
_OPTIONAL_SUFFIX = "num_batches_tracked"
_STATISTICS = (".running_mean", ".running_var")
# What timm's filters resample when shapes differ. Positions may be; another patch size is another
# network.
_RESIZED = re.compile(r"pos_embed|relative_position_bias_table|patch_embed")
_SHOWN = 3
_MAX_DEPTH = 6
_MAX_PREFIXES = 3


class WeightsMismatchError(ValueError):
    """The checkpoint's tensors are not those of the model."""

    exit_code = 2


@dataclass(frozen=True)
class Match:
    """A checkpoint laid beside one form of a module.

    Attributes:
        module: The module, or its deploy form.
        tensors: The checkpoint under the module's naming scheme.
        missing: Names that the module has and the checkpoint lacks.
        unexpected: Names that the checkpoint has and the module lacks.
        misshapen: Names that both have, with different shapes.
        dropped: What inference does not use: the file's name of each tensor, and the rule.
    """

    module: nn.Module
    tensors: Tensors
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    dropped: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_faults(self) -> int:
        """How many tensors do not fit; 0 means that the checkpoint loads."""
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def implied_num_classes(self) -> int | None:
        """Class count that would make everything fit, if a head of another size is the only fault.

        That is so when all misshapen tensors differ in their first dimension alone, all from the
        same value to the same value.
        """
        if self.missing or self.unexpected or not self.misshapen:
            return None
        wanted = self.module.state_dict()
        changes = {
            (wanted[name].shape[0], self.tensors[name].shape[0])
            for name in self.misshapen
            if wanted[name].shape[1:] == self.tensors[name].shape[1:] and wanted[name].dim()
        }
        head_only = len(changes) == 1 and all(
            wanted[name].shape[1:] == self.tensors[name].shape[1:] for name in self.misshapen
        )
        return changes.pop()[1] if head_only else None


def match_weights(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Match:
    """Find the naming scheme, and the form of `module`, that `tensors` fit best.

    The deploy form is tried only when the train form does not fit, a head of another size aside.
    """
    best: Match | None = None
    for form in _forms(module):
        for renamed, dropped in _namings(form, dict(tensors)):
            match = _compare(form, renamed, dropped)
            if match.num_faults == 0 or match.implied_num_classes() is not None:
                return match
            if best is None or match.num_faults < best.num_faults:
                best = match
    if best is None:
        raise AssertionError("a module has at least one form and a checkpoint one naming")
    return best


def load_weights(
    match: Match, model_name: str, source: str, activations: Sequence[str] = ()
) -> nn.Module:
    """Copy the matched tensors into their module and return it.

    Args:
        match: From `match_weights`.
        model_name: For the message.
        source: The checkpoint's path, for the message.
        activations: Class names of the backbone's activations, as far as the checkpoint tells.

    Raises:
        WeightsMismatchError: Something does not fit; the message lists it with nearest names.
    """
    if match.num_faults:
        raise WeightsMismatchError(visible(_explain(match, model_name, source)))
    ours = backbone_activations(match.module)
    if ours and activations and ("SiLU" in ours) != ("SiLU" in activations):
        others = [name for name in fitting_names(match.tensors) if name != model_name]
        raise WeightsMismatchError(
            f"{source} does not fit {model_name}: its backbone has {visible(' and '.join(activations))}"
            f" where {model_name} has {' and '.join(sorted(ours))}{_suggest(others)}"
        )
    match.module.load_state_dict(match.tensors, strict=False)
    for rule in sorted(set(match.dropped.values())):
        names = [name for name, reason in match.dropped.items() if reason == rule]
        logger.info("%s: not loaded, %s: %s", source, rule, ", ".join(names))
    return match.module


def _forms(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    deployed = reparameterize(module)
    if deployed.state_dict().keys() != module.state_dict().keys():
        yield deployed


def _namings(module: nn.Module, tensors: Tensors) -> Iterator[tuple[Tensors, dict[str, str]]]:
    """Yield the tensors under other names, and what was dropped, by which rule."""
    yield tensors, {}
    for prefix in _prefixes(module, tensors):
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        rule = f"not under the prefix {prefix!r}"
        outside = {name: rule for name in tensors if not name.startswith(prefix)}
        if prefix:
            yield inside, outside
        for renamed, dropped in _renamings(module, inside):
            yield renamed, {**outside, **dropped}


def _renamings(module: nn.Module, tensors: Tensors) -> Iterator[tuple[Tensors, dict[str, str]]]:
    if is_yolov6(tensors):
        yield drop_training_branches(rename_tensors(tensors))
    renamed = {_rename(name): tensor for name, tensor in tensors.items()}
    if renamed.keys() != tensors.keys():
        yield renamed, {}
    filtered = _filter_as_timm(module, tensors)
    if filtered is not None:
        yield filtered, {}


def _prefixes(module: nn.Module, tensors: Tensors) -> list[str]:
    """Beginnings of names behind which the module's own follow: those of most first, then averaged."""
    everything = _common_prefix(list(tensors))
    wanted = set(module.state_dict())
    fits: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for depth in range(min(len(parts), _MAX_DEPTH)):
            rest = ".".join(parts[depth:])
            if rest in wanted or _rename(rest) in wanted:
                fits["".join(f"{part}." for part in parts[:depth])] += 1
    ranked = sorted(fits, key=lambda p: (-fits[p], not is_averaged(p), len(p), p))
    return list(dict.fromkeys([*ranked[:_MAX_PREFIXES], everything]))


def _common_prefix(names: Sequence[str]) -> str:
    """The wrappers' beginning that all names have."""
    prefix = ""
    while any(
        all(name.startswith(prefix + wrapper) for name in names) for wrapper in _WRAPPER_PREFIXES
    ):
        prefix += next(
            w for w in _WRAPPER_PREFIXES if all(name.startswith(prefix + w) for name in names)
        )
    return prefix


def _strip_wrappers(tensors: Tensors) -> Tensors:
    prefix = _common_prefix(list(tensors))
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _rename(name: str) -> str:
    for pattern, replacement in _AUTHORS_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _filter_as_timm(module: nn.Module, tensors: Tensors) -> Tensors | None:
    """Let timm convert names; None where it has no filter, or the patch size is another."""
    source = sys.modules[type(module).__module__]
    convert: Callable[[Tensors, nn.Module], Tensors] | None = getattr(
        source, "checkpoint_filter_fn", None
    )
    if convert is None or not source.__name__.startswith("timm."):
        return None
    try:
        converted = convert(dict(tensors), module)
    except (AttributeError, IndexError, KeyError, RuntimeError, ValueError):
        return None  # the filter does not know these names
    resized = [
        name
        for name, tensor in converted.items()
        if _RESIZED.search(name) and name in tensors and tensor.numel() != tensors[name].numel()
    ]
    if any("patch_embed" in name for name in resized):
        return None
    if resized:
        logger.warning("resampled to the model's image size: %s", ", ".join(resized[:_SHOWN]))
    return converted


def _compare(module: nn.Module, tensors: Tensors, dropped: Mapping[str, str]) -> Match:
    wanted = module.state_dict()
    missing = tuple(
        name for name in wanted if name not in tensors and not name.endswith(_OPTIONAL_SUFFIX)
    )
    unexpected = tuple(name for name in tensors if name not in wanted)
    misshapen = tuple(
        name
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    )
    return Match(module, tensors, missing, unexpected, misshapen, dropped)


def _explain(match: Match, model_name: str, source: str) -> str:
    wanted = match.module.state_dict()
    fitting = len(wanted) - len(match.missing) - len(match.misshapen)
    verdict = f"{source} does not fit {model_name}: {fitting} of {len(wanted)} tensors fit"
    others, _ = drop_training_branches(rename_tensors(_strip_wrappers(match.tensors)))
    if names := fitting_names(others):
        return verdict + _suggest(names)
    faults = []
    if match.missing:
        faults.append(_list_names("missing", match.missing, match.unexpected))
    if match.unexpected:
        faults.append(_list_names("unexpected", match.unexpected, match.missing))
    if match.misshapen:
        shapes = [
            f"{name} {list(match.tensors[name].shape)} instead of {list(wanted[name].shape)}"
            for name in match.misshapen[:_SHOWN]
        ]
        faults.append(
            f"{len(match.misshapen)} of another shape ({_shorten(shapes, match.misshapen)})"
        )
    return f"{verdict}, {', '.join(faults)}{_advise(match, fitting / len(wanted))}"


def _advise(match: Match, share: float) -> str:
    """What to do where `share`, 0 to 1, of the tensors fit."""
    if match.missing and all(name.endswith(_STATISTICS) for name in match.missing):
        return "; it holds parameters without BatchNorm's statistics: save model.state_dict()"
    return "; these are weights of another architecture: check MODEL" if share < 0.5 else ""


def _suggest(names: Sequence[str]) -> str:
    return f"; it fits MODEL={' or MODEL='.join(names)}" if names else ""


def _list_names(label: str, names: tuple[str, ...], others: tuple[str, ...]) -> str:
    shown = []
    for name in names[:_SHOWN]:
        nearest = difflib.get_close_matches(name, others, n=1, cutoff=0.7)
        shown.append(f"{name}, nearest {nearest[0]}" if nearest else name)
    return f"{len(names)} {label} ({_shorten(shown, names)})"


def _shorten(shown: list[str], everything: tuple[str, ...]) -> str:
    return "; ".join(shown) + ("; ..." if len(everything) > len(shown) else "")
