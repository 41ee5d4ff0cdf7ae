"""The code uses nothing of TensorRT's Python API that a supported version lacks.

`data/tensorrt_api.json` is what the real bindings of each version offer; it is checked against them
wherever pip can get their wheels (1.3 MB each, kept in pytest's cache). A class that the code newly
uses is added by `python -m tests.engines.test_tensorrt_contract`.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.engines import describe_bindings
from tests.engines.tensorrt_uses import MODULE, OBJECTS, Source, Use, missing, uses_tensorrt

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).parent / "data" / "tensorrt_api.json"
VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106")
FILES = sorted(path for path in (ROOT / "engines").rglob("*.py") if uses_tensorrt(path.read_text()))

each_version = pytest.mark.parametrize("version", VERSIONS)


def sources() -> list[Source]:
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text()) for path in FILES]


@cache
def all_uses() -> list[Use]:
    return [use for source in sources() for use in source.uses()]


def used_classes() -> list[str]:
    owners = {use.owner for use in all_uses()} | {
        use.member for use in all_uses() if use.owner == MODULE
    }
    return sorted((owners | set(OBJECTS.values())) - {MODULE})


def real_api(version: str, folder: Path) -> dict[str, dict[str, object]]:
    """What the wheel of `version` offers; pip fetches it into `folder` once."""
    pattern = f"tensorrt_cu12_bindings-{version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
                   "--quiet", "--retries=0", "--timeout=10", f"--dest={folder}",
                   f"tensorrt_cu12_bindings=={version}"]  # fmt: skip
        pip = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if pip.returncode != 0:
            reason = (pip.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"pip cannot get the bindings of TensorRT {version}: {reason}")
    (wheel,) = folder.glob(pattern)
    script = [sys.executable, describe_bindings.__file__, str(wheel), *used_classes()]
    found = subprocess.run(script, capture_output=True, text=True, check=True)
    api: dict[str, dict[str, object]] = json.loads(found.stdout)
    return api


def planted(*lines: str, arguments: str = "trt, config") -> list[Use]:
    body = "\n    ".join(lines)
    return list(Source("planted.py", f"def work({arguments}):\n    {body}\n").uses())


def stored(version: str) -> dict[str, dict[str, Sequence[Sequence[str]] | None]]:
    api: dict[str, dict[str, Sequence[Sequence[str]] | None]]
    api = json.loads(STORED.read_text())[version]
    return api


def test_the_files_that_use_tensorrt_are_found_and_their_uses_too() -> None:
    assert {path.name for path in FILES} >= {"builder.py", "callbacks.py", "timing_cache.py"}
    uses = {f"{use.owner}.{use.member}" for use in all_uses()}
    assert uses >= {
        "trt.Builder", "Builder.create_network", "OnnxParser.parse_from_file",
        "IBuilderConfig.set_timing_cache", "ITimingCache.combine", "ICudaEngine.get_tensor_dtype",
        "IOptimizationProfile.set_shape", "IExecutionContext.execute_async_v3", "ITensor.shape",
        "ILogger.WARNING", "BuilderFlag.VERSION_COMPATIBLE",
    }  # fmt: skip


@each_version
def test_every_use_exists_in_every_version(version: str) -> None:
    assert missing(all_uses(), stored(version)) == []


@each_version
def test_the_stored_api_is_that_of_the_real_bindings(
    version: str, pytestconfig: pytest.Config
) -> None:
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("tensorrt_bindings")
    assert real_api(version, folder) == stored(version)


def test_every_use_exists_in_tensorrt_rtx() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")
    assert missing(all_uses(), describe_bindings.describe(rtx, used_classes())) == []


def test_every_tensorrt_object_has_a_name_that_can_be_looked_up() -> None:
    assert [complaint for source in sources() for complaint in source.complaints()] == []


@pytest.mark.parametrize(
    ("line", "lacking"),
    [
        ("config.set_flag(trt.BuilderFlag.INT8)", ["11.4.0.106"]),
        ("config.int8_calibrator = None", ["11.4.0.106"]),
        ("config.build_route", ["10.3.0", "10.16.1.11"]),
        ("config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)", ["10.3.0"]),
        ("config.set_timing_cache(cache=1, ignore_mismatches=True)", list(VERSIONS)),
        ("config.set_timing_cache(1, True, 3)", list(VERSIONS)),
        ("trt.Builder(logger=1)", []),
        ("config.set_timing_cache(1, ignore_mismatch=True)", []),
    ],
)
def test_a_planted_use_fails_in_the_versions_that_lack_it(line: str, lacking: list[str]) -> None:
    assert [version for version in VERSIONS if missing(planted(line), stored(version))] == lacking


def test_a_call_planted_in_the_builder_itself_is_found() -> None:
    text = (ROOT / "engines" / "build" / "builder.py").read_text()
    line = "    config.progress_monitor = monitor\n"
    assert text.count(line) == 1
    spoilt = text.replace(line, f"{line}    config.set_flag(trt.BuilderFlag.FP16)\n")
    uses = list(Source("builder.py", spoilt).uses())
    found = {version: missing(uses, stored(version)) for version in VERSIONS}
    assert found["10.3.0"] == found["10.16.1.11"] == []
    assert [problem.partition(": ")[2] for problem in found["11.4.0.106"]] == [
        "BuilderFlag has no FP16"
    ]


def test_a_planted_class_that_no_version_has_is_missed() -> None:
    (problem,) = missing(planted("trt.IInt8EntropyCalibrator2()"), stored("11.4.0.106"))
    assert "trt has no IInt8EntropyCalibrator2" in problem


def test_a_use_that_escapes_by_its_name_is_a_complaint() -> None:
    text = (
        "def work(builder):\n    builder.create_network(0).bad\n    net = builder.f()\n    net.bad"
    )
    assert len(list(Source("planted.py", text).complaints())) == 2


def test_an_argument_parser_is_no_onnx_parser() -> None:
    assert planted("parser = argparse.ArgumentParser()", "parser.parse_args()") == []


def test_every_use_of_cuda_python_exists() -> None:
    cudart = importlib.import_module("cuda.bindings.runtime")
    tree = Source("cuda_stream.py", (ROOT / "engines" / "runtime" / "cuda_stream.py").read_text())
    names = {name for name in tree.attributes_of("cudart") if not hasattr(cudart, name)}
    assert names == set()
    assert len(tree.attributes_of("cudart")) > 15


if __name__ == "__main__":
    wheels = ROOT / ".pytest_cache" / "d" / "tensorrt_bindings"
    wheels.mkdir(parents=True, exist_ok=True)
    apis = {version: real_api(version, wheels) for version in VERSIONS}
    lines = (f" {json.dumps(version)}: {json.dumps(api)}" for version, api in apis.items())
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
