"""Download one file from the first of several places that has it: resumed, verified, whole or not at all.

An error belongs to a place or to the disk by where it is raised: what is raised while a place is opened or read becomes
one of the exceptions below there and then, so that every `OSError` that is left comes from our own files.
"""

import hashlib
import io
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

import requests
import urllib3

from dropout_study.console import REMEDIES, StudyError, download_bar, printable, say
from dropout_study.files import locked, sync_directory

PIECE = 1 << 16  # bytes that are read at most before they are written and shown
TIMEOUT = (10, 30)  # seconds to connect, and between two bytes of the answer
ANSWER_SECONDS = 60.0  # until an answer begins, redirects included, and between two pieces of it
BROKEN_CONNECTIONS = 5  # in a row without a byte gained, before the next place is tried
PAUSE = 1.0  # seconds, times the number of connections in a row that broke without a byte gained
MINIMUM_RATE = 200_000  # bytes per second, at which CIFAR-10 takes 14 minutes; slower places are tried last
RATE_SECONDS = 60.0  # seconds over which a place's rate is measured
HOPELESS_RATE = 1_000  # bytes per second, at which CIFAR-10 takes two days; a slower place is given up
HOPELESS_SECONDS = 300.0  # likewise
MAXIMUM_BYTES = 2 << 30  # larger than any archive we use; a stream that does not end is cut off here

# What requests and urllib3 let through: bare OSError and ValueError as well as their own. RuntimeError: no home for ~.
PLACE_ERRORS = (OSError, ValueError, RuntimeError, urllib3.exceptions.HTTPError)
# Variables that requests obeys. A refusal names those that are set: only their reader knows whether they are right.
VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
LONGEST_QUOTE = 300  # characters of what a server, or a library, says


class _PlaceError(Exception):
    """What is wrong with a place, in one line. What others say in it is `_quoted`."""


class _RefusalError(_PlaceError):
    """A place does not have the file, or cannot be reached: try the next one."""


class _RangeError(_RefusalError):
    """A place sends another range than it was asked for."""


class _BrokenError(_PlaceError):
    """A connection ended early: ask the same place for the rest."""


class _SlowError(_PlaceError):
    """A place delivers only `rate` bytes per second: try the others first."""

    def __init__(self, rate: float, minimum_rate: float) -> None:
        super().__init__(f"{rate / 1000:,.1f} kB/s, below the minimum of {minimum_rate / 1000:,.1f} kB/s")
        self.rate = rate


class _RateLimit:
    """The rate of one place, over all its connections, in periods of at least `seconds`."""

    def __init__(self, minimum_rate: float, seconds: float) -> None:
        self.minimum_rate = minimum_rate
        self.seconds = seconds
        self._start_period()

    def add(self, count: int) -> None:
        """Count `count` bytes. Raises `_SlowError` at the end of a period that was below the minimum rate."""
        self.bytes += count
        seconds = time.monotonic() - self.start
        if seconds < self.seconds:
            return
        rate = self.bytes / seconds
        if rate < self.minimum_rate:
            raise _SlowError(rate, self.minimum_rate)
        self._start_period()

    def _start_period(self) -> None:
        self.start = time.monotonic()
        self.bytes = 0


class _Answer(NamedTuple):
    start: int
    total: int | None
    has_end: bool  # given by a length, or by chunks; otherwise the answer ends where the connection does
    pieces: Iterator[bytes]


def fetch(places: Sequence[str], sha256: str, directory: Path) -> Path:
    """Return the file in `directory` whose content has the hash `sha256`; download it if it is not there.

    `places` are `http(s)://` and `file://` addresses and plain paths, tried in this order; a place that is slower than
    `MINIMUM_RATE` is left, and tried again if no other place has the file; then `HOPELESS_RATE` is enough. Bytes are
    kept in `<sha256>.part` as they arrive, and the download resumes there, from the same place or another, in this run
    or the next. Only a complete file with the right hash gets its name, `<sha256>`.

    If a file that several places have delivered has the wrong hash, the last of them is asked again for what each of
    the others has added, the last first, until the hash is right or the whole file is its own. If it is wrong even
    then, what it sent is dropped, and what was there before it is kept for the next place.

    Raises `StudyError` if no place has the file (it lists the reason of each), if another process is downloading it,
    or if it cannot be written.
    """
    target = directory / sha256
    part = directory / f"{sha256}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if target.exists() and _hash(target) == sha256:
            say(f"{target}: already downloaded, hash verified")
            return target
        with locked(part, "another process is downloading this file; wait for it"):
            if target.exists():  # else another process may have completed it until we had the lock
                if _hash(target) == sha256:
                    part.unlink(missing_ok=True)
                    say(f"{target}: downloaded by another process, hash verified")
                    return target
                say(f"{target}: damaged, its hash is not the one in its name; downloading it again")
                target.unlink()
            _complete_from_any(places, part, sha256)
            part.replace(target)
            sync_directory(directory)
        say(f"{target}: {target.stat().st_size:,} bytes, hash verified")
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "fix this")
        raise StudyError(
            f"{error.filename or part}: {_reason(error)}; {remedy}, and the next run resumes the download"
        ) from error
    return target


def _complete_from_any(places: Sequence[str], part: Path, sha256: str) -> None:
    """Complete `part` from the first place that can, slow places last, the fastest of them first."""
    _keep_longer(part.with_suffix(".fresh"), part)  # of a run that was killed
    earlier_sizes: list[int] = []  # of `part`, before each place that did not complete it added to it
    untried = deque(places)
    slow: list[tuple[float, str]] = []
    refusals: list[str] = []
    while part.stat().st_size == 0 or _hash(part) != sha256:
        if untried:
            place = untried.popleft()
            # A slow connection is better than none: the minimum rate only matters while there is another place.
            last_resort = not (untried or slow)
        elif slow:
            slow.sort()
            place = slow.pop()[1]
            last_resort = True
            say(f"{place}: trying again; {HOPELESS_RATE / 1000:,.1f} kB/s are enough now")
        else:
            raise _no_place(refusals, part, sha256)
        limit = _RateLimit(HOPELESS_RATE, HOPELESS_SECONDS) if last_resort else _RateLimit(MINIMUM_RATE, RATE_SECONDS)
        size = part.stat().st_size
        try:
            _complete_from(place, part, earlier_sizes, sha256, limit)
        except (_SlowError, _RefusalError) as error:
            if part.stat().st_size > size:
                earlier_sizes.append(size)
            if isinstance(error, _SlowError) and not last_resort:
                say(f"{place}: {error}; trying other places first")
                slow.append((error.rate, place))
            else:
                say(f"{place}: {error}")
                refusals.append(f"  {place}: {error}")
        else:
            return


def _no_place(refusals: list[str], part: Path, sha256: str) -> StudyError:
    """Remove `part` if it is empty; return the error that lists the reasons of all places."""
    if part.stat().st_size == 0:
        part.unlink()
    return StudyError(
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


def _complete_from(place: str, part: Path, earlier_sizes: Sequence[int], sha256: str, limit: _RateLimit) -> None:
    """Complete `part` from `place`. `earlier_sizes` are those it had before each of the other places added to it.

    Raises `_RefusalError` or `_SlowError` if the place does not deliver the right content. `part` is then as it was, or
    has more bytes.
    """
    size = part.stat().st_size
    fresh = part.with_suffix(".fresh")
    # Only the hash of a complete file tells that bytes are wrong, and not which: those that were here, or the new ones.
    starts = sorted({0, *earlier_sizes, size})
    whole_attempts = 0
    while starts:
        start = starts.pop()
        whole_attempts += start == 0
        path = part if start == size else fresh
        try:
            if path == fresh:
                shutil.copyfile(part, fresh)
                os.truncate(fresh, start)
            connections = _append_all(place, path, limit, sha256, from_start=start == 0)
            actual = _hash(path)
            if actual == sha256:
                path.replace(part)
                return
            html = "an HTML page, " if _is_html(path) else ""
            if connections is not None:
                os.truncate(path, start)
        finally:
            if path == fresh:
                _keep_longer(fresh, part)
        if start:
            if connections is None:
                starts = [0]
            say(f"{place}: cannot resume from the {start:,} bytes in {part}; starting at byte {starts[-1]:,}")
        elif connections and connections > 1 and whole_attempts == 1:
            # No ETag is asked for: mirrors of one file have different ones, and the hash finds a file that changed
            # between two connections. The next attempt may have it whole.
            starts = [0]
            say(f"{place}: the file changed between two connections; starting from the beginning")
    os.truncate(part, size)  # of what came before the place no longer resumed
    raise _RefusalError(f"sent {html}content with SHA-256 {actual}")


def _keep_longer(fresh: Path, part: Path) -> None:
    """Remove `fresh`; if it is longer than `part`, `part` gets its content. `part` remains the file that is locked."""
    if fresh.exists():
        if fresh.stat().st_size > part.stat().st_size:
            shutil.copyfile(fresh, part)
        fresh.unlink()


def _append_all(place: str, path: Path, limit: _RateLimit, sha256: str, from_start: bool) -> int | None:
    """Append to `path` all that it lacks of the file at `place`; return how many connections delivered some of it.

    Returns None, and keeps what came before, if that means starting from the beginning and `from_start` is not set.
    """
    path.touch()
    connections = failures = 0
    while True:
        size = path.stat().st_size
        try:
            resumed = _append(place, path, limit, sha256, from_start)
            return connections + (path.stat().st_size > size) if resumed else None
        except _BrokenError as error:
            grown = path.stat().st_size > size
            connections += grown
            failures = 0 if grown else failures + 1
            if failures == BROKEN_CONNECTIONS:
                raise _RefusalError(str(error)) from error
            limit.add(0)
            say(f"{place}: {error}; resuming at byte {path.stat().st_size:,}")
            time.sleep(failures * PAUSE)


def _append(place: str, path: Path, limit: _RateLimit, sha256: str, from_start: bool) -> bool:
    """Do what `_append_all` does over one connection; raises `_BrokenError` if it ends early.

    An answer may end with its connection, without a length. Then only the hash `sha256` tells whether that is its end.
    """
    size = path.stat().st_size
    with _open(place, size) as answer, path.open("rb+") as file:
        if answer.start < size and not from_start:
            return False
        maximum = MAXIMUM_BYTES if answer.total is None else answer.total
        if maximum > MAXIMUM_BYTES:
            raise _RefusalError(f"has {maximum:,} bytes, at most {MAXIMUM_BYTES:,} are allowed")
        # What is there is overwritten, not cut off: if the connection breaks again, nothing is lost.
        file.seek(answer.start)
        with download_bar(place.rpartition("/")[2], answer.start, answer.total) as bar:
            for piece in answer.pieces:
                if file.tell() + len(piece) > maximum:
                    file.truncate(answer.start)
                    raise _RefusalError(f"sends more than {maximum:,} bytes")
                file.write(piece)
                file.flush()  # whatever ends this process, the next one resumes here
                bar.update(len(piece))
                limit.add(len(piece))
        os.fsync(file.fileno())
        if answer.total is not None and file.tell() < answer.total:
            raise _BrokenError(f"the connection ended at byte {file.tell():,} of {answer.total:,}")
        if answer.total is None and not answer.has_end and not _is_html(path) and _hash(path) != sha256:
            raise _BrokenError(f"the connection ended at byte {file.tell():,}, without a length or the right hash")
        file.truncate()
    return True


@contextmanager
def _open(place: str, start: int) -> Iterator[_Answer]:
    """Open `place` at byte `start`. Raises `_RefusalError` if that fails, `_BrokenError` after a timeout."""
    with closing(_in_thread(_read(place, start))) as items:
        start, total, has_end = next(items)
        yield _Answer(start, total, has_end, items)


def _in_thread(items: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """Yield `items`, which run in a thread; leave it and raise `_BrokenError` after `ANSWER_SECONDS` without one.

    A timeout of a socket starts again with each byte, so one byte every 29 seconds would keep us for years.
    """
    queue: Queue[Any] = Queue(1)
    left = Event()

    def run() -> None:
        with closing(items):
            try:
                for item in items:
                    queue.put(item)
                    if left.is_set():
                        return
                queue.put(None)
            except BaseException as error:
                queue.put(error)

    Thread(target=run, daemon=True).start()
    try:
        while True:
            try:
                item = queue.get(timeout=ANSWER_SECONDS)
            except Empty:
                raise _BrokenError(f"nothing to read for {ANSWER_SECONDS:g} seconds") from None
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
        with suppress(Empty):
            queue.get_nowait()  # the thread may be waiting for room


def _read(place: str, start: int) -> Generator[Any, None, None]:
    """Yield the first fields of an `_Answer`; then pieces of the file."""
    remote = place.startswith(("http://", "https://"))
    with ExitStack() as opened:
        try:
            if remote:
                try:
                    first, total, has_end, read = _interpret(opened.enter_context(_request(place, start)), start)
                except _RangeError:
                    if not start:
                        raise
                    first, total, has_end, read = _interpret(opened.enter_context(_request(place, 0)), 0)
            else:
                path = Path(url2pathname(urlsplit(place).path)) if place.startswith("file://") else Path(place)
                file = opened.enter_context(path.expanduser().open("rb"))
                total = os.fstat(file.fileno()).st_size
                first, has_end, read = file.seek(min(start, total)), True, file.read
        except PLACE_ERRORS as error:
            # What was dropped, unlike what was refused, may work at the next attempt.
            dropped = any(isinstance(cause, urllib3.exceptions.ProtocolError) for cause in error.args)
            if dropped or isinstance(error, requests.Timeout):
                raise _BrokenError(_reason(error)) from error
            raise _RefusalError(_reason(error) + (_variables_in_use() if remote else "")) from error
        yield first, total, has_end
        while True:
            try:
                piece = read(PIECE)
            except PLACE_ERRORS as error:
                raise _BrokenError(_reason(error)) from error
            if not piece:
                return
            yield piece


def _request(place: str, start: int) -> requests.Response:
    # No compression in transit: ranges and sizes are those of the file itself.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return requests.get(place, headers=headers, stream=True, timeout=TIMEOUT, hooks={"response": _check_redirect})


def _check_redirect(response: requests.Response, **_: Any) -> None:
    """Refuse a redirect from https to http. Drop the body of a redirect, which requests would read to its end."""
    if response.is_redirect:
        response.close()
        response.raw = io.BytesIO()
        target = urljoin(response.url, response.headers["Location"])
        if urlsplit(response.url).scheme == "https" and urlsplit(target).scheme != "https":
            raise _RefusalError(f"redirects from https to {_quoted(target)}")


def _interpret(response: requests.Response, start: int) -> tuple[int, int | None, bool, Callable[[int], bytes]]:
    """Return the first fields of an `_Answer`, and what reads the body."""

    def read(count: int) -> bytes:
        # read1 returns what has arrived. read waits until a piece is full, which takes minutes on a slow connection.
        return response.raw.read1(count, decode_content=False)

    if response.status_code == 416 and start:
        # The part file has all that this place has, or more: the hash decides. The body is an explanation.
        return start, None, True, lambda _: b""
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _RefusalError(f"answered {response.status_code} with an HTML page")
    length = response.headers.get("Content-Length", "")
    has_end = bool(length) or response.raw.chunked
    if response.status_code == 206:
        content_range = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
        if match is None or int(match[1]) != start:
            raise _RangeError(f"answered with the wrong range {_quoted(repr(content_range))}")
        return start, None if match[2] == "*" else int(match[2]), has_end, read
    if response.status_code == 200:
        return 0, int(length) if length.isdigit() else None, has_end, read
    raise _RefusalError(f"answered {response.status_code} {_quoted(response.reason)}")


def _variables_in_use() -> str:
    # Names only: the address of a proxy may contain a password.
    names = sorted(name for name, value in os.environ.items() if name.upper() in VARIABLES and value)
    return f" (set in the environment: {', '.join(names)})" if names else ""


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a nested error in one `_quoted` line, which is never empty."""
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
            return _quoted(text)
    return type(error).__name__


def _quoted(text: str) -> str:
    """Return foreign text so that it does nothing to a terminal, and leaves room for what we say about it."""
    text = printable(text)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…"


def _is_html(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(512).lstrip()[:1] == b"<"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
