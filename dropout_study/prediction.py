"""Images of any kind, classified by a saved model."""

import contextlib
import json
import os
import stat
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TILELENGTH, TILEWIDTH

from dropout_study import files
from dropout_study.errors import StudyError
from dropout_study.progress import without_start_up_noise

# The formats that are read, and how their files end; no other is tried (for some, other programs would be started).
FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "PPM": (".pbm", ".pgm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MOST_PIXELS = 51_000_000  # of an image: a phone's 50 megapixels (8192 × 6144) pass, and reading takes less than 1 GB
MOST_BYTES = 1_000_000_000  # of an image file, and of what is packed in a model file
MOST_CONFIGURATION_BYTES = 10_000_000  # of each JSON file in a model file
MOST_INPUT_PIXELS = 1024 * 1024  # of what a model takes
BATCH = 256  # images, fewer if they are larger than 64 × 64
BATCH_PIXELS = BATCH * 64 * 64
TOO_LARGE = f"more than the {MOST_PIXELS:,} pixels that are read; scale it down first"
BACKGROUND = "white"  # behind what is transparent
TOP = 3


class Guess(NamedTuple):
    """A class and its probability in [0, 1]."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model takes a file for, most probable first; or why there is nothing to tell."""

    path: Path
    guesses: Sequence[Guess] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as JSON holds it."""
        if self.error is not None:
            return {"file": str(self.path), "error": self.error}
        return {"file": str(self.path), "classes": [guess._asdict() for guess in self.guesses]}


class Model(NamedTuple):
    """A Keras model that takes pixels [N, height, width, 3], and the names of its outputs."""

    path: Path
    network: Any
    size: tuple[int, int]  # height, width
    classes: Sequence[str]


def printable(text: object) -> str:
    """Return `text` in one line that does nothing to a terminal: what cannot be printed is escaped as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def load_model(path: Path) -> Model:
    """Load a `.keras` file in Keras's safe mode, which runs no code that the file may hold.

    The class names are those that the file carries (`model_file.save_model`: a list of a string for each output, as
    `classes` in its metadata.json); without such a list they are numbers from 0. Raises `StudyError` if there is no
    such file, it is of another kind (for which the safe mode may be no guard) or too large, it cannot be loaded, or it
    does not classify coloured images of at most 1024 × 1024 pixels.
    """
    name = printable(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.parts[-2:] == files.BEST_MODEL.parts:  # also from a subdirectory
            way_out = "`dvc repro` makes it; `dvc checkout`, or `dvc pull`, restores one that was made before"
        else:
            way_out = f"check the path after --model; without --model it is {files.BEST_MODEL}"
        raise StudyError(f"{name}: there is no such model; {way_out}") from None
    except OSError as error:
        raise StudyError(f"{name}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode) or path.suffix != ".keras":
        raise StudyError(f"{name}: a model is a file with a name that ends in .keras, as Keras 3 saves it")
    with without_start_up_noise():
        import keras

        try:
            metadata = _check_contents(path)
            network = keras.models.load_model(path, compile=False, safe_mode=True)
        except StudyError as error:
            raise StudyError(f"{name}: {error}") from None
        except Exception as error:  # a damaged file fails wherever it happens to be damaged
            refused = "safe_mode" in str(error)
            why = "it holds code (a Lambda layer?), which is not run" if refused else _one_line(error)
            raise StudyError(f"{name}: cannot be loaded as a Keras model: {why}") from error
    takes, gives = getattr(network, "input_shape", None), getattr(network, "output_shape", None)
    match takes, gives:
        case (None, int(height), int(width), 3), (None, int(count)) if (
            count > 1 and height * width <= MOST_INPUT_PIXELS
        ):
            pass
        case _:
            raise StudyError(
                f"{name}: takes {takes} and gives {gives}; what is needed takes images, (None, height, width, 3), of "
                f"at most {MOST_INPUT_PIXELS:,} pixels, and gives a probability for each class, (None, 2 or more)"
            )
    classes = metadata.get("classes", [str(i) for i in range(count)])
    if not (isinstance(classes, list) and len(classes) == count and all(isinstance(one, str) for one in classes)):
        raise StudyError(
            f"{name}: `classes` in its metadata.json is {_shortened(json.dumps(classes))}; it must be a list of "
            f"{count} strings, a name for each output, or absent"
        )
    return Model(path, network, (height, width), classes)


def _check_contents(path: Path) -> dict[str, Any]:
    """Return a model's metadata; raise `StudyError` if the file would take too much memory."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        texts = [member.file_size for member in members if member.filename.endswith(".json")]
        if sum(member.file_size for member in members) > MOST_BYTES or max(texts, default=0) > MOST_CONFIGURATION_BYTES:
            raise StudyError(
                f"too large when unpacked: at most {MOST_BYTES:,} bytes, and {MOST_CONFIGURATION_BYTES:,} for each of "
                "its JSON files, are read"
            )
        json.loads(archive.read("config.json"), object_hook=_check_input)  # first: layers are made as large as it says
        return dict(json.loads(archive.read("metadata.json")))


def _check_input(part: dict[str, Any]) -> None:
    match part.get("batch_shape") or part.get("build_input_shape"):
        case [_, int(height), int(width), *_] if height * width > MOST_INPUT_PIXELS:
            raise StudyError(f"takes images of {height} × {width} pixels; at most {MOST_INPUT_PIXELS:,} are allowed")


def find_images(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files as they are, and for a directory the images in it (by the ends of their names), in order of name.

    A directory in which there is none, or that cannot be listed, comes as it is: `read_image` says what is the matter.
    """
    for path in paths:
        try:
            inside = sorted(path.iterdir())
        except OSError:
            inside = []
        yield from [one for one in inside if one.suffix.lower() in SUFFIXES and not os.path.isdir(one)] or [path]


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the image in `path` as uint8 [height, width, 3], its middle cut out in the shape of `size`.

    Turned as its EXIF data say, if they can be read; on white where it is transparent; of several frames the first.
    Values of more than 8 bits become 0 … 255 so:

    - unsigned integers of up to 16 bits: all that they can hold, 0 to 65,535 or, of 12 bits, 4,095;
    - floats, signed integers and integers of 32 bits: 0 to 1 (floats only), to 255, to 65,535 (signed integers of 16
      bits: to 32,767), whichever is the first that holds all values; or else the lowest to the highest value. What is
      no number is black.

    Raises `StudyError` with a message of one line if the file cannot be read, is damaged, no image, larger than 1 GB,
    or an image of more than 51 million pixels.
    """
    try:
        _check_file(path)
        with path.open("rb") as file, warnings.catch_warnings(), _without_c_messages():
            warnings.simplefilter("ignore")  # what is odd about a file that can be read all the same
            with Image.open(file, formats=list(FORMATS)) as image:
                tags = _tiff_tags(image)
                for width, height in (image.size, (tags.get(TILEWIDTH, 0), tags.get(TILELENGTH, 0))):
                    if width * height > MOST_PIXELS:
                        raise StudyError(f"{width} × {height} pixels, {TOO_LARGE}")
                return _scaled(image, size)
    except StudyError:
        raise
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise StudyError(f"not an image of a kind that is read here ({kinds}), or damaged at its start") from None
    except Image.DecompressionBombError:
        raise StudyError(TOO_LARGE) from None
    except MemoryError:
        raise StudyError("there is not enough memory for it; scale it down first") from None
    except Exception as error:  # Pillow's decoders raise whatever they meet in a damaged file
        if isinstance(error, OSError) and error.errno:
            raise StudyError(f"cannot be read: {error.strerror}") from None
        how = (
            "it ends too early"
            if "truncated" in str(error).lower()
            else "it begins like an image but cannot be decoded"
        )
        raise StudyError(f"damaged: {how}; fetch it again, or save it in another format") from error


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {})


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise StudyError(
            "a symbolic link to what is not there" if path.is_symlink() else "there is no such file"
        ) from None
    if stat.S_ISDIR(status.st_mode):
        os.listdir(path)  # fails, and says why, if that is why no images were found
        raise StudyError(f"a directory without images: no name in it ends in {' '.join(SUFFIXES)}")
    if not stat.S_ISREG(status.st_mode):
        raise StudyError("not a file")
    if status.st_size > MOST_BYTES:
        raise StudyError(f"{status.st_size:,} bytes, more than the {MOST_BYTES:,} that are read")


@contextlib.contextmanager
def _without_c_messages() -> Iterator[None]:
    """Drop what is written to file descriptor 2: libtiff explains itself there, and one line a file is enough."""
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _scaled(image: ImageFile.ImageFile, size: tuple[int, int]) -> np.ndarray:
    """Return an image as `read_image` does. One large copy at a time: what can be done on the small image, is."""
    height, width = size
    image.draft(None, (3 * max(size), 3 * max(size)))  # a JPEG is decoded at a half to an eighth where that is enough
    transparent = _transparent_value(image)
    image.load()
    with contextlib.suppress(Exception):  # EXIF data are often broken in images that are not
        ImageOps.exif_transpose(image, in_place=True)
    if transparent is not None:
        image.info["transparency"] = transparent
    if image.mode == "F" or image.mode.startswith("I"):
        eight_bits = _grey_in_8_bits(image)
    else:
        mode = "RGBA" if image.has_transparency_data else "RGB"
        eight_bits = image if image.mode == mode else image.convert(mode)
    small = ImageOps.fit(eight_bits, (width, height), Image.Resampling.BICUBIC).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", small.size, BACKGROUND), small).convert("RGB"))


def _transparent_value(image: ImageFile.ImageFile) -> int | tuple[int, ...] | None:
    """Return the transparent value of a PNG of 2, 4 or 16 bits as its pixels will have it; Pillow leaves it as it was.

    None stands for: as Pillow has it.
    """
    match image.tile[0].args if image.tile else None, image.info.get("transparency"):
        case "L;2", int(value):
            return value * 85
        case "L;4", int(value):
            return value * 17
        case "RGB;16B", (red, green, blue):
            return red >> 8, green >> 8, blue >> 8
    return None


def _grey_in_8_bits(image: ImageFile.ImageFile) -> Image.Image:
    """Return an image of a mode of more than 8 bits (Pillow has those for grey only) in mode L or LA."""
    tags = _tiff_tags(image)
    values = np.asarray(image)
    if values.dtype == np.int32 and tags.get(SAMPLEFORMAT, (1,)) == (1,):
        values = values.view(np.uint32)  # Pillow has no mode for it, and keeps the bits
    black, white = _black_and_white(image, values)
    grey = values.astype(np.float32)
    grey -= black
    grey *= 255 / (white - black)
    np.clip(grey, 0, 255, out=grey)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # "white is zero": Pillow inverts only up to 8 bits
        np.subtract(255, grey, out=grey)
    np.nan_to_num(grey, copy=False, nan=0)
    result = Image.fromarray(np.rint(grey, out=grey).astype(np.uint8))
    if "transparency" in image.info:
        result.putalpha(Image.fromarray(values != image.info["transparency"]).convert("L"))
    return result


def _black_and_white(image: ImageFile.ImageFile, values: np.ndarray) -> tuple[float, float]:
    """Return which of the values of a grey image is black, and which white, as told at `read_image`."""
    (bits, *_) = _tiff_tags(image).get(BITSPERSAMPLE, (16,))
    real = values.dtype.kind == "f"
    if image.mode.startswith("I;16") or (image.format == "PPM" and not real):  # of a PPM file Pillow makes 16 bits
        return 0, 2**bits - 1
    finite = np.isfinite(values)
    if not finite.any():
        return 0, 1
    limits = np.finfo(values.dtype) if real else np.iinfo(values.dtype)
    low = float(values.min(where=finite, initial=limits.max))
    high = float(values.max(where=finite, initial=limits.min))
    usual = [1] * real + [255, 32_767 if bits == 16 and not real else 65_535]
    if low >= 0 and high <= usual[-1]:
        return 0, next(white for white in usual if high <= white)
    return low, high if high > low else low + 1


def predict(model: Model, paths: Iterable[Path]) -> Iterator[Prediction]:
    """Yield a prediction for each file, in order; files that cannot be read have an error in the place of classes.

    Raises `StudyError` if the model fails on an image, or what it gives are no probabilities: not finite, outside
    [0, 1], or with a sum that is not within 0.001 of 1.
    """
    height, width = model.size
    paths = iter(paths)
    while batch := list(islice(paths, max(1, min(BATCH, BATCH_PIXELS // (height * width))))):
        found: list[np.ndarray | str] = []
        for path in batch:
            try:
                found.append(read_image(path, model.size))
            except StudyError as error:
                found.append(str(error))
        images = [one for one in found if isinstance(one, np.ndarray)]
        probabilities = iter(_probabilities(model, np.stack(images)) if images else [])
        for path, one in zip(batch, found, strict=True):
            if isinstance(one, str):
                yield Prediction(path, error=one)
            else:
                row = next(probabilities)
                best = np.argsort(-row, kind="stable")[:TOP]
                yield Prediction(path, [Guess(model.classes[i], float(row[i])) for i in best])


def _probabilities(model: Model, images: np.ndarray) -> np.ndarray:
    try:
        rows = np.asarray(model.network(images, training=False)).astype(np.float64)
    except Exception as error:  # layers may fail in any way
        raise StudyError(f"{printable(model.path)}: fails on images: {_one_line(error)}") from error
    fine = np.isfinite(rows).all() and rows.min() >= 0 and rows.max() <= 1 and abs(rows.sum(-1) - 1).max() <= 1e-3
    if not fine:
        example = ", ".join(f"{value:.3g}" for value in rows[0, :TOP])
        raise StudyError(
            f"{printable(model.path)}: its outputs ({example} …) are no probabilities: in [0, 1], with the sum 1. If "
            "they are logits, save it with a softmax at its end: keras.Sequential([model, keras.layers.Softmax()])"
        )
    return rows


def _one_line(error: Exception) -> str:
    text = str(error).rpartition("Exception encountered: ")[2]  # Keras writes all that is above it first
    return _shortened(printable(" ".join(text.split())) or type(error).__name__)


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."
