"""Whether the deploy form computes what the train form does, block by block.

A block's fusing method is code of somebody else. A wrong one would be quantized as faithfully as a
right one: the float reference is the deploy form.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from reptrt.engines.foreign.text import one_line
from reptrt.models.fuse import block_error, fusing_method
from reptrt.models.inputs import NetworkInput

LARGEST_ERROR = 1e-3
"""Of a block's output, relative to its norm: float32 leaves some 1e-6, INT8 at least 1e-2."""

NEGLIGIBLE = 1e-6
"""Size of an element below which it is no output to be relative to."""


@torch.no_grad()
def require_same_function(
    train_form: nn.Module,
    deploy_form: nn.Module,
    image_size: tuple[int, int],
    num_channels: int = 3,
    inputs: Sequence[NetworkInput] = (),
) -> None:
    """Run every block in both forms on what it reads when the network sees one random image.

    Blocks within blocks are not looked at: their parent may have put its own arithmetic into them.

    Args:
        train_form: in evaluation mode, on the CPU, in float32.
        deploy_form: `reptrt.models.fuse.reparameterize(train_form)`, there too.
        image_size: (height, width) of the input in pixels.
        num_channels: of the input.
        inputs: what the network reads, where that is more than an image.

    Raises:
        ReparameterizationError: a block differs by more than `LARGEST_ERROR`, or no longer runs.
    """
    pairs = {
        path: (block, deploy_form.get_submodule(path)) for path, block in _outermost(train_form)
    }
    if not pairs:
        return
    checks = [_Check(path, *pair) for path, pair in pairs.items()]
    generator = torch.Generator().manual_seed(0)
    try:
        image = torch.randn(1, num_channels, *image_size, generator=generator)
        values = [torch.from_numpy(one.random(1, seed=0)) for one in inputs]
        train_form(*(values or [image]))
    finally:
        for check in checks:
            check.remove()


class _Check:
    """Hooks on one block that compare its deploy form with it whenever it runs."""

    def __init__(self, path: str, block: nn.Module, deployed: nn.Module) -> None:
        self._path, self._deployed = path, deployed
        self._inputs: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._handles = (
            block.register_forward_pre_hook(self._before, with_kwargs=True),
            block.register_forward_hook(self._after),
        )

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._inputs = copy.deepcopy((inputs, named))  # the block may work in place

    def _after(self, block: nn.Module, _: object, expected: object) -> None:
        error = _relative_error(self._run(block), expected)
        if error > LARGEST_ERROR:
            fault = (
                f"changes what the block computes, by {error:.2g} of the norm of its output"
                f" ({LARGEST_ERROR:g} is allowed)"
            )
            raise block_error(block, self._path, fault)

    def _run(self, block: nn.Module) -> object:
        inputs, named = self._inputs
        try:
            return self._deployed(*inputs, **named)
        except Exception as error:
            fault = f"leaves a block that does not run: {type(error).__name__}: {one_line(error)}"
            raise block_error(block, self._path, fault) from error


def _outermost(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    if fusing_method(module) is not None:
        yield path, module
        return
    for name, child in module.named_children():
        yield from _outermost(child, f"{path}.{name}".lstrip("."))


def _relative_error(actual: object, expected: object) -> float:
    """Norm of the difference over the norm of `expected`, of the worst tensor; inf by shape.

    0 where `expected` is not finite: what a network computes is not judged here.
    """
    one, other = list(_tensors(actual)), list(_tensors(expected))
    if [tensor.shape for tensor in one] != [tensor.shape for tensor in other]:
        return math.inf
    return max(map(_distance, one, other), default=0.0)


def _distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    if not expected.isfinite().all():
        return 0.0
    faintest = NEGLIGIBLE * math.sqrt(expected.numel())
    size = torch.linalg.vector_norm(expected.double()).clamp(min=faintest)
    error = float(torch.linalg.vector_norm((actual - expected).double()) / size)
    return math.inf if math.isnan(error) else error


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
