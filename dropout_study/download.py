"""Download a file from the first of several mirrors that has it: resumed, and verified by its SHA-256."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import requests
import urllib3

from dropout_study.console import REMEDIES, StudyError, download_bar, printable, say
from dropout_study.files import digest, locked, sync_directory

CHUNK = 1 << 16  # bytes
TIMEOUT = (10, 30)  # seconds to connect, and between two bytes
ATTEMPTS = 3  # connections in a row without a new byte, before the next mirror is tried
PAUSE = 2.0  # seconds, times the number of such connections
LONGEST_REASON = 300  # characters

# What requests and urllib3 raise for a URL or an answer: bare OSError and ValueError as well as their own.
REQUEST_ERRORS = (OSError, ValueError, urllib3.exceptions.HTTPError)
# These say the same at the next attempt.
FINAL_ERRORS = (requests.exceptions.SSLError, requests.exceptions.ProxyError, ValueError)


class _MirrorError(Exception):
    """Why a mirror does not deliver the file, in one line."""


def fetch(urls: Sequence[str], sha256: str, directory: Path) -> Path:
    """Return the file in `directory` whose content has the hash `sha256`; download it if it is not there.

    `urls` are `http(s)://` and `file://` URLs and plain paths, tried in this order. Bytes are kept in `<sha256>.part`
    as they arrive, and the download resumes there, from the same mirror or another, in this run or the next. Only a
    complete file with the right hash gets its name, `<sha256>`.

    Raises `StudyError` if no mirror has the file (it lists the reason of each), if another process is downloading it,
    or if it cannot be written.
    """
    target, part = directory / sha256, directory / f"{sha256}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(part.with_suffix(".lock"), "another process is downloading this file; wait for it"):
            if target.exists() and digest(target) == sha256:
                say(f"{target}: already downloaded, hash verified")
                return target
            _download_from_any(urls, part, sha256)
            part.replace(target)
            sync_directory(directory)
        say(f"{target}: {target.stat().st_size:,} bytes, hash verified")
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "fix this")
        raise StudyError(
            f"{error.filename or part}: {error.strerror}; {remedy}, and the next run resumes the download"
        ) from error
    return target


def _download_from_any(urls: Sequence[str], part: Path, sha256: str) -> None:
    """Complete `part` from the first mirror that can."""
    reasons = []
    for url in urls:
        try:
            _download(url, part, sha256)
            return
        except _MirrorError as error:
            say(f"{url}: {error}")
            reasons.append(f"  {url}: {error}")
    raise StudyError(
        "\n".join(
            [
                f"no URL has the file with SHA-256 {sha256}:",
                *(reasons or ["  (params.yaml: download.urls is empty)"]),
                "To continue without network, get the file by other means and name it:",
                "  CIFAR10_ARCHIVE=/path/to/cifar-10-binary.tar.gz dvc repro",
                "or use the digits that come with scikit-learn: dataset: digits in params.yaml.",
            ]
        )
    )


def _download(url: str, part: Path, sha256: str) -> None:
    """Complete `part` from `url`; what does not add up to the right content is removed. Raises `_MirrorError`."""
    if url.startswith(("http://", "https://")):
        resumed = part.exists() and part.stat().st_size > 0
        _add_rest(url, part)
        actual = digest(part)
        if resumed and actual != sha256:
            say(f"{url}: the hash is wrong after resuming; starting from the beginning")
            part.unlink()
            _add_rest(url, part)
            actual = digest(part)
    else:
        _copy(url, part)
        actual = digest(part)
    if actual != sha256:
        part.unlink()
        raise _MirrorError(f"has content with SHA-256 {actual}")


def _copy(url: str, part: Path) -> None:
    """Copy a local file, given by a path or a `file://` URL."""
    path = Path(url2pathname(urlsplit(url).path)) if url.startswith("file://") else Path(url).expanduser()
    try:
        source = path.open("rb")
    except OSError as error:
        raise _MirrorError(_reason(error)) from error
    with source, part.open("wb") as file:
        shutil.copyfileobj(source, file)


def _add_rest(url: str, part: Path) -> None:
    """Append to `part` what it lacks of the file at `url`, over as many connections as it takes."""
    failures = 0
    while True:
        size = part.stat().st_size if part.exists() else 0
        try:
            _append(url, part, size)
            return
        except requests.RequestException as error:
            grown = part.exists() and part.stat().st_size > size
            failures = 0 if grown else failures + 1
            if failures == ATTEMPTS or isinstance(error, FINAL_ERRORS):
                raise _MirrorError(_reason(error)) from error
            say(f"{url}: {_reason(error)}; connecting again")
            time.sleep(failures * PAUSE)


def _append(url: str, part: Path, size: int) -> None:
    """Append to `part`, which has `size` bytes, what one connection delivers; an answer that ends early is an error."""
    headers = {"Accept-Encoding": "identity"}  # the hash is that of the file itself
    if size:
        headers["Range"] = f"bytes={size}-"
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.RequestException:
        raise
    except REQUEST_ERRORS as error:
        raise _MirrorError(_reason(error)) from error
    with response:
        if response.status_code == 416 and size:
            return  # no more than this: the hash tells whether it is all
        if response.status_code not in (200, 206):
            raise _MirrorError(f"answered {response.status_code} {printable(response.reason)}")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise _MirrorError("answered with an HTML page")
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {size}-")
        start = size if response.status_code == 206 and resumed else 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        with part.open("ab") as file, download_bar(url.rpartition("/")[2], start, total) as bar:
            file.truncate(start)
            for piece in response.iter_content(CHUNK):
                file.write(piece)
                file.flush()  # whatever ends this process, the next one resumes here
                bar.update(len(piece))
            os.fsync(file.fileno())


def _reason(error: BaseException) -> str:
    """Return an error in one printable line: of nested errors, the innermost one that says why."""
    text = type(error).__name__
    while isinstance(error, BaseException):
        own = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        text = " ".join(own.split()) or text
        causes = (getattr(error, "reason", None), *error.args)
        error = next((cause for cause in causes if isinstance(cause, BaseException)), None)  # type: ignore[assignment]
    return printable(text.rpartition(": ")[2] if " object at 0x" in text else text)[:LONGEST_REASON]
