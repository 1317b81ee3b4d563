"""Image files of every kind, and what only looks like one."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dropout_study import images
from dropout_study.console import StudyError
from dropout_study.images import find_images, read_image
from tests import mutated_images
from tests.clones import PROJECT
from tests.needs import needs

SIZE = (16, 16)
READ_AND_PRINT_MEMORY = """
import sys
from pathlib import Path
from dropout_study.images import read_image
from tests.memory import peak
before = peak()
read_image(Path(sys.argv[1]), (16, 16))
print(peak() - before)
"""


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A picture of which every quarter is different, and so every turn."""
    quarters = np.random.default_rng(3).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(quarters).resize((64, 64), Image.Resampling.NEAREST)


def pixels(path: Path) -> np.ndarray:
    return read_image(path, SIZE).astype(int)


def png_without_pixels(width: int, height: int) -> bytes:
    """Return a grey PNG file that declares a size, and ends where its pixels begin."""

    def chunk(content: bytes) -> bytes:
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    header = chunk(b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT" + zlib.compress(b""))


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


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.ones((20, 20), np.float32), "floating-point pixels"),
        (np.full((20, 20), 70_000, np.int32), "grey of more than 16 bits"),
        (np.full((20, 20), -1, np.int32), "grey of more than 16 bits"),
    ],
)
def test_read_image_refuses_values_without_a_known_range(tmp_path: Path, values: np.ndarray, reason: str) -> None:
    Image.fromarray(values).save(tmp_path / "image.tiff")

    with pytest.raises(StudyError, match=f"^{reason}.*; save it with 8 or 16 bits$"):
        pixels(tmp_path / "image.tiff")


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
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
    (tmp_path / "header.png").write_bytes(png_without_pixels(8, 8))
    (tmp_path / "nothing").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    expected = {
        "cut.jpg": "damaged, or cut off",
        "text.png": "not an image of a kind that is read (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP), or damaged",
        "empty.png": "not an image of a kind",
        "header.png": "damaged, or cut off",
        "missing.png": "cannot be read: No such file or directory",
        "link.png": "cannot be read: No such file or directory",
        "nothing": "a directory without images (.apng .bmp",
        "pipe.png": "not a regular file",
        "text.png/below.png": "cannot be read: Not a directory",
    }

    for name, reason in expected.items():
        with pytest.raises(StudyError) as caught:
            pixels(tmp_path / name)
        assert str(caught.value).startswith(reason), name
        assert "\n" not in str(caught.value)


def test_read_image_refuses_a_bomb_by_the_size_that_it_declares(tmp_path: Path) -> None:
    for width, height in ((60_000, 60_000), (7_200, 7_200)):
        (tmp_path / "bomb.png").write_bytes(png_without_pixels(width, height))

        with pytest.raises(StudyError, match="more than 51,000,000 pixels; scale it down first"):
            pixels(tmp_path / "bomb.png")


def test_read_image_refuses_too_many_bytes(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # sparse

    with pytest.raises(StudyError, match="larger than 1,000,000,000 bytes"):
        pixels(tmp_path / "large.png")


def test_read_image_leaves_libtiffs_messages_out(
    picture: Image.Image, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture.save(tmp_path / "cut.tiff", compression="tiff_lzw")
    content = (tmp_path / "cut.tiff").read_bytes()
    (tmp_path / "cut.tiff").write_bytes(content[:8] + bytes(100) + content[108:])

    with pytest.raises(StudyError):
        pixels(tmp_path / "cut.tiff")

    assert capfd.readouterr() == ("", "")


@needs(sys.platform == "linux", "only Linux says how much memory a process has had")
@pytest.mark.parametrize("kind", ["grey-16.png", "grey-16.pgm", "transparent.webp"])
def test_read_image_needs_little_memory_for_the_largest_image(tmp_path: Path, kind: str) -> None:
    width, height = 8_500, 6_000
    assert width * height == images.MAX_PIXELS
    large: Image.Image = (
        Image.new("RGBA", (width, height), (1, 2, 3, 4))
        if kind == "transparent.webp"
        else Image.fromarray(np.full((height, width), 257, np.uint16))
    )
    large.save(tmp_path / kind, compress_level=1, method=0)

    done = subprocess.run(
        [sys.executable, "-c", READ_AND_PRINT_MEMORY, str(tmp_path / kind)],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert int(done.stdout) + (tmp_path / kind).stat().st_size < images.MAX_MEMORY


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(13, id="13"),
        *(
            pytest.param(int(os.environ["STRESS_SEED"]) + i, id=f"STRESS_SEED+{i}", marks=pytest.mark.stress)
            for i in range(20)
        ),
    ],
)
def test_read_image_reads_or_refuses_10_000_damaged_files(seed: int) -> None:
    command = [sys.executable, "-m", "tests.mutated_images", "--seed", str(seed), "--count", "10000"]

    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    report = json.loads(done.stdout)
    outcomes = report["outcomes"]
    assert sum(outcomes.values()) == 10_000
    assert report["bytes"] < images.MAX_MEMORY
    assert len(outcomes) == 2 * len(mutated_images.MODES)  # some of every format are read, some refused


def test_find_images_takes_files_by_suffix_from_directories(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "web.jfif", "c.jpe", "d.apng", "e.pnm", "._a.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "deeper.png").mkdir()
    (tmp_path / "empty").mkdir()

    search = find_images([tmp_path / "notes.txt", tmp_path, tmp_path / "empty", tmp_path / "missing"])

    names = ["a.JPG", "b.png", "c.jpe", "d.apng", "e.pnm", "web.jfif"]
    assert search.paths == [
        tmp_path / "notes.txt",
        *(tmp_path / name for name in names),
        tmp_path / "empty",
        tmp_path / "missing",
    ]
    assert search.passed_over == 3
