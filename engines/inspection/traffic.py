"""What the kernels of an engine move and multiply: the figures by which INT8 and FP16 are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reptrt.engines.foreign.ranges import Amount, Count, Percent
from reptrt.engines.inspection.kernel import Kernel

_FREE = ("noop", "constant", "signal", "wait", "shape_call", "shape call")
_MEGA, _GIGA = 1e6, 1e9


@dataclass(frozen=True)
class Traffic:
    """An engine's kernels, added up.

    Attributes:
        kernels: that the GPU runs: views without work are left out.
        activation_megabytes: read and written between kernels, 10^6 bytes.
        weight_megabytes: of constants that they read.
        gigaoperations: multiplications and additions of products by their type, 10^9.
        int8_writers: percent of the kernels that multiply weights which write INT8.
    """

    kernels: Count
    activation_megabytes: Amount
    weight_megabytes: Amount
    gigaoperations: Mapping[str, Amount]
    int8_writers: Percent

    @property
    def megabytes(self) -> float:
        """Activations and weights."""
        return self.activation_megabytes + self.weight_megabytes


def has_work(kernel: Kernel) -> bool:
    """Whether the GPU runs it: a view, a constant or a wait is none."""
    return kernel.kind.lower() not in _FREE and bool(kernel.inputs or kernel.outputs)


def measure_traffic(kernels: Sequence[Kernel]) -> Traffic | None:
    """Add up `kernels`; None where one has no shapes, as in an engine for a range of batches."""
    working = [kernel for kernel in kernels if has_work(kernel)]
    if not working or not all(kernel.has_shapes for kernel in working):
        return None
    operations: Counter[str] = Counter()
    for kernel in working:
        if kernel.product is not None:
            operations[kernel.product_dtype] += kernel.operations
    weighted = [kernel for kernel in working if kernel.product is not None and kernel.weights]
    writers = sum(kernel.outputs[0].dtype == "Int8" for kernel in weighted)
    return Traffic(
        kernels=len(working),
        activation_megabytes=sum(one.bytes_in + one.bytes_out for one in working) / _MEGA,
        weight_megabytes=sum(one.bytes_constant for one in working) / _MEGA,
        gigaoperations={dtype: count / _GIGA for dtype, count in sorted(operations.items())},
        int8_writers=round(100 * writers / len(weighted), 2) if weighted else 0.0,
    )
