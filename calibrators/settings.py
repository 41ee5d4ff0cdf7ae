"""Choices of the calibrators that learn: what a recipe may say under `reconstruction`.

Without PyTorch, so that reading a recipe is quick. The defaults are the winners of the ablation in
docs/results.md; whatever the papers do not state is marked "reconstructed".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

GIBIBYTE = 2**30

Loss = Literal["l1", "l2", "fisher"]
Rounding = Literal["ste", "adaround", "nearest"]
Affine = Literal["none", "identity", "dense_branch", "statistics"]
Suffix = Literal["float", "quantized"]
Units = Literal["layers", "chains"]
Effort = Literal["low", "auto", "high"]

NO_CALIBRATOR = "none"
"""In place of a calibrator's name, where no layer is quantized or a file brings its own scales."""

ENOUGH_SNR = 20.0
"""dB at the outputs: blocks that together leave that much, and more where more is asked for, do not learn."""


class Reconstruction(BaseModel):
    """How a block is fitted to its float output.

    Attributes:
        iterations: most optimiser steps per block (reconstructed: the released code ships 0); unless it is given,
            `repapq` takes more below 6 bits (`reptrt.calibrators.reconstruction.effort`).
        batch_size: most images per step.
        loss: mean absolute error (RepAPQ, section on MAE), squared error, or squared error weighed by how much the
            network's outputs depend on each element (`reptrt.calibrators.importance`).
        stage_weight: lambda, weight of the stage output's distance against the block output's, each
            divided by its value before the first step (lambda reconstructed); 0 for no stage term.
        suffix: precision of the rest of the stage, through which that gradient flows (reconstructed).
        float_inputs: probability that an element of a block's input is the float network's (QDrop,
            arXiv:2203.05740).
        float_inside: probability that an element which a learned quantizer of the block reads stays float (QDrop).
        correction: share of the errors of the blocks before it that a block learns to correct: 1 aims at the float
            network's output, 0 at the block's own float output of what it reads.
        rounding: weights learned through the straight-through estimator (RepAPQ's code), AdaRound
            (arXiv:2004.10568), or left at the nearest code.
        code_rate: Adam's rate for the weights, in codes a step: how far from the nearest code they may
            move, and how much of the calibration images they may learn by heart (reconstructed).
        affine: start of QPRep's gain and shift; `none` learns neither (start reconstructed).
        half_range: use all 256 codes of 8 bits where that is free (`reptrt.calibrators.quantized.half_range`).
        units: what is learned at once: a layer, a depthwise convolution with the pointwise one behind
            it; or also a chain (`reptrt.calibrators.reconstruction.chains`): all layers of a residual branch, of the branches
            that a concat joins.
        blocks: layer-name patterns; consecutive layers that match one of them are one block.
        stages: layer-name patterns; consecutive blocks that match one of them are one stage.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    iterations: Annotated[int, Field(ge=0)] = 50
    batch_size: Annotated[int, Field(ge=1)] = 32
    loss: Loss = "l1"
    stage_weight: Annotated[float, Field(ge=0)] = 1.0
    suffix: Suffix = "float"
    float_inputs: Annotated[float, Field(ge=0, le=1)] = 0.0
    float_inside: Annotated[float, Field(ge=0, le=1)] = 0.0
    rounding: Rounding = "ste"
    code_rate: Annotated[float, Field(gt=0)] = 0.05
    affine: Affine = "identity"
    half_range: bool = True
    units: Units = "layers"
    blocks: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    correction: Annotated[float, Field(ge=0, le=1)] = 1.0


@dataclass(frozen=True)
class Settings:
    """What a calibrator is told beyond its images.

    Attributes:
        seed: of every random choice.
        reconstruction: of calibrators that learn.
        max_memory: bytes of cached activations in memory; what exceeds them goes to disk.
        checkpoint: folder for finished blocks, from which a killed run resumes; None keeps none.
        effort: of calibrators that learn (`reptrt.calibrators.reconstruction.effort`): closed forms alone,
            learning where they do not suffice, or all steps of all blocks.
        target_snr: dB at the outputs, of which every block has its share; with effort "auto" those that
            reach it do not learn.
        histograms: of baselines: file that holds what they would observe; None observes it.
    """

    seed: int = 0
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    max_memory: int = 2 * GIBIBYTE
    checkpoint: Path | None = None
    effort: Effort = "auto"
    target_snr: float = ENOUGH_SNR
    histograms: Path | None = None
