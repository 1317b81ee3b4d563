"""Download one file from the first of several places that has it: resumed, verified, whole or not at all.

An error belongs to a place or to the disk by where it is raised: what is raised while a place is opened or read becomes
one of the exceptions below there and then, so that every `OSError` that is left comes from our own files.
"""

import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import requests
import urllib3

from dropout_study.errors import StudyError
from dropout_study.files import locked, sync_directory
from dropout_study.progress import download_bar, say

PIECE = 1 << 16  # bytes that are read at most before they are written and shown
TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of the answer
BROKEN_CONNECTIONS = 5  # in a row without a byte gained, before the next place is tried
PAUSE = 1.0  # seconds, times the number of connections in a row that broke without a byte gained
MINIMUM_RATE = 200_000  # bytes per second, at which CIFAR-10 takes 14 minutes; slower places are tried last
RATE_SECONDS = 60.0  # seconds over which a place's rate is measured
MAXIMUM_BYTES = 2 << 30  # larger than any archive we use; a stream that does not end is cut off here

# What requests and urllib3 let through: bare OSError and ValueError as well as their own. RuntimeError: no home for ~.
PLACE_ERRORS = (OSError, ValueError, RuntimeError, urllib3.exceptions.HTTPError)
# Variables that requests obeys. A refusal names those that are set: only their reader knows whether they are right.
VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class _RefusalError(Exception):
    """A place does not have the file, or cannot be reached: try the next one."""


class _BrokenError(Exception):
    """A connection ended early: ask the same place for the rest."""


class _SlowError(Exception):
    """A place delivers only `rate` bytes per second: try the others first."""

    def __init__(self, rate: float) -> None:
        super().__init__(f"{rate / 1000:,.1f} kB/s, below the minimum of {MINIMUM_RATE / 1000:,.1f} kB/s")
        self.rate = rate


class _RateLimit:
    """The rate of one place, over all its connections, in periods of at least `RATE_SECONDS`."""

    def __init__(self, minimum_rate: float) -> None:
        self.minimum_rate = minimum_rate
        self._start_period()

    def add(self, count: int) -> None:
        """Count `count` bytes. Raises `_SlowError` at the end of a period that was below the minimum rate."""
        self.bytes += count
        seconds = time.monotonic() - self.start
        if seconds < RATE_SECONDS:
            return
        rate = self.bytes / seconds
        if rate < self.minimum_rate:
            raise _SlowError(rate)
        self._start_period()

    def _start_period(self) -> None:
        self.start = time.monotonic()
        self.bytes = 0


class _Answer(NamedTuple):
    start: int
    total: int | None
    pieces: Iterator[bytes]


def fetch(places: Sequence[str], sha256: str, directory: Path) -> Path:
    """Return the file in `directory` whose content has the hash `sha256`; download it if it is not there.

    `places` are `http(s)://` and `file://` addresses and plain paths, tried in this order; a place that is slower than
    `MINIMUM_RATE` is left, and tried again without a minimum if no other place has the file. Bytes are kept in
    `<sha256>.part` as they arrive, and the download resumes there, from the same place or another, in this run or the
    next. Only a complete file with the right hash gets its name, `<sha256>`.

    Raises `StudyError` if no place has the file (it lists the reason of each), if another process is downloading it,
    or if it cannot be written.
    """
    target = directory / sha256
    part = directory / f"{sha256}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if _hash(target) == sha256:
                say(f"{target}: already downloaded, hash verified")
                return target
            say(f"{target}: damaged, its hash is not the one in its name; downloading it again")
            target.unlink()
        with locked(part, "another process is downloading this file; wait for it"):
            _complete_from_any(places, part, sha256)
            part.replace(target)
            sync_directory(directory)
        say(f"{target}: {target.stat().st_size:,} bytes, hash verified")
    except OSError as error:
        raise StudyError(
            f"{error.filename or part}: {_reason(error)}; once this is fixed, the next run resumes the download"
        ) from error
    return target


def _complete_from_any(places: Sequence[str], part: Path, sha256: str) -> None:
    """Complete `part` from the first place that can, slow places last, the fastest of them first."""
    untried = deque(places)
    slow: list[tuple[float, str]] = []
    refusals: list[str] = []
    while untried or slow:
        if untried:
            place = untried.popleft()
            # A slow connection is better than none: the minimum rate only matters while there is another place.
            minimum_rate = MINIMUM_RATE if untried or slow else 0
        else:
            slow.sort()
            place = slow.pop()[1]
            minimum_rate = 0
            say(f"{place}: trying again without a minimum rate")
        try:
            return _complete_from(place, part, sha256, _RateLimit(minimum_rate))
        except _SlowError as error:
            say(f"{place}: {error}; trying other places first")
            slow.append((error.rate, place))
        except _RefusalError as error:
            say(f"{place}: {error}")
            refusals.append(f"  {place}: {error}")
    if part.stat().st_size == 0:
        part.unlink()
    raise StudyError(
        "\n".join(
            [
                f"no place has the file with SHA-256 {sha256}:",
                *(refusals or ["  (params.yaml: download.urls names no place)"]),
                "To continue without network, get the file by other means and name it:",
                "  CIFAR10_ARCHIVE=/path/to/cifar-10-binary.tar.gz dvc repro",
                "or use the digits that come with scikit-learn: dataset: digits in params.yaml.",
            ]
        )
    )


def _complete_from(place: str, part: Path, sha256: str, limit: _RateLimit) -> None:
    """Complete `part` from `place`.

    Raises `_RefusalError` or `_SlowError` if the place does not deliver the right content. `part` is then as it was, or
    has more bytes.
    """
    size = part.stat().st_size
    if size:
        if _append_all(place, part, limit, from_start=False) and _hash(part) == sha256:
            return
        # Only the hash of a complete file tells which bytes are wrong: those that were here, or those that arrived.
        os.truncate(part, size)
        say(f"{place}: cannot resume from the {size:,} bytes in {part}; starting from the beginning")
    fresh = part.with_suffix(".fresh") if size else part
    try:
        if size:
            fresh.unlink(missing_ok=True)  # of a run that was killed
        _append_all(place, fresh, limit, from_start=True)
        actual = _hash(fresh)
        if actual != sha256:
            with fresh.open("rb") as file:
                html = "an HTML page, " if file.read(512).lstrip()[:1] == b"<" else ""
            os.truncate(fresh, 0)
            raise _RefusalError(f"sent {html}content with SHA-256 {actual}")
        fresh.replace(part)
    finally:
        if size and fresh.exists():
            # Interrupted, refused or too slow: keep the one that got further.
            if fresh.stat().st_size > size:
                fresh.replace(part)
            else:
                fresh.unlink()


def _append_all(place: str, path: Path, limit: _RateLimit, from_start: bool) -> bool:
    """Append to `path` all that it lacks of the file at `place`, over as many connections as that takes.

    Returns False, with nothing written, if that means starting from the beginning and `from_start` is not set.
    """
    path.touch()
    failures = 0
    while True:
        size = path.stat().st_size
        try:
            return _append(place, path, limit, from_start)
        except _BrokenError as error:
            failures = 0 if path.stat().st_size > size else failures + 1
            if failures == BROKEN_CONNECTIONS:
                raise _RefusalError(str(error)) from error
            limit.add(0)
            say(f"{place}: {error}; resuming at byte {path.stat().st_size:,}")
            time.sleep(failures * PAUSE)


def _append(place: str, path: Path, limit: _RateLimit, from_start: bool) -> bool:
    """Do what `_append_all` does over one connection; raises `_BrokenError` if it ends early."""
    size = path.stat().st_size
    with _open(place, size) as answer, path.open("rb+") as file:
        if answer.start < size:
            if not from_start:
                return False
            file.truncate(answer.start)
        file.seek(answer.start)
        maximum = min(answer.total or MAXIMUM_BYTES, MAXIMUM_BYTES)
        with download_bar(place.rpartition("/")[2], answer.start, answer.total) as bar:
            for piece in answer.pieces:
                file.write(piece)
                file.flush()  # whatever ends this process, the next one resumes here
                if file.tell() > maximum:
                    file.truncate(answer.start)
                    raise _RefusalError(f"sends more than {maximum:,} bytes")
                bar.update(len(piece))
                limit.add(len(piece))
        os.fsync(file.fileno())
        if answer.total is not None and file.tell() < answer.total:
            raise _BrokenError(f"the connection ended at byte {file.tell():,} of {answer.total:,}")
    return True


@contextmanager
def _open(place: str, start: int) -> Iterator[_Answer]:
    """Open `place` at byte `start`. Raises `_RefusalError` if that fails, `_BrokenError` after a timeout."""
    remote = place.startswith(("http://", "https://"))
    with ExitStack() as opened:
        try:
            if remote:
                answer = _interpret(opened.enter_context(_request(place, start)), start)
            else:
                path = Path(url2pathname(urlsplit(place).path)) if place.startswith("file://") else Path(place)
                file = opened.enter_context(path.expanduser().open("rb"))
                total = os.fstat(file.fileno()).st_size
                answer = _Answer(file.seek(min(start, total)), total, _pieces(file.read))
        except requests.Timeout as error:
            raise _BrokenError(_reason(error)) from error
        except PLACE_ERRORS as error:
            raise _RefusalError(_reason(error) + (_variables_in_use() if remote else "")) from error
        yield answer


def _request(place: str, start: int) -> requests.Response:
    # No compression in transit: ranges and sizes are those of the file itself.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return requests.get(place, headers=headers, stream=True, timeout=TIMEOUT)


def _interpret(response: requests.Response, start: int) -> _Answer:
    # read1 returns what has arrived. read waits until a piece is full, which takes minutes on a slow connection.
    pieces = _pieces(lambda count: response.raw.read1(count, decode_content=False))
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


def _pieces(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield what `read` returns until it returns nothing. Raises `_BrokenError` for whatever it raises."""
    while True:
        try:
            piece = read(PIECE)
        except PLACE_ERRORS as error:
            raise _BrokenError(_reason(error)) from error
        if not piece:
            return
        yield piece


def _variables_in_use() -> str:
    # Names only: the address of a proxy may contain a password.
    names = sorted(name for name, value in os.environ.items() if name.upper() in VARIABLES and value)
    return f" (set in the environment: {', '.join(names)})" if names else ""


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a nested error in one printable line, which is never empty."""
    causes = [error]
    while True:
        nested = (getattr(causes[-1], "reason", None), *causes[-1].args)
        cause = next((value for value in nested if isinstance(value, BaseException)), None)
        if cause is None:
            break
        causes.append(cause)
    for cause in reversed(causes):
        text = str(cause)
        if isinstance(cause, OSError) and len(cause.args) > 1:
            text = str(cause.strerror)
        elif " object at 0x" in text:
            text = str(cause.args[-1]).rpartition(": ")[2]
        text = " ".join(text.encode(errors="backslashreplace").decode().split())
        if text not in ("", "None"):
            return text
    return type(error).__name__


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
