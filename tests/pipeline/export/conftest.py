"""Every case is exported once for all tests here."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.exported import Case, Exported, export


@pytest.fixture(scope="session")
def export_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Exported]:
    done: dict[Case, Exported] = {}

    def once(case: Case) -> Exported:
        if case not in done:
            done[case] = export(case, tmp_path_factory.mktemp("onnx") / "model.qdq.onnx")
        return done[case]

    return once
