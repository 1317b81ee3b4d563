"""Image files as pixels for a model. Pillow reads them; this module says which, how large, and what went wrong."""

import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dropout_study.console import StudyError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # for some others Pillow would start programs
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
MAX_PIXELS = 51_000_000  # a phone's 50 megapixels (8192 × 6144) pass
MAX_BYTES = 1_000_000_000
MAX_MEMORY = 1_000_000_000  # bytes that reading an image takes, beside the file's own; tests measure it
BLOCK = 1 << 20  # values that are scaled at a time
GREY_16 = ("I", "I;16", "I;16L", "I;16B")
BACKGROUND = "white"  # behind what is transparent


class Search(NamedTuple):
    """The paths to classify, and how many other files of the searched directories were passed over."""

    paths: list[Path]
    passed_over: int


def find_images(paths: Iterable[Path]) -> Search:
    """Return files as they are, and for a directory the images in it by suffix, in order of name; nothing deeper.

    Names that begin with a dot are no images. A directory without images is returned as it is: `read_image` then says
    what is wrong with it.
    """
    images, passed_over = [], 0
    for path in paths:
        content = sorted(path.iterdir()) if os.access(path, os.R_OK | os.X_OK) and path.is_dir() else []
        files = [file for file in content if not file.is_dir()]
        chosen = [file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
        images += chosen or [path]
        passed_over += len(files) - len(chosen)
    return Search(images, passed_over)


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the image in `path` as uint8 [height, width, 3], its middle cut out in the shape of `size` and scaled.

    It is turned as its EXIF data say, laid on white where it is transparent, and the first of several frames. Grey of
    16 bits is scaled by its range: 65,535 is white.

    Raises `StudyError` with one line if the file cannot be read, is damaged, is no image, has pixels of another kind or
    is too large.
    """
    try:
        _check_file(path)
        with path.open("rb") as file, warnings.catch_warnings(), _without_libtiff_messages():
            warnings.simplefilter("ignore")  # what is odd about a file that can be read all the same
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                return _scaled(image, size)
    except UnidentifiedImageError:
        raise StudyError(f"not an image of a kind that is read ({', '.join(FORMATS)}), or damaged") from None
    except Image.DecompressionBombError:
        raise StudyError(f"more than {MAX_PIXELS:,} pixels; scale it down first") from None
    except StudyError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they meet in a damaged file
        if isinstance(error, OSError) and error.errno:
            raise StudyError(f"cannot be read: {error.strerror}") from None
        raise StudyError("damaged, or cut off; fetch it again, or save it in another format") from error


def _check_file(path: Path) -> None:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        os.listdir(path)  # fails, and says why, if that is why no images were found
        raise StudyError(f"a directory without images ({' '.join(sorted(SUFFIXES))})")
    if not stat.S_ISREG(mode):
        raise StudyError("not a regular file")
    if path.stat().st_size > MAX_BYTES:
        raise StudyError(f"larger than {MAX_BYTES:,} bytes")


@contextmanager
def _without_libtiff_messages() -> Iterator[None]:
    """Drop what is written to file descriptor 2, where libtiff reports each problem: one line a file is enough."""
    original = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


def _scaled(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return an image as `read_image` does. What can be done on the small image, is."""
    height, width = size
    image.draft("RGB", (3 * max(size), 3 * max(size)))  # a JPEG is decoded at a half to an eighth if that is enough
    image.load()
    with suppress(Exception):  # EXIF data are often broken in images that are not
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode in GREY_16:
        eight_bits = _grey_in_8_bits(np.asarray(image))
    elif image.mode == "F":
        raise StudyError("floating-point pixels, which have no fixed range; save it with 8 or 16 bits")
    else:
        mode = "RGBA" if image.has_transparency_data else "RGB"
        eight_bits = image if image.mode == mode else image.convert(mode)  # which would copy it
    small = ImageOps.fit(eight_bits, (width, height), Image.Resampling.BICUBIC).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", small.size, BACKGROUND), small).convert("RGB"))


def _grey_in_8_bits(values: np.ndarray) -> Image.Image:
    """Return grey of 0 to 65,535 as an image of 8 bits."""
    if values.min() < 0 or values.max() > 65_535:
        raise StudyError("grey of more than 16 bits; save it with 8 or 16 bits")
    flat = values.reshape(-1)
    grey = np.empty(len(flat), np.uint8)
    for start in range(0, len(flat), BLOCK):
        grey[start : start + BLOCK] = np.rint(flat[start : start + BLOCK] / 257)
    return Image.fromarray(grey.reshape(values.shape))
