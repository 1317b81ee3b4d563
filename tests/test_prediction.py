"""`dropout-study predict` on images of every kind, and on what only looks like one."""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageOps

from dropout_study import prediction
from dropout_study.cli import main
from dropout_study.errors import StudyError
from dropout_study.model_file import save_model

CLASSES = ["frog", "truck", "deer", "bird"]
SIZE = 16


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dropout_study.network import build_network

    network = build_network(
        (SIZE, SIZE, 3),
        len(CLASSES),
        filters=[4, 5],
        units=[6],
        first_activation="relu",
        dropout=0.5,
        seed=2,
        scale=[0.02] * 3,
        offset=[-1] * 3,
    )
    path = tmp_path_factory.mktemp("model") / "model.keras"
    save_model(network, CLASSES, path)
    return path


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A picture of which every quarter is different, and so every turn."""
    quarters = np.random.default_rng(3).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(quarters).resize((64, 64), Image.Resampling.NEAREST)


@pytest.fixture
def run(model_file: Path) -> Callable[..., Result]:
    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(main, ["predict", "--model", str(model_file), *map(str, arguments)])

    return run


def pixels(path: Path) -> np.ndarray:
    return prediction.read_image(path, (SIZE, SIZE)).astype(int)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int, bits: int = 8, colour: int = 0) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


def png(width: int, height: int, bits: int, colour: int, rows: list[bytes], transparent: bytes) -> bytes:
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    rest = chunk(b"tRNS", transparent) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return png_header(width, height, bits, colour) + rest


def tiff_header(width: int, height: int, order: str = "<", **changes: int) -> bytes:
    """Return what comes before the pixels in a TIFF file of one strip of grey values; changes of tags: t258=16."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 278: height, 339: 1}
    tags |= {int(name[1:]): value for name, value in changes.items()}
    offset = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags |= {273: offset, 279: width * height * tags[258] // 8 * tags[277]}
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())]
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}IH", 8, len(tags)) + b"".join(entries) + bytes(4)


def tiff(values: np.ndarray, white_is_zero: bool = False) -> bytes:
    """Return grey values as a TIFF file, in their byte order."""
    (height, width), kind = values.shape, values.dtype
    order = "<" if kind.newbyteorder("<") == kind else ">"
    sample_format = {"u": 1, "i": 2, "f": 3}[kind.kind]
    header = tiff_header(width, height, order, t258=8 * kind.itemsize, t262=int(not white_is_zero), t339=sample_format)
    return header + values.tobytes()


def with_exif(jpeg: bytes, exif: bytes) -> bytes:
    segment = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be an ordinary user in the block: root may read everything."""
    if os.getuid():
        yield
        return
    os.setresuid(65_534, 65_534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_the_probabilities_are_those_of_the_model(run: Callable[..., Result], model_file: Path, tmp_path: Path) -> None:
    import keras

    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    expected = keras.models.load_model(model_file).predict(images, verbose=0)
    done = run("--json", tmp_path)
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    assert printed["model"] == str(model_file)
    for i, (one, row) in enumerate(zip(printed["images"], expected, strict=True)):
        assert one["file"] == str(tmp_path / f"{i}.png")
        order = np.argsort(-row)[:3]
        assert [guess["name"] for guess in one["classes"]] == [CLASSES[k] for k in order]
        assert [guess["probability"] for guess in one["classes"]] == pytest.approx(row[order].tolist(), rel=1e-4)


def test_the_table_has_a_line_an_image(run: Callable[..., Result], picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "longer name.png")
    done = run(tmp_path / "longer name.png", tmp_path / "a.png")
    assert done.exit_code == 0
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path / 'longer name.png'}   ")
    assert first.removeprefix(str(tmp_path / "longer name.png")).split() == second.split()[1:]
    assert [part for part in second.split()[1:] if part in CLASSES] == second.split()[1::2]
    assert len(second.split()) == 7


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("plain.png", lambda image: image),
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
def test_the_same_picture_is_the_same_in_any_mode(
    picture: Image.Image, tmp_path: Path, name: str, change: Callable[[Image.Image], Image.Image]
) -> None:
    picture.save(tmp_path / "reference.png")
    change(picture).save(tmp_path / name, lossless=True)
    assert np.abs(pixels(tmp_path / name) - pixels(tmp_path / "reference.png")).max() <= 3


def test_grey_is_grey_in_8_and_16_bits_and_black_and_white(picture: Image.Image, tmp_path: Path) -> None:
    grey = picture.convert("L")
    grey.save(tmp_path / "8.png")
    values = np.asarray(grey).astype(np.uint16) * 257
    Image.fromarray(values).save(tmp_path / "16.png")
    Image.fromarray(values).save(tmp_path / "16.tiff")
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "32.tiff")
    Image.fromarray(np.asarray(grey).astype(np.float32)).save(tmp_path / "float.tiff")
    grey.convert("LA").save(tmp_path / "alpha.png")
    for name in ("8.png", "16.png", "16.tiff", "32.tiff", "float.tiff", "alpha.png"):
        found = pixels(tmp_path / name)
        assert np.ptp(found, axis=-1).max() == 0
        assert np.abs(found - pixels(tmp_path / "8.png")).max() <= 1, name
    picture.convert("1").save(tmp_path / "1.png")
    dithered = pixels(tmp_path / "1.png")
    assert np.ptp(dithered, axis=-1).max() == 0
    assert dithered.mean() == pytest.approx(pixels(tmp_path / "8.png").mean(), abs=5)


def test_what_is_transparent_is_white(picture: Image.Image, tmp_path: Path) -> None:
    transparent = picture.convert("RGBA")
    transparent.putalpha(0)
    transparent.save(tmp_path / "all.png")
    assert (pixels(tmp_path / "all.png") == 255).all()
    palette = picture.quantize(16)
    palette.save(tmp_path / "index.png", transparency=palette.getpixel((0, 0)))
    assert (pixels(tmp_path / "index.png")[0, 0] == 255).all()
    half = picture.convert("RGBA")
    half.putalpha(128)
    half.save(tmp_path / "half.png")
    picture.save(tmp_path / "opaque.png")
    expected = 255 - (255 - pixels(tmp_path / "opaque.png")) * 128 / 255
    assert np.abs(pixels(tmp_path / "half.png") - expected).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_data_say(picture: Image.Image, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        ImageOps.exif_transpose(image).save(tmp_path / "upright.png")
    np.testing.assert_array_equal(pixels(tmp_path / "turned.png"), pixels(tmp_path / "upright.png"))
    picture.save(tmp_path / "as it lies.png")
    same = (pixels(tmp_path / "turned.png") == pixels(tmp_path / "as it lies.png")).all()
    assert same == (orientation == 1)


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack(">HHI4s", tag, kind, count, value)


TURN = entry(0x0112, 3, 1, b"\0\6\0\0")


@pytest.mark.parametrize(
    ("entries", "turned"),
    [
        ([TURN], True),
        ([TURN, entry(0x0128, 5, 1, b"\0\0\0\x08")], True),  # a fraction where there should be an integer
        ([TURN, entry(0x8769, 4, 1, b"\x7f\xff\xff\xff")], True),  # points behind the end
        ([entry(0x0112, 2, 4, b"6abc")], False),
        ([entry(0x0112, 3, 1, b"\0\x09\0\0")], False),
        ([TURN[:7]], False),
    ],
)
def test_a_jpeg_with_odd_exif_data_is_read(
    picture: Image.Image, tmp_path: Path, entries: list[bytes], turned: bool
) -> None:
    picture.save(tmp_path / "plain.jpg", quality=95)
    plain = (tmp_path / "plain.jpg").read_bytes()
    exif = b"MM\0*" + struct.pack(">IH", 8, len(entries)) + b"".join(entries)
    (tmp_path / "odd.jpg").write_bytes(with_exif(plain, exif))
    (tmp_path / "none.jpg").write_bytes(with_exif(plain, b"no EXIF data at all"))
    lies = pixels(tmp_path / "plain.jpg")
    np.testing.assert_array_equal(pixels(tmp_path / "none.jpg"), lies)
    expected = np.rot90(lies, -1) if turned else lies
    assert np.abs(pixels(tmp_path / "odd.jpg") - expected).max() <= 2


RAMP = np.arange(256).reshape(16, 16)
HALF = RAMP / 255 - 0.5


@pytest.mark.parametrize(
    "values",
    [
        (RAMP / 255).astype("<f4"),
        (RAMP / 255).astype(">f4"),
        RAMP.astype("<f4"),
        (RAMP * 257).astype("<f4"),
        (HALF * 7e9).astype("<f4"),
        (HALF * 2e-3).astype("<f4"),
        (RAMP * 257).astype("<u2"),
        (RAMP * 257).astype(">u2"),
        (RAMP * 257 - 32_768).astype("<i2"),
        (RAMP * 32_767 // 255).astype(">i2"),
        RAMP.astype("<i4"),
        (RAMP * 257).astype(">i4"),
        (RAMP * 8_421_504 - 2**30).astype("<i4"),
        RAMP.astype("<u4"),
        (RAMP * 257).astype("<u4"),
        (RAMP * 16_843_009).astype("<u4"),
    ],
    ids=lambda values: f"{values.dtype.str} {values.min():g} to {values.max():g}",
)
def test_grey_of_many_bits_is_seen_from_black_to_white(tmp_path: Path, values: np.ndarray) -> None:
    (tmp_path / "image.tiff").write_bytes(tiff(values))
    found = pixels(tmp_path / "image.tiff")
    assert np.ptp(found, axis=-1).max() == 0
    assert np.abs(found[..., 0] - RAMP).max() <= 1


@pytest.mark.parametrize("kind", ["<u1", ">u1", "<u2", "<f4"])
def test_white_may_be_zero(tmp_path: Path, kind: str) -> None:
    scale = {"u1": 1, "u2": 257, "f4": 1 / 255}[kind[1:]]
    (tmp_path / "image.tiff").write_bytes(tiff((RAMP * scale).astype(kind), white_is_zero=True))
    assert np.abs(255 - pixels(tmp_path / "image.tiff")[..., 0] - RAMP).max() <= 1


def test_dark_is_dark_and_what_is_no_number_is_black(tmp_path: Path) -> None:
    for order in "<>":
        (tmp_path / "16.tiff").write_bytes(tiff((RAMP * 50).astype(f"{order}u2")))
        assert pixels(tmp_path / "16.tiff").max() == 50
    (tmp_path / "constant.tiff").write_bytes(tiff(np.full((16, 16), -5, "<f4")))
    assert pixels(tmp_path / "constant.tiff").max() == 0
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "16.pgm")
    assert pixels(tmp_path / "16.pgm").max() == 1
    (tmp_path / "float.tiff").write_bytes(tiff((RAMP / 1000).astype("<f4")))
    assert pixels(tmp_path / "float.tiff").max() == 65
    (tmp_path / "float.pfm").write_bytes(b"Pf 16 16 -1 " + (RAMP[::-1] / 255).astype("<f4").tobytes())
    assert np.abs(pixels(tmp_path / "float.pfm")[..., 0] - RAMP).max() <= 1
    strange = np.full((16, 16), np.nan, "<f4")
    (tmp_path / "nan.tiff").write_bytes(tiff(strange))
    assert pixels(tmp_path / "nan.tiff").max() == 0
    strange[8:], strange[8:, 8:], strange[:8, 8:] = 0.5, np.inf, -np.inf
    (tmp_path / "strange.tiff").write_bytes(tiff(strange))
    found = pixels(tmp_path / "strange.tiff")[..., 0]
    assert [found[y, x] for y, x in ((3, 3), (3, 12), (12, 3), (12, 12))] == pytest.approx([0, 0, 128, 255], abs=1)


GREY = [[40_000, 10_000], [65_535, 40_000]]


@pytest.mark.parametrize(
    ("bits", "colour", "rows", "transparent", "expected"),
    [
        (1, 0, [b"\x40", b"\x80"], b"\0\0", [[255, 255], [255, 255]]),
        (2, 0, [b"\x40", b"\x90"], b"\0\1", [[255, 0], [170, 255]]),
        (4, 0, [b"\x40", b"\xf4"], b"\0\4", [[255, 0], [255, 255]]),
        (8, 0, [b"\x40\x20", b"\xff\x40"], b"\0\x40", [[255, 32], [255, 255]]),
        (16, 0, [struct.pack(">2H", *row) for row in GREY], struct.pack(">H", 40_000), [[255, 39], [255, 255]]),
        (16, 2, [struct.pack(">6H", *[v for v in row for _ in "rgb"]) for row in GREY],
         struct.pack(">3H", *[40_000] * 3), [[255, 39], [255, 255]]),
    ],
)  # fmt: skip
def test_a_transparent_value_is_one_of_the_files_own_bits(
    tmp_path: Path, bits: int, colour: int, rows: list[bytes], transparent: bytes, expected: list[list[int]]
) -> None:
    (tmp_path / "image.png").write_bytes(png(2, 2, bits, colour, rows, transparent))
    found = prediction.read_image(tmp_path / "image.png", (2, 2))
    assert np.abs(found - np.array(expected)[..., None]).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2)], ids=["RGB", "RGBA", "LA"])
def test_png_of_8_and_16_bits_a_channel(tmp_path: Path, bits: int, colour: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (16, 16, channels))
    alpha = 1 - values[..., -1:] / 255 if channels in (2, 4) else 0
    shown = values[..., : channels - 1 + channels % 2]
    rows = [(row * (257 if bits == 16 else 1)).astype(f">u{bits // 8}").tobytes() for row in values]
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b"")
    (tmp_path / "image.png").write_bytes(png_header(16, 16, bits, colour) + data)
    assert np.abs(pixels(tmp_path / "image.png") - (shown * (1 - alpha) + 255 * alpha)).max() <= 2


def test_of_several_frames_the_first_counts(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "first.png")
    for kind in ("gif", "png", "webp", "tiff"):
        frames = [picture.transpose(Image.Transpose.ROTATE_90), Image.new("RGB", picture.size)]
        name = tmp_path / f"many.{kind}"
        picture.save(name, save_all=True, append_images=frames, lossless=True)
        assert np.abs(pixels(name) - pixels(tmp_path / "first.png")).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (31, 501), (2_000, 1_500), (16, 16)])
def test_any_size_will_do_and_the_middle_is_cut_out(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    side = min(size)
    top, left = (height - side) // 2, (width - side) // 2
    image[top : top + side, left : left + side] = 200
    Image.fromarray(image).save(tmp_path / "image.png")
    found = pixels(tmp_path / "image.png")
    assert found.shape == (SIZE, SIZE, 3)
    assert (found[4:-4, 4:-4] == 200).all()


TOO_EARLY = "damaged: it ends too early; fetch it again"
NOT_DECODED = "damaged: it begins like an image but cannot be decoded; fetch it again"
NO_IMAGE = "not an image of a kind that is read here (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP), or damaged at its start"


def bad_files(directory: Path, picture: Image.Image) -> dict[str, str]:
    """Write files that cannot be read; return the beginning of the message about each."""

    def saved(kind: str, **how: Any) -> bytes:
        picture.save(file := io.BytesIO(), kind, **how)
        return file.getvalue()

    def cut(content: bytes) -> bytes:
        return content[: len(content) // 2]

    whole, lzw = saved("PNG"), saved("TIFF", compression="tiff_lzw")
    text_bomb = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(50_000_000)))
    contents = {
        "empty.png": (b"", NO_IMAGE),
        "text.png": (b"no image at all", NO_IMAGE),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NO_IMAGE),
        "cut.png": (cut(whole), TOO_EARLY),
        "cut.jpg": (cut(saved("JPEG")), TOO_EARLY),
        "cut.bmp": (cut(saved("BMP")), TOO_EARLY),
        "cut.gif": (cut(saved("GIF")), TOO_EARLY),
        "cut header.png": (whole[:20], TOO_EARLY),
        "cut.tiff": (lzw[:8] + cut(lzw[8:]), NO_IMAGE),
        "damaged.png": (whole[:60] + bytes(40) + whole[100:], NOT_DECODED),
        "damaged.tiff": (lzw[:12] + bytes(60) + lzw[72:], NOT_DECODED),
        "damaged.webp": (saved("WEBP")[:40] + bytes(100), NOT_DECODED),
        "text bomb.png": (whole[:33] + text_bomb + whole[33:], NOT_DECODED),
    }
    for name, (content, _) in contents.items():
        (directory / name).write_bytes(content)
    return {name: part for name, (_, part) in contents.items()}


def test_bad_files_are_a_line_each_and_the_others_are_classified(
    run: Callable[..., Result], picture: Image.Image, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = bad_files(tmp_path, picture)
    picture.save(tmp_path / "good.png")
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "nothing").mkdir()
    parts |= {
        "missing.png": "there is no such file",
        "broken.png": "a symbolic link to what is not there",
        "circle.png": "cannot be read: Too many levels of symbolic links",
        "pipe.png": "not a file",
        "nothing": "a directory without images: no name in it ends in .bmp .gif .jpg",
        "long" * 100: "cannot be read: File name too long",
        "good.png/inside.png": "cannot be read: Not a directory",
    }
    others = [tmp_path / name for name in ("missing.png", "nothing", "long" * 100, "good.png/inside.png")]
    done = run(*others, tmp_path, "/proc/self/mem")
    assert done.exit_code == 1
    assert [line.partition("   ")[0] for line in done.stdout.splitlines()] == [str(tmp_path / "good.png")]
    messages = dict(line.removeprefix("error: ").split(": ", 1) for line in done.stderr.splitlines())
    assert messages.pop("/proc/self/mem").startswith("cannot be read: ")
    assert set(messages) == {str(tmp_path / name) for name in parts}
    for name, part in parts.items():
        assert messages[str(tmp_path / name)].startswith(part), name
    assert capfd.readouterr().err == ""  # nor does libtiff write anything there


def test_what_must_not_be_read_is_a_line_each(
    run: Callable[..., Result], picture: Image.Image, model_file: Path, tmp_path: Path
) -> None:
    picture.save(tmp_path / "good.png")
    assert run(tmp_path / "good.png").exit_code == 0  # everything is imported while it may be
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)  # ordinary users cannot get at tmp_path
        directory.chmod(0o755)
        shutil.copy(model_file, directory / "model.keras")
        for image in ("1.png", "2.png"):
            picture.save(directory / image)
        (directory / "1.png").chmod(0)
        (directory / "closed").mkdir(mode=0)
        with as_nobody():
            done = CliRunner().invoke(
                main, ["predict", "--model", f"{name}/model.keras", name, f"{name}/closed", f"{name}/closed/1.png"]
            )
            (directory / "model.keras").stat()
            no_model = CliRunner().invoke(main, ["predict", "--model", f"{name}/closed/m.keras", name])
        assert done.exit_code == 1
        assert [line.split()[0] for line in done.stdout.splitlines()] == [f"{name}/2.png"]
        assert done.stderr.splitlines() == [
            f"error: {name}/{one}: cannot be read: Permission denied" for one in ("1.png", "closed", "closed/1.png")
        ]
        assert no_model.exit_code == 1
        assert no_model.stderr == f"error: {name}/closed/m.keras: cannot be read: Permission denied\n"


def test_names_do_nothing_to_the_terminal(run: Callable[..., Result], picture: Image.Image, tmp_path: Path) -> None:
    bad, good = tmp_path / "a\nb\x1b[31m.png", tmp_path / "c\u202e\r\x9b2J é.png"
    bad.write_bytes(b"")
    picture.save(good)
    done = run(bad, good)
    assert done.exit_code == 1
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{tmp_path}/c\\u202e\\r\\x9b2J é.png   ")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/a\\nb\\x1b[31m.png: not an image")
    assert [one["file"] for one in json.loads(run("--json", bad, good).stdout)["images"]] == [str(bad), str(good)]
    no_model = CliRunner().invoke(main, ["predict", "--model", "x\n\x1b[31m.keras", str(good)])
    assert no_model.stderr.startswith("error: x\\n\\x1b[31m.keras: there is no such model; ")


def test_bytes_that_are_no_text_in_a_name(run: Callable[..., Result], picture: Image.Image, tmp_path: Path) -> None:
    name = tmp_path / os.fsdecode(b"\xff.png")
    picture.save(tmp_path / "image.png")
    (tmp_path / "image.png").rename(name)
    assert run(name).stdout.startswith(f"{tmp_path}/\\udcff.png   ")
    assert json.loads(run("--json", name).stdout)["images"][0]["file"] == str(name)


def test_a_bomb_is_refused_for_the_size_that_it_declares(picture: Image.Image, tmp_path: Path) -> None:
    """The pixels themselves are missing: they are not asked for."""

    def declared(kind: str, offset: int, form: str, *size: int) -> bytes:
        picture.save(file := io.BytesIO(), kind)
        content = file.getvalue()
        start = content.index(b"\xff\xc0") + 5 if kind == "JPEG" else offset
        return content[:start] + struct.pack(form, *size) + content[start + struct.calcsize(form) :]

    size = "10000 × 6000 pixels, more than the 51,000,000 pixels that are read; scale it down first"
    tile = size.replace("10000 × 6000 pixels", "32752 × 32752 pixels")
    contents = {
        "image.png": (png_header(10_000, 6_000) + chunk(b"IDAT", b""), size),
        "larger.png": (png_header(60_000, 60_000) + chunk(b"IDAT", b""), size.partition(", ")[2]),
        "image.gif": (declared("GIF", 6, "<HH", 10_000, 6_000), size),
        "image.webp": (declared("WEBP", 26, "<HH", 10_000, 6_000), size),
        "image.jpg": (declared("JPEG", 0, ">HH", 6_000, 10_000), size),
        "image.bmp": (declared("BMP", 18, "<ii", 10_000, 6_000), size),
        "image.ppm": (b"P6 10000 6000 255 ", size),
        "image.tiff": (tiff_header(10_000, 6_000), size),
        "tile.tiff": (tiff_header(16, 16, t322=32_752, t323=32_752, t324=8, t325=8), tile),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StudyError) as error:
            prediction.read_image(tmp_path / name, (SIZE, SIZE))
        assert str(error.value) == message, name


def test_a_file_of_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "image.webp").open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWEBPVP8L")
        file.truncate(prediction.MOST_BYTES + 1)
    with pytest.raises(StudyError, match=r"^1,000,000,001 bytes, more than the 1,000,000,000 that are read$"):
        prediction.read_image(tmp_path / "image.webp", (SIZE, SIZE))


PEAK = r"""
import re, sys
from pathlib import Path
from PIL import Image
from dropout_study import prediction
def peak():  # of this process; that of `resource` begins with the parent's
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
Image.init()
before = peak()
prediction.read_image(Path(sys.argv[1]), (32, 32))
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("name", "most"), [("photo.jpg", 100), ("float.tiff", 1000), ("rgba.tiff", 500), ("16 bits.pgm", 1000)]
)
def test_the_largest_images_take_less_than_a_gigabyte(tmp_path: Path, name: str, most: float) -> None:
    width, height = 8_192, prediction.MOST_PIXELS // 8_192
    path = tmp_path / name
    if name == "photo.jpg":
        Image.new("RGB", (width, height), (9, 90, 200)).save(path)
    else:
        header, size = {
            "float.tiff": (tiff_header(width, height, t258=32, t339=3), 4),
            "rgba.tiff": (tiff_header(width, height, t262=2, t277=4, t338=2), 4),
            "16 bits.pgm": (f"P5 {width} {height} 65535\n".encode(), 2),
        }[name]
        with path.open("wb") as file:  # all zero, which takes no room on the disk
            file.write(header)
            file.truncate(len(header) + width * height * size)
    done = subprocess.run([sys.executable, "-c", PEAK, path], check=True, capture_output=True, text=True)
    assert float(done.stdout) < most


def test_json_has_the_errors_too(run: Callable[..., Result], picture: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no")
    picture.save(tmp_path / "2.png")
    done = run("--json", tmp_path)
    assert done.exit_code == 1
    bad, good = json.loads(done.stdout)["images"]
    assert bad["error"] == NO_IMAGE
    assert "classes" not in bad
    assert len(good["classes"]) == 3


def test_a_directory_gives_its_images_in_order(
    run: Callable[..., Result], picture: Image.Image, tmp_path: Path
) -> None:
    for name in ("b.PNG", "a.jpeg"):
        picture.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not looked at")
    (tmp_path / "deeper.png").mkdir()
    done = run(tmp_path)
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [str(tmp_path / n) for n in ("a.jpeg", "b.PNG")]


def test_json_is_json_even_if_nothing_was_found(run: Callable[..., Result], tmp_path: Path) -> None:
    done = run(tmp_path, "--json")
    assert done.exit_code == 1
    (found,) = json.loads(done.stdout)["images"]
    assert found["file"] == str(tmp_path)
    assert found["error"].startswith("a directory without images: no name in it ends in .bmp .gif")
    assert done.stderr == f"error: {tmp_path}: {found['error']}\n"


def test_more_images_than_a_batch_come_in_order(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "BATCH", 2)
    for i in range(5):
        Image.new("RGB", (4, 4), (50 * i, 0, 0)).save(tmp_path / f"{i}.png")
    together = [line.split()[1:] for line in run(tmp_path).stdout.splitlines()]
    alone = [run(tmp_path / f"{i}.png").stdout.split()[1:] for i in range(5)]
    assert together == alone


def test_a_batch_is_smaller_if_the_images_are_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []

    def network(images: np.ndarray, training: bool) -> np.ndarray:
        batches.append(len(images))
        return np.full((len(images), 2), 0.5)

    Image.new("RGB", (4, 4)).save(tmp_path / "image.png")
    for size in (64, 512, 1024):
        model = prediction.Model(Path("model.keras"), network, (size, size), "ab")
        assert len(list(prediction.predict(model, [tmp_path / "image.png"] * 5))) == 5
    assert batches == [5, 4, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_without_a_model_it_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").touch()  # a project
    done = CliRunner().invoke(main, ["predict", "image.png", *options])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "error: models/best.keras: there is no such model; `dvc repro` makes it; "
        "`dvc checkout`, or `dvc pull`, restores one that was made before\n"
    )
    done = CliRunner().invoke(main, ["predict", "image.png", "--model", "models/bets.keras", *options])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "error: models/bets.keras: there is no such model; check the path after --model; "
        "without --model it is models/best.keras\n"
    )


def changed(model: Path, **members: Callable[[bytes], bytes]) -> bytes:
    """Return a model file with some of its JSON files (`config`, `metadata`) changed."""
    with zipfile.ZipFile(model) as old, zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            change = members.get(name.partition(".")[0], bytes)
            new.writestr(name, change(old.read(name)))
    return file.getvalue()


def test_what_is_no_model_file_is_a_message(tmp_path: Path, model_file: Path) -> None:
    """Not even looked into, for it might never end, or be of a format that Keras would run code from."""
    shutil.copy(model_file, tmp_path / "model.h5")
    os.mkfifo(tmp_path / "pipe.keras")
    (tmp_path / "zero.keras").symlink_to("/dev/zero")
    (tmp_path / "directory.keras").mkdir()
    for name in ("model.h5", "pipe.keras", "zero.keras", "directory.keras"):
        with pytest.raises(StudyError, match=f"{name}: a model is a file with a name that ends in .keras, as Keras 3"):
            prediction.load_model(tmp_path / name)


def test_a_damaged_model_is_a_message(tmp_path: Path, model_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = model_file.read_bytes()
    half = len(whole) // 2
    contents = {
        "cut": whole[:-200],
        "text": b"no model",
        "empty": b"",
        "weights": whole[:half] + bytes(255 - byte for byte in whole[half : half + 40]) + whole[half + 40 :],
        "deep": changed(model_file, config=lambda _: b"[" * 100_000),
        "list": changed(model_file, metadata=lambda _: b"[1]"),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.keras").write_bytes(content)
        with pytest.raises(StudyError, match=rf"^[^\n]*{name}.keras: cannot be loaded as a Keras model: [^\n]+$"):
            prediction.load_model(tmp_path / f"{name}.keras")
    assert capfd.readouterr().err == ""


def test_a_model_that_would_take_too_much_memory_is_refused(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.keras"
    path.write_bytes(changed(model_file, metadata=lambda _: bytes(10_000_001)))
    with pytest.raises(StudyError, match="too large when unpacked: at most 1,000,000,000 bytes, and 10,000,000 for"):
        prediction.load_model(path)
    path.write_bytes(
        changed(model_file, config=lambda content: content.replace(b"[null, 16, 16, 3]", b"[null, 90000, 16000, 3]"))
    )
    with pytest.raises(StudyError, match="takes images of 90000 × 16000 pixels; at most 1,048,576 are allowed"):
        prediction.load_model(path)
    monkeypatch.setattr(prediction, "MOST_BYTES", 10_000)
    with pytest.raises(StudyError, match="too large when unpacked: at most 10,000 bytes, and"):
        prediction.load_model(model_file)


@pytest.mark.parametrize("classes", [["a"], [1, 2, 3, 4], "abcd", None, {"a": 0}])
def test_class_names_must_fit_the_outputs(tmp_path: Path, model_file: Path, classes: object) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(
        changed(model_file, metadata=lambda text: json.dumps(json.loads(text) | {"classes": classes}).encode())
    )
    is_so = re.escape(f"is {json.dumps(classes)}; it must be a list of 4 strings, a name for each output, or absent")
    with pytest.raises(StudyError, match=f"`classes` in its metadata.json {is_so}"):
        prediction.load_model(path)


def test_class_names_do_nothing_to_the_terminal(tmp_path: Path, picture: Image.Image, model_file: Path) -> None:
    path, classes = tmp_path / "model.keras", ["a\x1b[31m", "b\n", "c", "d"]
    path.write_bytes(
        changed(model_file, metadata=lambda text: json.dumps(json.loads(text) | {"classes": classes}).encode())
    )
    picture.save(tmp_path / "image.png")
    done = CliRunner().invoke(main, ["predict", "--model", str(path), *[str(tmp_path / "image.png")] * 2])
    assert len(done.stdout.splitlines()) == 2
    assert "\x1b" not in done.stdout


MODELS = """
import keras, zipfile
image = keras.Input((8, 8, 3))
flat = keras.layers.Flatten()(image)
probabilities = keras.layers.Dense(2, "softmax")(flat)
keras.Model(image, probabilities).save("strange.keras")
keras.Model(image, keras.layers.Dense(2)(flat)).save("logits.keras")
keras.Model(image, keras.layers.Rescaling(float("nan"))(probabilities)).save("nan.keras")
keras.Model(image, keras.layers.Dense(1, "sigmoid")(flat)).save("one.keras")
run = keras.layers.Lambda(lambda x: (open("ran", "w"), x)[1], output_shape=(192,))
code = keras.Model(image, keras.layers.Dense(2, "softmax")(run(flat)))
code.save("code.keras")
code.save("both.h5")
with zipfile.ZipFile("strange.keras") as safe, zipfile.ZipFile("both.h5", "a") as both:
    for name in safe.namelist():
        both.writestr(name, safe.read(name))
for shape, name in (((5,), "rows.keras"), ((8, 8, 3), "fixed.keras")):
    row = keras.Input(batch_shape=(None if name == "rows.keras" else 1, *shape))
    keras.Model(row, keras.layers.Dense(2)(keras.layers.Flatten()(row))).save(name)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of models that this project did not make, and of an image."""
    directory = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, "-c", MODELS], cwd=directory, check=True, capture_output=True)
    (directory / "ran").unlink(missing_ok=True)
    Image.new("RGB", (8, 8), (200, 100, 0)).save(directory / "image.png")
    return directory


def test_a_model_without_class_names_numbers_them(models: Path) -> None:
    strange = prediction.load_model(models / "strange.keras")
    (found,) = prediction.predict(strange, [models / "image.png"])
    assert {guess.name for guess in found.guesses} == {"0", "1"}
    assert sum(guess.probability for guess in found.guesses) == pytest.approx(1)


def test_a_model_with_code_in_it_is_not_loaded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is an HDF5 file, even if it is a zip archive of a harmless model at the same time."""
    monkeypatch.chdir(models)
    with pytest.raises(
        StudyError, match=r"code.keras: cannot be loaded as a Keras model: it holds code \(a Lambda layer"
    ):
        prediction.load_model(Path("code.keras"))
    both = Path("both.h5").read_bytes()
    assert both.startswith(b"\x89HDF")
    assert zipfile.is_zipfile("both.h5")
    for name in ("both.h5", "both.hdf5"):
        Path(name).write_bytes(both)
        with pytest.raises(StudyError, match=f"{name}: a model is a file with a name that ends in .keras"):
            prediction.load_model(Path(name))
    Path("both.keras").write_bytes(both)
    harmless = prediction.load_model(Path("both.keras"))
    assert len(list(prediction.predict(harmless, [Path("image.png")]))) == 1
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("rows", r"\(None, 5\) and gives \(None, 2\)"),
        ("fixed", r"\(1, 8, 8, 3\) and gives \(1, 2\)"),
        ("one", r"\(None, 8, 8, 3\) and gives \(None, 1\)"),
    ],
)
def test_a_model_of_other_shapes_is_refused(models: Path, name: str, shapes: str) -> None:
    with pytest.raises(StudyError, match=rf"{name}.keras: takes {shapes}; what is needed takes images, \(None, height"):
        prediction.load_model(models / f"{name}.keras")


@pytest.mark.parametrize("name", ["logits", "nan"])
def test_outputs_that_are_no_probabilities_are_an_error(models: Path, name: str) -> None:
    done = CliRunner().invoke(
        main, ["predict", "--json", "--model", str(models / f"{name}.keras"), str(models / "image.png")]
    )
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.fullmatch(
        rf"error: \S+{name}.keras: its outputs \(.* …\) are no probabilities: in \[0, 1\], with the sum 1. If they are "
        r"logits, .* keras.Sequential\(\[model, keras.layers.Softmax\(\)\]\)\n",
        done.stderr,
    )


def test_a_model_that_fails_on_images_is_a_message(tmp_path: Path) -> None:
    def network(*_: object, **__: object) -> None:
        raise ValueError("no\nsuch shape")

    Image.new("RGB", (4, 4)).save(tmp_path / "image.png")
    model = prediction.Model(Path("model.keras"), network, (4, 4), "ab")
    with pytest.raises(StudyError, match=r"^model.keras: fails on images: no such shape$"):
        list(prediction.predict(model, [tmp_path / "image.png"]))
