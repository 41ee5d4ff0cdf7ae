"""From an image file to the network's input: any picture becomes RGB, is fitted and normalized."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from reptrt.engines.foreign.border import explain
from reptrt.engines.foreign.limits import MAX_ASPECT_RATIO, MAX_IMAGE_PIXELS
from reptrt.engines.foreign.text import visible
from reptrt.engines.outputs.detection import FloatArray, Letterbox, letterbox
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.image_folder import ImageFile

# What people calibrate with; Pillow's other formats start programs, or are read by nobody else.
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_BAND_PIXELS = 1 << 20


class DataError(ValueError):
    """Images, labels or annotations that cannot be used as they are."""

    exit_code = 2


@dataclass(frozen=True)
class Prepared:
    """One image as the network takes it.

    Attributes:
        tensor: `[channels, h, w]` float32, normalized, channels in the network's order.
        letterbox: Where the image lies on the canvas; None for the `crop` layout.
        source_size: Height and width of the image before, in pixels.
    """

    tensor: FloatArray
    letterbox: Letterbox | None
    source_size: tuple[int, int]


def read_image(path: ImageFile) -> Image.Image:
    """Decode a file to 8-bit RGB, upright as its EXIF orientation says.

    Grey, palette and CMYK images are converted, 16-bit and float samples scaled, and alpha is dropped without
    blending, as torchvision and timm do.

    Raises:
        DataError: The file is missing, damaged, too large or no image.
    """
    try:
        with open_image(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders of damaged files raise anything
        raise DataError(_unreadable(path, error)) from error


def check_image(path: ImageFile) -> str | None:
    """Say in one line why a file is no readable image, or None; cheaper than decoding it fully."""
    try:
        with open_image(path) as image:
            image.draft(None, (1, 1))  # JPEG: all data is read, but only 1/8 of the pixels made
            _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders of damaged files raise anything
        return _unreadable(path, error)
    return None


def require_size(width: int, height: int) -> None:
    """Check that an image is small enough to be decoded and resized.

    Raises:
        DataError: it has too many pixels, or is a mere line of them.
    """
    if width * height > MAX_IMAGE_PIXELS:
        raise DataError(f"{width}x{height} pixels, more than the {MAX_IMAGE_PIXELS} that are read")
    if max(width, height) > MAX_ASPECT_RATIO * max(1, min(width, height)):
        raise DataError(f"{width}x{height} pixels, longer than {MAX_ASPECT_RATIO} times its width")


def prepare(image: Image.Image, preprocess: Preprocess) -> Prepared:
    """Fit an RGB image to the network's input and normalize it.

    Layout `crop`: an image that covers the crop and does not exceed the resize size on both sides is
    only cropped (published validation crops are stored at 224-256 pixels, and resampling them again
    costs accuracy); any other is first resized to just cover `image_size / crop_pct`. Layout
    `letterbox`: the whole image, centred on grey 114.

    Args:
        image: RGB.
        preprocess: What the network expects.

    Raises:
        DataError: `preprocess.interpolation` is no filter of Pillow.
    """
    source_size = (image.height, image.width)
    if preprocess.layout == "letterbox":
        canvas, placement = letterbox(np.asarray(image), preprocess.image_size)
        return Prepared(_normalize(canvas, preprocess), placement, source_size)
    cropped = np.asarray(_centre_crop(_resize(image, preprocess), preprocess.image_size))
    return Prepared(_normalize(cropped, preprocess), None, source_size)


def as_picture(tensor: FloatArray, preprocess: Preprocess) -> NDArray[np.uint8]:
    """The picture `[h, w, 3]`, RGB, that a network with `preprocess` sees in `tensor`; undoes `prepare`.

    Args:
        tensor: `[channels, h, w]`, one channel or three, in the network's order.
        preprocess: what the network expects.
    """
    mean, std = (np.asarray(v, dtype=np.float32) for v in (preprocess.mean, preprocess.std))
    if preprocess.num_channels == 1:
        planes = np.repeat(tensor * std.mean() + mean.mean(), 3, axis=0)
    else:
        planes = tensor if preprocess.channels == "rgb" else tensor[::-1]
        planes = planes * std[:, None, None] + mean[:, None, None]
    pixels = np.clip(np.rint(planes * 255), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def prepare_mask(mask: NDArray[np.uint8], preprocess: Preprocess, void: int) -> NDArray[np.uint8]:
    """Fit a mask of classes `[h, w]` to the network's input, pixel by pixel as `prepare` fits its image.

    Args:
        mask: a class for each pixel of the image.
        preprocess: of the image.
        void: class of what lies beside the image on a letterbox's canvas.
    """
    image = Image.fromarray(mask)
    height, width = preprocess.image_size
    if preprocess.layout == "crop":
        nearest = dataclasses.replace(preprocess, interpolation="nearest")
        return np.asarray(_centre_crop(_resize(image, nearest), (height, width)))
    empty = np.zeros((image.height, image.width, 3), np.uint8)
    _, placement = letterbox(empty, (height, width))
    width_inside, height_inside = (max(round(side * placement.scale), 1) for side in image.size)
    inner = image.resize((width_inside, height_inside), Image.Resampling.NEAREST)
    canvas = Image.new("L", (width, height), void)
    canvas.paste(inner, (placement.pad_x, placement.pad_y))
    return np.asarray(canvas)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode of Pillow; its own conversion would clip 16-bit grey at 255."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image)
        narrow = np.empty(wide.shape, np.uint8)
        rows = max(1, _BAND_PIXELS // max(1, wide.shape[1]))
        for start in range(0, len(wide), rows):
            band = np.clip(wide[start : start + rows].astype(np.int64), 0, 65535)
            narrow[start : start + rows] = (band + 128) // 257
        image = Image.fromarray(narrow)
    elif image.mode == "F":
        image = Image.fromarray(_to_bytes(np.asarray(image)))
    return image.convert("RGB")


def open_image(path: ImageFile) -> Image.Image:
    """Read the head of an image file; its size is checked before a pixel is decoded.

    Raises:
        DataError: too large; Pillow raises anything where the file is damaged or no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own limit is higher
        source = path if isinstance(path, Path) else path.open("rb")
        image = Image.open(source, formats=_FORMATS)
    try:
        require_size(*image.size)
    except DataError:
        image.close()
        raise
    return image


def _to_bytes(samples: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Float samples on the scale that their largest one suggests: 0..1, 0..255 or 0..65535."""
    largest = float(np.nanmax(samples, initial=0.0))
    scale = next(255 / top for top in (1, 255, 65535, largest) if largest <= top)
    bytes_: NDArray[np.uint8] = np.clip(np.rint(np.nan_to_num(samples) * scale), 0, 255).astype(
        np.uint8
    )
    return bytes_


def _unreadable(path: ImageFile, error: Exception) -> str:
    shown = visible(str(path))
    if isinstance(error, FileNotFoundError):
        return f"{shown}: no such image"
    if isinstance(error, UnidentifiedImageError):
        return f"{shown}: not an image, or one of an unknown format"
    return f"{shown}: unreadable image ({explain(error)})"


def _resize(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Resize so that the image just covers `image_size / crop_pct`, unless it fits as it is."""
    height, width = preprocess.image_size
    full_height, full_width = (round(side / preprocess.crop_pct) for side in (height, width))
    covers = image.height >= height and image.width >= width
    if covers and (image.height <= full_height or image.width <= full_width):
        return image
    scale = max(full_height / image.height, full_width / image.width)
    size = (max(round(image.width * scale), width), max(round(image.height * scale), height))
    if math.prod(size) > MAX_IMAGE_PIXELS:
        raise DataError(
            f"an image of {image.width}x{image.height} pixels is too long for an input of"
            f" {width}x{height}: cut it"
        )
    return image.resize(size, _filter(preprocess.interpolation))


def _filter(name: str) -> Image.Resampling:
    try:
        return Image.Resampling[name.upper()]
    except KeyError:
        legal = ", ".join(sorted(member.name.lower() for member in Image.Resampling))
        raise DataError(f"interpolation '{name}': unknown; use one of {legal}") from None


def _centre_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crop the centre; of an odd margin the smaller half is left and above."""
    left, top = (image.width - size[1]) // 2, (image.height - size[0]) // 2
    return image.crop((left, top, left + size[1], top + size[0]))


def _normalize(pixels: NDArray[np.uint8], preprocess: Preprocess) -> FloatArray:
    """Turn RGB `[h, w, 3]` uint8 into `[channels, h, w]` float32: (pixels / 255 - mean) / std.

    Raises:
        DataError: The network takes neither colour nor grey.
    """
    if preprocess.num_channels not in (1, 3):
        raise DataError(
            f"the network takes {preprocess.num_channels} channels, which pictures do not have; give"
            f" an .npy file with float32 [n, {', '.join(map(str, preprocess.input_shape))}]"
        )
    mean, std = (np.asarray(v, dtype=np.float32) for v in (preprocess.mean, preprocess.std))
    if preprocess.num_channels == 1:
        grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32)
        single: FloatArray = ((grey / np.float32(255) - mean.mean()) / std.mean())[None]
        return single
    planes = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    normalized: FloatArray = (planes - mean[:, None, None]) / std[:, None, None]
    return normalized if preprocess.channels == "rgb" else normalized[::-1].copy()
