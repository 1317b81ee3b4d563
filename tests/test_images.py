"""Image files of every kind, and what only looks like one."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dropout_study.console import StudyError
from dropout_study.images import find_images, read_image

SIZE = (16, 16)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A picture of which every quarter is different, and so every turn."""
    quarters = np.random.default_rng(3).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(quarters).resize((64, 64), Image.Resampling.NEAREST)


def pixels(path: Path) -> np.ndarray:
    return read_image(path, SIZE).astype(int)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("plain.bmp", lambda image: image),
        ("plain.tiff", lambda image: image),
        ("plain.webp", lambda image: image),
        ("plain.ppm", lambda image: image),
        ("opaque.png", lambda image: image.convert("RGBA")),
        ("palette.png", lambda image: image.quantize(256)),
        ("palette.gif", lambda image: image.quantize(256)),
        ("cmyk.tiff", lambda image: image.convert("CMYK")),
        ("ycbcr.tiff", lambda image: image.convert("YCbCr")),
    ],
)
def test_read_image_gives_the_same_pixels_in_any_format_and_mode(
    picture: Image.Image, tmp_path: Path, name: str, change: Callable[[Image.Image], Image.Image]
) -> None:
    picture.save(tmp_path / "reference.png")
    change(picture).save(tmp_path / name, lossless=True)

    difference = np.abs(pixels(tmp_path / name) - pixels(tmp_path / "reference.png"))

    assert difference.max() <= 3


@pytest.mark.parametrize("name", ["16.png", "16.tiff", "16.pgm", "alpha.png"])
def test_read_image_scales_grey_by_the_range_of_its_type(picture: Image.Image, tmp_path: Path, name: str) -> None:
    grey = picture.convert("L")
    grey.save(tmp_path / "8.png")
    sixteen_bits = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    (grey.convert("LA") if name == "alpha.png" else sixteen_bits).save(tmp_path / name)

    values = pixels(tmp_path / name)

    assert np.ptp(values, axis=-1).max() == 0
    assert np.abs(values - pixels(tmp_path / "8.png")).max() <= 1


def test_read_image_keeps_dark_grey_of_16_bits_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20), 257, np.uint16)).save(tmp_path / "dark.png")

    assert (pixels(tmp_path / "dark.png") == 1).all()


def test_read_image_lays_transparent_parts_on_white(picture: Image.Image, tmp_path: Path) -> None:
    transparent, half = picture.convert("RGBA"), Image.new("RGBA", (20, 20), (0, 0, 0, 128))
    transparent.putalpha(0)
    transparent.save(tmp_path / "all.png")
    half.save(tmp_path / "half.png")
    palette = picture.quantize(8)
    palette.info["transparency"] = bytes(8)
    palette.save(tmp_path / "palette.png")

    assert (pixels(tmp_path / "all.png") == 255).all()
    assert (pixels(tmp_path / "palette.png") == 255).all()
    assert set(np.unique(pixels(tmp_path / "half.png"))) <= {127, 128}


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_read_image_turns_by_exif_orientation(
    picture: Image.Image, tmp_path: Path, orientation: int, suffix: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / f"turned.{suffix}", exif=exif, quality=100)
    with Image.open(tmp_path / f"turned.{suffix}") as image:
        ImageOps.exif_transpose(image).save(tmp_path / "expected.png")

    difference = np.abs(pixels(tmp_path / f"turned.{suffix}") - pixels(tmp_path / "expected.png"))

    assert difference.max() <= 3


def test_read_image_ignores_broken_exif_data(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "broken.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")

    assert pixels(tmp_path / "broken.jpg").shape == (16, 16, 3)


def test_read_image_takes_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    for suffix in ("gif", "tiff", "webp", "apng"):
        path = tmp_path / f"frames.{suffix}"
        frames[0].save(path, format="PNG" if suffix == "apng" else None, save_all=True, append_images=frames[1:])

        red, _, blue = pixels(path).mean(axis=(0, 1))

        assert (red > 200, blue < 50) == (True, True), suffix


@pytest.mark.parametrize(("width", "height"), [(1, 1), (31, 501), (2_000, 1_500), (16, 16)])
def test_read_image_cuts_out_the_middle(tmp_path: Path, width: int, height: int) -> None:
    side = min(width, height)
    values = np.zeros((height, width, 3), np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    values[top : top + side, left : left + side] = 200
    Image.fromarray(values).save(tmp_path / "image.png")

    assert pixels(tmp_path / "image.png").mean() == pytest.approx(200, abs=8)


def test_read_image_names_what_is_wrong_in_one_line(picture: Image.Image, tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(jpeg.getvalue()[:-200])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    expected = {
        "cut.jpg": "damaged, or cut off",
        "text.png": "not an image of a kind that is read (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP), or damaged",
        "empty.png": "not an image of a kind",
        "missing.png": "cannot be read: No such file or directory",
        "link.png": "cannot be read: No such file or directory",
        "nothing": "a directory without images (.apng .bmp",
        "text.png/below.png": "cannot be read: Not a directory",
    }

    for name, reason in expected.items():
        with pytest.raises(StudyError) as caught:
            pixels(tmp_path / name)
        assert str(caught.value).startswith(reason), name
        assert "\n" not in str(caught.value)


def test_read_image_refuses_a_giant_by_the_size_that_it_declares(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "giant.png")

    with pytest.raises(StudyError, match=r"could be decompression bomb .*; scale it down first"):
        pixels(tmp_path / "giant.png")


def test_find_images_takes_files_by_suffix_from_directories(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "web.jfif", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "deeper.png").mkdir()
    (tmp_path / "empty").mkdir()

    found = find_images([tmp_path / "notes.txt", tmp_path, tmp_path / "empty", tmp_path / "missing"])

    names = ["notes.txt", "a.JPG", "b.png", "web.jfif", "empty", "missing"]
    assert found == [tmp_path / name for name in names]
