"""One file from one of several places: resumed, verified, all or nothing."""

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import requests
import urllib3

from dropout_study.errors import StudyError
from dropout_study.files import sync_directory
from dropout_study.progress import download_bar, say

CHUNK = 1 << 20
TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of the answer
BROKEN = (requests.Timeout, requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError)
BROKEN_CONNECTIONS = 5  # in a row without a byte gained, before the next place is tried
PAUSE = 1.0  # seconds, times the number of connections in a row that broke without a byte gained
MAXIMUM_BYTES = 2 << 30  # what no archive of ours reaches; a stream that does not end is cut here


class _RefusalError(Exception):
    """What a place answers that does not have the file, or not now: go on to the next one."""


class _Answer(NamedTuple):
    start: int
    total: int | None
    pieces: Iterator[bytes]


def fetch(places: Sequence[str], sha256: str, directory: Path) -> Path:
    """Return the file in `directory` whose content has the hash `sha256`, fetched if it is not there yet.

    `places` are tried in turn: `http(s)://` and `file://` addresses and plain paths. What has come is kept in
    `<sha256>.part` and gone on with, from the same place or another; only a whole file with the right hash
    gets its name, `<sha256>`. Raises `StudyError` that lists each place with its error if none had it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / sha256
    if target.exists():
        if _hash(target) == sha256:
            say(f"{target}: already here, hash verified")
            return target
        say(f"{target}: does not have the hash in its name any more; fetching it again")
        target.unlink()
    part = directory / f"{sha256}.part"
    errors = []
    with _locked(part):
        for place in places:
            try:
                _fetch_from(place, part, sha256)
            except _RefusalError as error:
                say(f"{place}: {error}")
                errors.append(f"  {place}: {error}")
                continue
            except OSError as error:
                raise StudyError(
                    f"{part}: {error.strerror}; what has come is kept, the next run goes on from there"
                ) from error
            part.replace(target)
            sync_directory(directory)
            say(f"{target}: {target.stat().st_size:,} bytes, hash verified")
            return target
        if part.stat().st_size == 0:
            part.unlink()
    raise StudyError(
        "\n".join(
            [
                f"no place had the file with SHA-256 {sha256}:",
                *(errors or ["  (no place is named in params.yaml: download.urls)"]),
                "To go on without network, fetch the file by other means and say where it is:",
                "  CIFAR10_ARCHIVE=/path/to/cifar-10-binary.tar.gz dvc repro",
                "or learn the bundled digits: dataset: digits in params.yaml.",
            ]
        )
    )


def _fetch_from(place: str, part: Path, sha256: str) -> None:
    """Complete `part` from `place`; raises `_RefusalError`, with `part` as it was, if the content is another."""
    kept = part.stat().st_size
    if kept:
        if _complete(place, part, from_start=False) and _hash(part) == sha256:
            return
        # Which bytes are wrong, those that were here or those that came, only a whole file can tell.
        os.truncate(part, kept)
        say(f"{place}: cannot go on with the {kept:,} bytes that are here; starting from the beginning")
    fresh = part.with_suffix(".fresh") if kept else part
    try:
        _complete(place, fresh, from_start=True)
        found = _hash(fresh)
        if found != sha256:
            with fresh.open("rb") as file:
                what = "an HTML page, " if file.read(512).lstrip()[:1] == b"<" else ""
            os.truncate(fresh, 0)
            raise _RefusalError(f"sent {what}content with SHA-256 {found}")
        fresh.replace(part)
    finally:
        if kept:
            fresh.unlink(missing_ok=True)


def _complete(place: str, path: Path, from_start: bool) -> bool:
    """Append to `path` what it lacks of the file at `place`, and go on where a connection breaks.

    Returns False, with nothing written, if that takes starting from the beginning and `from_start` is not set.
    """
    path.touch()
    in_vain = 0
    while True:
        before = path.stat().st_size
        try:
            return _append(place, path, from_start)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            in_vain = 0 if path.stat().st_size > before else in_vain + 1
            if in_vain == BROKEN_CONNECTIONS or not isinstance(error, BROKEN):
                raise _RefusalError(_reason(error)) from error
            say(f"{place}: {_reason(error)}; going on at byte {path.stat().st_size:,}")
            time.sleep(in_vain * PAUSE)
        except ValueError as error:
            raise _RefusalError(f"not an address: {error}") from error


def _append(place: str, path: Path, from_start: bool) -> bool:
    with _open(place, path.stat().st_size) as answer, path.open("rb+") as file:
        if answer.start < path.stat().st_size:
            if not from_start:
                return False
            file.truncate(answer.start)
        file.seek(answer.start)
        most = min(answer.total or MAXIMUM_BYTES, MAXIMUM_BYTES)
        with download_bar(Path(urlsplit(place).path).name, answer.start, answer.total) as bar:
            for piece in answer.pieces:
                file.write(piece)
                bar.update(len(piece))
                if file.tell() > most:
                    file.truncate(0)
                    raise _RefusalError(f"sends more than {most:,} bytes")
        file.flush()
        os.fsync(file.fileno())
        if answer.total is not None and file.tell() < answer.total:
            raise requests.exceptions.ChunkedEncodingError(
                f"the connection ended at byte {file.tell():,} of {answer.total:,}"
            )
    return True


@contextmanager
def _open(place: str, start: int) -> Iterator[_Answer]:
    if place.startswith(("http://", "https://")):
        with _request(place, start) as response:
            yield _interpret(response, start)
    else:
        path = Path(url2pathname(urlsplit(place).path)) if place.startswith("file://") else Path(place)
        try:
            file = path.expanduser().open("rb")
        except OSError as error:
            raise _RefusalError(error.strerror or str(error)) from error
        with file:
            size = os.fstat(file.fileno()).st_size
            start = min(start, size)
            file.seek(start)
            yield _Answer(start, size, iter(lambda: file.read(CHUNK), b""))


def _request(place: str, start: int) -> requests.Response:
    # No compression on the way: ranges and sizes are those of the file itself.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return requests.get(place, headers=headers, stream=True, timeout=TIMEOUT)


def _interpret(response: requests.Response, start: int) -> _Answer:
    pieces = response.raw.stream(CHUNK, decode_content=False)
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _RefusalError(f"answered {response.status_code} with an HTML page")
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise _RefusalError(f"answered with the wrong range {response.headers.get('Content-Range')!r}")
        return _Answer(start, None if match[2] == "*" else int(match[2]), pieces)
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return _Answer(0, int(length) if length.isdigit() else None, pieces)
    if response.status_code == 416:
        # The part file has all that this place has, or more: the hash decides.
        return _Answer(start, None, iter(()))
    raise _RefusalError(f"answered {response.status_code} {response.reason}")


def _reason(error: Exception) -> str:
    """Return what an HTTP client's nested error comes down to, in a line."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    reason = getattr(error, "reason", None)
    text = str(reason or error) or type(error).__name__
    return text.rpartition(": ")[2] if "object at 0x" in text else text


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """Hold `part` for this process alone; the lock ends with the process, however it ends."""
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(f"{part}: another process is downloading this file; wait for it") from None
        yield file


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
