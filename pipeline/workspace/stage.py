"""One step of the road: skipped where it is fresh, borrowed where another run has done it or is at it, recorded."""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from reptrt.engines.artifacts import file_sha256, replace_when_done
from reptrt.engines.file_lock import hold_passing_lock
from reptrt.pipeline.workspace.records import RecordError
from reptrt.pipeline.workspace.run_records import (
    Inputs,
    StageRecord,
    as_json,
    forget_stage,
    installed_versions,
    read_records,
    record_stage,
    sha256_or_none,
)

logger = logging.getLogger(__name__)

STARTED = "%s: started"
"""Logged with the name of a stage when its work begins."""
WAITS = "%s: waits for another run that makes it"
"""Likewise when it waits."""


@dataclass(frozen=True)
class Stage:
    """One step of the road.

    Attributes:
        name: of its record, as `calibrate`; see `reptrt.pipeline.workspace.folder.ARTIFACTS`.
        command: what the user typed.
        seed: of the run.
        inputs: everything that the result depends on; JSON values, files by their hash.
        artifacts: files that the stage writes, all in the folder of the run.
        shared: other runs of the model may lend theirs, in `<root>/<model>/<calibrator>/<target>`; of those that
            want it at the same time one makes it, and the others wait.
    """

    name: str
    command: str
    seed: int
    inputs: Inputs
    artifacts: Sequence[Path]
    shared: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.artifacts[0].parent

    @property
    def is_done(self) -> bool:
        """Whether the artifacts are fresh, here or in a run that may lend them."""
        here = self._fresh_record(self.folder) is not None
        return here or (self.shared and any(True for _ in self._lenders()))

    def run(self, work: Callable[[], None]) -> None:
        """Call `work`, which writes the artifacts, unless they are fresh; then record it."""
        if self._fresh_record(self.folder) is not None:
            logger.info("%s: fresh, skipped", self.name)
        elif self.shared:
            lock = self.folder.parents[1] / f".{self.name}-{self.digest}.lock"
            lock.parent.mkdir(parents=True, exist_ok=True)
            with hold_passing_lock(lock, lambda: logger.info(WAITS, self.name)):
                if not self._borrow():
                    self._make(work)
        else:
            self._make(work)

    def _make(self, work: Callable[[], None]) -> None:
        forget_stage(self.folder, self.name)  # a killed run must not look finished
        logger.info(STARTED, self.name)
        seconds = self._work(work)
        logger.info("%s: finished in %.1f s", self.name, seconds)

    def run_always(self, work: Callable[[], None]) -> None:
        """As `run`, for what is short and tells of this very command: it is done anew, and said by whoever calls."""
        forget_stage(self.folder, self.name)
        self._work(work)

    def _work(self, work: Callable[[], None]) -> float:
        """Call `work` and record what it wrote; return its seconds."""
        started = time.monotonic()
        work()
        seconds = round(time.monotonic() - started, 2)
        record_stage(self.folder, self.name, self._describe(seconds))
        return seconds

    @contextmanager
    def unfinished(self) -> Iterator[Path]:
        """Folder, perhaps of an earlier run that was stopped, for work on these very inputs.

        It goes when the work is done, and with it those that other inputs left.
        """
        parent = self.folder / f"{self.name}.unfinished"
        yield parent / self.digest
        shutil.rmtree(parent, ignore_errors=True)

    @property
    def digest(self) -> str:
        """Of the inputs and the installed versions: what shares it is the same."""
        facts = json.dumps([dict(self.inputs), installed_versions()], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def _describe(self, seconds: float) -> StageRecord:
        return StageRecord(
            inputs=as_json(self.inputs),
            artifacts={artifact.name: file_sha256(artifact) for artifact in self.artifacts},
            seed=self.seed,
            seconds=seconds,
            peak_rss_mb=round(peak_rss_bytes() / 1e6, 1),
            versions=installed_versions(),
            command=self.command,
        )

    def _borrow(self) -> bool:
        """Copy what another run of the model made of the same inputs; False where there is none.

        One that all runs keep in the same place may have been made there meanwhile.
        """
        if self._fresh_record(self.folder) is not None:
            return True
        forget_stage(self.folder, self.name)
        for folder, record in self._lenders():
            if self._copy(folder, record):
                logger.info("%s: same inputs as in %s, copied from there", self.name, folder)
                return True
        return False

    def _lenders(self) -> Iterator[tuple[Path, StageRecord]]:
        """Folders of the runs of this model that have what this stage would make, and their records."""
        for folder in sorted(self.folder.parents[1].glob("*/*")):
            record = None
            with suppress(RecordError):  # what somebody did to another run is no matter of this one
                record = self._fresh_record(folder)
            if record is not None:
                yield folder, record

    def _copy(self, folder: Path, record: StageRecord) -> bool:
        """Copy artifacts, then note it; False if another process replaced an artifact meanwhile."""
        for artifact in self.artifacts:
            with replace_when_done(artifact) as temporary:
                shutil.copyfile(folder / artifact.name, temporary)
            if file_sha256(artifact) != record.artifacts[artifact.name]:
                return False
        lent = record.model_copy(update={"copied_from": str(folder)})
        record_stage(self.folder, self.name, lent)
        return True

    def _fresh_record(self, folder: Path) -> StageRecord | None:
        """Record of this stage in `folder`, if its artifacts are what this stage would make."""
        record = read_records(folder).get(self.name)
        is_fresh = (
            record is not None
            and record.inputs == as_json(self.inputs)
            and record.versions == installed_versions()
            and record.artifacts.keys() == {artifact.name for artifact in self.artifacts}
            and all(
                digest == sha256_or_none(folder / name) for name, digest in record.artifacts.items()
            )
        )
        return record if is_fresh else None


def peak_rss_bytes() -> int:
    """Most memory that this process has held so far."""
    kibibytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibibytes
