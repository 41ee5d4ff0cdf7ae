"""What factors of the channels gain, and how well the noise of layers is estimated: one network, two tables.

Accuracy is that of the quantized PyTorch model with every layer in INT8 that can be, whose integer codes
the exported graph reproduces.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablate import measure

from reptrt.calibrators.channels.choose import choose_factors
from reptrt.calibrators.channels.rewrite import describe_factors, scale_channels
from reptrt.calibrators.first_order import join_samples, sample_noise
from reptrt.calibrators.output_noise import decibel, output_noise
from reptrt.calibrators.quantized.biases import round_biases
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import float_copy
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.sensitivity import compared_images
from reptrt.calibrators.settings import Settings
from reptrt.models.load import load_model
from reptrt.models.spec import PreprocessOverrides
from reptrt.pipeline.data.datasets import open_images
from reptrt.pipeline.data.feeds import PictureFeeds
from reptrt.pipeline.data.torch_batches import calibration_batches
from reptrt.pipeline.export.prepare import open_network
from reptrt.pipeline.recipe import load_recipe


def main() -> None:
    """Calibrate without and with factors, and print a row for each; then compare the noises."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    print("| channels | CPU s | FP32 | INT8 | drop | at most | agreement | SNR dB | lowest |")
    print("|---|---|---|---|---|---|---|---|---|")
    for is_scaled in (False, True):
        model, images = run(options, is_scaled)
    if options.compare:
        compare(model, images)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="as for `reptrt engine`")
    parser.add_argument("--weights", help="checkpoint")
    parser.add_argument("--data", required=True, help="calibration images")
    parser.add_argument("--eval", required=True, type=Path, help="labelled images")
    parser.add_argument("--calibrator", default="best")
    parser.add_argument("--num-samples", type=int, default=48, help="calibration images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument(
        "--compare", action="store_true", help="measure the noise of layers alone too"
    )
    return parser.parse_args()


def run(options: argparse.Namespace, is_scaled: bool) -> tuple[QuantizedModel, torch.Tensor]:
    """Print one row; return the calibrated model and the images that noises are compared on."""
    fields: dict[str, Any] = {
        "weights": options.weights,
        "data": options.data,
        "seed": options.seed,
    }
    recipe = load_recipe(options.model, fields)
    loaded = load_model(
        recipe.model, recipe.weights, PreprocessOverrides(None, None, None), lambda *_: None
    )
    network = open_network(loaded, recipe)
    model = network.quantized
    images = open_images(
        Path(options.data), loaded.preprocess, limit=options.num_samples, seed=options.seed
    )
    samples = PictureFeeds(images, network.card.inputs)
    batches = calibration_batches(samples, network.card.batch_size, "cpu")
    started, text = time.process_time(), "as they are"
    if is_scaled:
        factors = choose_factors(model, batches)
        scale_channels(model, factors)
        text = describe_factors(model, factors)
    seconds = time.process_time() - started
    create_calibrator(options.calibrator, Settings(options.seed)).calibrate(model, batches)
    round_biases(model)
    compared = compared_images(model, batches)
    noise = output_noise(model, compared, float_copy(model))
    found = {**measure(network, options.eval), "mean_db": decibel(noise)}
    keys = ("fp32", "quantized", "drop", "drop_at_most", "agreement", "mean_db", "snr_db")
    numbers = " | ".join(f"{found[key]:.2f}" for key in keys)
    print(f"| {text} | {seconds:.1f} | {numbers} |", flush=True)
    return model, compared


def compare(model: QuantizedModel, images: list[torch.Tensor]) -> None:
    """Print how the estimated noises of activations, with their readers, rank against measured ones."""
    reference = float_copy(model)
    layers = model.placement.layers
    groups = {
        point.name: {layers[consumer] for _, consumer in point.edges if consumer in layers}
        for point in model.placement.points
    }
    groups = {name: readers for name, readers in groups.items() if readers}
    started = time.process_time()
    samples = join_samples([sample_noise(model, batch) for batch in images])
    estimated = np.array([samples.noise(readers) for readers in groups.values()])
    once = time.process_time()
    measured = []
    for name, readers in groups.items():
        with model.float_mode():
            model.activation_quantizers[name].enabled = True
            for layer in readers:
                model.weight_quantizers[layer].enabled = True
            measured.append(output_noise(model, images, reference))
    ranks = [values.argsort().argsort() for values in (estimated, np.array(measured))]
    error = np.abs(10 * np.log10(estimated / np.array(measured)))
    print(
        f"{len(groups)} activations: rank correlation {np.corrcoef(*ranks)[0, 1]:.3f}, median error "
        f"{np.median(error):.1f} dB; {once - started:.1f} CPU s, measuring each alone "
        f"{time.process_time() - once:.1f} CPU s"
    )


if __name__ == "__main__":
    main()
