"""What an ONNX file reads, and what the network that is made of it will.

An image alone becomes `images` [N, channels, height, width]. Everything else (several inputs, features,
token numbers, video) keeps the file's names, types and layouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import TensorProto

from reptrt.engines.foreign.limits import MAX_INPUT_PIXELS
from reptrt.models.inputs import Feed, NetworkInput, image_input
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.spec import PreprocessOverrides

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_RAW = (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64)
_LEGAL = (*FLOATS, *_RAW, TensorProto.BOOL)
_IMAGE_AXES = 4
_USUAL_CHANNELS = (1, 3, 4)
_COLOURS = 3
_RAW_PEAK = 255.0
_LEAST_EDGE = 16  # pixels of a picture without a batch
_MAX_IMAGES = 4  # of the largest size; of smaller ones more


@dataclass(frozen=True)
class FileInput:
    """One input that is no weight.

    Attributes:
        name: In the file.
        elem_type: Of TensorProto.
        sides: Its whole shape; None for what the file leaves open.
        batched: Whether the first axis counts samples.
        bare: The file has no such axis: it reads one picture [channels, H, W] or [H, W, channels].
    """

    name: str
    elem_type: int
    sides: tuple[int | None, ...]
    batched: bool
    bare: bool = False


@dataclass(frozen=True)
class OnnxFile:
    """A checked file.

    Attributes:
        path: Of the file.
        proto: Its model, with all data inside.
        sha256: Hex digest of the file and of its external data.
        inputs: In the file's order, weights left out.
        batch: That the file fixes, None where it leaves it open.
        picture: The one of `inputs` that pictures can feed; None where none looks like an image.
        channels_last: The picture is [N, H, W, channels], not [N, channels, H, W].
        channels: Of the picture: 3 in colour, 1 in grey.
        raw_type: Integer type of a picture that takes pixels 0..255; None for floats.
        height: Of the picture in pixels, None where the file leaves it open.
        width: Of the picture in pixels, None where the file leaves it open.
    """

    path: Path
    proto: onnx.ModelProto
    sha256: str
    inputs: tuple[FileInput, ...]
    batch: int | None
    picture: FileInput | None = None
    channels_last: bool = False
    channels: int = _COLOURS
    raw_type: int | None = None
    height: int | None = None
    width: int | None = None

    @property
    def is_of_one_image(self) -> bool:
        """Whether an image is all that it reads: its engine then takes `images` [N, C, H, W]."""
        return self.picture is not None and len(self.inputs) == 1

    def image_size(
        self,
        wanted: tuple[int, int] | None,
        default: tuple[int, int] | None = None,
        feed: Feed | None = None,
    ) -> tuple[int, int]:
        """Return (height, width) of the picture; `wanted`, else `default`, is for what is left open.

        Args:
            wanted: by the user.
            default: where nobody says it.
            feed: a sample that the user brought; its sizes come before `default`.

        Raises:
            OnnxFileError: They contradict each other, or nobody states the size.
        """
        if self.height and self.width:
            if wanted not in (None, (self.height, self.width)):
                assert wanted is not None
                raise OnnxFileError(
                    f"{self.path}: its input is {self.height}x{self.width} pixels;"
                    f" `image_size={wanted[0]}x{wanted[1]}` needs an export with that size, or without any"
                )
            return self.height, self.width
        wanted = wanted or self._size_of(feed) or default
        if wanted is None:
            raise OnnxFileError(
                f"{self.path}: leaves the size of its images open; fix it with `image_size`, such as 224"
                " or 640x640, or keep it open with `dynamic_size`, such as 320,640,960"
            )
        return self.height or wanted[0], self.width or wanted[1]

    def _size_of(self, feed: Feed | None) -> tuple[int, int] | None:
        name = self.picture.name if self.picture else ""
        if feed is None or name not in feed or feed[name].ndim != _IMAGE_AXES:
            return None
        shape = feed[name].shape
        return (shape[1], shape[2]) if self.channels_last else (shape[2], shape[3])

    def size_range(
        self, overrides: PreprocessOverrides
    ) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Smallest and largest (height, width) that stay legal; a side that the file fixes stays so.

        Raises:
            OnnxFileError: The user wants to keep open what the file fixes.
        """
        low, high = overrides.smallest, overrides.largest
        if low is None or high is None:
            return None
        if not self.is_of_one_image or (self.height and self.width):
            what = "no image" if self.picture is None else f"{_shown(self.picture.sides)}"
            raise OnnxFileError(
                f"{self.path}: its input is {what}, so there is no size that `dynamic_size` could keep"
                " open: leave it out, or export with open height and width and one input"
            )
        height, width = self.height, self.width
        return (height or low[0], width or low[1]), (height or high[0], width or high[1])

    def network_inputs(
        self,
        image_size: tuple[int, int] | None,
        feed: Feed | None = None,
        size_range: tuple[tuple[int, int], tuple[int, int]] | None = None,
    ) -> tuple[NetworkInput, ...]:
        """What the network reads, in the file's order.

        Args:
            image_size: (height, width) of the picture; None where there is none.
            feed: a sample by the names of the file; it tells the sides that the file leaves open.
            size_range: see `size_range`; None where the size is fixed.

        Raises:
            OnnxFileError: A side is open and nobody states it.
        """
        peak = 1.0 if self.raw_type is None else _RAW_PEAK
        if self.is_of_one_image and image_size is not None:
            smallest, largest = size_range or (None, None)
            return (image_input(image_size, self.channels, peak, smallest, largest),)
        return tuple(self._describe(one, image_size, feed, peak) for one in self.inputs)

    def _describe(
        self, one: FileInput, image_size: tuple[int, int] | None, feed: Feed | None, peak: float
    ) -> NetworkInput:
        is_picture = one is self.picture and image_size is not None
        sides = one.sides[1:] if one.batched else one.sides
        if is_picture:
            assert image_size is not None
            size, channels = list(image_size), [self.channels]
            sides = tuple(size + channels if self.channels_last else channels + size)
        elif None in sides:
            sides = self._sides_of(one, sides, feed)
        is_float = one.elem_type in FLOATS
        return NetworkInput(
            name=one.name,
            dtype="float32"
            if is_float
            else onnx.helper.tensor_dtype_to_np_dtype(one.elem_type).name,
            sides=tuple(int(side or 1) for side in sides),
            batched=one.batched,
            picture=("hwc" if self.channels_last else "chw") if is_picture else None,
            peak=peak if is_picture else 1.0,
        )

    def _sides_of(
        self, one: FileInput, sides: tuple[int | None, ...], feed: Feed | None
    ) -> tuple[int | None, ...]:
        if feed is None or one.name not in feed:
            raise OnnxFileError(
                f"{self.path}: leaves sides of its input {one.name!r} {_shown(one.sides)} open, which"
                " samples have to tell: give `data` with named feeds (a folder of .npz)"
            )
        shape = feed[one.name].shape
        if len(shape) != len(one.sides):
            raise OnnxFileError(
                f"{self.path}: its input {one.name!r} is {_shown(one.sides)}, and the data has"
                f" {list(shape)}"
            )
        return shape[1:] if one.batched else shape


def describe_inputs(path: Path, proto: onnx.ModelProto, sha256: str) -> OnnxFile:
    """Record of a checked model.

    Raises:
        OnnxFileError: it has no input, or one that is no tensor, too large, or of a type that no network takes.
    """
    weights = {tensor.name for tensor in proto.graph.initializer}
    values = [value for value in proto.graph.input if value.name not in weights]
    if not values:
        raise OnnxFileError("has no input")
    described = [_describe_input(value) for value in values]
    if len(described) == 1:
        described = [_with_batch(described[0])]
    inputs = _mark_batches(described)
    picture = next((one for one in inputs if _is_picture(one)), None)
    first = picture or inputs[0]
    batch = (first.sides[0] if first.batched else None) if _has_batch(inputs) else 1
    if picture is None:
        return OnnxFile(path, proto, sha256, inputs, batch)
    sides = picture.sides
    channels_last = _is_channels_last(sides[1], sides[3])
    height, width = sides[1:3] if channels_last else sides[2:]
    return OnnxFile(
        path, proto, sha256, inputs, batch, picture, channels_last,
        channels=sides[3 if channels_last else 1] or _COLOURS,
        raw_type=picture.elem_type if picture.elem_type in _RAW else None,
        height=height,
        width=width,
    )  # fmt: skip


def _describe_input(value: onnx.ValueInfoProto) -> FileInput:
    name, tensor = value.name, value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type not in _LEGAL:
        shown = TensorProto.DataType.Name(tensor.elem_type) if tensor.elem_type else "no tensor"
        raise OnnxFileError(
            f"its input {name!r} is {shown}; it must be a float, an integer of 8, 32 or 64 bits, or bool"
        )
    if not tensor.HasField("shape"):
        raise OnnxFileError(f"its input {name!r} has no shape: state how many axes it has")
    # Paddle writes -1 for an open side, others 0
    sides = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
    if math.prod(side or 1 for side in sides) > _COLOURS * _MAX_IMAGES * MAX_INPUT_PIXELS:
        raise OnnxFileError(f"its input {name!r} has the shape {_shown(sides)}, which is too large")
    return FileInput(name, tensor.elem_type, sides, batched=False)


def _with_batch(one: FileInput) -> FileInput:
    """An only input that is a colour picture without a batch gets a batch of 1."""
    if len(one.sides) != _IMAGE_AXES - 1 or one.elem_type == TensorProto.BOOL:
        return one
    first, *_, last = one.sides
    edges = one.sides[1:] if first == _COLOURS else one.sides[:2]
    if _COLOURS not in (first, last) or any(side and side < _LEAST_EDGE for side in edges):
        return one
    if first != _COLOURS and None in edges and one.elem_type != TensorProto.UINT8:
        return one  # points [N, count, 3], as likely
    return replace(one, sides=(1, *one.sides), bare=True)


def _mark_batches(inputs: list[FileInput]) -> tuple[FileInput, ...]:
    """First axes that are open count samples; where none is, those as long as that of the first image."""
    picture = next((one for one in inputs if _is_picture(one)), None)
    first = picture or inputs[0]
    wanted = (None,) if any(one.sides[:1] == (None,) for one in inputs) else first.sides[:1]
    if picture is None and wanted != (None,) and None in first.sides:
        return tuple(inputs)  # [T, N, C]: samples are counted elsewhere, one at a time is run
    return tuple(
        replace(one, batched=bool(one.sides) and one.sides[:1] == wanted) for one in inputs
    )


def _has_batch(inputs: Sequence[FileInput]) -> bool:
    return any(one.batched for one in inputs)


def _is_picture(one: FileInput) -> bool:
    return len(one.sides) == _IMAGE_AXES and one.elem_type != TensorProto.BOOL


def _shown(sides: Sequence[int | None]) -> str:
    return "x".join("?" if side is None else str(side) for side in sides) or "a scalar"


def _is_channels_last(second: int | None, last: int | None) -> bool:
    """Whether the last axis of an image holds its channels, as the sizes of two axes tell."""
    if second in _USUAL_CHANNELS or last is None:
        return False
    if last in _USUAL_CHANNELS:
        return True
    return second is not None and last < second
