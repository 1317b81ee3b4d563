"""`fetch` against a server on this machine that answers as badly as real ones do."""

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from dropout_study import download
from dropout_study.download import fetch
from dropout_study.errors import StudyError

CONTENT = bytes(range(256)) * 4_000  # about a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HTML = b"<!DOCTYPE html><title>503</title>"


class Handler(BaseHTTPRequestHandler):
    """The first word of a path says how it is answered."""

    server: "Server"

    def do_GET(self) -> None:
        how = self.path.split("/")[1]
        ranges = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(ranges[1]) if ranges else 0
        self.server.requests.append((how, start))
        getattr(self, how)(start)

    def answer(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def good(self, start: int) -> None:
        if start >= len(CONTENT):
            self.answer(416, b"", Content_Range=f"bytes */{len(CONTENT)}")
        elif start:
            self.partial(start, CONTENT[start:])
        else:
            self.answer(200, CONTENT)

    def partial(self, start: int, body: bytes, length: int | None = None) -> None:
        content_range = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        self.answer(206, body, length, Content_Range=content_range)

    def breaks(self, start: int) -> None:
        """End the connection after 100,000 bytes, however many were announced."""
        body = CONTENT[start : start + 100_000]
        if start:
            self.partial(start, body, len(CONTENT) - start)
        else:
            self.answer(200, body, len(CONTENT))

    def breaks_at_once(self, start: int) -> None:
        self.answer(200, b"", len(CONTENT))

    def no_ranges(self, start: int) -> None:
        self.answer(200, CONTENT)

    def wrong_range(self, start: int) -> None:
        self.answer(206, CONTENT, Content_Range=f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}")

    def busy(self, start: int) -> None:
        self.answer(503, b"")

    def page(self, start: int) -> None:
        self.answer(200, HTML, Content_Type="text/html")

    def unlabelled_page(self, start: int) -> None:
        self.answer(200, HTML)

    def other(self, start: int) -> None:
        self.answer(200, CONTENT[::-1])

    def endless(self, start: int) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT * 2)

    def labelled_gzip(self, start: int) -> None:
        self.answer(200, CONTENT, Content_Encoding="x-gzip")

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    requests: list[tuple[str, int]]

    def address(self, how: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{how}/archive.tar.gz"


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE", 0)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def part_file(directory: Path) -> Path:
    return directory / f"{SHA256}.part"


def test_a_file_is_fetched_and_kept_under_its_hash(server: Server, tmp_path: Path) -> None:
    path = fetch([server.address("good")], SHA256, tmp_path)
    assert path == tmp_path / SHA256
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == [SHA256]


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    fetch([server.address("good")], SHA256, tmp_path)
    fetch([server.address("good")], SHA256, tmp_path)
    assert server.requests == [("good", 0)]


def test_what_is_there_but_damaged_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / SHA256).write_bytes(CONTENT[:-1])
    assert fetch([server.address("good")], SHA256, tmp_path).read_bytes() == CONTENT


def test_a_part_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:300_000])
    assert fetch([server.address("good")], SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("good", 300_000)]


def test_a_part_that_is_already_whole_needs_no_more(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT)
    assert fetch([server.address("good")], SHA256, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"x" * 300_000, CONTENT + b"more"], ids=["wrong", "too-long"])
def test_a_part_that_was_wrong_costs_one_more_request(server: Server, tmp_path: Path, part: bytes) -> None:
    part_file(tmp_path).write_bytes(part)
    assert fetch([server.address("good")], SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("good", len(part)), ("good", 0)]


def test_a_server_without_ranges_starts_from_the_beginning(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:300_000])
    assert fetch([server.address("no_ranges")], SHA256, tmp_path).read_bytes() == CONTENT


def test_a_broken_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    assert fetch([server.address("breaks")], SHA256, tmp_path).read_bytes() == CONTENT
    starts = [start for _, start in server.requests]
    assert starts == list(range(0, len(CONTENT), 100_000))


def test_one_place_goes_on_with_what_another_began(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:500_000])
    places = [server.address("busy"), server.address("good")]
    assert fetch(places, SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("busy", 500_000), ("good", 500_000)]


@pytest.mark.parametrize("how", ["page", "unlabelled_page", "other", "breaks_at_once"])
def test_a_bad_place_does_not_cost_what_has_come(server: Server, tmp_path: Path, how: str) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:900_000])
    places = [server.address(how), server.address("good")]
    assert fetch(places, SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("good", 900_000)
    assert os.listdir(tmp_path) == [SHA256]


@pytest.mark.parametrize("address", ["http://", "http://a:b/c", "file://[x", "http://host.invalid:99999/x"])
def test_what_is_no_address_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    with pytest.raises(StudyError, match="no place had the file"):
        fetch([address], SHA256, tmp_path)
    assert "going on" not in capsys.readouterr().out


def test_bytes_are_taken_as_they_are_whatever_the_server_calls_them(server: Server, tmp_path: Path) -> None:
    assert fetch([server.address("labelled_gzip")], SHA256, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("busy", "answered 503 Service Unavailable"),
        ("page", "answered 200 with an HTML page"),
        ("unlabelled_page", "sent an HTML page, content with SHA-256"),
        ("other", "sent content with SHA-256"),
        ("breaks_at_once", "IncompleteRead"),
    ],
)
def test_places_are_tried_in_turn(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, message: str
) -> None:
    places = [server.address(how), server.address("good")]
    assert fetch(places, SHA256, tmp_path).read_bytes() == CONTENT
    assert f"{places[0]}: " in capsys.readouterr().out
    with pytest.raises(StudyError, match=message):
        fetch(places[:1], SHA256, tmp_path / "alone")
    assert os.listdir(tmp_path / "alone") == []


def test_a_wrong_range_is_not_appended(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:500_000])
    with pytest.raises(StudyError, match="wrong range 'bytes 0-"):
        fetch([server.address("wrong_range")], SHA256, tmp_path)
    assert part_file(tmp_path).read_bytes() == CONTENT[:500_000]


def test_an_endless_answer_is_cut(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAXIMUM_BYTES", len(CONTENT))
    with pytest.raises(StudyError, match="sends more than 1,024,000 bytes"):
        fetch([server.address("endless")], SHA256, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("scheme", ["file://", ""], ids=["file", "path"])
def test_a_local_file_will_do(tmp_path: Path, scheme: str) -> None:
    source = tmp_path / "my archive.tar.gz"
    source.write_bytes(CONTENT)
    address = source.as_uri() if scheme else str(source)
    assert fetch([address], SHA256, tmp_path / "downloads").read_bytes() == CONTENT
    assert source.exists()


def test_a_truncated_local_file_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "archive.tar.gz"
    source.write_bytes(CONTENT[:1000])
    with pytest.raises(StudyError, match="sent content with SHA-256"):
        fetch([str(source)], SHA256, tmp_path / "downloads")


def test_no_place_reachable_lists_each_with_its_error_and_the_way_out(server: Server, tmp_path: Path) -> None:
    with Server(("127.0.0.1", 0), Handler) as closed:
        nobody = closed.address("good")
    places = [str(tmp_path / "absent.tar.gz"), nobody, server.address("busy")]
    with pytest.raises(StudyError) as error:
        fetch(places, SHA256, tmp_path / "downloads")
    message = str(error.value)
    assert SHA256 in message
    assert f"{places[0]}: No such file or directory" in message
    assert re.search(f"{re.escape(nobody)}: .*refused", message)
    assert f"{places[2]}: answered 503" in message
    assert "CIFAR10_ARCHIVE=/path/to/cifar-10-binary.tar.gz dvc repro" in message
    assert "dataset: digits" in message


def test_an_unknown_host_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"host.invalid/archive: .*(resolve|resolution|not known)"):
        fetch(["http://host.invalid/archive"], SHA256, tmp_path)


def test_two_processes_do_not_write_one_part(server: Server, tmp_path: Path) -> None:
    with part_file(tmp_path).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StudyError, match="another process is downloading"):
            fetch([server.address("good")], SHA256, tmp_path)
    assert server.requests == []


def test_a_full_disk_is_an_error_that_keeps_what_has_come(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StudyError, match="No space left on device; what has come is kept"):
        fetch([server.address("good")], SHA256, tmp_path)
    assert part_file(tmp_path).stat().st_size > 0
