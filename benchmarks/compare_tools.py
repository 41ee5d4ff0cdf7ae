"""One model through this project, ONNX Runtime and NVIDIA ModelOpt, on the same images: one table.

All start from the same float ONNX file and calibration images, and the same code measures what
each writes: accuracy and agreement with FP32 in ONNX Runtime (graph optimizations off), kernels and
INT8 coverage of the engine, and ONNX Runtime's latency (optimizations on, by turns with FP32).
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from command import run_command
from quantize_with_modelopt import REQUIREMENTS, ensure_modelopt, quantize_with_modelopt
from quantize_with_onnxruntime import CALIBRATION_METHODS, quantize_with_onnxruntime

from reptrt.calibrators.progress import no_progress
from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.build.builder import BuildOptions, build_engine
from reptrt.engines.device import cpu_name
from reptrt.engines.inspection.fusion import fusion_report, parse_kernels
from reptrt.engines.report_schema import Accuracy, FusionReport
from reptrt.engines.runtime.benchmark import compare_latency
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from reptrt.engines.target import Target, load_backend, resolve_target
from reptrt.models.card import ModelCard
from reptrt.models.graph import INPUT_NAME
from reptrt.pipeline.data.datasets import EvaluationSet, open_evaluation, open_images
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.recipe import Recipe, load_recipe
from reptrt.pipeline.validation.evaluate import evaluate
from reptrt.pipeline.workspace.folder import Workspace, open_workspace

LEGAL_MODELOPT = "max, entropy, or either with its calibration batch: entropy@16"


class CompareError(ValueError):
    """An option is not legal."""

    exit_code = 2


@dataclass(frozen=True)
class Candidate:
    """A quantized ONNX file and who made it."""

    tool: str
    method: str
    onnx: Path


@dataclass(frozen=True)
class Measurement:
    """What the table says of one candidate; `accuracy` of it and of FP32."""

    candidate: Candidate
    accuracy: Accuracy
    fusion: FusionReport
    fp32_ms: float
    int8_ms: float


@dataclass(frozen=True)
class Bench:
    """What all candidates are measured with."""

    fp32_onnx: Path
    card: ModelCard
    recipe: Recipe
    target: Target
    evaluation: EvaluationSet


def main() -> int:
    """Run the comparison; return the exit code."""
    options = parse_options()
    try:
        table = compare(options)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            raise
        print(f"compare_tools: {error}", file=sys.stderr)
        return code
    print(table, end="")
    if options.output is not None:
        with replace_when_done(options.output) as path:
            path.write_text(table, encoding="utf-8")
    return 0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="as for `reptrt engine`")
    parser.add_argument("--weights", type=Path, help="checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="calibration images")
    parser.add_argument("--eval", type=Path, required=True, help="labelled images")
    parser.add_argument("--calibrators", default="auto,mae,entropy", help="ours")
    parser.add_argument(
        "--modelopt",
        default="max,entropy,entropy@16",
        help=f"ModelOpt's: {LEGAL_MODELOPT}; batch 1 is its default; '' for none",
    )
    parser.add_argument(
        "--onnxruntime",
        default="percentile",
        help=f"ONNX Runtime's: {', '.join(CALIBRATION_METHODS)}; '' for none",
    )
    parser.add_argument("--modelopt-venv", type=Path, default=Path("build/modelopt-venv"))
    parser.add_argument("--num-samples", type=int, default=128, help="calibration images")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        default="fp32",
        help="what is not INT8, of reptrt and ModelOpt; ONNX Runtime's is FP32",
    )
    parser.add_argument("--target", default="tensorrt-rtx")
    parser.add_argument("--workspace", type=Path, default=Path("build"))
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> str:
    """Quantize with every tool, measure every result, return the Markdown table."""
    modelopt = [parse_modelopt(name) for name in names(options.modelopt)]
    onnxruntime = [parse_onnxruntime(name) for name in names(options.onnxruntime)]
    target = resolve_target(options.target)
    chosen = {
        name: getattr(options, name) for name in ("weights", "data", "num_samples", "precision")
    }
    recipes = [
        load_recipe(options.model, {**chosen, "calibrator": name})
        for name in names(options.calibrators)
    ]
    ours = [quantize_here(recipe, target, options.workspace) for recipe in recipes]
    recipe, fp32_onnx, folder = recipes[0], ours[0].fp32_onnx, ours[0].folder.parents[1]
    card = read_card(fp32_onnx)
    images = open_images(options.data, card.preprocess, limit=recipe.num_samples, seed=recipe.seed)
    candidates = [
        Candidate("reptrt", recipe.calibrator, workspace.trt_onnx)
        for recipe, workspace in zip(recipes, ours, strict=True)
    ]
    for name in onnxruntime:
        qdq_onnx = folder / "onnxruntime" / f"{name}.qdq.onnx"
        quantize_with_onnxruntime(fp32_onnx, images.batches(1), name, qdq_onnx)
        candidates.append(Candidate("ONNX Runtime", name, qdq_onnx))
    for name, batch in modelopt:
        qdq_onnx = folder / "modelopt" / f"{name}-batch{batch}.qdq.onnx"
        python = ensure_modelopt(options.modelopt_venv)
        quantize_with_modelopt(
            python, fp32_onnx, images.batches(batch), name, options.precision, qdq_onnx
        )
        candidates.append(Candidate("ModelOpt", f"{name}, batch {batch}", qdq_onnx))
    evaluation = open_evaluation(
        options.eval, card.task, card.preprocess, card.num_classes, card.classes
    )
    bench = Bench(fp32_onnx, card, recipe, target, evaluation)
    return markdown(bench, [measure(bench, candidate) for candidate in candidates], len(images))


def names(text: str) -> list[str]:
    """Read names between commas; none of an empty text."""
    return text.split(",") if text else []


def quantize_here(recipe: Recipe, target: Target, root: Path) -> Workspace:
    """Calibrate and export through the command line; return the workspace that holds the files."""
    arguments = ["--calibrator", recipe.calibrator, "--target", target.name, "--data"]
    arguments += [str(recipe.data), "--num-samples", str(recipe.num_samples)]
    arguments += ["--precision", str(recipe.precision)]
    arguments += ["--weights", str(recipe.weights)] if recipe.weights else []
    for stage in ("calibrate", "export"):
        stage_command = [sys.executable, "-m", "reptrt", stage, recipe.model]
        run_command([*stage_command, *arguments, "--workspace", str(root)])
    return open_workspace(root, recipe, target.name)


def parse_modelopt(text: str) -> tuple[str, int]:
    """Read `entropy@16`: a calibration of ModelOpt and how many images it sees at once."""
    name, _, batch = text.partition("@")
    if name not in ("max", "entropy") or not (batch or "1").isdigit() or batch == "0":
        raise CompareError(f"--modelopt {text!r}: choose {LEGAL_MODELOPT}")
    return name, int(batch or 1)


def parse_onnxruntime(name: str) -> str:
    """Check the name of a calibration of ONNX Runtime."""
    if name not in CALIBRATION_METHODS:
        raise CompareError(f"--onnxruntime {name!r}: choose {', '.join(CALIBRATION_METHODS)}")
    return name


def measure(bench: Bench, candidate: Candidate) -> Measurement:
    """Evaluate, build and time one candidate."""
    print(f"measuring {candidate.tool}, {candidate.method}", file=sys.stderr)
    batch_size = bench.recipe.batch_size
    feed = {INPUT_NAME: next(iter(bench.evaluation.images.batches(batch_size or 1)))}
    exact = OnnxRuntimeRunner(candidate.onnx, optimize=False)
    with (
        OnnxRuntimeRunner(bench.fp32_onnx) as fp32,
        exact,
        OnnxRuntimeRunner(candidate.onnx) as fast,
    ):
        found = evaluate(fp32, exact, bench.card, bench.evaluation, batch_size, no_progress)
        fp32_time, int8_time = compare_latency((fp32, fast), (feed, feed))
    trt = load_backend(bench.target)
    build = BuildOptions(bench.target.compute_capabilities, batch=(1, 1, bench.recipe.max_batch))
    with TemporaryDirectory() as folder:
        built = build_engine(candidate.onnx, Path(folder, "model.engine"), trt, build)
    fusion = fusion_report(parse_kernels(built.layers), candidate.onnx)
    return Measurement(candidate, found.accuracy, fusion, fp32_time.p50, int8_time.p50)


def markdown(bench: Bench, measurements: Sequence[Measurement], num_images: int) -> str:
    """Write the table and what is needed to make it again."""
    accuracy = measurements[0].accuracy
    lines = [
        f"`{bench.recipe.model}`, W8A8, {num_images} calibration images, {accuracy.num_images} "
        f"evaluation images: FP32 {accuracy.metric} {accuracy.fp32:.2f} %",
        "",
        f"| tool | calibration | {accuracy.metric} (%) | drop | agreement (%) | INT8 coverage "
        "| kernels | attention fused | p50 INT8 / FP32 (ms) | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(measurement) for measurement in measurements),
        "",
        f"Command: `{shlex.join(['python', 'benchmarks/compare_tools.py', *sys.argv[1:]])}`",
        f"Date: {date.today().isoformat()}",
        f"Machine: {cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"onnxruntime {version('onnxruntime')}, engine for {bench.target.name}; "
        f"ModelOpt as in {REQUIREMENTS.name}",
    ]
    return "\n".join(lines) + "\n"


def _row(measurement: Measurement) -> str:
    accuracy, fusion = measurement.accuracy, measurement.fusion
    cells = (
        measurement.candidate.tool,
        measurement.candidate.method,
        f"{accuracy.quantized:.2f}",
        f"{accuracy.drop:.2f}",
        f"{accuracy.agreement:.2f}",
        f"{fusion.int8_layers}/{fusion.quantizable_layers} ({fusion.int8_coverage:.1f} %)",
        str(fusion.kernels),
        f"{fusion.fused_attention}/{fusion.attention_blocks}",
        f"{measurement.int8_ms:.1f} / {measurement.fp32_ms:.1f}",
        f"{measurement.int8_ms / measurement.fp32_ms:.2f}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
