"""How many processors this process may use, and how its threads wait on a machine that others use too.

OpenMP reads its environment when its library is loaded, with PyTorch, so `share_processors` has to come before
that: `import reptrt` calls it. Who imports PyTorch first has OpenMP's own defaults.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Of GNU's and of LLVM's OpenMP: a thread that waits for the others sleeps. By default it spins on its core,
which the thread that it waits for may need: two runs on two cores then stop each other for milliseconds."""


def share_processors() -> None:
    """Set OpenMP's environment where the user has not: threads that sleep, no more than `available_processors`."""
    for name, value in PASSIVE.items():
        os.environ.setdefault(name, value)
    quota = cgroup_quota()
    if quota is not None and quota < _affinity():  # OpenMP itself knows the affinity, but no quota
        os.environ.setdefault("OMP_NUM_THREADS", str(available_processors()))


def available_processors() -> int:
    """Return how many processors this process may use: by its affinity, and by its container's quota."""
    quota = cgroup_quota()
    return _affinity() if quota is None else max(1, min(_affinity(), math.ceil(quota)))


def cgroup_quota(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> float | None:
    """Processors that the control groups allow, the least of all levels; None without a limit.

    Args:
        cgroups: where the kernel shows control groups, of version 2 or 1 ("CPU controller",
            kernel.org/doc/Documentation/admin-guide/cgroup-v2.rst).
        own: names the process's own.
    """
    quotas = []
    for line in _read(own).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers or "cpu" in controllers.split(","):
            root, parts = cgroups / "cpu" if controllers else cgroups, Path(path).parts[1:]
            levels = [root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
            quotas += [quota for level in levels if (quota := _quota(level)) is not None]
    return min(quotas, default=None)


def _quota(folder: Path) -> float | None:
    """Quota over period of one control group."""
    texts = _read(folder / "cpu.max").split() or [
        _read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    ]
    try:
        quota, period = (float(text) for text in texts)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: Path) -> str:
    """Text of a small file of the kernel's, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
