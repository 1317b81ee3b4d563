"""CIFAR-10's official binary archive, decoded in memory: nothing is unpacked to the disk, nothing is a pickle.

Each of the six batches holds 10,000 records of 3,073 bytes: a label, then 1,024 red, 1,024 green and 1,024
blue values, row by row (https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version").
"""

import tarfile
import zlib
from pathlib import Path

import numpy as np

from dropout_study.datasets import Arrays
from dropout_study.errors import StudyError

RECORDS = 10_000
MEMBER_BYTES = RECORDS * 3_073
DIRECTORY = "cifar-10-batches-bin"
TRAIN_MEMBERS = tuple(f"{DIRECTORY}/data_batch_{i}.bin" for i in range(1, 6))
TEST_MEMBER = f"{DIRECTORY}/test_batch.bin"


def load(archive: Path) -> Arrays:
    """Return the 60,000 images and labels in `archive` (a `.tar.gz`).

    Raises `StudyError` for what is no gzipped tar, ends early, lacks one of the six members, holds one of
    another size, or a label outside 0 … 9.
    """
    wanted = {name: i for i, name in enumerate([*TRAIN_MEMBERS, TEST_MEMBER])}
    images = np.empty((len(wanted) * RECORDS, 32, 32, 3), np.uint8)
    labels = np.empty(len(images), np.uint8)
    missing = set(wanted)
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                if member.name not in missing:
                    continue
                rows = slice(wanted[member.name] * RECORDS, (wanted[member.name] + 1) * RECORDS)
                images[rows], labels[rows] = _decode(archive, tar, member)
                missing.remove(member.name)
                if not missing:
                    break
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise StudyError(
            f"{archive}: cannot be read as a gzipped tar archive: {error}; delete it and run again"
        ) from error
    if missing:
        raise StudyError(
            f"{archive}: lacks {', '.join(sorted(missing))}; it has to be the binary version of CIFAR-10, "
            "cifar-10-binary.tar.gz"
        )
    train = len(TRAIN_MEMBERS) * RECORDS
    return Arrays(images[:train], labels[:train], images[train:], labels[train:])


def _decode(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[np.ndarray, np.ndarray]:
    file = tar.extractfile(member)
    if file is None or member.size != MEMBER_BYTES:
        raise StudyError(f"{archive}: {member.name} has {member.size:,} bytes, expected a file of {MEMBER_BYTES:,}")
    content = file.read()
    if len(content) != MEMBER_BYTES:
        raise EOFError(f"{member.name} ends after {len(content):,} of {MEMBER_BYTES:,} bytes")
    records = np.frombuffer(content, np.uint8).reshape(RECORDS, 3_073)
    labels = records[:, 0]
    if labels.max() > 9:
        record = int(np.argmax(labels > 9))
        raise StudyError(f"{archive}: {member.name}, record {record}: label {labels[record]}, expected 0 to 9")
    return records[:, 1:].reshape(RECORDS, 3, 32, 32).transpose(0, 2, 3, 1), labels
