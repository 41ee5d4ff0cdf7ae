"""NVIDIA ModelOpt's ONNX quantization, in an environment of its own; nothing of it is imported."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from command import CommandError, run_command

from reptrt.engines.outputs.detection import FloatArray
from reptrt.models.graph import INPUT_NAME
from reptrt.pipeline.data.datasets import LazyBatches

REQUIREMENTS = Path(__file__).with_name("modelopt_requirements.txt")


class ModelOptInstallError(RuntimeError):
    """ModelOpt's environment cannot be made."""

    exit_code = 4


def ensure_modelopt(venv: Path) -> Path:
    """Make ModelOpt's environment, unless it is there as the requirements say; return its Python.

    Raises:
        ModelOptInstallError: pip stops; the message ends with its last line.
    """
    python, installed = venv.absolute() / "bin/python", venv / REQUIREMENTS.name
    if installed.exists() and installed.read_text() == REQUIREMENTS.read_text():
        return python
    try:
        run_command([sys.executable, "-m", "venv", str(venv)])
        run_command([str(python), "-m", "pip", "install", "--no-deps", "-r", str(REQUIREMENTS)])
    except CommandError as error:
        raise ModelOptInstallError(f"installing ModelOpt into {venv}: {error}") from error
    # at the end of the path: torch is found in this environment, everything else in that one
    (packages,) = venv.glob("lib/python*/site-packages")
    path_file = packages / "zz_torch_of_reptrt.pth"
    path_file.write_text(f"{distribution('torch').locate_file('')}\n", encoding="utf-8")
    shutil.copyfile(REQUIREMENTS, installed)
    return python


def quantize_with_modelopt(
    python: Path,
    fp32_onnx: Path,
    batches: LazyBatches[FloatArray],
    method: str,
    precision: str,
    qdq_onnx: Path,
) -> None:
    """Quantize `fp32_onnx` with ModelOpt on `batches` of images; `precision` of what stays float."""
    qdq_onnx.parent.mkdir(parents=True, exist_ok=True)
    calibration = qdq_onnx.with_name("calibration.npy")
    images = list(batches)
    np.save(calibration, np.concatenate(images))
    run_command([
        str(python), "-m", "modelopt.onnx.quantization",
        "--onnx_path", str(fp32_onnx),
        "--quantize_mode", "int8",
        "--calibration_method", method,
        "--calibration_data_path", str(calibration),
        "--calibration_shapes", f"{INPUT_NAME}:{'x'.join(map(str, images[0].shape))}",
        "--calibration_eps", "cpu",
        "--high_precision_dtype", precision,
        "--log_level", "ERROR",
        "--output_path", str(qdq_onnx),
    ])  # fmt: skip
    calibration.unlink()
