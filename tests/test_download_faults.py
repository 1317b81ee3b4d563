"""`fetch` from places with faults, each alone and in sequences: the exact file, or an error that lists every place."""

import os
import random
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from dropout_study import download
from dropout_study.console import StudyError
from dropout_study.download import fetch
from dropout_study.files import locked
from tests.servers import CONTENT, CUT, SHA256, Handler, Proxy, Server, certificate, serving, start_python

pytestmark = pytest.mark.pipeline

STALLED = "timed out|nothing to read for 0.4 seconds|kB/s, below the minimum of 10.0 kB/s"
# What a place does all the time, and why it is given up; None if it delivers the file nevertheless.
FAULTS = {
    "no_length": None,
    "longer": None,
    "chunked": None,
    "labelled_gzip": None,
    "moved": None,
    "no_ranges": None,
    "refuses_ranges": None,
    "wrong_range": None,
    "breaks": None,
    "resets_later": None,
    "chunked_cut": None,
    "chunked_wrong": None,
    "large_total": None,
    "breaks_at_once": "IncompleteRead",
    "breaks_without_ranges": "IncompleteRead",
    "drops": "Remote end closed connection without response",
    "resets": "Connection reset by peer|Remote end closed connection without response",
    "silent": STALLED,
    "hangs": STALLED,
    "stalls": STALLED,
    "drips_bytes": STALLED,
    "drips_header": STALLED,
    "drips_chunk_size": STALLED,
    "continues": STALLED,
    "garbage": "SSH-2.0-OpenSSH_9.2",
    "long_header": "got more than 65536 bytes when reading header line",
    "many_headers": "got more than 100 headers",
    "odd_length": "invalid literal for int",
    "busy": "answered 503 Service Unavailable",
    "busy_page": "answered 503 with an HTML page",
    "busy_in_red": r"answered 503 \\x1b\[31mBusy\\x1b\[2Jxxx",
    "missing": "answered 404 Not Found",
    "empty": "answered 204 No Content",
    "page": "answered 200 with an HTML page",
    "unlabelled_page": "sent an HTML page, content with SHA-256",
    "circle": "Exceeded 30 redirects",
    "moved_to_file": "No connection adapters were found for 'file:",
    "moved_to_long_name": "No connection adapters were found for 'file:///x{200,300}…",
    "moved_to_nowhere": "Invalid IPv6 URL",
    "shifted_range": "wrong range 'bytes 1-1023999/1024000'",
    "range_without_header": "wrong range ''",
    "small_total": "sends more than (300,)?500 bytes",
    "huge": "has 1,000,000,000,000 bytes, at most 2,147,483,648 are allowed",
    "endless": "sent content with SHA-256|sends more than 1,024,000 bytes",
    "reversed": "sent content with SHA-256",
    "reversed_breaks": "sent content with SHA-256",
    "cut_without_length": "ended at byte 100,000, without a length or the right hash",
    "breaks_without_length": None,
    "reversed_without_length": "sent content with SHA-256",
    "compressed": "sent content with SHA-256",
}
# These never send a wrong byte, and continue where they are asked to.
HONEST = [
    *("good", "no_length", "chunked", "labelled_gzip", "breaks", "breaks_without_length", "chunked_cut"),
    *(
        "chunked_wrong",
        "drops",
        "resets",
        "garbage",
        "many_headers",
        "long_header",
        "busy",
        "busy_page",
        "missing",
        "circle",
        "moved_to_file",
    ),
]
paths = (str(number) for number in count())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def _without_pauses_and_proxies() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "PAUSE", 0)
        patch.setattr(download, "BROKEN_CONNECTIONS", 3)
        for name in [name for name in os.environ if name.upper() in (*download.VARIABLES, "NO_PROXY")]:
            patch.delenv(name)
        yield


@contextmanager
def impatience() -> Iterator[None]:
    """Leave a place in the block that stalls for some tenths of a second, as a busy machine may do, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "TIMEOUT", (5, 0.2))
        patch.setattr(download, "ANSWER_SECONDS", 0.4)
        patch.setattr(download, "RATE_SECONDS", 0.4)
        patch.setattr(download, "HOPELESS_RATE", 10_000)
        patch.setattr(download, "HOPELESS_SECONDS", 1.5)
        yield


def sent(server: Server, *places: str) -> int:
    """Return how many bytes of files the places have sent."""
    return sum(server.sent[urlsplit(address).path] for address in places)


def part_file(directory: Path) -> Path:
    return directory / f"{SHA256}.part"


def place(server: Server, behaviours: str) -> str:
    """Return an address that nobody has asked for."""
    return server.address(f"{behaviours}/{next(paths)}")


def attempt(places: Sequence[str], directory: Path) -> str | None:
    """Fetch, and return the error if there is one. What is left behind is right, and the error complete."""
    try:
        path = fetch(places, SHA256, directory)
    except StudyError as error:
        assert set(os.listdir(directory)) <= {part_file(directory).name}
        lines = str(error).splitlines()
        assert all(line.isprintable() for line in lines)
        for address in places:
            (reason,) = [line for line in lines if line.startswith(f"  {address}: ")]
            assert len(f"  {address}: ") < len(reason) < 1_000
        return str(error)
    assert path.read_bytes() == CONTENT
    assert os.listdir(directory) == [SHA256]
    return None


def sent_to_complete(server: Server, directory: Path) -> int:
    """Fetch what is missing from a good place, and return how many bytes it has sent."""
    good = place(server, "good")
    assert attempt([good], directory) is None
    return sent(server, good)


def left_behind(directory: Path) -> int:
    """Return how many bytes are there, none if they are wrong."""
    part = part_file(directory).read_bytes() if part_file(directory).exists() else b""
    return len(part) if CONTENT.startswith(part) else 0


@pytest.mark.parametrize("size", [0, 300_000], ids=["from-the-beginning", "resumed"])
@pytest.mark.parametrize("fault", FAULTS)
def test_fetch_from_place_with_fault_gives_file_or_its_reason(
    server: Server, tmp_path: Path, fault: str, size: int
) -> None:
    if size:
        part_file(tmp_path).write_bytes(CONTENT[:size])

    reason = FAULTS[fault]

    with impatience() if reason is STALLED else nullcontext():
        error = attempt([place(server, fault)], tmp_path)

    if reason is None:
        assert error is None
    else:
        assert error
        assert re.search(f"archive.tar.gz: .*({reason})", error)
        assert left_behind(tmp_path) >= size
        missing = len(CONTENT) - left_behind(tmp_path)
        assert sent_to_complete(server, tmp_path) == missing


def test_fetch_asks_place_again_from_the_beginning_if_its_file_changed(server: Server, tmp_path: Path) -> None:
    """`If-Range` would not do: mirrors of one file have different ETags."""
    assert attempt([place(server, "reversed_breaks,good")], tmp_path) is None
    assert server.requests[-3:] == [("reversed_breaks", 0), ("good", CUT), ("good", 0)]


def test_fetch_asks_place_again_that_dropped_the_connection(server: Server, tmp_path: Path) -> None:
    assert attempt([place(server, "drops,resets,good")], tmp_path) is None


def test_fetch_keeps_what_it_has_of_place_without_ranges(server: Server, tmp_path: Path) -> None:
    places = [place(server, "breaks_without_ranges"), place(server, "good")]

    assert attempt(places, tmp_path) is None
    assert server.requests[-2:] == [("breaks_without_ranges", 6 * CUT), ("good", 6 * CUT)]


def test_fetch_keeps_what_came_before_a_place_no_longer_has_ranges(server: Server, tmp_path: Path) -> None:
    """As behind a load balancer, of whose servers only some have ranges."""
    part_file(tmp_path).write_bytes(CONTENT[:300_000])
    good = place(server, "good")

    assert attempt([place(server, "breaks,no_ranges,busy"), good], tmp_path) is None
    assert server.requests[-3:] == [("no_ranges", 300_000 + CUT), ("busy", 0), ("good", 300_000 + CUT)]
    assert sent(server, good) == len(CONTENT) - 300_000 - CUT


def test_fetch_drops_what_came_before_a_place_sends_a_wrong_file(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:300_000])

    assert attempt([place(server, "breaks,reversed"), place(server, "busy")], tmp_path) is not None
    assert part_file(tmp_path).read_bytes() == CONTENT[:300_000]


@pytest.mark.parametrize("end", ["busy", "missing", "silent"])
def test_fetch_keeps_right_bytes_below_wrong_ones_of_place_that_fails(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    if end == "silent":
        monkeypatch.setattr(download, "ANSWER_SECONDS", 1)  # a busy machine has answered by then
    part_file(tmp_path).write_bytes(CONTENT[:300_000])
    good = place(server, "good")

    assert attempt([place(server, f"reversed_breaks,{end}"), good], tmp_path) is None
    assert server.requests[-2:] == [("good", 300_000 + CUT), ("good", 300_000)]
    assert sent(server, good) == (len(CONTENT) - 300_000 - CUT) + (len(CONTENT) - 300_000)


def test_fetch_returns_to_bytes_of_earlier_places_the_last_first(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:300_000])
    places = [place(server, f"{behaviour},busy") for behaviour in ("breaks", "reversed_breaks", "breaks")]

    assert attempt([*places, place(server, "good")], tmp_path) is None
    assert server.requests[-3:] == [("good", 600_000), ("good", 500_000), ("good", 400_000)]


def test_fetch_drops_only_what_a_wrong_place_has_sent(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:300_000])
    good = place(server, "good")

    assert attempt([place(server, "breaks,busy"), place(server, "reversed_without_length"), good], tmp_path) is None
    wrong = [("reversed_without_length", start) for start in (400_000, 300_000, 0, len(CONTENT))]
    assert server.requests[-5:] == [*wrong, ("good", 400_000)]
    assert sent(server, good) == len(CONTENT) - 400_000


def test_fetch_keeps_what_replaces_wrong_bytes_if_it_is_longer(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:300_000])
    good = place(server, "good")
    places = [place(server, "reversed_breaks,busy"), place(server, "good,breaks,breaks,busy"), good]

    assert attempt(places, tmp_path) is None
    assert server.requests[-1] == ("good", 500_000)
    assert sent(server, good) == len(CONTENT) - 500_000


def test_fetch_keeps_what_came_before_connection_ended_without_length(server: Server, tmp_path: Path) -> None:
    good = place(server, "good")

    assert attempt([place(server, "cut_without_length"), good], tmp_path) is None
    assert sent(server, good) == len(CONTENT) - CUT


def test_fetch_reads_no_body_of_redirect(server: Server, tmp_path: Path) -> None:
    moved = place(server, "moved_endlessly")

    assert attempt([moved], tmp_path) is None
    assert sent(server, moved) < 50_000_000


def test_fetch_completes_file_where_no_place_says_that_it_is_complete(server: Server, tmp_path: Path) -> None:
    """The first promises more than there is, and answers no more when it has sent all."""
    broken = ",".join(["breaks", "large_total", *["drops"] * 3])

    assert attempt([place(server, broken)], tmp_path) is None


def test_fetch_names_variables_after_what_a_server_says_at_length(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURL_CA_BUNDLE", "bundle.pem")

    error = attempt([place(server, "moved_to_long_name")], tmp_path)

    assert re.search(r"file:///x{200,300}… \(set in the environment: CURL_CA_BUNDLE\)\n", str(error))


def test_fetch_leaves_hanging_local_file(server: Server, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    with impatience():
        assert attempt([str(pipe), place(server, "good")], tmp_path / "downloads") is None
    os.close(os.open(pipe, os.O_WRONLY))  # and lets the thread that waits for it go


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a device")
def test_fetch_leaves_endless_local_file(tmp_path: Path) -> None:
    assert "/dev/zero: sends more than 0 bytes" in str(attempt(["/dev/zero"], tmp_path))


def test_fetch_leaves_no_thread_behind(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that is ahead, and waits for somebody to take what it has read."""

    class InterruptedBar:
        def update(self, _: int) -> None:
            time.sleep(0.3)
            raise KeyboardInterrupt

    monkeypatch.setattr(download, "download_bar", lambda *_: nullcontext(InterruptedBar()))
    before = set(threading.enumerate())

    with pytest.raises(KeyboardInterrupt):
        fetch([place(server, "good")], SHA256, tmp_path)

    deadline = time.monotonic() + 20
    while {thread for thread in set(threading.enumerate()) - before if "(run)" in thread.name}:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_fetch_ends_with_its_process_though_an_answer_never_begins(server: Server, tmp_path: Path) -> None:
    """No timeout of a socket ends the thread that reads `100 Continue` for ever."""
    code = (
        "from pathlib import Path\n"
        "from dropout_study import download\n"
        "from dropout_study.console import run_stage\n"
        "download.PAUSE, download.ANSWER_SECONDS = 0, 0.2\n"
        f"run_stage(lambda: download.fetch(['{place(server, 'continues')}'], '{SHA256}', Path('.')), '')\n"
    )

    process = start_python(code, tmp_path)

    try:
        assert process.wait(60) == 1
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("damaged", [False, True], ids=["missing", "damaged"])
def test_fetch_takes_file_that_another_process_completes_before_it_has_the_lock(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    if damaged:
        (tmp_path / SHA256).write_bytes(CONTENT[:-1])
    address = place(server, "good")
    code = (
        f"from pathlib import Path; from dropout_study.download import fetch; fetch(['{address}'], '{SHA256}', Path())"
    )

    def overtaken(path: Path, message: str) -> AbstractContextManager[None]:
        assert start_python(code, tmp_path).wait(60) == 0
        return locked(path, message)

    monkeypatch.setattr(download, "locked", overtaken)

    assert attempt([address], tmp_path) is None
    assert sent(server, address) == len(CONTENT)


def test_fetch_holds_its_lock_when_it_has_started_over(server: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:300_000])
    errors: list[str] = []

    class Watched(str):
        """A place that is looked at after the one before has made the part file anew."""

        def startswith(self, *arguments: object) -> bool:
            with pytest.raises(StudyError) as error:
                fetch([], SHA256, tmp_path)
            errors.append(str(error.value))
            return super().startswith(*arguments)  # type: ignore[arg-type]

    places = [place(server, "breaks_without_ranges"), Watched(place(server, "good"))]

    assert attempt(places, tmp_path) is None
    assert errors
    assert all("another process is downloading this file" in error for error in errors)


def test_fetch_killed_at_random_moments_fetches_nothing_again(server: Server, tmp_path: Path) -> None:
    kill_seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"KILL_SEED={kill_seed}")
    moments = random.Random(kill_seed)
    slow = place(server, "slower")
    code = f"from pathlib import Path; from dropout_study.download import fetch; fetch(['{slow}'], '{SHA256}', Path())"
    part_file(tmp_path).touch()
    for _ in range(6):
        before = part_file(tmp_path).stat().st_size
        process = start_python(code, tmp_path)
        deadline = time.monotonic() + 30
        while part_file(tmp_path).stat().st_size == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))

        process.kill()

        process.wait()
        assert before < left_behind(tmp_path) < len(CONTENT)
        assert server.requests[-1] == ("slower", before)
    missing = len(CONTENT) - left_behind(tmp_path)
    assert sent_to_complete(server, tmp_path) == missing


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose certificate is trusted."""
    path, context = certificate(tmp_path_factory.mktemp("certificate"), "trusted")
    with serving(context) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(path))
        yield server


@pytest.fixture(scope="module")
def untrusted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose certificate nobody has signed."""
    _, context = certificate(tmp_path_factory.mktemp("certificate"), UNTRUSTED)
    with serving(context) as server:
        yield server


def test_fetch_from_https(secure: Server, tmp_path: Path) -> None:
    part_file(tmp_path).write_bytes(CONTENT[:300_000])

    assert attempt([secure.address("breaks", "https")], tmp_path) is None
    assert secure.requests[0] == ("breaks", 300_000)


@pytest.mark.parametrize("fault", ["silent", "hangs", "resets", "drips_header", "busy"])
def test_fetch_from_https_with_fault_gives_its_reason(secure: Server, tmp_path: Path, fault: str) -> None:
    reason = str(FAULTS[fault])

    with impatience() if reason == STALLED else nullcontext():
        error = attempt([secure.address(fault, "https")], tmp_path)

    assert re.search(f"{reason}|EOF", str(error))


def test_fetch_follows_no_redirect_from_https_to_http(
    server: Server, secure: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(server.requests)
    target = place(server, "good")
    monkeypatch.setattr(Handler, "moved", lambda self, _: self.answer(302, b"", Location=target))

    error = attempt([secure.address("moved", "https")], tmp_path)

    assert f"redirects from https to {target}" in str(error)
    assert len(server.requests) == before
    assert attempt([place(server, "moved")], tmp_path) is None


@pytest.fixture
def proxy() -> Iterator[Server]:
    with serving(handler=Proxy) as proxy:
        yield proxy


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_fetch_from_http_uses_proxy(
    server: Server, proxy: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.server_port}")
    part_file(tmp_path).write_bytes(CONTENT[:300_000])
    address = place(server, "good")

    assert attempt([address], tmp_path) is None
    assert proxy.requests == [(f"GET {address}", 0)]
    assert server.requests[-1] == ("good", 300_000)


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy"])
def test_fetch_from_https_uses_tunnel(
    secure: Server, proxy: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.server_port}")

    assert attempt([secure.address("good", "https")], tmp_path) is None
    assert proxy.requests == [(f"CONNECT 127.0.0.1:{secure.server_port}", 0)]


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_fetch_uses_no_proxy_where_none_is_wanted(
    server: Server, proxy: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv(variable, "localhost,127.0.0.1")

    assert attempt([place(server, "good")], tmp_path) is None
    assert proxy.requests == []


behaviours = st.sampled_from(["good", *FAULTS])
UNTRUSTED = "untrusted"  # a place whose certificate does not verify
trusted = st.lists(behaviours, min_size=1, max_size=3).map(",".join)
scripts = st.one_of(trusted, trusted, trusted, st.just(UNTRUSTED))
PARTS = {
    "none": b"",
    "right": CONTENT[:300_000],
    "right-and-longer": CONTENT[:400_000],
    "wrong": b"x" * 500_000,
    "wrong-at-the-end": CONTENT[:CUT] + b"x",
    "complete": CONTENT,
    "too-long": CONTENT + b"x",
}
parts = st.sampled_from([*PARTS])
leftovers = st.sampled_from(["none", "right-and-longer", "wrong-at-the-end"])


def exact_file_or_reasons(server: Server, untrusted: Server, scripts: Sequence[str], part: str, leftover: str) -> None:
    places = [
        untrusted.address(f"good/{next(paths)}", "https") if script == UNTRUSTED else place(server, script)
        for script in scripts
    ]
    with TemporaryDirectory() as name:
        directory = Path(name)
        part_file(directory).write_bytes(PARTS[part])
        part_file(directory).with_suffix(".fresh").write_bytes(PARTS[leftover])

        with impatience():
            error = attempt(places, directory)

        assert untrusted.requests == []
        if "good" in scripts or part == "complete":
            assert error is None
        if error:
            left = left_behind(directory)
            assert sent_to_complete(server, directory) <= (len(CONTENT) - left if left else 2 * len(CONTENT))


@settings(max_examples=50, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(scripts, min_size=1, max_size=4), parts, leftovers)
def test_fetch_from_places_with_faults_gives_exact_file_or_every_reason(
    server: Server, untrusted: Server, scripts: list[str], part: str, leftover: str
) -> None:
    exact_file_or_reasons(server, untrusted, scripts, part, leftover)


@pytest.mark.stress
@seed(int(os.environ["STRESS_SEED"]))
@settings(max_examples=1_500, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(scripts, min_size=1, max_size=4), parts, leftovers)
def test_fetch_from_places_with_faults_gives_exact_file_or_every_reason_1_500_times(
    server: Server, untrusted: Server, scripts: list[str], part: str, leftover: str
) -> None:
    exact_file_or_reasons(server, untrusted, scripts, part, leftover)


@settings(max_examples=30, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.sampled_from(HONEST), min_size=1, max_size=3).map(",".join), min_size=1, max_size=4))
def test_fetch_from_honest_places_with_faults_fetches_no_byte_twice(server: Server, scripts: list[str]) -> None:
    with TemporaryDirectory() as name:
        places = [*(place(server, script) for script in scripts), place(server, "good")]

        attempt(places[:-1], Path(name))
        attempt(places[-1:], Path(name))

        assert sent(server, *places) == len(CONTENT)
