"""Train the demo detector on synthetic scenes: `python -m reptrt.models.demo.train --out FILE`.

Writes the averaged weights in train form as safetensors. The convolutions run in bfloat16; 8000 steps
of 16 scenes, the defaults, took 47 minutes on one shared CPU core. An interrupted run continues from
`FILE.resume.pt` when the same command is given again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from reptrt.engines.artifacts import replace_when_done
from reptrt.models.demo.batches import random_batch
from reptrt.models.demo.loss import detection_loss
from reptrt.models.demo.scenes import IMAGE_SIZE, TRAIN, Scene, generate_scene
from reptrt.models.demo.shapes import CLASSES
from reptrt.models.yolov6.network import Yolov6, yolov6n_demo

_PEAK_LR, _FINAL_LR = 3e-3, 3e-5
_WEIGHT_DECAY = 0.02
_WARMUP_STEPS = 200
_EMA_DECAY, _EMA_RAMP = 0.9985, 400.0
_SAVE_EVERY = 250


@dataclass
class TrainState:
    """Everything that changes from step to step."""

    model: Yolov6
    average: Yolov6
    optimizer: torch.optim.Optimizer
    step: int


def train(out: Path, steps: int, seed: int, num_scenes: int, batch_size: int) -> None:
    """Train for `steps` steps, continuing an interrupted run, and write the weights to `out`."""
    resume = out.with_name(out.name + ".resume.pt")
    state = _load_state(resume, seed)
    print(f"drawing {num_scenes} scenes", flush=True)
    pool = [generate_scene(TRAIN[index], IMAGE_SIZE) for index in range(num_scenes)]
    started, first, losses = time.monotonic(), state.step, []
    while state.step < steps:
        losses.append(_train_step(state, pool, batch_size, steps, seed))
        if state.step % 50 == 0:
            seconds = (time.monotonic() - started) / (state.step - first)
            mean = sum(losses) / len(losses)
            print(f"step {state.step}/{steps} loss {mean:.3f} {seconds:.3f} s/step", flush=True)
            losses = []
        if state.step % _SAVE_EVERY == 0:
            _save_state(resume, state)
            save_weights(state.average, out)
    save_weights(state.average, out)


def save_weights(model: nn.Module, out: Path) -> None:
    """Write `model` as safetensors whose metadata says what `load_model` needs to know."""
    metadata = {
        "classes": json.dumps(list(CLASSES)),
        "image_size": json.dumps([IMAGE_SIZE, IMAGE_SIZE]),
        "mean": json.dumps([0.0, 0.0, 0.0]),
        "std": json.dumps([1.0, 1.0, 1.0]),
    }
    tensors = {
        name: tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    with replace_when_done(out) as temporary:
        save_file(tensors, temporary, metadata)


def _train_step(
    state: TrainState, pool: Sequence[Scene], batch_size: int, steps: int, seed: int
) -> float:
    """Take one step; its randomness depends on the seed and the step number only."""
    images, targets = random_batch(pool, batch_size, np.random.default_rng([seed, state.step]))
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, steps)
    with torch.autocast("cpu", torch.bfloat16):
        maps = state.model.forward_raw(images)
    loss = detection_loss(maps, state.model.strides, targets)
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.model.parameters(), 10.0)
    state.optimizer.step()
    state.step += 1
    _update_average(state)
    return float(loss.detach())


def learning_rate(step: int, steps: int) -> float:
    """Return the rate of `step`: linear warm-up, then half a cosine."""
    warmup = min(1.0, (step + 1) / _WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warmup * (_FINAL_LR + (_PEAK_LR - _FINAL_LR) * cosine)


@torch.no_grad()
def _update_average(state: TrainState) -> None:
    decay = _EMA_DECAY * (1 - math.exp(-state.step / _EMA_RAMP))
    current = state.model.state_dict()
    for name, averaged in state.average.state_dict().items():
        if averaged.is_floating_point():
            averaged.lerp_(current[name], 1 - decay)


def _load_state(resume: Path, seed: int) -> TrainState:
    torch.manual_seed(seed)
    model = yolov6n_demo(len(CLASSES)).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(decayed, lr=_PEAK_LR, weight_decay=_WEIGHT_DECAY)
    optimizer.add_param_group({"params": others, "weight_decay": 0.0})
    state = TrainState(model, copy.deepcopy(model), optimizer, step=0)
    if resume.exists():
        saved = torch.load(resume, weights_only=True)
        state.model.load_state_dict(saved["model"])
        state.average.load_state_dict(saved["average"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.step = saved["step"]
    return state


def _save_state(resume: Path, state: TrainState) -> None:
    parts = {name: getattr(state, name).state_dict() for name in ("model", "average", "optimizer")}
    with replace_when_done(resume) as temporary:
        torch.save({**parts, "step": state.step}, temporary)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-scenes", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    train(options.out, options.steps, options.seed, options.num_scenes, options.batch_size)


if __name__ == "__main__":
    main()
