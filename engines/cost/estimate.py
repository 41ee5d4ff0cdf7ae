"""Predicted time of an engine: its kernels, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from reptrt.engines.cost.constants import FITTED, SPREAD, Constants
from reptrt.engines.cost.kernel_time import kernel_time, work_of
from reptrt.engines.cost.records import Bound
from reptrt.engines.data_sheet import DataSheet
from reptrt.engines.inspection.kernel import Kernel, Product, Tensor

_MOST = 10**18
"""Bytes or operations of one kernel."""


class CostError(ValueError):
    """These kernels have no cost: they have no shapes, or there is no data sheet."""

    exit_code = 2


@dataclass(frozen=True)
class KernelCost:
    """A kernel's part; `bound` is what takes longest in it."""

    name: str
    kind: str
    microseconds: float
    megabytes: float
    gigaoperations: float
    dtype: str
    bound: Bound


@dataclass(frozen=True)
class EngineCost:
    """Predicted cost of an engine on a GPU; the kernels are in order of execution.

    `low` and `high` are the ends of the interval around `milliseconds`; `bound` is what bounds the
    kernels that take most of the time.
    """

    gpu: str
    milliseconds: float
    low: float
    high: float
    megabytes: float
    bound: Bound
    kernels: tuple[KernelCost, ...]

    @property
    def slowest_first(self) -> tuple[KernelCost, ...]:
        """The kernels by their time."""
        return tuple(sorted(self.kernels, key=lambda one: -one.microseconds))


def estimate_cost(
    kernels: Sequence[Kernel],
    sheet: DataSheet,
    constants: Constants = FITTED,
    spread: float = SPREAD,
) -> EngineCost:
    """Predict what `kernels` take on the GPU of `sheet`, inside a CUDA graph.

    Raises:
        CostError: there is none, or one of them has no shapes.
    """
    require_shapes(kernels)
    costs = [_cost(kernel, sheet, constants) for kernel in kernels]
    milliseconds = sum(one.microseconds for one in costs) / 1e3
    by_bound: Counter[Bound] = Counter()
    for one in costs:
        by_bound[one.bound] += round(1e3 * one.microseconds)
    return EngineCost(
        gpu=sheet.gpu,
        milliseconds=milliseconds,
        low=milliseconds / (1 + spread),
        high=milliseconds * (1 + spread),
        megabytes=sum(one.megabytes for one in costs),
        bound=max(by_bound, key=lambda bound: by_bound[bound]),
        kernels=tuple(one for one in costs if one.bound != "nothing"),
    )


def require_shapes(kernels: Sequence[Kernel]) -> None:
    """Refuse kernels that have no cost.

    Raises:
        CostError: there is none that computes, or one of them has no shapes, or some that cannot be.
    """
    if all(work_of(kernel) == "none" for kernel in kernels):
        raise CostError("there are no kernels: nothing to predict")
    for kernel in kernels:
        if work_of(kernel) != "none" and not kernel.has_shapes:
            raise CostError(
                f"kernel '{kernel.name[:80]}' has no shapes: its layer list is of an older version, "
                "or of an engine for a range of batches; build it for one batch"
            )
        if max(kernel.bytes_in, kernel.bytes_constant, kernel.bytes_out, kernel.operations) > _MOST:
            raise CostError(f"kernel '{kernel.name[:80]}' is larger than any that a GPU could run")


def scale_batch(kernels: Sequence[Kernel], factor: float) -> tuple[Kernel, ...]:
    """Return the same kernels for `factor` times the batch: the first side of all activations."""
    return tuple(
        replace(
            kernel,
            inputs=tuple(_scale_tensor(tensor, factor) for tensor in kernel.inputs),
            outputs=tuple(_scale_tensor(tensor, factor) for tensor in kernel.outputs),
            product=_scale_product(kernel.product, factor),
        )
        for kernel in kernels
    )


def _scale_tensor(tensor: Tensor, factor: float) -> Tensor:
    if not tensor.dims:
        return tensor
    return replace(tensor, dims=(max(1, round(tensor.dims[0] * factor)), *tensor.dims[1:]))


def _scale_product(product: Product | None, factor: float) -> Product | None:
    if product is None:
        return None
    if product.groups > 1 and not product.window:  # a product for each head of each image
        return replace(product, groups=max(1, round(product.groups * factor)))
    return replace(product, rows=max(1, round(product.rows * factor)))


def _cost(kernel: Kernel, sheet: DataSheet, constants: Constants) -> KernelCost:
    time = kernel_time(kernel, sheet, constants)
    moved = kernel.bytes_in + kernel.bytes_constant + kernel.bytes_out
    return KernelCost(
        name=kernel.name,
        kind=kernel.kind,
        microseconds=time.microseconds,
        megabytes=0.0 if time.bound == "nothing" else moved / 1e6,
        gigaoperations=kernel.operations / 1e9,
        dtype=kernel.product_dtype or (kernel.outputs[0].dtype if kernel.outputs else ""),
        bound=time.bound,
    )
