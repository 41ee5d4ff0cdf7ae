"""Quantized files of other tools, repaired: docs/how-to/lint.md.

    python benchmarks/foreign_files.py --modelopt-venv build/modelopt --brevitas build/brevitas

makes files with ONNX Runtime's `quantize_static` (pairs and operators, many settings), PyTorch's QAT,
Brevitas (in a folder of its own, or where it can be imported) and ModelOpt (in an environment of its own, where one is named),
repairs each as `reptrt lint --fix` does, and prints a table: the repaired file's outputs against the file's
own in dB, before and behind the pair that the file has on its output and the repair drops, and what
ONNX Runtime's own graph optimizations do to the same file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from command import run_command
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from quantize_with_modelopt import ensure_modelopt, quantize_with_modelopt
from torch import nn
from torch.ao import quantization as ao

from reptrt.engines.lint import lint_file
from reptrt.engines.lint.base import Severity
from reptrt.engines.lint.repair import repair_file
from reptrt.engines.outputs.snr import SignalNoise
from reptrt.engines.runtime.runners import OnnxRuntimeRunner

SIDE = 32
BREVITAS = ("brevitas==0.13.4", "dependencies==2.0.1", "unfoldNd==0.2.3", "onnxoptimizer==0.4.2")
"""It imports with this release of `dependencies` alone, and asks for a setuptools that would replace a newer one."""
U8, S8 = QuantType.QUInt8, QuantType.QInt8
SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}
PAIRS: dict[str, dict[str, Any]] = {
    "default": {},
    "uint8 weights": {"activation_type": U8, "weight_type": U8},
    "uint8, int8 weights": {"activation_type": U8, "weight_type": S8},
    "symmetric": {"extra_options": SYMMETRIC},
    "per channel": {"per_channel": True},
    "per channel, symmetric": {"per_channel": True, "extra_options": SYMMETRIC},
    "reduced range": {"reduce_range": True, "per_channel": True},
    "pairs on weights": {"extra_options": {"AddQDQPairToWeight": True, "DedicatedQDQPair": True}},
    "float bias": {"per_channel": True, "extra_options": {**SYMMETRIC, "QuantizeBias": False}},
    "entropy": {"calibrate_method": CalibrationMethod.Entropy},
    "percentile": {"calibrate_method": CalibrationMethod.Percentile},
    "convolutions only": {"op_types_to_quantize": ["Conv"]},
}
OPERATORS: dict[str, dict[str, Any]] = {
    "uint8 weights": {"activation_type": U8, "weight_type": U8},
    "int8": {"activation_type": S8, "weight_type": S8},
    "int8, symmetric": {"activation_type": S8, "extra_options": SYMMETRIC},
    "int8 per channel": {"activation_type": S8, "per_channel": True},
    "uint8, reduced range": {"activation_type": U8, "reduce_range": True},
    "uint8, reduced range, per channel": {
        "activation_type": U8,
        "reduce_range": True,
        "per_channel": True,
    },
}
"""With uint8 activations and int8 weights of all 8 bits, ONNX Runtime saturates where a CPU has no VNNI."""


class Residual(nn.Module):
    """Convolutions, ReLU6, a concat, a residual, pools, a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.left = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU6())
        self.right = nn.Conv2d(16, 16, 1)
        self.join = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run."""
        x = self.pool(self.stem(x))
        joined = torch.cat([self.left(x), self.right(x)], 1)
        return self.head((self.join(joined) + x).mean((2, 3)))


class Mobile(nn.Module):
    """Depthwise convolutions, hard swish, a gate, LeakyReLU, an average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.LeakyReLU(0.1))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Sigmoid())
        self.last = nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU(), nn.AvgPool2d(2))
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run."""
        x = self.depthwise(self.stem(x))
        return self.head(self.last(x * self.gate(x)).mean((2, 3)))


class Trained(nn.Module):
    """What quantization-aware training wraps: no functional operators."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(16, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run."""
        logits: torch.Tensor = self.body(x)
        return logits


class Reader(CalibrationDataReader):
    """Calibration images, one by one."""

    def __init__(self) -> None:
        self._images = iter(images(16, seed=1))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next feed."""
        image = next(self._images, None)
        return None if image is None else {"images": image[None]}


def images(count: int, seed: int) -> NDArray[np.float32]:
    """Smooth random images [count, 3, 32, 32]."""
    coarse = np.random.default_rng(seed).normal(size=(count, 3, 8, 8))
    return np.kron(coarse, np.ones((1, 1, 4, 4))).astype(np.float32)


def main() -> None:
    """Make, repair and compare every file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--modelopt-venv", type=Path, help="folder of ModelOpt's environment")
    parser.add_argument(
        "--brevitas", type=Path, help="folder that Brevitas is put in, where it is not there"
    )
    parser.add_argument("--tools", default="onnxruntime,torch,brevitas,modelopt")
    parser.add_argument("--output", type=Path, default=Path("foreign_files.json"))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    makers = {"onnxruntime": ort_files, "torch": torch_files, "brevitas": brevitas_files}
    if options.brevitas:
        add_brevitas(options.brevitas)
    if options.modelopt_venv:
        python = ensure_modelopt(options.modelopt_venv)
        makers["modelopt"] = lambda folder: modelopt_files(folder, python)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for tool in [tool for tool in options.tools.split(",") if tool in makers]:
            for label, file in makers[tool](folder):
                rows.append({"file": label, **judge(file, folder)})
                print(_line(rows[-1]), flush=True)
                options.output.write_text(json.dumps(rows, indent=2) + "\n")


def add_brevitas(folder: Path) -> None:
    """Let Brevitas be imported from `folder`; pip puts it there where it is not."""
    if not Path(folder, "brevitas").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder)]
        run_command([*pip, *BREVITAS])
    sys.path.append(str(folder))


def _line(row: dict[str, Any]) -> str:
    errors = f"{row['errors']} → {row['errors_left']}"
    values = (row["snr_db"], row["same_pair_db"], row["optimized_db"])
    return f"| {row['file']} | {errors} | {' | '.join(f'{value:.1f}' for value in values)} |"


def judge(file: Path, folder: Path) -> dict[str, Any]:
    """Errors before and after the repair; SNR in dB of its outputs, and of ONNX Runtime's optimized ones."""
    repaired = folder / "repaired.onnx"
    repair_file(file, repaired)
    values = images(32, seed=2)
    wanted, found = _run(file, values, optimize=False), _run(repaired, values, optimize=False)
    return {
        "errors": _errors(file),
        "errors_left": _errors(repaired),
        "snr_db": _snr(wanted, found),
        "same_pair_db": _snr(wanted, _through_last_pair(file, found)),
        "optimized_db": _snr(wanted, _run(file, values, optimize=True)),
    }


def _through_last_pair(file: Path, values: NDArray[Any]) -> NDArray[Any]:
    """`values` rounded and clipped by the pair that writes the output of `file`, if there is one."""
    graph = onnx.load(file).graph
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    if last.op_type != "DequantizeLinear":
        return values
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    scale, zero = (constants[name] for name in last.input[1:3])
    legal = np.iinfo(zero.dtype)
    codes = np.clip(np.rint(values / scale) + int(zero.item()), legal.min, legal.max)
    return np.asarray((codes - int(zero.item())) * scale, values.dtype)


def _errors(file: Path) -> int:
    return sum(finding.severity is Severity.ERROR for finding in lint_file(file))


def _run(file: Path, values: NDArray[np.float32], *, optimize: bool) -> NDArray[Any]:
    with OnnxRuntimeRunner(file, optimize=optimize) as runner:
        (name,) = runner.input_metadata
        outputs = [next(iter(runner.infer({name: one[None]}).values())) for one in values]
    return np.concatenate(outputs)


def _snr(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    noise = SignalNoise()
    noise.update(wanted, found)
    return min(noise.snr_db, 150.0)


def ort_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """What ONNX Runtime's quantizer writes."""
    for network, opset, kept in (
        (Residual, 17, {*PAIRS, *OPERATORS}),
        (Residual, 11, {"uint8 weights", "int8"}),
        (Mobile, 17, {"default", "uint8 weights", "int8", "symmetric"}),
    ):
        source, file = folder / "float.onnx", folder / "quantized.onnx"
        _export(_seeded(network), source, opset)
        for form, settings in ((QuantFormat.QDQ, PAIRS), (QuantFormat.QOperator, OPERATORS)):
            kind = "pairs" if form is QuantFormat.QDQ else "operators"
            for name in [name for name in settings if name in kept]:
                quantize_static(source, file, Reader(), quant_format=form, **settings[name])
                yield f"ONNX Runtime, {kind}, {name}, {network.__name__}, opset {opset}", file


def torch_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """What PyTorch's quantization-aware training leaves, as pairs and as arithmetic."""
    for name, scheme in (
        ("per tensor", torch.per_tensor_symmetric),
        ("per channel", torch.per_channel_symmetric),
    ):
        is_channel = scheme is torch.per_channel_symmetric
        weight = (
            ao.PerChannelMinMaxObserver.with_args(qscheme=scheme)
            if is_channel
            else ao.MinMaxObserver.with_args(qscheme=scheme)
        )
        for kind, scheme_of_images in (
            ("symmetric", torch.per_tensor_symmetric),
            ("asymmetric", torch.per_tensor_affine),
        ):
            network = _seeded(Trained).train()
            network.body.insert(0, ao.QuantStub())
            network.qconfig = ao.QConfig(
                activation=ao.FakeQuantize.with_args(
                    observer=ao.MinMaxObserver, qscheme=scheme_of_images, dtype=torch.qint8,
                    quant_min=-128, quant_max=127,
                ),
                weight=ao.FakeQuantize.with_args(
                    observer=weight, dtype=torch.qint8, quant_min=-128, quant_max=127,
                    qscheme=scheme,
                ),
            )  # fmt: skip
            ao.prepare_qat(network, inplace=True)
            network(torch.from_numpy(images(16, seed=1)))
            network.eval().apply(ao.disable_observer)
            for how, opset in (("pairs", 13), ("arithmetic", 18)):
                file = folder / "qat.onnx"
                if how == "arithmetic":
                    network = _spell_out(network)
                _export(network, file, opset)
                yield f"PyTorch QAT, {how}, {name}, {kind}", file


class Arithmetic(nn.Module):
    """Fake quantization as Div, Round, Clip and Mul, which torch.export decomposes it to."""

    def __init__(self, fake: Any) -> None:
        super().__init__()
        shape = [-1] + [1] * 3 if fake.scale.numel() > 1 else [1]
        self.register_buffer("scale", fake.scale.detach().clone().reshape(shape))
        self.register_buffer("zero", fake.zero_point.float().reshape(shape))
        self.low, self.high = float(fake.quant_min), float(fake.quant_max)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run."""
        codes = torch.clamp(torch.round(x / self.scale) + self.zero, self.low, self.high)
        result: torch.Tensor = (codes - self.zero) * self.scale
        return result


def _spell_out(module: nn.Module) -> nn.Module:
    for name, child in list(module.named_children()):
        if isinstance(child, ao.FakeQuantize):
            setattr(module, name, Arithmetic(child))
        else:
            _spell_out(child)
    return module


def brevitas_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """What Brevitas exports: Q, Clip of codes, DQ."""
    try:
        import brevitas.nn as qnn
        from brevitas.export import export_onnx_qcdq
        from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat
    except ImportError as error:
        print(f"Brevitas: left out ({error})")
        return
    for bits, activation_bits in ((8, 8), (4, 8), (4, 4), (8, 6)):
        torch.manual_seed(0)
        common: dict[str, Any] = {
            "weight_bit_width": bits,
            "weight_quant": Int8WeightPerChannelFloat,
            "input_quant": Int8ActPerTensorFloat,
            "input_bit_width": activation_bits,
        }
        network = nn.Sequential(
            qnn.QuantConv2d(3, 16, 3, padding=1, **common),
            nn.ReLU(),
            qnn.QuantConv2d(16, 16, 3, stride=2, padding=1, **common),
            nn.ReLU(),
            qnn.QuantConv2d(16, 10, 1, **common),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ).train()
        network(torch.from_numpy(images(16, seed=1)))
        file = folder / "brevitas.onnx"
        example = torch.from_numpy(images(1, seed=1))
        export_onnx_qcdq(
            network.eval(), args=example, export_path=str(file), opset_version=17, dynamo=False
        )
        _state_shapes(file)
        yield f"Brevitas, weights {bits} bits, activations {activation_bits}", file


def modelopt_files(folder: Path, python: Path) -> Iterator[tuple[str, Path]]:
    """What ModelOpt's ONNX quantizer writes."""
    for network in (Residual, Mobile):
        source = folder / "float.onnx"
        _export(_seeded(network), source, 17)
        for method in ("max", "entropy"):
            for precision in ("fp32", "fp16"):
                file = folder / "modelopt.onnx"
                batches = list(images(16, seed=1)[:, None])  # the files take one image at a time
                quantize_with_modelopt(python, source, batches, method, precision, file)  # type: ignore[arg-type]
                yield f"ModelOpt, {method}, {precision}, {network.__name__}", file


def _seeded(network: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    return network().eval()


def _export(module: nn.Module, file: Path, opset: int) -> None:
    torch.onnx.export(
        module, (torch.from_numpy(images(1, seed=1)),), str(file), dynamo=False,
        opset_version=opset, input_names=["images"], output_names=["logits"],
        do_constant_folding=False,
    )  # fmt: skip
    _state_shapes(file)


def _state_shapes(file: Path) -> None:
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(file)), file)


if __name__ == "__main__":
    main()
