"""Calibrate one model many times, each with one choice changed: the tables of docs/results.md.

Accuracy is that of the quantized PyTorch model, whose integer codes the exported graph reproduces.
Each case runs in a process of its own, for the sake of its peak memory, and is kept as one line of
JSON; a case that is there already is not run again. One row of the table is the mean over seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reptrt.calibrators.auto import choose_calibrator
from reptrt.calibrators.names import AUTO
from reptrt.calibrators.progress import no_progress
from reptrt.calibrators.quantized.biases import round_biases
from reptrt.calibrators.reconstruction import effort as rules
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.settings import Settings
from reptrt.engines.outputs.snr import SignalNoise
from reptrt.models.graph import INPUT_NAME, merged_layers
from reptrt.models.load import load_model
from reptrt.models.spec import PreprocessOverrides
from reptrt.pipeline.data.datasets import open_evaluation, open_images
from reptrt.pipeline.data.demo_data import SCENES, calibration_scenes, evaluation_scenes
from reptrt.pipeline.data.feeds import PictureFeeds
from reptrt.pipeline.data.torch_batches import calibration_batches
from reptrt.pipeline.export.prepare import Network, open_network
from reptrt.pipeline.plan import choose_device
from reptrt.pipeline.recipe import load_recipe
from reptrt.pipeline.validation.evaluate import evaluate
from reptrt.pipeline.workspace.stage import peak_rss_bytes

SNR_IMAGES = 64


@dataclass(frozen=True)
class Case:
    """One calibration; paths are None for the bundled demo."""

    model: str
    weights: str | None
    data: str | None
    evaluation: str | None
    calibrator: str
    bits: str
    num_samples: int | None
    seed: int
    vary: str
    softmax: str = "float"
    effort: str = "auto"
    constants: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Fields of a recipe."""
        weight_bits, activation_bits = map(int, self.bits.split("x"))
        pairs = dict(pair.split("=", 1) for pair in self.vary.split(",") if pair)
        return {
            "weights": self.weights,
            "data": self.data,
            "evaluation": self.evaluation,
            "calibrator": self.calibrator,
            "weight_bits": weight_bits,
            "activation_bits": activation_bits,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "softmax": self.softmax,
            "effort": self.effort,
            "reconstruction": pairs,
        }


class TorchRunner:
    """Runs a PyTorch network as `reptrt.pipeline.validation.evaluate` expects of a runner."""

    def __init__(self, network: Any, names: tuple[str, ...], name: str) -> None:
        self._network, self._names, self.name = network, names, name

    def infer(self, feed: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name."""
        with torch.no_grad():
            outputs = self._network(torch.from_numpy(feed[INPUT_NAME]))
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        return {name: value.numpy() for name, value in zip(self._names, outputs, strict=True)}


def main() -> None:
    """Run every case that is missing, then print the table."""
    options = parse_options()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    done = read(options.output)
    cases = list(all_cases(options))
    for number, case in enumerate(cases, start=1):
        if key(case) not in done:
            print(f"{number} of {len(cases)}: {case}", file=sys.stderr, flush=True)
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as pool:
                result = pool.apply(run, (case, options.threads))
            with options.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"case": asdict(case), "result": result}) + "\n")
            done[key(case)] = result
    print(table(cases, done))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="as for `reptrt engine`")
    parser.add_argument("--weights", help="checkpoint")
    parser.add_argument("--data", help="calibration images; none for the demo's own")
    parser.add_argument("--eval", help="labelled images; none for the demo's own")
    parser.add_argument("--calibrators", default="repapq", help="names, between commas")
    parser.add_argument("--efforts", default="auto", help="low,auto,high")
    parser.add_argument("--bits", default="8x8", help="weights x activations: 8x8,6x6,4x8")
    parser.add_argument("--softmax", default="float", help="of attention: float,uniform,log2")
    parser.add_argument("--num-samples", default="", help="calibration images: 32,64,128")
    parser.add_argument("--seeds", default="0", help="0,1,2")
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        help="choices of `reconstruction`, as loss=l2,stage_weight=0; repeat for more rows",
    )
    parser.add_argument(
        "--constants",
        action="append",
        default=[],
        help="of calibrators/reconstruction/effort.py, as POSITIONS=65536,HELD_OUT=16; repeat for more rows",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--output", type=Path, default=Path("build/ablation.jsonl"))
    return parser.parse_args()


def all_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Every combination, seeds innermost."""
    given = [count for count in options.num_samples.split(",") if count]
    counts: list[int | None] = [int(count) for count in given] or [None]
    for effort, calibrator, bits, softmax, count, vary, constants, seed in itertools.product(
        options.efforts.split(","),
        options.calibrators.split(","),
        options.bits.split(","),
        options.softmax.split(","),
        counts,
        options.vary or [""],
        options.constants or [""],
        map(int, options.seeds.split(",")),
    ):
        yield Case(
            options.model, options.weights, options.data, options.eval,
            calibrator, bits, count, seed, vary, softmax, effort, constants,
        )  # fmt: skip


def run(case: Case, threads: int) -> dict[str, Any]:
    """Calibrate and evaluate one case; accuracy in percent, SNR in dB, seconds, MB."""
    torch.set_num_threads(threads)
    for name, value in (pair.split("=") for pair in case.constants.split(",") if pair):
        setattr(rules, name, type(getattr(rules, name))(value))
    recipe = load_recipe(case.model, case.options)
    loaded = load_model(
        recipe.model, recipe.weights, PreprocessOverrides(None, None, None), lambda *_: None
    )
    network = open_network(loaded, recipe)
    bits = min(recipe.weight_bits, recipe.activation_bits)
    name = recipe.calibrator
    if name == AUTO:
        name = choose_calibrator(
            loaded.module,
            network.float_graph.graph,
            bits,
            is_merged=bool(merged_layers(network.float_graph)),
        )
    settings = Settings(recipe.seed, recipe.reconstruction, effort=recipe.effort)
    calibrator = create_calibrator(name, settings)
    scenes = Path("build", SCENES)
    images = open_images(
        recipe.data or calibration_scenes(recipe.model, scenes),
        loaded.preprocess,
        limit=recipe.num_samples or calibrator.usual_num_samples(bits),
        seed=recipe.seed,
    )
    started, processor = time.monotonic(), time.process_time()
    samples = PictureFeeds(images, network.card.inputs)
    batches = calibration_batches(samples, network.card.batch_size, choose_device(recipe))
    found = calibrator.calibrate(network.quantized, batches)
    seconds, peak = time.monotonic() - started, peak_rss_bytes()
    processor = time.process_time() - processor
    round_biases(network.quantized)
    folder = recipe.evaluation or evaluation_scenes(recipe.model, scenes)
    assert folder is not None, "--eval is needed"
    result = {"method": found.method, "seconds": seconds, "processor_seconds": processor}
    result |= {"peak_mb": peak / 1e6, "steps": sum(block.steps for block in found.blocks)}
    return result | measure(network, folder)


def measure(network: Network, folder: Path) -> dict[str, Any]:
    """Accuracy, drop and agreement on all labelled images; SNR on the first."""
    card = network.card
    labelled = open_evaluation(folder, card.task, card.preprocess, card.num_classes, card.classes)
    fp32 = TorchRunner(network.float_graph, card.outputs, "FP32")
    quantized = TorchRunner(network.quantized, card.outputs, "INT8")
    accuracy = evaluate(fp32, quantized, card, labelled, None, no_progress).accuracy  # type: ignore[arg-type]
    noise = {name: SignalNoise() for name in card.outputs}
    for batch in itertools.islice(labelled.images.batches(16), SNR_IMAGES // 16):
        expected, actual = (runner.infer({INPUT_NAME: batch}) for runner in (fp32, quantized))
        for name, value in noise.items():
            value.update(expected[name], actual[name])
    snr = min(value.snr_db for value in noise.values())
    shown = ("fp32", "quantized", "drop", "agreement", "divergence")
    found = {name: getattr(accuracy, name) for name in shown}
    return found | {"snr_db": snr, "drop_at_most": (accuracy.drop_interval or (None, None))[1]}


def key(case: Case) -> str:
    """What tells cases apart."""
    return json.dumps(asdict(case), sort_keys=True)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Results of earlier runs."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines]
    return {key(Case(**entry["case"])): entry["result"] for entry in entries}


def table(cases: list[Case], done: Mapping[str, dict[str, Any]]) -> str:
    """Markdown, one row per case, mean over its seeds."""
    lines = [
        "| calibrator | effort | bits | softmax | images | choice | FP32 | INT8 | drop | agreement | KL "
        "| SNR dB | steps | processor s | seconds | peak MB |",
        16 * "|---" + "|",
    ]
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for case in cases:
        images = case.num_samples or "default"
        choice = ",".join(filter(None, (case.vary, case.constants))) or "–"
        row = (case.calibrator, case.effort, case.bits, case.softmax, images, choice)
        rows.setdefault(row, []).append(done[key(case)])
    columns = (
        *("fp32", "quantized", "drop", "agreement", "divergence", "snr_db"),
        *("steps", "processor_seconds", "seconds", "peak_mb"),
    )
    for row, results in rows.items():
        found = np.array([[result[column] for column in columns] for result in results], float)
        means = found.mean(0)
        digits = (2, 2, 2, 2, 3, 1, 0, 0, 0, 0)
        cells = [*map(str, row), *(f"{m:.{d}f}" for m, d in zip(means, digits, strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
