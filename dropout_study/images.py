"""Image files as pixels for a model."""

import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dropout_study.console import StudyError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # for some others Pillow would start programs
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
GREY_16 = ("I", "I;16", "I;16L", "I;16B")
BACKGROUND = "white"  # behind what is transparent


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return files as they are, and for a directory the images in it by suffix, in order of name; nothing deeper.

    A directory without images is returned as it is: `read_image` then says what is wrong with it.
    """
    images: list[Path] = []
    for path in paths:
        content = sorted(path.iterdir()) if path.is_dir() else []
        images += [file for file in content if file.is_file() and file.suffix.lower() in SUFFIXES] or [path]
    return images


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the image in `path` as uint8 [height, width, 3], its middle cut out in the shape of `size` and scaled.

    It is turned as its EXIF data say, laid on white where it is transparent, and the first of several frames. Grey of
    16 bits is scaled by its range. Raises `StudyError` with one line if the file cannot be read or is no image.
    """
    height, width = size
    if path.is_dir():
        raise StudyError(f"a directory without images ({' '.join(sorted(SUFFIXES))})")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as original:
            original.load()
            with suppress(Exception):  # EXIF data are often broken in images that are not
                ImageOps.exif_transpose(original, in_place=True)
            grey_16 = original.mode in GREY_16
            image = Image.fromarray(np.rint(np.asarray(original) / 257).astype(np.uint8)) if grey_16 else original
            small = ImageOps.fit(image.convert("RGBA"), (width, height), Image.Resampling.BICUBIC)
    except UnidentifiedImageError:
        raise StudyError(f"not an image of a kind that is read ({', '.join(FORMATS)}), or damaged") from None
    except Image.DecompressionBombError as error:
        raise StudyError(f"{error}; scale it down first") from None
    except Exception as error:  # Pillow's decoders raise whatever they meet in a damaged file
        if isinstance(error, OSError) and error.errno:
            raise StudyError(f"cannot be read: {error.strerror}") from None
        raise StudyError("damaged, or cut off; fetch it again, or save it in another format") from error
    return np.asarray(Image.alpha_composite(Image.new("RGBA", small.size, BACKGROUND), small).convert("RGB"))
