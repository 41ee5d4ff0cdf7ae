"""Any picture becomes RGB; the geometry of crop and letterbox, by hand-computed pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reptrt.models.spec import Channels, Layout, Preprocess
from reptrt.pipeline.data.preprocess import (
    DataError,
    as_picture,
    check_image,
    prepare,
    read_image,
)

ORIENTATION = 0x0112


def preprocess(
    size: tuple[int, int], crop_pct: float = 1.0, layout: Layout = "crop", mode: str = "bilinear"
) -> Preprocess:
    """Pixels / 255 unchanged, so that tests can read pixels back."""
    return Preprocess(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), mode, crop_pct, layout)


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_the_picture_that_a_network_sees_is_what_was_prepared(channels: Channels) -> None:
    wanted = replace(
        preprocess((3, 4)), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), channels=channels
    )
    image = columns_and_rows(4, 3)
    assert (as_picture(prepare(image, wanted).tensor, wanted) == np.asarray(image)).all()
    grey = replace(wanted, num_channels=1)
    seen = as_picture(prepare(image, grey).tensor, grey)
    assert (seen == np.asarray(image.convert("L"))[..., None]).all()
    assert seen.shape == (3, 4, 3)


def columns_and_rows(width: int, height: int) -> Image.Image:
    """Red is the column, green the row."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(width)[None]
    pixels[..., 1] = np.arange(height)[:, None]
    return Image.fromarray(pixels)


def corner(tensor: np.ndarray) -> tuple[int, int]:
    """Column and row of the source that the top left pixel shows."""
    return round(float(tensor[0, 0, 0]) * 255), round(float(tensor[1, 0, 0]) * 255)


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "expected"),
    [
        ("L", "png", 77, (77, 77, 77)),
        ("1", "png", 1, (255, 255, 255)),
        ("LA", "png", (77, 0), (77, 77, 77)),
        ("RGBA", "png", (10, 20, 30, 0), (10, 20, 30)),
        ("RGBA", "tiff", (10, 20, 30, 128), (10, 20, 30)),
        ("CMYK", "tiff", (255, 0, 0, 0), (0, 255, 255)),
        ("RGB", "ppm", (10, 20, 30), (10, 20, 30)),
        ("RGB", "bmp", (10, 20, 30), (10, 20, 30)),
    ],
)
def test_every_mode_becomes_rgb_and_alpha_is_dropped_without_blending(
    tmp_path: Path, mode: str, suffix: str, colour: object, expected: tuple[int, int, int]
) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, (3, 2), colour).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert image.getpixel((2, 1)) == expected
    assert check_image(path) is None


def test_a_cmyk_jpeg_has_the_colours_that_were_saved(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg")
    red, green, blue = np.asarray(read_image(tmp_path / "red.jpg"))[8, 8].tolist()
    assert red > 245
    assert max(green, blue) < 10


def test_a_palette_image_shows_its_colours(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), (200, 100, 50)).quantize(2)
    image.save(tmp_path / "palette.png")
    assert Image.open(tmp_path / "palette.png").mode == "P"
    assert read_image(tmp_path / "palette.png").getpixel((0, 0)) == (200, 100, 50)


@pytest.mark.parametrize("suffix", ["png", "tiff", "ppm"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16)).save(path)
    assert np.asarray(read_image(path))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), (0, 0, 0))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "turned.png")
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == (255, 255, 255)


def test_truncated_foreign_and_missing_files_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("jpg", "png"):
        whole = tmp_path / f"whole.{suffix}"
        Image.fromarray(noise).save(whole)
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        assert check_image(whole) is None
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    for name in ("cut.jpg", "cut.png", "text.jpg", "empty.jpg", "absent.jpg"):
        with pytest.raises(DataError) as caught:
            read_image(tmp_path / name)
        assert caught.value.exit_code == 2
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert check_image(tmp_path / name) == str(caught.value)


def test_an_image_stored_between_crop_and_resize_size_is_cropped_without_resampling() -> None:
    prepared = prepare(columns_and_rows(227, 227), preprocess((224, 224), crop_pct=0.875))
    assert prepared.tensor.shape == (3, 224, 224)
    assert corner(prepared.tensor) == (1, 1)  # (227 - 224) // 2
    steps = np.round(np.diff(prepared.tensor[0], axis=1) * 255)
    assert (steps == 1).all()
    assert prepared.letterbox is None
    assert prepared.source_size == (227, 227)


def test_a_larger_image_is_resized_to_the_short_side_before_the_crop() -> None:
    prepared = prepare(columns_and_rows(120, 60), preprocess((12, 12), crop_pct=0.8, mode="box"))
    assert prepared.tensor.shape == (3, 12, 12)
    # 30 x 15 after the resize by 4, whose columns 9 and rows 1 on are kept; a pixel is a mean of 4
    column, row = (float(prepared.tensor[channel, 0, 0]) * 255 for channel in (0, 1))
    assert column == pytest.approx(4 * 9 + 1.5, abs=0.51)
    assert row == pytest.approx(4 * 1 + 1.5, abs=0.51)


def test_a_smaller_image_is_enlarged_to_cover_the_crop() -> None:
    prepared = prepare(Image.new("RGB", (10, 5), (255, 0, 0)), preprocess((16, 16), crop_pct=0.5))
    assert prepared.tensor.shape == (3, 16, 16)
    np.testing.assert_array_equal(prepared.tensor[0], 1.0)
    np.testing.assert_array_equal(prepared.tensor[1:], 0.0)


@pytest.mark.parametrize("source", [(20, 40), (40, 20), (100, 100), (3, 200), (32, 16)])
def test_inputs_need_not_be_square(source: tuple[int, int]) -> None:
    prepared = prepare(Image.new("RGB", source, (9, 9, 9)), preprocess((16, 32), crop_pct=0.9))
    np.testing.assert_allclose(prepared.tensor * 255, np.full((3, 16, 32), 9.0), rtol=1e-6)


def test_letterbox_keeps_the_whole_image_centred_on_grey() -> None:
    white = Image.new("RGB", (20, 10), (255, 255, 255))
    prepared = prepare(white, preprocess((40, 40), layout="letterbox"))
    pixels = np.round(prepared.tensor[0] * 255)
    assert set(pixels[:10].ravel()) == set(pixels[30:].ravel()) == {114.0}
    assert (pixels[10:30] == 255).all()
    assert prepared.letterbox is not None
    assert (prepared.letterbox.scale, prepared.letterbox.pad_x, prepared.letterbox.pad_y) == (
        2.0, 0, 10,
    )  # fmt: skip
    assert prepared.source_size == (10, 20)


def test_channels_are_normalized_in_rgb_order() -> None:
    spec = Preprocess((2, 2), (0.5, 0.0, 1.0), (0.5, 2.0, 0.1))
    tensor = prepare(Image.new("RGB", (2, 2), (255, 51, 0)), spec).tensor
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[:, 0, 0], [1.0, 0.1, -10.0], rtol=1e-6)


def test_an_unknown_interpolation_lists_the_legal_ones() -> None:
    with pytest.raises(DataError, match="'bilinaer': unknown; use one of bicubic, bilinear"):
        prepare(Image.new("RGB", (99, 99)), preprocess((8, 8), mode="bilinaer"))


@pytest.mark.parametrize("layout", ["crop", "letterbox"])
def test_bgr_turns_the_channels_after_each_got_its_own_mean(layout: Layout) -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 51))
    rgb = Preprocess((2, 2), (0.5, 0.25, 0.0), (1.0, 0.5, 0.1), layout=layout)
    planes = [prepare(image, replace(rgb, channels=order)).tensor for order in ("rgb", "bgr")]
    np.testing.assert_allclose(planes[0][:, 0, 0], [0.5, -0.5, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(planes[1], planes[0][::-1])


def test_a_std_of_one_255th_gives_raw_pixels() -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 51))
    raw = Preprocess((2, 2), (0.0,) * 3, (0.00392157,) * 3)
    np.testing.assert_allclose(prepare(image, raw).tensor[:, 0, 0], [255, 0, 51], rtol=1e-5)
