"""`fetch` against a server on this machine that answers as badly as real ones do."""

import errno
import fcntl
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import requests
import urllib3

from dropout_study import console, download
from dropout_study.console import StudyError
from dropout_study.download import fetch
from tests.clones import PROJECT
from tests.needs import needs
from tests.servers import CONTENT, SHA256, STALL_AT, Handler, Server, certificate, serving, start_python

UNREADABLE = Path("/proc/self/mem")  # opens, but reading its first byte is an error, for root too


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_pauses_and_no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE", 0)
    for name in [name for name in os.environ if name.upper() in download.VARIABLES]:
        monkeypatch.delenv(name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure rates over a fifth of a second, and want ten megabytes per second."""
    monkeypatch.setattr(download, "RATE_SECONDS", 0.2)
    monkeypatch.setattr(download, "MINIMUM_RATE", 10_000_000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have rates measured by a clock that only bytes move, as `at_rate` says, however busy this machine is."""
    now = 0.0

    class Bar:
        def __init__(self, name: str, done: int) -> None:
            self.rate, self.at_once = map(float, name.rpartition("?")[2].split(","))
            self.position = done

        def update(self, count: int) -> None:
            nonlocal now
            self.position += count
            now += max(0, min(count, self.position - self.at_once)) / self.rate

    monkeypatch.setattr(download, "download_bar", lambda name, done, _: nullcontext(Bar(name, done)))
    monkeypatch.setattr(download, "time", SimpleNamespace(monotonic=lambda: now, sleep=time.sleep))


def at_rate(server: Server, behaviour: str, rate: float, at_once: int = 0) -> str:
    """Return the address of a place from which `rate` bytes arrive in a second of `clock`, the first ones at once."""
    return f"{server.address(behaviour)}?{rate},{at_once}"


@pytest.fixture
def archive(tmp_path: Path) -> str:
    """Return the address of a local file with the right content."""
    path = tmp_path / "elsewhere" / "archive.tar.gz"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path.as_uri()


def part_file(directory: Path) -> Path:
    return directory / f"{SHA256}.part"


def test_fetch_names_file_by_its_hash(server: Server, tmp_path: Path) -> None:
    path = fetch([server.address("good")], SHA256, tmp_path)

    assert path == tmp_path / SHA256
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == [SHA256]


def test_fetch_downloads_once(server: Server, tmp_path: Path) -> None:
    fetch([server.address("good")], SHA256, tmp_path)
    fetch([server.address("good")], SHA256, tmp_path)

    assert server.requests == [("good", 0)]


def test_fetch_replaces_damaged_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / SHA256).write_bytes(CONTENT[:-1])

    assert fetch([server.address("good")], SHA256, tmp_path).read_bytes() == CONTENT


def test_fetch_resumes_part(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:300_000])

    assert fetch([server.address("good")], SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("good", 300_000)]


def test_fetch_accepts_complete_part(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT)

    assert fetch([server.address("good")], SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == []


@pytest.mark.parametrize("part", [b"x" * 300_000, CONTENT + b"more"], ids=["wrong", "too-long"])
def test_fetch_starts_over_after_wrong_part(server: Server, tmp_path: Path, part: bytes) -> None:
    part_file(tmp_path).write_bytes(part)

    assert fetch([server.address("good")], SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("good", len(part)), ("good", 0)]


def test_fetch_resumes_leftover_of_killed_run_that_got_further(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(b"x" * 100_000)
    part_file(tmp_path).with_suffix(".fresh").write_bytes(CONTENT[:300_000])

    assert fetch([server.address("good")], SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("good", 300_000)]


def test_fetch_ignores_leftover_of_killed_run(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(b"x" * 300_000)
    part_file(tmp_path).with_suffix(".fresh").write_bytes(b"y" * 200_000)

    assert fetch([server.address("good")], SHA256, tmp_path).read_bytes() == CONTENT
    assert os.listdir(tmp_path) == [SHA256]


def test_fetch_starts_over_where_server_has_no_ranges(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:300_000])

    assert fetch([server.address("no_ranges")], SHA256, tmp_path).read_bytes() == CONTENT


def test_fetch_resumes_broken_connection(server: Server, tmp_path: Path) -> None:
    assert fetch([server.address("breaks")], SHA256, tmp_path).read_bytes() == CONTENT
    assert [start for _, start in server.requests] == list(range(0, len(CONTENT), 100_000))


def test_fetch_resumes_part_at_next_place(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:500_000])
    places = [server.address("busy"), server.address("good")]

    assert fetch(places, SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("busy", 500_000), ("good", 500_000)]


@pytest.mark.parametrize("behaviour", ["page", "unlabelled_page", "reversed", "breaks_at_once", "endless"])
def test_fetch_keeps_part_at_bad_place(server: Server, tmp_path: Path, behaviour: str) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:900_000])
    places = [server.address(behaviour), server.address("good")]

    assert fetch(places, SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("good", 900_000)
    assert os.listdir(tmp_path) == [SHA256]


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http://a:b/c",
        "file://[x",
        "http://host.invalid:99999/x",
        f"http://{'a' * 70}/x",
        "~no-such-user/x",
        "\0",
    ],
)
def test_fetch_refuses_malformed_address_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], archive: str, address: str
) -> None:
    assert fetch([address, archive], SHA256, tmp_path).read_bytes() == CONTENT
    assert "resuming" not in capsys.readouterr().out


def test_fetch_ignores_content_encoding(server: Server, tmp_path: Path) -> None:
    assert fetch([server.address("labelled_gzip")], SHA256, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("busy", "answered 503 Service Unavailable"),
        ("page", "answered 200 with an HTML page"),
        ("unlabelled_page", "sent an HTML page, content with SHA-256"),
        ("reversed", "sent content with SHA-256"),
        ("breaks_at_once", "IncompleteRead"),
        ("odd_length", "invalid literal for int"),
    ],
)
def test_fetch_tries_places_in_turn(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], behaviour: str, message: str
) -> None:
    places = [server.address(behaviour), server.address("good")]

    assert fetch(places, SHA256, tmp_path).read_bytes() == CONTENT
    assert f"{places[0]}: " in capsys.readouterr().out

    with pytest.raises(StudyError, match=message):
        fetch(places[:1], SHA256, tmp_path / "alone")
    assert os.listdir(tmp_path / "alone") == []


@pytest.mark.parametrize("behaviour", ["wrong_range", "refuses_ranges"])
def test_fetch_starts_over_where_ranges_are_wrong(server: Server, tmp_path: Path, behaviour: str) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:500_000])

    assert fetch([server.address(behaviour)], SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests[0] == (behaviour, 500_000)
    assert set(server.requests[1:]) == {(behaviour, 0)}


def test_fetch_does_not_append_wrong_range(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:500_000])

    with pytest.raises(StudyError, match="wrong range 'bytes 1-"):
        fetch([server.address("shifted_range")], SHA256, tmp_path)
    assert part_file(tmp_path).read_bytes() == CONTENT[:500_000]


def test_fetch_cuts_off_endless_answer(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAXIMUM_BYTES", len(CONTENT))

    with pytest.raises(StudyError, match="sends more than 1,024,000 bytes"):
        fetch([server.address("endless")], SHA256, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("scheme", ["file://", ""], ids=["file", "path"])
def test_fetch_copies_local_file(tmp_path: Path, scheme: str) -> None:
    source = tmp_path / "my archive.tar.gz"
    source.write_bytes(CONTENT)

    path = fetch([source.as_uri() if scheme else str(source)], SHA256, tmp_path / "downloads")

    assert path.read_bytes() == CONTENT
    assert source.exists()


def test_fetch_refuses_truncated_local_file(tmp_path: Path) -> None:
    source = tmp_path / "archive.tar.gz"
    source.write_bytes(CONTENT[:1000])

    with pytest.raises(StudyError, match="sent content with SHA-256"):
        fetch([str(source)], SHA256, tmp_path / "downloads")


@needs(UNREADABLE.exists(), "only Linux has such a file")
def test_fetch_takes_read_error_of_local_file_as_refusal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], archive: str
) -> None:
    assert fetch([str(UNREADABLE), archive], SHA256, tmp_path).read_bytes() == CONTENT
    assert f"{UNREADABLE}: Input/output error\n" in capsys.readouterr().out


def test_fetch_lists_reason_of_each_place_and_how_to_continue(server: Server, tmp_path: Path) -> None:
    with Server(("127.0.0.1", 0), Handler) as closed:
        nobody = closed.address("good")
    places = [str(tmp_path / "absent.tar.gz"), nobody, server.address("busy")]

    with pytest.raises(StudyError) as error:
        fetch(places, SHA256, tmp_path / "downloads")

    message = str(error.value)
    assert SHA256 in message
    assert f"{places[0]}: No such file or directory\n" in message
    assert re.search(f"{re.escape(nobody)}: .*refused\n", message)
    assert f"{places[2]}: answered 503" in message
    assert "CIFAR10_ARCHIVE=/path/to/cifar-10-binary.tar.gz dvc repro" in message
    assert "dataset: digits" in message


def test_fetch_without_places_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"download\.urls names no place"):
        fetch([], SHA256, tmp_path)


def test_fetch_names_unknown_host(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"host.invalid/archive: .*(resolve|resolution|not known)"):
        fetch(["http://host.invalid/archive"], SHA256, tmp_path)


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        ("nowhere.pem", "Could not find a suitable TLS CA certificate bundle, invalid path: nowhere.pem"),
        ("\udcff.pem", r"Could not find a suitable TLS CA certificate bundle, invalid path: \udcff.pem"),
        ("empty.pem", "[X509: NO_CERTIFICATE_OR_CRL_FOUND] no certificate or crl found"),
        ("text.pem", "[X509: NO_CERTIFICATE_OR_CRL_FOUND] no certificate or crl found"),
        pytest.param(
            str(UNREADABLE),
            "Input/output error",
            marks=needs(UNREADABLE.exists(), "only Linux has such a file"),
        ),
    ],
    ids=["missing", "not-utf-8", "empty", "no-certificate", "unreadable"],
)
def test_fetch_takes_bad_certificate_bundle_as_refusal(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    archive: str,
    bundle: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.pem").touch()
    Path("text.pem").write_text("no certificate")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    secure = server.address("good", "https")

    assert fetch([secure, archive], SHA256, tmp_path / "downloads").read_bytes() == CONTENT

    refusal = capsys.readouterr().out.splitlines()[0]
    assert refusal.startswith(f"{secure}: {message}")
    assert refusal.endswith(" (set in the environment: REQUESTS_CA_BUNDLE)")
    assert server.requests == []


def test_fetch_takes_untrusted_certificate_as_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], archive: str
) -> None:
    _, context = certificate(tmp_path, "server")
    bundle, _ = certificate(tmp_path, "bundle")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))

    with serving(context) as server:
        path = fetch([server.address("good", "https"), archive], SHA256, tmp_path / "downloads")

    assert path.read_bytes() == CONTENT
    assert "certificate verify failed: self-signed certificate" in capsys.readouterr().out
    assert server.requests == []


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("foo bar", "contains invalid character ' '"),
        ("http://", "malformed"),
        ("http://[::1", "not a valid host or port"),
        ("http://host.invalid:99999", "Failed to parse"),
        ("http://.host:1", "label empty or too long"),
        ("ftp://127.0.0.1:1", "unsupported scheme ftp"),
        ("http://name:😀@127.0.0.1:1", "codec can't encode"),
        ("http://name:secret@127.0.0.1:1", "refused"),
    ],
)
def test_fetch_takes_bad_proxy_as_refusal(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    archive: str,
    proxy: str,
    message: str,
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")

    assert fetch([server.address("good"), archive], SHA256, tmp_path / "downloads").read_bytes() == CONTENT

    refusal = capsys.readouterr().out.splitlines()[0]
    assert message in refusal
    assert refusal.endswith(" (set in the environment: http_proxy)")
    assert "secret" not in refusal
    assert server.requests == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(), "OSError"),
        (OSError(None), "OSError"),
        (OSError(None, None), "OSError"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("two\nlines"), "two lines"),
        (UnicodeError(), "UnicodeError"),
        (requests.ConnectionError(), "ConnectionError"),
        (requests.ConnectionError(urllib3.exceptions.ProtocolError("Connection aborted.", OSError())), "aborted"),
        (requests.ConnectionError(urllib3.exceptions.ProtocolError("Aborted", OSError(104, "Reset"))), "Reset"),
        (requests.ConnectTimeout(urllib3.exceptions.ConnectTimeoutError(object(), "timed out")), "timed out"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_fetch_takes_any_error_of_requests_as_refusal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    archive: str,
    error: Exception,
    reason: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(requests, "get", fail)

    assert fetch(["http://host.invalid/x", archive], SHA256, tmp_path / "downloads").read_bytes() == CONTENT

    refusal = capsys.readouterr().out.splitlines()[0]
    assert re.match(rf"http://host\.invalid/x: .*{reason}", refusal)
    assert "None" not in refusal
    assert "object at" not in refusal


@needs(Path("/dev/full").exists(), "only Linux has such a device")
def test_fetch_reports_full_disk_as_fault_of_part(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).symlink_to("/dev/full")

    with pytest.raises(StudyError) as error:
        fetch([server.address("good"), server.address("good")], SHA256, tmp_path)

    assert str(error.value) == (
        f"{part_file(tmp_path)}: No space left on device; make room for it, and the next run resumes the download"
    )
    assert len(server.requests) == 1


def test_fetch_fetches_nothing_again_that_a_full_disk_had_room_for(server: Server, tmp_path: Path) -> None:
    """The kernel refuses to write larger files, as it does on a full disk."""
    again = server.address("good/again")
    room = 300_000
    code = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        "from pathlib import Path\n"
        "from dropout_study.download import fetch\n"
        f"fetch(['{server.address('good')}'], '{SHA256}', Path('.'))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    left = part_file(tmp_path).read_bytes()
    path = fetch([again], SHA256, tmp_path)

    assert f"{SHA256}.part: File too large; make room for it, and the next run resumes the download" in done.stderr
    assert left == CONTENT[:room]
    assert path.read_bytes() == CONTENT
    assert server.sent[urlsplit(again).path] == len(CONTENT) - room


def test_fetch_keeps_part_on_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(StudyError, match=r"\.part: No space left on device; make room for it, and the next"):
        fetch([server.address("good")], SHA256, tmp_path)
    assert part_file(tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("name", [SHA256, f"{SHA256}.part"])
def test_fetch_reports_directory_in_its_way(server: Server, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()

    with pytest.raises(StudyError, match=re.escape(f"{tmp_path / name}: Is a directory; ")):
        fetch([server.address("good")], SHA256, tmp_path)
    assert server.requests == []


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Be an ordinary user in the block: root may write everywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    yield
    os.seteuid(user)


def test_fetch_reports_missing_permission_as_fault_of_part(server: Server) -> None:
    with tempfile.TemporaryDirectory() as name:  # an ordinary user does not reach tmp_path
        directory = Path(name)
        directory.chmod(0o777)
        part_file(directory).touch(0o400)

        with (
            ordinary_user(),
            pytest.raises(StudyError, match=re.escape(f"{part_file(directory)}: Permission denied; ")),
        ):
            fetch([server.address("good")], SHA256, directory)


def test_fetch_refuses_second_process(server: Server, tmp_path: Path) -> None:
    with part_file(tmp_path).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StudyError, match="another process is downloading this file; wait for it"):
            fetch([server.address("good")], SHA256, tmp_path)

    assert server.requests == []


def test_fetch_warns_where_there_are_no_locks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", fail)

    assert fetch([server.address("good")], SHA256, tmp_path).read_bytes() == CONTENT
    assert capsys.readouterr().out.count("this file system has no locks (Operation not supported)") == 1


@pytest.mark.usefixtures("impatient", "clock")
@pytest.mark.parametrize(("behaviour", "rate"), [("slow", 1e6), ("slower", 1e5), ("drips", 5e4)])
def test_fetch_leaves_slow_place_and_resumes_at_next(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], behaviour: str, rate: float
) -> None:
    places = [at_rate(server, behaviour, rate), at_rate(server, "good", math.inf)]

    assert fetch(places, SHA256, tmp_path).read_bytes() == CONTENT

    assert {name for name, _ in server.requests[:-1]} == {behaviour}
    name, start = server.requests[-1]
    assert name == "good"
    assert 0 < start < len(CONTENT)
    assert re.search(r"kB/s, below the minimum of 10,000\.0 kB/s; trying other places first", capsys.readouterr().out)


@pytest.mark.usefixtures("impatient", "clock")
def test_fetch_leaves_place_that_slows_down(server: Server, tmp_path: Path) -> None:
    places = [at_rate(server, "slows_down", 1e3, at_once=900_000), at_rate(server, "good", math.inf)]

    assert fetch(places, SHA256, tmp_path).read_bytes() == CONTENT
    assert [name for name, _ in server.requests] == ["slows_down", "good"]
    assert server.requests[1][1] > 900_000


def test_fetch_gives_up_place_whose_connections_break(server: Server, tmp_path: Path) -> None:
    places = [server.address("breaks_at_once"), server.address("good")]

    assert fetch(places, SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("breaks_at_once", 0)] * download.BROKEN_CONNECTIONS + [("good", 0)]


@pytest.mark.usefixtures("impatient")
def test_fetch_leaves_hanging_place_without_waiting_for_all_its_connections(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", (5, 0.15))

    assert fetch([server.address("hangs"), server.address("good")], SHA256, tmp_path).read_bytes() == CONTENT
    assert 1 <= server.requests.count(("hangs", 0)) < download.BROKEN_CONNECTIONS


@pytest.mark.usefixtures("impatient", "clock")
def test_fetch_returns_to_fastest_slow_place(server: Server, tmp_path: Path) -> None:
    places = [at_rate(server, "slow", 1e6), at_rate(server, "slower", 1e5), at_rate(server, "busy", math.inf)]

    assert fetch(places, SHA256, tmp_path).read_bytes() == CONTENT
    assert [name for name, _ in server.requests] == ["slow", "slower", "busy", "slow"]
    starts = [start for _, start in server.requests]
    assert starts == sorted(starts)


@pytest.mark.usefixtures("impatient")
def test_fetch_does_not_leave_last_place(server: Server, tmp_path: Path) -> None:
    assert fetch([server.address("busy"), server.address("slow")], SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("busy", 0), ("slow", 0)]


def test_fetch_shows_progress_of_slow_place(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.1)

    fetch([server.address("slow")], SHA256, tmp_path)

    lines = re.findall(r"archive\.tar\.gz: (\d+)k of 1\.02M at ", capsys.readouterr().err)
    assert len(set(lines)) > 1
    assert lines == sorted(lines, key=int)


@pytest.mark.parametrize("size", [0, 500], ids=["no part", "part that the server ignores"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_fetch_keeps_what_has_arrived_when_interrupted(
    server: Server, tmp_path: Path, size: int, number: signal.Signals, status: int
) -> None:
    """In a process of its own, while a connection stalls after few bytes."""
    part_file(tmp_path).write_bytes(CONTENT[:size])
    code = (
        "from pathlib import Path\n"
        "from dropout_study.download import fetch\n"
        "from dropout_study.console import run_stage\n"
        f"run_stage(lambda: fetch(['{server.address('stalls')}'], '{SHA256}', Path('.')), '')\n"
    )
    process = start_python(code, tmp_path)

    def arrived() -> bool:
        return any(path.stat().st_size >= STALL_AT for path in tmp_path.iterdir())

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not arrived():
        time.sleep(0.02)
    written_before_interrupt = arrived()
    process.send_signal(number)

    assert process.wait(30) == status
    assert written_before_interrupt
    assert part_file(tmp_path).read_bytes() == CONTENT[:STALL_AT]
    assert os.listdir(tmp_path) == [part_file(tmp_path).name]
    fetch([server.address("good")], SHA256, tmp_path)
    assert server.requests[-1] == ("good", STALL_AT)
