"""What placement quantizes is INT8 in the engine, and our own export lints clean."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from reptrt.engines.build.builder import BuildOptions, build_engine
from reptrt.engines.inspection.fusion import fusion_report, parse_kernels
from reptrt.engines.lint import Severity, lint_file
from reptrt.engines.surgery import clean
from tests.engines.lint.rtx import needs_rtx
from tests.exported import Case, Exported
from tests.tiny_networks import NETWORKS

each_network = pytest.mark.parametrize("network", NETWORKS)


@pytest.fixture(scope="module")
def cleaned_once(
    export_once: Callable[[Case], Exported], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Exported, Path]]:
    """`cleaned_once(network)`: the export in FP16, and the file that is built."""
    done: dict[str, tuple[Exported, Path]] = {}

    def once(network: str) -> tuple[Exported, Path]:
        if network not in done:
            exported = export_once(Case(network, precision="fp16"))
            file = tmp_path_factory.mktemp("cleaned") / "model.trt.onnx"
            clean(exported.path, file)
            done[network] = exported, file
        return done[network]

    return once


@each_network
def test_our_own_export_lints_clean(
    network: str, cleaned_once: Callable[[str], tuple[Exported, Path]]
) -> None:
    findings = lint_file(cleaned_once(network)[1])
    assert [f for f in findings if f.severity in (Severity.ERROR, Severity.SLOW)] == []


@needs_rtx
@each_network
def test_what_placement_quantizes_is_int8_in_the_engine(
    network: str, cleaned_once: Callable[[str], tuple[Exported, Path]], tmp_path: Path
) -> None:
    exported, file = cleaned_once(network)
    trt = importlib.import_module("tensorrt_rtx")
    built = build_engine(file, tmp_path / "model.engine", trt, BuildOptions(((8, 6),)))
    islands = fusion_report(parse_kernels(built.layers), file).float_islands
    assert {island.layer for island in islands} == set(exported.model.placement.float_layers)
