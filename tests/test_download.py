"""`fetch` against a server on this machine that answers as badly as real ones do."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from dropout_study import download
from dropout_study.console import StudyError
from dropout_study.download import fetch
from dropout_study.files import locked
from tests.clones import PROJECT

CONTENT = bytes(range(256)) * 2_000  # half a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CUT = 200_000  # bytes after which connections break
FETCH = """
import sys, pathlib
from dropout_study.download import fetch
fetch(sys.argv[1:2], sys.argv[2], pathlib.Path(sys.argv[3]))
"""


class Handler(BaseHTTPRequestHandler):
    """Answers as the first part of the path says, and records from which byte it was asked."""

    starts: list[int]

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
        self.starts.append(start)
        getattr(self, self.path.split("/")[1])(start)

    def answer(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def good(self, start: int, end: int | None = None) -> None:
        if start >= len(CONTENT):
            self.answer(416, b"")
        elif start:
            span = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
            self.answer(206, CONTENT[start:end], len(CONTENT) - start, Content_Range=span)
        else:
            self.answer(200, CONTENT[:end], len(CONTENT))

    def breaks(self, start: int) -> None:
        """Send `CUT` bytes of what is announced."""
        self.good(start, start + CUT)

    def breaks_at_once(self, start: int) -> None:
        self.good(start, start)

    def no_ranges(self, start: int) -> None:
        self.answer(200, CONTENT)

    def wrong(self, start: int) -> None:
        self.answer(200, CONTENT[::-1])

    def page(self, start: int) -> None:
        self.answer(200, b"<html>log in</html>", Content_Type="text/html; charset=utf-8")

    def missing(self, start: int) -> None:
        self.answer(404, b"no")

    def hangs(self, start: int) -> None:
        self.good(start, start + CUT)
        self.wfile.flush()
        time.sleep(30)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Handler.starts = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_pauses_and_no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def part_file(directory: Path) -> Path:
    return directory / f"{SHA256}.part"


def test_fetch_names_the_file_by_its_hash_and_downloads_once(url: str, tmp_path: Path) -> None:
    first, again = (fetch([f"{url}/good/a.tar.gz"], SHA256, tmp_path / "new") for _ in range(2))

    assert first == again == tmp_path / "new" / SHA256
    assert first.read_bytes() == CONTENT
    assert Handler.starts == [0]
    assert not part_file(tmp_path / "new").exists()


def test_fetch_replaces_a_damaged_file(url: str, tmp_path: Path) -> None:
    (tmp_path / SHA256).write_bytes(CONTENT[1:])

    assert fetch([f"{url}/good/a"], SHA256, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [300_000, len(CONTENT)], ids=["unfinished", "complete"])
def test_fetch_resumes_a_part(url: str, tmp_path: Path, size: int) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:size])

    assert fetch([f"{url}/good/a"], SHA256, tmp_path).read_bytes() == CONTENT
    assert Handler.starts == [size]


@pytest.mark.parametrize("part", [b"x" * 300_000, CONTENT + b"more"], ids=["wrong", "too long"])
def test_fetch_starts_over_after_a_wrong_part(url: str, tmp_path: Path, part: bytes) -> None:
    part_file(tmp_path).write_bytes(part)

    assert fetch([f"{url}/good/a"], SHA256, tmp_path).read_bytes() == CONTENT
    assert Handler.starts == [len(part), 0]


def test_fetch_continues_after_broken_connections(url: str, tmp_path: Path) -> None:
    assert fetch([f"{url}/breaks/a"], SHA256, tmp_path).read_bytes() == CONTENT
    assert Handler.starts == [0, pytest.approx(CUT, abs=download.CHUNK), pytest.approx(2 * CUT, abs=2 * download.CHUNK)]


def test_fetch_continues_after_a_silent_connection(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", (1, 0.3))

    assert fetch([f"{url}/hangs/a"], SHA256, tmp_path).read_bytes() == CONTENT
    assert Handler.starts[:2] == [0, pytest.approx(CUT, abs=download.CHUNK)]


def test_fetch_resumes_at_the_next_mirror(url: str, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:CUT])

    assert fetch([f"{url}/breaks_at_once/a", f"{url}/good/a"], SHA256, tmp_path).read_bytes() == CONTENT
    assert Handler.starts == [CUT] * (download.ATTEMPTS + 1)


def test_fetch_starts_over_where_a_server_has_no_ranges(url: str, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:CUT])

    assert fetch([f"{url}/no_ranges/a"], SHA256, tmp_path).read_bytes() == CONTENT


def test_fetch_copies_local_files(tmp_path: Path) -> None:
    (tmp_path / "an archive").write_bytes(CONTENT)

    for i, url in enumerate([str(tmp_path / "an archive"), (tmp_path / "an archive").as_uri()]):
        assert fetch([url], SHA256, tmp_path / str(i)).read_bytes() == CONTENT


def test_fetch_lists_the_reason_of_each_url_and_how_to_continue(url: str, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(CONTENT[:-1])
    reasons = {
        f"{url}/missing/a": "answered 404 Not Found",
        f"{url}/page/a": "answered with an HTML page",
        f"{url}/wrong/a": f"has content with SHA-256 {hashlib.sha256(CONTENT[::-1]).hexdigest()}",
        f"{url}/breaks_at_once/a": "IncompleteRead",
        "http://host.invalid/a": "Failed to resolve 'host.invalid'",
        "http://[::1": "Failed to parse",
        "http://127.0.0.1:1/a": "Connection refused",
        str(tmp_path / "nothing"): "No such file or directory",
        str(tmp_path / "short"): "has content with SHA-256 ",
    }

    with pytest.raises(StudyError) as error:
        fetch([*reasons], SHA256, tmp_path / "new")

    first, *lines = str(error.value).splitlines()
    assert first == f"no URL has the file with SHA-256 {SHA256}:"
    for line, (place, reason) in zip(lines, reasons.items(), strict=False):
        assert line.startswith(f"  {place}: ")
        assert reason in line
    assert lines[len(reasons) + 1] == "  CIFAR10_ARCHIVE=/path/to/cifar-10-binary.tar.gz dvc repro"
    assert not part_file(tmp_path / "new").exists()


def test_fetch_without_urls_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"params.yaml: download.urls is empty"):
        fetch([], SHA256, tmp_path)


def test_fetch_takes_a_bad_certificate_bundle_as_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")

    with pytest.raises(StudyError, match=r"https://127.0.0.1:1/a: Could not find .* /no/such/bundle.pem"):
        fetch(["https://127.0.0.1:1/a"], SHA256, tmp_path)


def test_fetch_keeps_the_part_on_a_full_disk(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:CUT])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(StudyError, match=r"\.part: No space left on device; make room for it, and the next"):
        fetch([f"{url}/good/a"], SHA256, tmp_path)
    assert part_file(tmp_path).read_bytes() == CONTENT


def test_fetch_refuses_a_second_process(url: str, tmp_path: Path) -> None:
    with locked(part_file(tmp_path).with_suffix(".lock"), "held"):
        done = subprocess.run(
            [sys.executable, "-c", FETCH, f"{url}/good/a", SHA256, tmp_path],
            cwd=PROJECT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert "another process is downloading this file; wait for it" in done.stderr
    assert Handler.starts == []


def test_fetch_keeps_what_has_arrived_when_killed(url: str, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", FETCH, f"{url}/hangs/a", SHA256, tmp_path], cwd=PROJECT)
    while not part_file(tmp_path).exists() or part_file(tmp_path).stat().st_size < CUT - download.CHUNK:
        assert process.poll() is None
        time.sleep(0.01)

    process.send_signal(signal.SIGKILL)
    process.wait()

    kept = part_file(tmp_path).stat().st_size
    assert fetch([f"{url}/good/a"], SHA256, tmp_path).read_bytes() == CONTENT
    assert Handler.starts[-1] == kept > 0
