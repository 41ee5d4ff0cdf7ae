"""`reptrt lint --fix`: surgery from one file to another."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from onnx_graphsurgeon.logger import G_LOGGER

from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.lint.base import Finding
from reptrt.engines.lint.compare_repair import find_loss
from reptrt.engines.lint.read_model import LintError
from reptrt.engines.partial import temporary_folder
from reptrt.engines.surgery import clean


def repair_file(source: Path, target: Path) -> None:
    """Write `source` with all repaired that surgery repairs, whole or not at all.

    Before and after are compared in ONNX Runtime: a repair rounds, but must not lose.

    Raises:
        LintError: `target` is `source`, has no folder to lie in, or would compute something else.
        SurgeryError: The file holds what surgery cannot repair.
    """
    if target.exists() and target.samefile(source):
        raise LintError(f"{target}: is the file that is linted: give `fix` another name")
    if target.is_dir() or not target.parent.is_dir():
        raise LintError(f"{target}: cannot be written: give `fix` a file in a folder that exists")
    with temporary_folder() as folder:
        repaired_file = Path(folder, "repaired.onnx")
        with G_LOGGER.suppress(G_LOGGER.ERROR):  # it prints to standard output, where JSON may go
            clean(source, repaired_file)
        loss = find_loss(source, repaired_file)
        if loss is not None:
            raise LintError(
                f"{target}: not written: {loss}, more than rounding explains; the file needs its"
                " own scales: quantize it again, or report it with the file"
            )
        with replace_when_done(target) as temporary:
            shutil.copyfile(repaired_file, temporary)


def repaired(before: Sequence[Finding], after: Sequence[Finding]) -> dict[str, int]:
    """Return how many findings are gone of each rule that surgery repairs."""
    left = Counter(finding.rule for finding in after)
    found = Counter(finding.rule for finding in before if finding.fixable)
    return {rule: count - left[rule] for rule, count in found.items() if count > left[rule]}
