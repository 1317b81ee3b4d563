"""Paths of the study's files, and atomic writes.

All paths are relative to the project's top level, from where DVC runs the stages.
"""

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from dropout_study.console import StudyError, printable, say

SETTINGS = Path("params.yaml")
DOWNLOADS = Path("data/downloads")
RAW = Path("data/raw")
NORMALIZED = Path("data/normalized")
STATISTICS = NORMALIZED / "statistics.json"
PIXEL_COUNTS = NORMALIZED / "pixel_counts.npy"
PREDICTIONS = Path("data/predictions")
VARIANTS = Path("models/variants")
BEST_MODEL = Path("models/best.keras")
DATASET = Path("metrics/dataset.json")
NORMALIZATION = Path("metrics/normalization.json")
HISTORY = Path("metrics/history")
PROVENANCE = Path("metrics/provenance")
LOGS = Path("logs")
STUDY = Path("metrics/study.csv")
RATES = Path("metrics/rates.csv")
VERDICT = Path("metrics/verdict.json")
VERDICT_PAGE = Path("metrics/verdict.md")
EVALUATION = Path("metrics/evaluation.json")
CONFUSION = Path("metrics/confusion.csv")
RELIABILITY = Path("metrics/reliability.csv")
HISTORIES = Path("metrics/histories.csv")
PIXELS = Path("metrics/pixels.csv")
SUMMARY = Path("metrics/summary.csv")
PLOTS = Path("metrics/plots")
CLASSES = RAW / "classes.json"
VEGA = Path("data/vega.js")

UNFINISHED = ".unfinished-"  # begins the names of temporary files; .gitignore and .dvcignore have it, too

LOCK_ATTEMPTS = 3
WAY_OUT = "remove it; `dvc repro` restores it, or makes it again"  # of a damaged output

# What flock raises on file systems without locks: NFS without lockd, some FUSE and cluster file systems.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def images_file(directory: Path, part: str) -> Path:
    """Return the file of the images of `part` ("train", "validation" or "test") in `directory`."""
    return directory / f"{part}_images.npy"


def labels_file(directory: Path, part: str) -> Path:
    """Return the file of the labels of `part` ("train", "validation" or "test") in `directory`."""
    return directory / f"{part}_labels.npy"


PART_FILES = (images_file, labels_file)


def variant_file(key: str) -> Path:
    """Return the file of the trained model of the variant `key`."""
    return VARIANTS / f"{key}.keras"


def history_file(key: str) -> Path:
    """Return the file of the history of the variant `key`, a row an epoch."""
    return HISTORY / f"{key}.csv"


def predictions_file(key: str) -> Path:
    """Return the file of the log-probabilities that the variant `key` gives the test images."""
    return PREDICTIONS / f"{key}.npy"


def provenance_file(key: str) -> Path:
    """Return the file that says on what the variant `key` was computed."""
    return PROVENANCE / f"{key}.json"


def progress_file(key: str) -> Path:
    """Return the file to which a JSON line per epoch of the variant `key` is appended, for programs."""
    return LOGS / f"{key}.jsonl"


def log_file(key: str) -> Path:
    """Return the file to which all that is printed while the variant `key` trains is appended."""
    return LOGS / f"{key}.log"


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold the lock file `path` for this process during the block; the lock ends with the process, however it ends.

    The file is created if it is not there, and stays; it is as old as the lock. Raises `StudyError` with `path` and
    `message` at once if another process holds the lock. On a file system without locks, prints a warning and runs the
    block unlocked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            for attempt in range(LOCK_ATTEMPTS):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.utime(file.fileno())
                    break
                except BlockingIOError:
                    if attempt + 1 == LOCK_ATTEMPTS:
                        raise StudyError(f"{path}: {message}") from None
                    time.sleep(0.05)  # `dropout-study status` may just be looking
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            reason = f"this file system has no locks ({error.strerror})"
            say(f"warning: {path}: {reason}, so a second run at the same time is not detected")
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it becomes `path` in one step.

    The temporary file keeps the suffix of `path` (Keras looks at it), is flushed to the disk before it is renamed, and
    is removed if the block fails; what a killed process leaves is replaced by the next that writes `path`. DVC, and the
    locks of downloads and trainings, keep two processes from writing the same path. Directories above `path` are made.
    An `OSError` in the block that names no file, or the temporary one, names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):  # which would hide the error of the block, on a read-only file system
            temporary.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Flush the names in `directory` to the disk, so that a rename there outlives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits; raises `StudyError` if it is not there."""
    with _existing(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy(source: Path, path: Path) -> None:
    """Copy the file `source` to `path`, atomically; raises `StudyError` if it is not there."""
    write_bytes(path, _existing(source).read_bytes())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in the order given; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def read_json(path: Path) -> Any:
    """Return the value in the JSON file `path`; raises `StudyError` if it is not there."""
    return json.loads(_existing(path).read_text(encoding="utf-8"))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table with a header; floats exactly, None as nothing, lines end in LF."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of the table `path`, each a dict from column to text; raises `StudyError` if it is not there."""
    with _existing(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write `array`, of numbers, as an `.npy` file, atomically."""
    array = np.ascontiguousarray(array)
    with replacing(path) as temporary, temporary.open("wb") as file:
        # Not `np.save`, whose error does not say whether the disk is full.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def write_blocks(path: Path, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> None:
    """Write a float32 array of `shape` that comes in `blocks` along its first axis; only one is in memory.

    Raises `ValueError` if the blocks do not add up to `shape`.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        rows = 0
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)
            rows += len(block)
        if rows != shape[0]:
            raise ValueError(f"{path}: the blocks have {rows} of {shape[0]} rows")


def read_array(path: Path, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
    """Return the array in the `.npy` file `path`, memory-mapped: read as it is used, shared by processes.

    `shape` is what is needed, None any number. Raises `StudyError` if the file is not there, is no `.npy` file of
    numbers (objects would be a pickle, which is code), is cut off, or has another shape.
    """
    _existing(path)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        if array.dtype.kind not in "biuf":
            raise ValueError(f"its values are of type {array.dtype}")
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: no array of numbers, or cut off ({printable(error)}); {WAY_OUT}") from None
    needed = array.shape if shape is None else shape
    pairs = zip(needed, array.shape, strict=False)
    if len(needed) != array.ndim or any(count not in (None, size) for count, size in pairs):
        text = str(needed).replace("None", "any")
        raise StudyError(f"{path}: has shape {array.shape}, needed is {text}; {WAY_OUT}")
    return array


def read_part(directory: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, [N, H, W, C], and the labels, [N], of a part in `directory`, memory-mapped.

    `part` is "train", "validation" or "test". Raises `StudyError` if the arrays have other shapes, or if the images
    differ in theirs from those of "train".
    """
    images = read_array(images_file(directory, "train"), (None,) * 4)
    if part != "train":
        images = read_array(images_file(directory, part), (None, *images.shape[1:]))
    return images, read_array(labels_file(directory, part), (len(images),))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise StudyError(f"{path}: there is no such file yet; `dvc repro` makes it")
    return path
