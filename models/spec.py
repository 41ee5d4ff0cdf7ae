"""What a zoo entry is: how to build the network, how to prepare its images, where its weights are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reptrt.engines.foreign.limits import MAX_INPUT_PIXELS
from reptrt.engines.foreign.text import one_line
from reptrt.models.inputs import NetworkInput, image_input

if TYPE_CHECKING:
    from torch import nn

Task = Literal["classification", "detection", "segmentation", "generic"]
Layout = Literal["crop", "letterbox"]
Channels = Literal["rgb", "bgr"]
Triple = tuple[float, float, float]
_OWN_LICENCE = "Apache-2.0"

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class PreprocessError(ValueError):
    """An image size, mean or std that no image can be prepared with."""

    exit_code = 2


@dataclass(frozen=True)
class PreprocessOverrides:
    """What a user or a checkpoint states about its images; None leaves the zoo's value.

    Attributes:
        image_size: (height, width) in pixels; the usual one where it stays open.
        mean: Per RGB channel, on the 0-1 scale.
        std: Per RGB channel, on the 0-1 scale, above 0.
        layout: `crop` or `letterbox`.
        channels: Order in which the network wants them.
        smallest: Least image size, where it stays open.
        largest: Most image size, where it stays open.

    Raises:
        PreprocessError: A value is out of its range.
    """

    image_size: tuple[int, int] | None = None
    mean: Triple | None = None
    std: Triple | None = None
    layout: Layout | None = None
    channels: Channels | None = None
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and min(self.image_size) < 1:
            raise PreprocessError(
                f"image size {self.image_size}: height and width must be at least 1 pixel"
            )
        most = self.largest or self.image_size
        if most is not None and math.prod(most) > MAX_INPUT_PIXELS:
            raise PreprocessError(
                f"image size {one_line(most)}: more than {MAX_INPUT_PIXELS} pixels, which"
                " is 3840 x 2160; networks of larger images run on tiles of them"
            )
        if self.mean is not None and not all(0 <= value <= 1 for value in self.mean):
            raise PreprocessError(
                f"mean {self.mean}: must be three numbers of 0 to 1, the scale of pixels / 255"
            )
        if self.std is not None and not all(0 < value <= 1 for value in self.std):
            raise PreprocessError(
                f"std {self.std}: must be three numbers above 0 and up to 1, the scale of pixels / 255"
            )

    def override(self, overrides: PreprocessOverrides) -> PreprocessOverrides:
        """What `overrides` state, and for the rest what these do."""
        stated = {key: value for key, value in vars(overrides).items() if value is not None}
        return dataclasses.replace(self, **stated)


@dataclass(frozen=True)
class Preprocess:
    """How an RGB image becomes the network's input: (pixels / 255 - mean) / std.

    A network that wants 0..255 has a mean of 0 and a std of 1 / 255 = 0.00392157.

    Attributes:
        image_size: (height, width) of the input in pixels.
        mean: Per RGB channel, on the 0-1 scale.
        std: Per RGB channel, on the 0-1 scale.
        interpolation: Pillow's name of the resize filter, in lower case.
        crop_pct: Side of the centre crop over the short side after the resize; in (0, 1].
        layout: `crop` resizes the short side and crops; `letterbox` fits the whole image on grey.
        channels: Order of the input's channels; mean and std are in the order R, G, B always.
        num_channels: Of the input: 3; 1 for grey, with the mean of `mean` and of `std`; other numbers
            are not read from pictures but from arrays.
        smallest: Least (height, width), where the size stays open; None where it is fixed.
        largest: Most (height, width), where the size stays open.
    """

    image_size: tuple[int, int]
    mean: Triple
    std: Triple
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    layout: Layout = "crop"
    channels: Channels = "rgb"
    num_channels: int = 3
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the network's input."""
        return (self.num_channels, *self.image_size)

    @property
    def inputs(self) -> tuple[NetworkInput, ...]:
        """What a network reads that is prepared so and reads nothing else."""
        peak, channels = 1.0, self.num_channels
        return (image_input(self.image_size, channels, peak, self.smallest, self.largest),)

    def override(self, overrides: PreprocessOverrides) -> Preprocess:
        """Apply `overrides`; a stated image size is also the short side, so `crop_pct` becomes 1."""
        return dataclasses.replace(
            self,
            image_size=overrides.image_size or self.image_size,
            mean=overrides.mean or self.mean,
            std=overrides.std or self.std,
            layout=overrides.layout or self.layout,
            channels=overrides.channels or self.channels,
            crop_pct=1.0 if overrides.image_size else self.crop_pct,
            smallest=overrides.smallest or self.smallest,
            largest=overrides.largest or self.largest,
        )


@dataclass(frozen=True)
class PublishedWeights:
    """Weights on the web and where they come from.

    Attributes:
        url: Direct link to the file.
        filename: Name to store it under.
        sha256: Hex digest or its first digits, None where the publisher states none.
        licence: As the publisher names it.
        source: Who trained them, on what.
        hub_id: Hugging Face repository, None for a plain link.
    """

    url: str
    filename: str
    sha256: str | None
    licence: str
    source: str
    hub_id: str | None = None


@dataclass(frozen=True)
class ModelSpec:
    """One name that a user can give as MODEL.

    Attributes:
        name: As the user writes it.
        task: What the outputs mean; None where only they can tell.
        build: (num_classes, (height, width)) to a freshly initialized train-form module; a
            num_classes of None leaves the builder's own default.
        num_classes: Of the published weights; None when only the module itself can tell.
        preprocess: Of the published weights; None where the task decides it.
        description: One line for `reptrt models`.
        weights: Published weights, None where there are none that load here.
        bundled_weights: File that ships with the package.
        brings_weights: The builder returns a trained module, so weights are optional.
        onnx: File that the network is imported from.
    """

    name: str
    task: Task | None
    build: Callable[[int | None, tuple[int, int]], nn.Module]
    num_classes: int | None
    preprocess: Preprocess | None
    description: str
    weights: PublishedWeights | None = None
    bundled_weights: Path | None = None
    brings_weights: bool = False
    onnx: Path | None = None

    @property
    def licence(self) -> str | None:
        """Of its own weights; None where nobody states it."""
        if self.weights is not None:
            return self.weights.licence
        return _OWN_LICENCE if self.bundled_weights else None
