"""A cluster of Ray: found, or refused in one line."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from reptrt.engines.foreign.text import one_line, visible
from reptrt.engines.target import MissingComponentError

ANSWER_SECONDS = 5.0


def connect(address: str | None, say: Callable[[str], None] = lambda _: None) -> Any:
    """Ray's module, connected to the cluster at `address`; None starts Ray on this machine.

    Args:
        address: `auto`, `HOST:PORT` or `ray://HOST:PORT`.
        say: told where the cluster's dashboard is, if it has one.

    Raises:
        MissingComponentError: Ray is not installed, or nothing answers at `address`.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingComponentError(
            f"this needs Ray ({error}): pip install 'reptrt[cluster]', or leave `ray` out"
        ) from None
    if ray.is_initialized():
        return ray
    _require_answer(address)
    settings: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    try:
        if address is not None:
            context = ray.init(address=address, **settings)
        else:
            context = ray.init(include_dashboard=False, **settings)
    except Exception as error:  # Ray has no common class for it
        raise _no_cluster(address, error) from None
    if context.dashboard_url:
        say(f"Ray's dashboard: http://{visible(context.dashboard_url)}")
    return ray


def _require_answer(address: str | None) -> None:
    """Find out at once whether anybody listens: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str | None, error: Exception) -> MissingComponentError:
    reason = one_line(error, 200) or type(error).__name__
    return MissingComponentError(
        f"no Ray cluster answers at {visible(str(address))}: {reason}; start one (`ray start --head`), or leave"
        " the address out to use this machine"
    )
