"""Cells whose files lie in an object store: fetched before a try, sent as it advances.

A worker needs nothing but the store's address: each try gets an empty folder, into which it fetches what earlier tries
have sent, so a lost node's cell goes on at its last finished block. fsspec knows the stores (s3, gs, az, and `file`).
Files are whole before they are sent, and arrive whole or not at all: an object store sees to that itself, and in a
folder (`file`) they get their name when they are whole. `run.json` holds their hashes: what does not fit is made again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from reptrt.engines.artifacts import WriteError
from reptrt.engines.foreign.text import one_line, visible
from reptrt.engines.partial import PARTIAL, partial_file, temporary_folder
from reptrt.engines.target import MissingComponentError
from reptrt.pipeline.sweep.cell import REPORT, RESULT, CellResult, Watch, folder_of_run, run_cell
from reptrt.pipeline.sweep.grid import Cell, Resources
from reptrt.pipeline.workspace.folder import ARTIFACTS, OBSERVATIONS
from reptrt.pipeline.workspace.run_records import RECORDS

SEND_SECONDS = 20.0
"""Between two looks at what a cell has finished: so much of its work a lost node can cost."""
_UNFINISHED = (PARTIAL, ".lock")
_LENT = {RECORDS, OBSERVATIONS} | {
    ARTIFACTS[name]
    for name in (
        "concats",
        "placement",
        "channels",
        "sensitivity",
        "calibration",
        "scales",
        "fp32_onnx",
    )
}
"""What runs of a group lend each other."""


def is_url(workspace: str) -> bool:
    """Whether that names an object store, and no folder."""
    return "://" in workspace


class Store:
    """A folder of an object store.

    Args:
        url: as fsspec has it: `s3://bucket/folder`.

    Raises:
        MissingComponentError: nothing that is installed knows such stores.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            from fsspec.core import url_to_fs
            from fsspec.implementations.local import LocalFileSystem

            self._system, self._root = url_to_fs(self.url)
            self._is_folder = isinstance(self._system, LocalFileSystem)
        except (ImportError, ValueError) as error:
            raise MissingComponentError(
                f"{visible(url)}: {one_line(error)}; install fsspec's package for such stores (s3fs, gcsfs,"
                " adlfs), or give a folder"
            ) from None
        self._sent: dict[str, tuple[int, int]] = {}

    def fetch(
        self, folder: Path, wanted: Callable[[str], bool], below: Sequence[str] = ("",)
    ) -> None:
        """Copy the files in the folders `below` whose relative path is `wanted` into `folder`.

        Raises:
            WriteError: the store does not answer, or names a file outside of `folder`.
        """
        with self._answering():
            self._system.invalidate_cache()
            roots = [f"{self._root}/{part}".rstrip("/") for part in below]
            found = [path for root in roots for path in self._system.find(root)]
        names = [path[len(self._root.rstrip("/")) + 1 :] for path in found]
        for name in filter(wanted, names):
            parts = PurePosixPath(name)
            if _is_unfinished(parts):
                continue
            if parts.is_absolute() or ".." in parts.parts:
                raise WriteError(f"{self.url}: names a file outside of itself: {visible(name)}")
            own = folder / name
            own.parent.mkdir(parents=True, exist_ok=True)
            with self._answering():
                self._system.get_file(f"{self._root}/{name}", str(own))
            self._sent[name] = _version(own)

    def send(self, folder: Path) -> None:
        """Copy what is new or changed in `folder` to the store, records and results last.

        Raises:
            WriteError: the store does not answer or takes no file.
        """
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda one: (one.name in (RECORDS, RESULT), one)):
            name = path.relative_to(folder).as_posix()
            if _is_unfinished(PurePosixPath(name)):
                continue
            try:
                version = _version(path)
                if self._sent.get(name) != version:
                    with self._answering():
                        self._system.makedirs(
                            f"{self._root}/{PurePosixPath(name).parent}", exist_ok=True
                        )
                        self._put(path, f"{self._root}/{name}")
                    self._sent[name] = version
            except FileNotFoundError:  # replaced meanwhile: the next look finds the new one
                continue

    def _put(self, own: Path, there: str) -> None:
        if not self._is_folder:
            self._system.put_file(str(own), there)
            return
        with partial_file(Path(there)) as partial:
            self._system.put_file(str(own), str(partial))
            partial.rename(there)

    @contextmanager
    def sending(self, folder: Path) -> Iterator[None]:
        """Send what is finished every `SEND_SECONDS`, and at the end."""
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(SEND_SECONDS):
                with suppress(WriteError):  # a store that does not answer now may do so at the end
                    self.send(folder)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.send(folder)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # each store has errors of its own
            raise WriteError(
                f"{visible(self.url)}: the store does not answer: {one_line(error, 300)}"
            ) from None


def run_in_store(url: str, cell: Cell, resources: Resources, node: str, watch: Watch) -> CellResult:
    """`run_cell` whose workspace is the object store at `url`.

    Raises:
        WriteError: the store does not answer.
    """
    group = Path("runs") / cell.group
    own = (f"{folder_of_run(group, cell)}/", f"cells/{cell.name}/")

    def is_needed(path: str) -> bool:
        is_lent = path.startswith(f"{group}/") and PurePosixPath(path).name in _LENT
        return is_lent or path.startswith(own)

    with temporary_folder() as folder:
        store = Store(url)
        store.fetch(folder, is_needed, (str(group), f"cells/{cell.name}"))
        with store.sending(folder):
            return run_cell(folder, cell, resources, node, watch)


def fetch_results(store: Store, folder: Path) -> None:
    """Copy the results and reports of all cells into `folder`."""
    store.fetch(folder, lambda path: PurePosixPath(path).name in (RESULT, REPORT, RECORDS))


def _is_unfinished(path: PurePosixPath) -> bool:
    return any(part.endswith(_UNFINISHED) for part in path.parts)


def _version(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
