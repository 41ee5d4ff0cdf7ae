"""Fetch published weights once: checked, resumable, atomic, and clear when there is no network.

Files on the Hugging Face hub go through `huggingface_hub` (its cache, resume, mirrors and tokens).
Plain links go to `$XDG_CACHE_HOME/reptrt` through a `.part` file that the next attempt continues; a
file that was put there by hand is found. Where the publisher states no digest, the digest of the first
file is written beside it, and a file that changes later is refused.
"""

from __future__ import annotations

import http.client
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError as HubError  # type: ignore[attr-defined]
from huggingface_hub.errors import XetDownloadError

from reptrt.engines.artifacts import cache_folder, file_sha256, replace_when_done
from reptrt.engines.file_lock import hold_lock
from reptrt.engines.foreign.text import one_line
from reptrt.models.spec import PublishedWeights

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]

_TIMEOUT_S = 10.0
_PIECE = 1 << 16


class DownloadError(OSError):
    """Published weights cannot be fetched from here."""

    exit_code = 4


class ChangedWeightsError(ValueError):
    """A file in the cache is not the one that was published, or that was there before."""

    exit_code = 2


def fetch_weights(
    weights: PublishedWeights, model_name: str, progress: Progress | None = None
) -> Path:
    """Return the local file of published weights, downloading it when it is not there yet.

    Args:
        weights: What to fetch.
        model_name: For the message that says how to bring the file by hand.
        progress: Called with (bytes so far, total bytes or None) for plain links; the hub's client
            draws its own bar.

    Raises:
        DownloadError: No network, the server refuses, or the file has another sha256.
        ChangedWeightsError: The file that is there has another sha256.
    """
    try:
        return _fetch_hub(weights) if weights.hub_id else _fetch_url(weights, progress)
    except (OSError, HubError, XetDownloadError, http.client.HTTPException) as error:
        raise DownloadError(_how_to_bring(weights, model_name, one_line(error))) from error


def fetch_hub_file(repository: str, filename: str, model_name: str) -> Path:
    """Return the local copy of a small file on the Hugging Face hub.

    Raises:
        DownloadError: no network, or there is no such file.
    """
    url = hf_hub_url(repository, filename)
    wanted = PublishedWeights(url, filename, None, "unknown", repository, hub_id=repository)
    try:
        return _fetch_hub(wanted)
    except (OSError, ValueError, HubError, XetDownloadError, http.client.HTTPException) as error:
        raise DownloadError(
            f"{model_name}: cannot read {url} ({one_line(error)}); run it once where there is a"
            " network, or name the architecture (timm:NAME) and give `weights`"
        ) from error


def _how_to_bring(weights: PublishedWeights, model_name: str, reason: str) -> str:
    by_hand = "" if weights.hub_id else f"put it at {cache_folder() / weights.filename}, or: "
    return (
        f"{model_name}: cannot download its weights ({reason}); fetch {weights.url} where there is"
        f" a network (licence: {weights.licence}), then {by_hand}make engine MODEL={model_name}"
        f" WEIGHTS=path/to/{Path(weights.filename).name} (or give `weights`)"
    )


def _fetch_hub(weights: PublishedWeights) -> Path:
    repository = str(weights.hub_id)
    cached = try_to_load_from_cache(repository, weights.filename)
    if isinstance(cached, str):
        return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    _require_reachable(weights.url)
    endpoint = weights.url.partition(f"/{repository}/")[0]
    path = Path(
        hf_hub_download(repository, weights.filename, etag_timeout=_TIMEOUT_S, endpoint=endpoint)
    )
    # The hub's cache names a large file's blob after its sha256.
    blob = path.resolve().name
    _check_digest(path.resolve(), weights.sha256 or (blob if len(blob) == 64 else None))
    return path


def _require_reachable(url: str) -> None:
    """Fail within seconds when there is no network; the hub's client would retry for longer."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # the server answers; the hub's client explains what is wrong


def _fetch_url(weights: PublishedWeights, progress: Progress | None) -> Path:
    path = cache_folder() / weights.filename
    note = path.with_name(f"{path.name}.sha256")
    if path.exists() and (weights.sha256 is not None or note.exists()):
        if weights.sha256 is None:
            _remember_digest(path, note)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(path.with_name(f".{path.name}.lock")):  # processes share the unfinished file
        if not path.exists():
            part = path.with_name(f"{path.name}.part")
            logger.info("downloading %s (licence: %s)", weights.url, weights.licence)
            _continue_download(weights.url, part, progress)
            _check_digest(part, weights.sha256)
            note.unlink(missing_ok=True)
            part.replace(path)
        if weights.sha256 is None:
            _remember_digest(path, note)
    return path


def _remember_digest(path: Path, note: Path) -> None:
    """Write the digest of a file that was not seen before into `note`, or compare it.

    Raises:
        ChangedWeightsError: `note` has another digest.
    """
    actual = file_sha256(path)
    if not note.exists():
        logger.info("%s: its publisher states no sha256; from now on it must be %s", path, actual)
        with replace_when_done(note) as partial:
            partial.write_text(f"{actual}  {path.name}\n", encoding="ascii")
        return
    remembered = note.read_text(encoding="ascii", errors="replace").split(" ")[0]
    if actual != remembered:
        raise ChangedWeightsError(
            f"{path}: its sha256 is {actual[:16]}..., when it was first used it was"
            f" {remembered[:16]}...; delete it to download it again, or delete {note.name} beside it"
            " if the change is meant"
        )


def _continue_download(url: str, part: Path, progress: Progress | None) -> None:
    """Append to `part` what it still lacks of `url`."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # it is no beginning of this file
        return _continue_download(url, part, progress)
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        done = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file:
            while piece := response.read(_PIECE):
                file.write(piece)
                done += len(piece)
                if progress:
                    progress(done, total)
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes; run it again")
    return None


def _check_digest(path: Path, expected: str | None) -> None:
    """Delete `path` and raise when its sha256 does not begin with `expected`."""
    actual = file_sha256(path)
    logger.info("%s: sha256 %s", path.name, actual)
    if expected is not None and not actual.startswith(expected):
        path.unlink()
        raise ConnectionError(f"sha256 {actual[:16]}... instead of {expected[:16]}...")
