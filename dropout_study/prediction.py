"""Images of any kind, classified by a saved model."""

import json
import stat
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

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
MOST_PIXELS = 100_000_000
BACKGROUND = "white"  # behind what is transparent
BATCH = 256
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

    network: Any
    size: tuple[int, int]  # height, width
    classes: Sequence[str]


def load_model(path: Path) -> Model:
    """Load a `.keras` file in Keras's safe mode, which runs no code that the file may hold.

    The class names are those that the file carries (`evaluation.save_model`), or numbers from 0. Raises `StudyError` if
    there is no such file, it cannot be loaded, or it does not classify coloured images.
    """
    if not path.exists():
        way_out = "`dvc repro` makes it" if path == files.BEST_MODEL else f"the study's own is {files.BEST_MODEL}"
        raise StudyError(f"{path}: there is no such model; {way_out}, and --model names another")
    with without_start_up_noise():
        import keras

        try:
            with zipfile.ZipFile(path) as archive:  # first: of other formats Keras's safe mode is no guard
                names = json.loads(archive.read("metadata.json")).get("classes")
            network = keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # a damaged file fails wherever it happens to be damaged
            raise StudyError(f"{path}: cannot be loaded as a Keras model: {_one_line(error)}") from error
    takes, gives = getattr(network, "input_shape", None), getattr(network, "output_shape", None)
    match takes, gives:
        case (_, int(height), int(width), 3), (_, int(count)):
            pass
        case _:
            raise StudyError(
                f"{path}: takes {takes} and gives {gives}; what is needed takes images, (None, height, width, 3), and "
                "gives a probability for each class, (None, classes)"
            )
    return Model(network, (height, width), names or [str(i) for i in range(count)])


def find_images(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files as they are, and for a directory the images in it (by the ends of their names), in order of name."""
    for path in paths:
        if path.is_dir():
            yield from sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and one.is_file())
        else:
            yield path


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the image in `path` as uint8 [height, width, 3], its middle cut out in the shape of `size`.

    Turned as its EXIF data say, 16 bits reduced to 8, on white where it is transparent; of several frames the first.
    Raises `StudyError` if the file is damaged, no image, or an image of more than 100 million pixels.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise StudyError("not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a file that can be read all the same
            with Image.open(path, formats=list(FORMATS)) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise StudyError(
                        f"{image.width} × {image.height} pixels, more than the {MOST_PIXELS:,} that are read; "
                        "scale it down first"
                    )
                upright = ImageOps.exif_transpose(image)
            height, width = size
            return np.asarray(ImageOps.fit(_as_rgb(upright), (width, height), Image.Resampling.BICUBIC))
    except StudyError:
        raise
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise StudyError(f"not an image of a kind that is read here ({kinds}), or damaged at its start") from None
    except Image.DecompressionBombError:
        raise StudyError(f"more than the {MOST_PIXELS:,} pixels that are read; scale it down first") from None
    except FileNotFoundError:
        raise StudyError("there is no such file") from None
    except Exception as error:  # Pillow's decoders raise whatever they meet in a damaged file
        raise StudyError(f"cannot be read: {_one_line(error)}") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode in 8-bit red, green and blue."""
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image).clip(0, 65_535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, BACKGROUND)
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def predict(model: Model, paths: Iterable[Path]) -> Iterator[Prediction]:
    """Yield a prediction for each file, in order; files that cannot be read have an error in the place of classes."""
    paths = iter(paths)
    while batch := list(islice(paths, BATCH)):
        found: list[np.ndarray | str] = []
        for path in batch:
            try:
                found.append(read_image(path, model.size))
            except StudyError as error:
                found.append(str(error))
        images = [one for one in found if isinstance(one, np.ndarray)]
        probabilities = iter(np.asarray(model.network(np.stack(images), training=False)) if images else [])
        for path, one in zip(batch, found, strict=True):
            if isinstance(one, str):
                yield Prediction(path, error=one)
            else:
                row = next(probabilities)
                best = np.argsort(-row, kind="stable")[:TOP]
                yield Prediction(path, [Guess(model.classes[i], float(row[i])) for i in best])


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
