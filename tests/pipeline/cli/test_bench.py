from __future__ import annotations

import io
import math
from pathlib import Path

import onnx
import pytest
from rich.console import Console

from reptrt.engines.device import find_gpu
from reptrt.engines.runtime.benchmark import Latency
from reptrt.engines.target import MissingComponentError
from reptrt.pipeline.cli.bench import Bench, BenchInputError, bench_file, bench_table
from tests.command_line import reptrt


def network(path: Path, batch: str, element: str = "float") -> Path:
    """A copy of its input; a batch of 2 fails where the graph fixes it to 1."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["": 19]>
        toy ({element}[{batch},3,4,4] images) => ({element}[{batch},3,4,4] y)
        {{ y = Identity(images) }}""")
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("element", ["float", "float16", "uint8"])
def test_an_onnx_file_is_timed_with_the_batch_asked_for(tmp_path: Path, element: str) -> None:
    bench = bench_file(network(tmp_path / "m.onnx", "N", element), batch=2, seconds=0.01)
    latency = bench.latency
    assert bench.batch == 2
    assert bench.throughput == pytest.approx(2000 / latency.mean)
    assert 0 < latency.p50 <= latency.p90 <= latency.p99
    assert latency.iterations >= 1
    assert latency.backend.startswith("onnxruntime ")


def test_a_fixed_batch_stays_and_is_what_throughput_counts(tmp_path: Path) -> None:
    bench = bench_file(network(tmp_path / "m.onnx", "1"), batch=4, seconds=0.0)
    assert (bench.latency.iterations, bench.batch) == (1, 1)


@pytest.mark.parametrize("name", ["none.onnx", "none.engine", "model.pt"])
def test_what_is_no_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.pt").write_text("")
    with pytest.raises(BenchInputError, match=rf"{name}: no such \.onnx or \.engine file"):
        bench_file(tmp_path / name, 1, 0.1)


def test_an_onnx_file_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("not protobuf")
    with pytest.raises(BenchInputError, match=r"m\.onnx"):
        bench_file(tmp_path / "m.onnx", 1, 0.1)


@pytest.mark.skipif(find_gpu() is not None, reason="this machine has what the test misses")
def test_an_engine_needs_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "m.engine").write_text("")
    with pytest.raises(MissingComponentError, match="needs an NVIDIA GPU"):
        bench_file(tmp_path / "m.engine", 1, 0.1)


def printed(bench: Bench) -> list[str]:
    """Words of the table."""
    console = Console(width=140, file=io.StringIO())
    with console.capture() as captured:
        console.print(bench_table(Path("a/m.onnx"), bench))
    return captured.get().split()


def test_the_table_shows_percentiles_throughput_and_where() -> None:
    latency = Latency(3.0, 5.0, 6.0, 4.0, 250, "onnxruntime 1.22 CPU", "some processor")
    words = printed(Bench(latency, 8, 2000.0))
    assert words[0] == "m.onnx"
    assert words[words.index("3.000") :][:5] == ["3.000", "5.000", "6.000", "2000.0", "250"]
    assert words[-5:] == ["onnxruntime", "1.22", "CPU,", "some", "processor"]
    assert "GPU" not in words


def test_the_table_of_an_engine_shows_its_time_without_copies_too() -> None:
    device_only = Latency(1.0, 1.5, 2.0, 1.1, 250, "tensorrt 11", "NVIDIA L4")
    latency = Latency(3.0, 5.0, 6.0, 4.0, 250, "tensorrt 11", "NVIDIA L4", device_only)
    words = printed(Bench(latency, 8, 7000.0))
    assert words[words.index("3.000") :][:5] == ["3.000", "5.000", "6.000", "1.000", "2.000"]
    assert words.count("GPU") == 2


def test_the_command_prints_the_table_of_a_real_export(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", "N")
    outcome = reptrt("bench", path, "--batch", 2, "--seconds", 0.01)
    assert outcome.code == 0
    assert "images/s" in outcome.out
    assert reptrt("bench", tmp_path / "none.onnx").complaints == [
        f"reptrt: {tmp_path / 'none.onnx'}: no such .onnx or .engine file"
    ]


@pytest.mark.parametrize(
    ("batch", "seconds", "reason"),
    [(1, math.nan, "--seconds nan"), (1, math.inf, "--seconds inf"), (1, -1.0, "--seconds -1"),
     (10**12, 0.0, "--batch 1000000000000"), (10**18, 0.0, "--batch 1000000000000000000")],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, batch: int, seconds: float, reason: str
) -> None:
    with pytest.raises(BenchInputError, match=reason):
        bench_file(network(tmp_path / "m.onnx", "N"), batch, seconds)
