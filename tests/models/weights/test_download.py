from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from reptrt.models.spec import PublishedWeights
from reptrt.models.weights.download import (
    ChangedWeightsError,
    DownloadError,
    cache_folder,
    fetch_weights,
)

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class _Server(ThreadingHTTPServer):
    """Serves CONTENT under any path; the first answers can break off in the middle."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.breaks_left = 0
        self.honours_ranges = True
        self.etag = SHA256
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_HEAD(self) -> None:
        """Describe CONTENT as the hub describes a large file: its ETag is the sha256."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{self.server.etag}"')
        self.end_headers()

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        self.server.ranges.append(requested)
        start = 0
        if requested and self.server.honours_ranges:
            start = int(requested.removeprefix("bytes=").split("-")[0])
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        body = CONTENT[start:]
        if self.server.breaks_left:
            self.server.breaks_left -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep the test output quiet."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = _Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _weights(server: _Server, sha256: str | None = SHA256) -> PublishedWeights:
    return PublishedWeights(f"{server.url}/w.pth", "w.pth", sha256, "MIT", "a test")


def _files() -> list[str]:
    names = (path.name for path in cache_folder().iterdir())
    return sorted(name for name in names if not name.endswith(".lock"))


def test_a_file_is_fetched_once_with_progress(server: _Server) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch_weights(_weights(server), "tiny", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    assert fetch_weights(_weights(server), "tiny") == path
    assert len(server.ranges) == 1
    assert _files() == ["w.pth"]


def test_an_interrupted_download_continues_where_it_stopped(server: _Server) -> None:
    server.breaks_left = 1
    with pytest.raises(DownloadError, match="128000 of 256000 bytes; run it again"):
        fetch_weights(_weights(server), "tiny")
    assert _files() == ["w.pth.part"]
    assert fetch_weights(_weights(server), "tiny").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=128000-"]
    assert _files() == ["w.pth"]


def test_a_server_without_ranges_starts_over(server: _Server) -> None:
    server.breaks_left, server.honours_ranges = 1, False
    with pytest.raises(DownloadError):
        fetch_weights(_weights(server), "tiny")
    assert fetch_weights(_weights(server), "tiny").read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_is_dropped(server: _Server) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "w.pth.part").write_bytes(CONTENT + b"more")
    assert fetch_weights(_weights(server), "tiny").read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", ["0" * 64, "00000000"], ids=["digest", "first digits"])
def test_another_digest_is_refused_and_nothing_is_kept(server: _Server, wrong: str) -> None:
    with pytest.raises(DownloadError, match="instead of 00000000"):
        fetch_weights(_weights(server, wrong), "tiny")
    assert _files() == []


def test_the_first_digits_of_the_digest_suffice(server: _Server) -> None:
    assert fetch_weights(_weights(server, SHA256[:8]), "tiny").exists()


def test_without_a_published_digest_the_first_file_is_remembered(server: _Server) -> None:
    path = fetch_weights(_weights(server, None), "tiny")
    assert _files() == ["w.pth", "w.pth.sha256"]
    assert (cache_folder() / "w.pth.sha256").read_text() == f"{SHA256}  w.pth\n"
    assert fetch_weights(_weights(server, None), "tiny") == path
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(ChangedWeightsError, match=f"first used it was {SHA256[:16]}") as caught:
        fetch_weights(_weights(server, None), "tiny")
    assert caught.value.exit_code == 2
    path.unlink()
    assert fetch_weights(_weights(server, None), "tiny").read_bytes() == CONTENT
    assert len(server.ranges) == 2


def test_a_file_that_was_put_into_the_cache_by_hand_is_found(server: _Server) -> None:
    weights = dataclasses.replace(_weights(server, None), filename="release-1/w.pth")
    (cache_folder() / "release-1").mkdir(parents=True)
    (cache_folder() / "release-1" / "w.pth").write_bytes(b"by hand")
    assert fetch_weights(weights, "tiny").read_bytes() == b"by hand"
    assert server.ranges == []
    (cache_folder() / "release-1" / "w.pth").unlink()
    assert fetch_weights(weights, "tiny").read_bytes() == CONTENT


def test_a_file_on_the_hub_goes_through_the_hubs_cache(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    url = f"{server.url}/owner/model/resolve/main/w.pth"
    weights = PublishedWeights(url, "w.pth", None, "MIT", "a test", "owner/model")
    path = fetch_weights(weights, "tiny")
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "hub")
    asked = len(server.ranges)
    assert fetch_weights(weights, "tiny") == path
    assert len(server.ranges) == asked


def test_a_file_on_the_hub_that_is_not_what_the_hub_says_is_refused(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    server.etag = "0" * 64
    url = f"{server.url}/owner/model/resolve/main/w.pth"
    with pytest.raises(DownloadError, match="instead of 00000000"):
        fetch_weights(PublishedWeights(url, "w.pth", None, "MIT", "a test", "owner/model"), "tiny")
    assert not [path for path in (tmp_path / "hub").rglob("w.pth") if path.exists()]


@pytest.mark.parametrize("hub_id", [None, "owner/model"])
def test_without_a_network_the_message_says_what_to_fetch_and_where_to_put_it(
    server: _Server, hub_id: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.server_close()
    url = f"{server.url}/owner/model/resolve/main/w.pth"
    start = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        fetch_weights(PublishedWeights(url, "w.pth", None, "MIT", "a test", hub_id), "tiny")
    message = str(caught.value)
    assert time.monotonic() - start < 5
    assert caught.value.exit_code == 4
    assert url in message
    assert "MODEL=tiny WEIGHTS=path/to/w.pth" in message
    assert "`weights`" in message
    assert "licence: MIT" in message
    assert (f"put it at {cache_folder() / 'w.pth'}, or" in message) == (hub_id is None)
    assert "\n" not in message


def test_the_hubs_offline_switch_is_respected(
    server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    url = f"{server.url}/owner/absent/resolve/main/w.pth"
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        fetch_weights(PublishedWeights(url, "w.pth", None, "MIT", "a test", "owner/absent"), "tiny")
    assert server.ranges == []
