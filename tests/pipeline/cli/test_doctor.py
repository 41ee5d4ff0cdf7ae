from __future__ import annotations

import pytest

from reptrt.engines.device import Gpu
from reptrt.pipeline.cli import doctor
from reptrt.pipeline.cli.doctor import abilities, describe_gpu, found_components
from tests.command_line import reptrt

L4 = Gpu("NVIDIA L4", (8, 9), 24 * 2**30, (13, 2))
EVERYTHING = {"torch", "tensorrt_rtx", "tensorrt", "onnxruntime", "onnx", "tritonclient.grpc",
              "cuda.bindings.runtime"}  # fmt: skip


def remedies(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None, *absent: str) -> dict[str, str]:
    monkeypatch.setattr(doctor, "find_gpu", lambda: gpu)
    monkeypatch.setattr(doctor, "_imports", lambda name: name in EVERYTHING - set(absent))
    monkeypatch.setattr(doctor, "_cuda_torch_remedy", lambda torch, gpu: "")
    return {ability.name: ability.remedy for ability in abilities() if ability.remedy}


def test_a_machine_with_everything_can_do_everything(monkeypatch) -> None:
    assert remedies(monkeypatch, L4) == {}


def test_a_machine_without_a_gpu_builds_and_calibrates_but_runs_no_engine(monkeypatch) -> None:
    assert remedies(monkeypatch, None) == {
        "build TensorRT engines": "an NVIDIA GPU and its driver",
        "run and time engines": "an NVIDIA GPU and its driver",
    }


def test_each_gap_names_what_to_install(monkeypatch) -> None:
    lacking = remedies(monkeypatch, L4, "tensorrt", "cuda.bindings.runtime", "tritonclient.grpc")
    assert lacking["build TensorRT engines"].startswith("pip install 'reptrt[tensorrt]'")
    assert lacking["run and time engines"] == "pip install 'cuda-bindings>=12.6'"
    assert lacking["check Triton repositories (reptrt triton)"] == (
        "pip install 'tritonclient[grpc]'"
    )


def test_a_half_installed_package_counts_as_absent(tmp_path, monkeypatch) -> None:
    (tmp_path / "half_installed.py").write_text("raise RuntimeError('no grpc')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not doctor._imports("half_installed")
    assert not doctor._imports("absent_altogether")
    assert doctor._imports("json.decoder")


def test_the_gpu_and_its_driver_are_described(monkeypatch) -> None:
    assert describe_gpu(L4) == "NVIDIA L4, compute capability 8.9, 24 GiB"
    monkeypatch.setattr(doctor, "find_gpu", lambda: L4)
    assert dict(found_components())["CUDA driver"] == "CUDA 13.2"


def test_the_command_ends_well_whatever_is_missing(monkeypatch) -> None:
    outcome = reptrt("doctor")
    assert outcome.code == 0
    assert "\nPython " in outcome.out
    assert "calibrate on the CPU" in outcome.out
    remedies(monkeypatch, None, *EVERYTHING)
    outcome = reptrt("doctor")
    assert outcome.code == 0
    assert "tritonclient[grpc]" in outcome.out
