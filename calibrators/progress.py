"""Who is told as work advances; without PyTorch, so that a worker starts quickly."""

from __future__ import annotations

from collections.abc import Callable

PER_MILLE = 1000

Progress = Callable[[str, int, int], None]
"""`progress(description, done, total)`: called as work advances."""


def no_progress(description: str, done: int, total: int) -> None:
    """Show nothing."""


def share_of(progress: Progress, description: str, first: float, last: float) -> Progress:
    """A progress that fills the part `first`..`last` (0..1) of the bar `description`."""

    def show(_: str, done: int, total: int) -> None:
        share = first + (last - first) * done / max(1, total)
        progress(description, round(PER_MILLE * share), PER_MILLE)

    return show
