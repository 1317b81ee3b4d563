"""CIFAR-10's official binary archive, decoded in memory: nothing is unpacked to the disk, nothing is a pickle.

Each of the six batches holds 10,000 records of 3,073 bytes: a label, then 1,024 red, 1,024 green and 1,024
blue values, row by row (https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version").
"""

import tarfile
import zlib
from pathlib import Path

import numpy as np

from dropout_study.console import StudyError, printable
from dropout_study.datasets import Arrays

RECORDS = 10_000
MEMBER_BYTES = RECORDS * 3_073
DIRECTORY = "cifar-10-batches-bin"
TRAIN_MEMBERS = tuple(f"{DIRECTORY}/data_batch_{i}.bin" for i in range(1, 6))
TEST_MEMBER = f"{DIRECTORY}/test_batch.bin"


def load(archive: Path) -> Arrays:
    """Return the 60,000 images and labels in `archive`, a `.tar.gz` whose hash has been verified.

    Raises `StudyError`, of one line, if it cannot be read, or is not CIFAR-10's binary archive: if one of the six
    batches is missing, of another size, or has a label outside 0 … 9.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            batches = {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
        parts = [_decode(name, batches[name]) for name in (*TRAIN_MEMBERS, TEST_MEMBER)]
    except PermissionError as error:
        raise StudyError(f"{archive}: {error.strerror}; make it readable, or remove it") from None
    except (KeyError, ValueError, OSError, EOFError, zlib.error, tarfile.TarError) as error:
        problem = f"has no {error.args[0]}" if isinstance(error, KeyError) else printable(str(error))
        raise StudyError(
            f"{archive}: {problem}; in params.yaml, download.sha256 has to be that of the binary version of CIFAR-10, "
            "cifar-10-binary.tar.gz, as in presets/"
        ) from error
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    train = len(TRAIN_MEMBERS) * RECORDS
    return Arrays(images[:train], labels[:train], images[train:], labels[train:])


def _decode(name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and the labels of a batch; raises `ValueError`."""
    if len(content) != MEMBER_BYTES:
        raise ValueError(f"{name} has {len(content):,} bytes, expected {MEMBER_BYTES:,}")
    records = np.frombuffer(content, np.uint8).reshape(RECORDS, 3_073)
    labels = records[:, 0]
    if labels.max() > 9:
        record = int(np.argmax(labels > 9))
        raise ValueError(f"{name}, record {record}: label {labels[record]}, expected 0 to 9")
    return records[:, 1:].reshape(RECORDS, 3, 32, 32).transpose(0, 2, 3, 1), labels
