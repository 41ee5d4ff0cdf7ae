"""RepQ-ViT as published, in simulated float arithmetic: a reference for our own calibrator.

Z. Li et al., "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision
Transformers", ICCV 2023, arXiv 2212.08254, with what its public code does where the paper is
silent. Nothing here comes from `calibrators`. For the ViT and DeiT of timm. Every choice is the
published one, except:

- Percentiles are exact and interpolated, by NumPy's partition: `torch.quantile` stops at 2^24 values.
- Where a channel is constant (LayerNorm weight 0) the search finds no step; it gets the mean step
  and zero point of the other channels (reconstructed: the published code does not say).
- Options that leave the published recipe, off by default: --round-zero-point, --first-last-bits,
  --attention float.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from reptrt.engines.outputs.detection import FloatArray
from reptrt.models.load import load_model
from reptrt.pipeline.data.datasets import ClassificationSet, open_classification, open_images
from reptrt.pipeline.validation.classification_metrics import agreement, top_class

PERCENTILES = np.array([0.999, 0.9999, 0.99999])
CONV_INPUT_BITS = 8
BATCH = 8

Quantizer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Setup:
    """What is quantized to how many bits; None for `first_last_bits` is as published."""

    weight_bits: int
    activation_bits: int
    first_last_bits: int | None
    float_attention: bool
    round_zero_point: bool


class UniformQuantizer:
    """Asymmetric, x̂ = (clamp(round(x/s) + z, 0, 2^b - 1) - z) s; per tensor or last dimension."""

    def __init__(self, bits: int, per_channel: bool = False) -> None:
        self.levels = 2**bits - 1
        self.per_channel = per_channel
        self.grid: tuple[Tensor, Tensor] | None = None  # step and zero point

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize `x`; the first call chooses step and zero point."""
        if self.grid is None:
            rows = x.flatten(0, -2).T if self.per_channel else x.reshape(1, -1)
            step, zero_point = search_range(rows, self.levels)
            self.grid = step.flatten(), zero_point.flatten()
        return quantize(x, *self.grid, self.levels)


class LogSqrt2Quantizer:
    """x̂ = s 2^(-q/2), q = round(-2 log2(x/s)); exactly 0 where q exceeds 2^b - 1. Per tensor.

    At inference the integer part of q/2 is a shift and its parity a factor 1 or √2: equal values.
    """

    def __init__(self, bits: int) -> None:
        self.levels = 2**bits - 1
        self.scale: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize `x` >= 0; the first call chooses s among high percentiles by squared error."""
        if self.scale is None:
            candidates = [float(high) for high in np.quantile(x.numpy(), PERCENTILES)]
            errors = [float((self._quantize(x, s) - x).square().mean()) for s in candidates]
            self.scale = candidates[int(np.argmin(errors))]
        return self._quantize(x, self.scale)

    def _quantize(self, x: Tensor, scale: float) -> Tensor:
        code = (x / scale).log2_().mul_(-2).round_()
        value = torch.exp2(code.clamp(0, self.levels).mul_(-0.5)).mul_(scale)
        return value.masked_fill_(code > self.levels, 0.0)


def quantize(x: Tensor, step: Tensor, zero_point: Tensor, levels: int) -> Tensor:
    """Round `x` to its grid and back."""
    code = (x / step).round_().add_(zero_point).clamp_(0, levels)
    return code.sub_(zero_point).mul_(step)


def search_range(rows: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Step and zero point `[channels, 1]` of `rows` [channels, n]: best of three percentiles."""
    ranges = np.quantile(rows.numpy(), np.array([1 - PERCENTILES, PERCENTILES]), axis=1)
    best_step = torch.full((len(rows), 1), math.nan, dtype=rows.dtype)
    best_zero, best_error = best_step.clone(), torch.full_like(best_step, math.inf)
    for low, high in torch.from_numpy(ranges).to(rows.dtype).unsqueeze(-1).unbind(1):
        step = (high - low) / levels
        zero_point = (-low / step).round()
        error = (quantize(rows, step, zero_point, levels) - rows).square().mean(1, keepdim=True)
        better = error < best_error  # false for a step of 0
        best_step = torch.where(better, step, best_step)
        best_zero = torch.where(better, zero_point, best_zero)
        best_error = torch.where(better, error, best_error)
    constant = best_step.isnan()
    best_step[constant] = best_step[~constant].mean()
    best_zero[constant] = best_zero[~constant].mean().round()
    return best_step, best_zero


@dataclass
class QuantizedLayer:
    """A Linear or Conv2d whose weight is quantized in place, and the quantizer of its input."""

    layer: nn.Linear | nn.Conv2d
    weight_bits: int
    quantizer: UniformQuantizer
    weight: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.layer.register_forward_pre_hook(lambda _, inputs: (self.quantizer(inputs[0]),))
        self.quantize_weight(self.layer.weight.detach().clone())

    def quantize_weight(self, weight: Tensor) -> None:
        """Quantize `weight` per output channel into the layer; the float one stays in `weight`."""
        self.weight = weight
        rows, levels = weight.flatten(1), 2**self.weight_bits - 1
        quantized = quantize(rows, *search_range(rows, levels), levels)
        self.layer.weight.data = quantized.reshape(weight.shape)


class QuantizedAttention(nn.Module):
    """`Attention` with quantized Q, K, V and softmax; `bits` None keeps all four in float."""

    def __init__(self, attention: Attention, bits: int | None) -> None:
        super().__init__()
        self.attention = attention
        self.query: Quantizer = UniformQuantizer(bits) if bits else nn.Identity()
        self.key: Quantizer = UniformQuantizer(bits) if bits else nn.Identity()
        self.value: Quantizer = UniformQuantizer(bits) if bits else nn.Identity()
        self.softmax: Quantizer = LogSqrt2Quantizer(bits) if bits else nn.Identity()

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """Attend; x `[n, tokens, channels]`. The mask is only there for timm, which passes None."""
        n, tokens, _ = x.shape
        attention = self.attention
        qkv = attention.qkv(x).reshape(n, tokens, 3, attention.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = self.query(q) @ self.key(k).transpose(-2, -1) * attention.scale
        mixed: Tensor = self.softmax(scores.softmax(-1)) @ self.value(v)
        projected: Tensor = attention.proj(mixed.transpose(1, 2).reshape(n, tokens, -1))
        return projected


@torch.no_grad()
def quantize_network(network: nn.Module, images: Tensor, setup: Setup) -> None:
    """Quantize `network` in place: calibrate on `images`, fold LayerNorms, requantize weights."""
    blocks = [(name, block) for name, block in network.named_modules() if isinstance(block, Block)]
    if not blocks:
        raise SystemExit("plain_repq_vit: the model has no block of timm's ViT or DeiT")
    norms = {f"{name}.attn.qkv": block.norm1 for name, block in blocks}
    norms |= {f"{name}.mlp.fc1": block.norm2 for name, block in blocks}
    layers = {
        name: quantize_layer(name, layer, name in norms, setup)
        for name, layer in network.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    }
    for _, block in blocks:
        bits = None if setup.float_attention else setup.activation_bits
        block.attn = QuantizedAttention(block.attn, bits)  # type: ignore[arg-type]
    network(images)  # every quantizer initializes on what the quantized layers before it return
    for name, norm in norms.items():
        fold(norm, layers[name], setup.round_zero_point)  # type: ignore[arg-type]


def quantize_layer(
    name: str, layer: nn.Linear | nn.Conv2d, after_norm: bool, setup: Setup
) -> QuantizedLayer:
    """Quantize one layer; only an input right after a LayerNorm is quantized per channel."""
    weight_bits, input_bits = setup.weight_bits, setup.activation_bits
    if setup.first_last_bits and (isinstance(layer, nn.Conv2d) or name.startswith("head")):
        weight_bits = input_bits = setup.first_last_bits
    if isinstance(layer, nn.Conv2d):
        input_bits = CONV_INPUT_BITS
    return QuantizedLayer(layer, weight_bits, UniformQuantizer(input_bits, after_norm))


def fold(norm: nn.LayerNorm, following: QuantizedLayer, round_zero_point: bool) -> None:
    """Make the input of `following` per tensor: the mean step and the mean zero point.

    With r1 = s / mean(s) and r2 = z - mean(z), the LayerNorm returns (X + s r2) / r1, and the Linear
    takes W r1 and b - W (s r2), which leaves the float function as it is.
    """
    quantizer, layer = following.quantizer, following.layer
    assert quantizer.grid is not None, "calibrate first"
    step, zero_point = quantizer.grid
    mean_zero = zero_point.mean().round() if round_zero_point else zero_point.mean()
    quantizer.grid = step.mean(), mean_zero
    ratio, shift = step / step.mean(), step * (zero_point - mean_zero)
    norm.weight.div_(ratio)
    norm.bias.add_(shift).div_(ratio)
    bias = 0.0 if layer.bias is None else layer.bias
    layer.bias = nn.Parameter(bias - following.weight @ shift)
    following.quantize_weight(following.weight * ratio)


def main() -> None:
    """Measure every case; print a Markdown row as soon as it is known."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    network = load_model(options.model, options.weights)
    labelled = open_classification(options.eval, network.preprocess, network.num_classes)
    fp32 = infer(network.module, labelled)
    print("| W x A | attention | first, last | seed | FP32 | top-1 | drop | agreement |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for setup in all_setups(options):
        results = []
        for seed in map(int, options.seeds.split(",")):
            quantized = copy.deepcopy(network.module)
            images = open_images(
                options.data, network.preprocess, limit=options.num_samples, seed=seed
            )
            batch = next(iter(images.batches(len(images))))
            quantize_network(quantized, torch.from_numpy(batch), setup)
            results.append(score(infer(quantized, labelled), fp32, labelled.labels))
            print_row(setup, str(seed), results[-1])
        print_row(setup, "mean", np.mean(results, axis=0))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="as for `reptrt engine`: a ViT or DeiT")
    parser.add_argument("--weights", type=Path, help="checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="calibration images")
    parser.add_argument("--eval", type=Path, required=True, help="labelled images")
    parser.add_argument("--bits", default="4x4", help="weights x activations: 4x4,6x6,8x8")
    parser.add_argument("--seeds", default="0", help="of the draw of images: 0,1,2")
    parser.add_argument("--num-samples", type=int, default=32, help="calibration images")
    parser.add_argument("--round-zero-point", action="store_true", help="integers after folding")
    parser.add_argument("--first-last-bits", type=int, help="of patch embedding and head")
    parser.add_argument(
        "--attention", nargs="+", choices=("quantized", "float"), default=["quantized"]
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    return parser.parse_args()


def all_setups(options: argparse.Namespace) -> Iterator[Setup]:
    """Every combination of attention and bits."""
    for attention, bits in itertools.product(options.attention, options.bits.split(",")):
        weight_bits, activation_bits = map(int, bits.split("x"))
        yield Setup(
            weight_bits,
            activation_bits,
            options.first_last_bits,
            float_attention=attention == "float",
            round_zero_point=options.round_zero_point,
        )


@torch.no_grad()
def infer(network: nn.Module, labelled: ClassificationSet) -> FloatArray:
    """Logits `[images, classes]`."""
    batches = labelled.images.batches(BATCH)
    return np.concatenate([network(torch.from_numpy(batch)).numpy() for batch in batches])


def score(logits: FloatArray, fp32: FloatArray, labels: NDArray[np.int64]) -> list[float]:
    """FP32 top-1, quantized top-1, their difference and the agreement of top-1; in percent."""
    before, after = (agreement(labels, top_class(each)) for each in (fp32, logits))
    return [before, after, before - after, agreement(top_class(fp32), top_class(logits))]


def print_row(setup: Setup, seed: str, result: Sequence[float]) -> None:
    """Print one row of the table."""
    cells = [
        f"{setup.weight_bits}x{setup.activation_bits}",
        "float" if setup.float_attention else "quantized",
        str(setup.first_last_bits or "published"),
        seed,
        *(f"{percent:.2f}" for percent in result),
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
