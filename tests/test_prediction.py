"""`dropout-study predict` on images of every kind, and on what only looks like one."""

import json
import os
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageOps

from dropout_study import evaluation, prediction
from dropout_study.cli import main
from dropout_study.errors import StudyError

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
    evaluation.save_model(network, CLASSES, path)
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


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


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
    ],
)
def test_the_same_picture_is_the_same_in_any_mode(
    picture: Image.Image, tmp_path: Path, name: str, change: Callable[[Image.Image], Image.Image]
) -> None:
    picture.save(tmp_path / "reference.png")
    change(picture).save(tmp_path / name, lossless=True)
    assert np.abs(pixels(tmp_path / name) - pixels(tmp_path / "reference.png")).max() <= 2


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


def bad_files(directory: Path, picture: Image.Image) -> dict[str, str]:
    """Write files that cannot be read; return a part of the message about each."""
    picture.save(directory / "whole.png")
    whole = (directory / "whole.png").read_bytes()
    picture.save(directory / "whole.jpg")
    jpeg = (directory / "whole.jpg").read_bytes()
    contents = {
        "empty.png": (b"", "not an image"),
        "text.png": (b"no image at all", "not an image of a kind that is read here (BMP, GIF"),
        "cut.png": (whole[: len(whole) // 2], "cannot be read: "),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "cannot be read: "),
        "damaged.png": (whole[:60] + bytes(40) + whole[100:], "cannot be read: "),
        "bomb.png": (png_header(60_000, 60_000) + chunk(b"IDAT", b""), "more than the 100,000,000 pixels"),
        "large.png": (png_header(12_000, 12_000) + chunk(b"IDAT", b""), "12000 × 12000 pixels, more than the"),
        "text bomb.png": (
            whole[:33] + chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(50_000_000))) + whole[33:],
            "cannot be read: ",
        ),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    }
    for name, (content, _) in contents.items():
        (directory / name).write_bytes(content)
    for name in ("whole.png", "whole.jpg"):
        (directory / name).unlink()
    return {name: part for name, (_, part) in contents.items()}


def test_bad_files_are_a_line_each_and_the_others_are_classified(
    run: Callable[..., Result], picture: Image.Image, tmp_path: Path
) -> None:
    parts = bad_files(tmp_path, picture)
    picture.save(tmp_path / "good.png")
    missing, pipe = tmp_path / "missing.png", tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    done = run(tmp_path, missing, pipe)
    assert done.exit_code == 1
    assert [line.partition("   ")[0] for line in done.stdout.splitlines()] == [str(tmp_path / "good.png")]
    messages = dict(line.removeprefix("error: ").split(": ", 1) for line in done.stderr.splitlines())
    assert set(messages) == {str(path) for path in (*(tmp_path / name for name in parts), missing, pipe)}
    for name, part in parts.items():
        assert messages[str(tmp_path / name)].startswith(part), name
    assert messages[str(missing)] == "there is no such file"
    assert messages[str(pipe)] == "not a file"


def test_json_has_the_errors_too(run: Callable[..., Result], picture: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no")
    picture.save(tmp_path / "2.png")
    done = run("--json", tmp_path)
    assert done.exit_code == 1
    bad, good = json.loads(done.stdout)["images"]
    assert bad["error"].startswith("not an image")
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


def test_a_directory_without_images_is_an_error(run: Callable[..., Result], tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.exit_code == 1
    assert f"no images in {tmp_path}: no file ends in .bmp .gif" in done.stderr


def test_more_images_than_a_batch_come_in_order(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "BATCH", 2)
    for i in range(5):
        Image.new("RGB", (4, 4), (50 * i, 0, 0)).save(tmp_path / f"{i}.png")
    together = [line.split()[1:] for line in run(tmp_path).stdout.splitlines()]
    alone = [run(tmp_path / f"{i}.png").stdout.split()[1:] for i in range(5)]
    assert together == alone


def test_without_a_model_it_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["predict", "image.png"])
    assert done.exit_code == 1
    assert done.stderr == (
        "error: models/best.keras: there is no such model; `dvc repro` makes it, and --model names another\n"
    )


def test_a_damaged_model_is_a_message(tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "cut.keras").write_bytes(model_file.read_bytes()[:-200])
    (tmp_path / "text.keras").write_text("no model")
    (tmp_path / "other.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    for name in ("cut.keras", "text.keras", "other.h5"):
        with pytest.raises(StudyError, match=f"{name}: cannot be loaded as a Keras model: "):
            prediction.load_model(tmp_path / name)


MODELS = """
import keras
image = keras.Input((8, 8, 3))
flat = keras.layers.Flatten()(image)
keras.Model(image, keras.layers.Dense(2, "softmax")(flat)).save("strange.keras")
keras.Model(image, keras.layers.Dense(2)(keras.layers.Lambda(lambda x: x)(flat))).save("code.keras")
row = keras.Input((5,))
keras.Model(row, keras.layers.Dense(2)(row)).save("rows.keras")
"""


def test_models_of_other_people(tmp_path: Path, picture: Image.Image) -> None:
    """One without class names serves; one with code in it is not loaded; one that takes no images is refused."""
    subprocess.run([sys.executable, "-c", MODELS], cwd=tmp_path, check=True, capture_output=True)
    picture.save(tmp_path / "image.png")
    strange = prediction.load_model(tmp_path / "strange.keras")
    (found,) = prediction.predict(strange, [tmp_path / "image.png"])
    assert {guess.name for guess in found.guesses} == {"0", "1"}
    assert sum(guess.probability for guess in found.guesses) == pytest.approx(1)
    with pytest.raises(StudyError, match=r"code.keras: cannot be loaded .*`Lambda` layer"):
        prediction.load_model(tmp_path / "code.keras")
    with pytest.raises(StudyError, match=r"rows.keras: takes \(None, 5\) and gives \(None, 2\)"):
        prediction.load_model(tmp_path / "rows.keras")
