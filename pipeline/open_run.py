"""Open a run: its folder, kept from other processes, and its log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from reptrt.calibrators.names import require_calibrator
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.engines.foreign.log_format import VisibleFormatter
from reptrt.engines.target import resolve_target
from reptrt.models.load import LoadedModel
from reptrt.models.registry import find_model
from reptrt.pipeline.data.datasets import EvaluationSet
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.run import Run
from reptrt.pipeline.run_recipe import save_recipe
from reptrt.pipeline.validation.remembered import MOST_BYTES, OutputMemory
from reptrt.pipeline.workspace.folder import Workspace, hold_workspace, open_workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """Who asked for a run.

    Attributes:
        command: what was typed or called, for records and report.
        progress: called as work advances.
        waiting: called with the workspace while another process works in it.
        screens: take log records too; none leaves warnings to the program's own logging.
        memory: what float networks answered, where several runs share it.
    """

    command: str
    progress: Progress = no_progress
    waiting: Callable[[Workspace], None] = lambda workspace: None
    screens: Sequence[logging.Handler] = ()
    memory: OutputMemory | None = None


@contextmanager
def open_run(
    recipe: Recipe,
    root: Path,
    caller: Caller,
    model: LoadedModel | None = None,
    measure: EvaluationSet | None = None,
) -> Iterator[Run]:
    """A run of `recipe` below `root`; a wrong name leaves no folder behind.

    Args:
        recipe: what to do.
        root: folder of all runs.
        caller: who asked for it.
        model: the network, where it is in memory.
        measure: labelled images or a metric, where they are in memory.

    Raises:
        UnknownTargetError, UnknownModelError, UnknownCalibratorError: `recipe` names nothing.
        WorkspaceError: `root` cannot be written.
    """
    target = resolve_target(recipe.target)
    if model is None:
        find_model(recipe.model)
    require_calibrator(recipe.calibrator)
    workspace = open_workspace(root, recipe, target.name)
    with (
        hold_workspace(workspace, lambda: caller.waiting(workspace)),
        log_to(workspace.log, caller.screens),
    ):
        logger.info("command: %s", caller.command)
        searches = recipe.max_drop is not None
        memory = caller.memory or OutputMemory(MOST_BYTES if searches else 0)
        shared = (caller.command, caller.progress, model, measure, memory)
        yield Run(recipe, target, workspace, *shared)
        if model is None:
            save_recipe(recipe, workspace.folder, target.name)


def _record_of(error: BaseException) -> logging.LogRecord:
    """One line for what a user can mend, and a traceback of anything else."""
    is_said = hasattr(error, "exit_code") or isinstance(error, KeyboardInterrupt)
    text = str(error) or type(error).__name__
    facts = {"name": __name__, "levelname": "ERROR", "levelno": logging.ERROR, "msg": text}
    if not is_said:
        facts["exc_info"] = (type(error), error, error.__traceback__)
    return logging.makeLogRecord(facts)


@contextmanager
def log_to(file: Path, screens: Sequence[logging.Handler]) -> Iterator[None]:
    """Log of this package into `file`, and what `screens` take there too; `file` gets what ends the block."""
    logging.raiseExceptions = False  # on a full disk, who writes the artifact says so once
    handler = logging.FileHandler(file)
    handler.setFormatter(VisibleFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    own = logging.getLogger("reptrt")
    level, handlers = own.level, [handler, *screens]
    own.setLevel(logging.INFO)
    for one in handlers:
        own.addHandler(one)
    try:
        yield
    except BaseException as error:
        handler.handle(_record_of(error))  # a screen shows it in its own way
        raise
    finally:
        own.setLevel(level)
        for one in handlers:
            own.removeHandler(one)
        with suppress(OSError):
            handler.close()
