"""CIFAR-10's official binary archive, decoded in memory: nothing is unpacked to the disk, nothing is a pickle.

Each of the six batches holds 10,000 records of 3,073 bytes: a label, then 1,024 red, 1,024 green and 1,024
blue values, row by row (https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version").
"""

import gzip
import tarfile
import zlib
from pathlib import Path

import numpy as np

from dropout_study.console import StudyError, printable
from dropout_study.datasets import Arrays

RECORDS = 10_000
MEMBER_BYTES = RECORDS * 3_073
MAXIMUM_BYTES = 200_000_000  # unpacked; CIFAR-10 has 184,400,000
PIECE = 1 << 16  # bytes that are passed over at a time
DIRECTORY = "cifar-10-batches-bin"
TRAIN_MEMBERS = tuple(f"{DIRECTORY}/data_batch_{i}.bin" for i in range(1, 6))
TEST_MEMBER = f"{DIRECTORY}/test_batch.bin"
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
# Headers of their own that say more about the next member, its times for example.
PAX_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE)


class _ArchiveError(Exception):
    """What is wrong with an archive."""


def load(archive: Path) -> Arrays:
    """Return the 60,000 images and labels in `archive` (a `.tar.gz`), which is read to its end, where its checksum is.

    Raises `StudyError`, of one line, for what cannot be read, is no gzipped tar, ends early, or is larger than
    `MAXIMUM_BYTES` when unpacked, with what follows the end of the tar; for members that are neither files nor
    directories, or whose names lead out of the archive; and if one of the six batches is missing, there twice, of
    another size, or has a label outside 0 … 9.
    """
    try:
        with gzip.open(archive) as file:
            return _load(file)
    except OSError as error:
        raise StudyError(
            f"{archive}: cannot be read: {error.strerror}; make it readable, or remove it: it is then downloaded again"
        ) from error
    except _ArchiveError as error:
        raise StudyError(
            f"{archive}: {printable(error)}; in params.yaml, download.sha256 has to be that of the binary version of "
            "CIFAR-10, cifar-10-binary.tar.gz, as in presets/"
        ) from error


def _load(file: gzip.GzipFile) -> Arrays:
    # Not `tarfile.open`: it reads the names that a hostile archive has in extra headers whole, be they gigabytes, and
    # calls itself for each such header.
    wanted = {name: i for i, name in enumerate([*TRAIN_MEMBERS, TEST_MEMBER])}
    images = np.empty((len(wanted) * RECORDS, 32, 32, 3), np.uint8)
    labels = np.empty(len(images), np.uint8)
    missing = set(wanted)
    place = "its beginning"
    try:
        while (header := file.read(tarfile.BLOCKSIZE)).strip(b"\0"):
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            place = member.name
            end = file.tell() - (-member.size // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE)
            _check(member, end)
            if member.name in wanted:
                if member.name not in missing:
                    raise _ArchiveError(f"{member.name} is there twice")
                rows = slice(wanted[member.name] * RECORDS, (wanted[member.name] + 1) * RECORDS)
                images[rows], labels[rows] = _decode(file.read(MEMBER_BYTES), member.name)
                missing.remove(member.name)
            _pass_over(file, end)
            if file.tell() < end:
                raise EOFError("it ends there")
        if missing and not header:
            raise EOFError("it ends there")
        _pass_over(file, MAXIMUM_BYTES)
        if file.read(1):
            raise _ArchiveError(f"has more than {MAXIMUM_BYTES:,} bytes when unpacked")
    except (tarfile.HeaderError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _ArchiveError(f"cannot be read as a gzipped tar archive: {place}: {error}") from error
    if missing:
        raise _ArchiveError(f"lacks {', '.join(sorted(missing))}")
    train = len(TRAIN_MEMBERS) * RECORDS
    return Arrays(images[:train], labels[:train], images[train:], labels[train:])


def _pass_over(file: gzip.GzipFile, end: int) -> None:
    """Read `file` up to the byte `end`, or to its own end."""
    while file.tell() < end and file.read(min(PIECE, end - file.tell())):
        pass


def _check(member: tarfile.TarInfo, end: int) -> None:
    """Raise `_ArchiveError` if `member`, which ends at the byte `end` of the tar, must not be there."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise _ArchiveError(f"{member.name} leads out of the archive")
    if member.type not in (*FILES, *PAX_HEADERS, tarfile.DIRTYPE):
        raise _ArchiveError(f"{member.name} is of type {member.type!r}, neither a file nor a directory")
    if member.size < 0 or end > MAXIMUM_BYTES:
        raise _ArchiveError(f"{member.name} has {member.size:,} bytes; all are at most {MAXIMUM_BYTES:,}")
    if member.name in (*TRAIN_MEMBERS, TEST_MEMBER) and (member.type not in FILES or member.size != MEMBER_BYTES):
        raise _ArchiveError(f"{member.name} has {member.size:,} bytes, expected a file of {MEMBER_BYTES:,}")


def _decode(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and the labels of the batch `name`."""
    if len(content) != MEMBER_BYTES:
        raise EOFError(f"ends after {len(content):,} of {MEMBER_BYTES:,} bytes")
    records = np.frombuffer(content, np.uint8).reshape(RECORDS, 3_073)
    labels = records[:, 0]
    if labels.max() > 9:
        record = int(np.argmax(labels > 9))
        raise _ArchiveError(f"{name}, record {record}: label {labels[record]}, expected 0 to 9")
    return records[:, 1:].reshape(RECORDS, 3, 32, 32).transpose(0, 2, 3, 1), labels
