"""A server on this machine that answers as badly as real ones do, and a proxy in front of it."""

import gzip
import hashlib
import os
import re
import select
import shlex
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Event, Thread
from urllib.parse import urlsplit

from tests.clones import PROJECT

CONTENT = bytes(range(256)) * 4_000  # about a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HTML = b"<!DOCTYPE html><title>503</title>"
CUT = 100_000  # bytes after which connections break
STALL_AT = 1_000
PAUSE = 0.01  # seconds between two bytes that drip


class Handler(BaseHTTPRequestHandler):
    """The first part of a path says how it is answered: `/drops,breaks,good/archive`, one after the other."""

    server: "Server"

    def do_GET(self) -> None:
        behaviours = self.path.split("/")[1].split(",")
        behaviour = behaviours[min(self.server.times[self.path], len(behaviours) - 1)]
        self.server.times[self.path] += 1
        ranges = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(ranges[1]) if ranges else 0
        self.server.requests.append((behaviour, start))
        with suppress(OSError):  # the client has left
            getattr(self, behaviour)(start)

    def send(self, body: bytes) -> None:
        self.wfile.write(body)
        self.server.sent[self.path] += len(body)

    def answer(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        """Send `body`, of which `length` bytes are announced; -1: no length is."""
        self.send_response(status)
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if status < 300:
            self.send(body)
        else:
            self.wfile.write(body)

    def part(
        self,
        start: int,
        body: bytes,
        length: int | None = None,
        first: int | None = None,
        total: int = len(CONTENT),
        **headers: str,
    ) -> None:
        """Send `body` as what there is from `start`: 206, unless that is the beginning or the end."""
        if start >= len(CONTENT):
            self.answer(416, HTML, Content_Type="text/html", Content_Range=f"bytes */{len(CONTENT)}")
        elif start:
            first = start if first is None else first
            self.answer(206, body, length, Content_Range=f"bytes {first}-{len(CONTENT) - 1}/{total}", **headers)
        else:
            self.answer(200, body, length, **headers)

    def some(self, start: int, body: bytes) -> None:
        """Announce all from `start`, and send `body`."""
        self.part(start, body, len(CONTENT) - start)

    def drip(self, body: Iterator[bytes]) -> None:
        for piece in body:
            if self.server.closing.wait(PAUSE):
                return
            self.wfile.write(piece)

    def reset(self) -> None:
        """End the connection as a machine does that knows nothing of it."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    # The right content, one way or another

    def good(self, start: int) -> None:
        self.some(start, CONTENT[start:])

    def no_length(self, start: int) -> None:
        self.part(start, CONTENT[start:], -1)

    def longer(self, start: int) -> None:
        """Send more than was announced."""
        self.some(start, CONTENT[start:] + CONTENT)

    def chunked(self, start: int) -> None:
        self.chunks(start, len(CONTENT), b"0\r\n\r\n")

    def chunks(self, start: int, end: int, last: bytes) -> None:
        self.part(start, b"", -1, Transfer_Encoding="chunked")
        for position in range(start, min(end, len(CONTENT)), CUT // 2):
            piece = CONTENT[position : position + CUT // 2]
            self.wfile.write(b"%x\r\n" % len(piece))
            self.send(piece)
            self.wfile.write(b"\r\n")
        self.wfile.write(last)

    def labelled_gzip(self, start: int) -> None:
        self.part(start, CONTENT[start:], Content_Encoding="x-gzip")

    def moved(self, start: int) -> None:
        self.answer(302, b"", Location=self.path.replace("/moved/", "/good/"))

    def moved_endlessly(self, start: int) -> None:
        """Redirect, with a body of 300 megabytes."""
        self.answer(302, b"", -1, Location=self.path.replace("/moved_endlessly/", "/good/"))
        for _ in range(300):
            self.send(bytes(10**6))

    # Connections that break, stall or drip

    def breaks(self, start: int) -> None:
        self.some(start, CONTENT[start : start + CUT])

    def breaks_without_length(self, start: int) -> None:
        """Break as `breaks` does, but as if that were the end."""
        self.part(start, CONTENT[start : start + CUT], -1)

    def breaks_at_once(self, start: int) -> None:
        self.answer(200, b"", len(CONTENT))

    def breaks_without_ranges(self, start: int) -> None:
        """Send less and less, from the beginning, whatever is asked for."""
        self.answer(200, CONTENT[: max(CUT, 6 * CUT - start)], len(CONTENT))

    def drops(self, start: int) -> None:
        """End the connection before an answer."""

    def resets(self, start: int) -> None:
        self.reset()

    def resets_later(self, start: int) -> None:
        self.some(start, CONTENT[start : start + CUT])
        time.sleep(0.02)  # a reset discards what has not been read
        self.reset()

    def chunked_cut(self, start: int) -> None:
        self.chunks(start, start + CUT, b"ffff\r\n")
        self.send(CONTENT[start + CUT :][:STALL_AT])

    def chunked_wrong(self, start: int) -> None:
        self.chunks(start, start + CUT, b"no number\r\n")

    def silent(self, start: int) -> None:
        self.server.closing.wait(20)

    def hangs(self, start: int) -> None:
        self.some(start, b"")
        self.server.closing.wait(20)

    def stalls(self, _: int) -> None:
        """Send the beginning, whatever was asked for, and then nothing."""
        self.answer(200, CONTENT[:STALL_AT], len(CONTENT))
        self.server.closing.wait(60)

    def drips(self, start: int) -> None:
        """Send about 50 kilobytes per second, each thousand bytes over a connection of their own."""
        time.sleep(0.02)
        self.some(start, CONTENT[start : start + 1_000])

    def drips_bytes(self, start: int) -> None:
        self.some(start, b"")
        self.drip(CONTENT[i : i + 1] for i in range(start, len(CONTENT)))

    def drips_header(self, start: int) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
        self.drip(b"x" for _ in count())

    def drips_chunk_size(self, start: int) -> None:
        self.part(start, b"", -1, Transfer_Encoding="chunked")
        self.wfile.write(b"1000;")
        self.drip(b"x" for _ in count())

    def continues(self, start: int) -> None:
        """Say for ever that the answer is about to come."""
        self.drip(b"HTTP/1.1 100 Continue\r\n\r\n" for _ in count())

    def slow(self, start: int, size: int = 20_000, at_once: int = 0) -> None:
        """Send about a megabyte per second."""
        self.some(start, CONTENT[start : start + at_once])
        for position in range(start + at_once, len(CONTENT), size):
            time.sleep(0.02)
            self.send(CONTENT[position : position + size])

    def slower(self, start: int) -> None:
        """Send about 100 kilobytes per second."""
        self.slow(start, 2_000)

    def slows_down(self, start: int) -> None:
        """Send nearly all at once, and then about 50 kilobytes per second."""
        self.slow(start, 1_000, at_once=900_000)

    # Other answers than the one that was asked for

    def garbage(self, start: int) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")

    def long_header(self, start: int) -> None:
        self.answer(200, b"", X_Long="x" * 100_000)

    def many_headers(self, start: int) -> None:
        self.send_response(200)
        for i in range(200):
            self.send_header(f"X-{i}", "x")
        self.end_headers()

    def odd_length(self, start: int) -> None:
        """A digit to `str.isdigit`, but no number to `int`."""
        self.answer(200, b"", -1, Content_Length="²")

    def busy(self, start: int) -> None:
        self.answer(503, b"")

    def busy_page(self, start: int) -> None:
        self.answer(503, HTML, Content_Type="text/html; charset=utf-8")

    def busy_in_red(self, start: int) -> None:
        """Give a reason that is a command to a terminal, and long."""
        self.send_response(503, "\x1b[31mBusy\x1b[2J" + "x" * 10_000)
        self.end_headers()

    def missing(self, start: int) -> None:
        self.answer(404, b"", Content_Type="text/plain")

    def empty(self, start: int) -> None:
        self.answer(204, b"", -1)

    def page(self, start: int) -> None:
        self.answer(200, HTML, Content_Type="text/html")

    def unlabelled_page(self, start: int) -> None:
        self.answer(200, HTML)

    def circle(self, start: int) -> None:
        self.answer(302, b"", Location=self.path)

    def moved_to_file(self, start: int) -> None:
        self.answer(302, b"", Location="file:///etc/hostname")

    def moved_to_long_name(self, start: int) -> None:
        self.answer(302, b"", Location=f"file:///{'x' * 10_000}")

    def moved_to_nowhere(self, start: int) -> None:
        self.answer(302, b"", Location="http://[")

    # Other ranges, other lengths

    def no_ranges(self, start: int) -> None:
        self.answer(200, CONTENT)

    def refuses_ranges(self, start: int) -> None:
        """Say that there is nothing more, whatever is asked for."""
        if start:
            self.answer(416, HTML, Content_Type="text/html")
        else:
            self.good(start)

    def wrong_range(self, start: int) -> None:
        """Send the whole file as if that were the range that was asked for."""
        self.answer(206, CONTENT, Content_Range=f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}")

    def shifted_range(self, start: int) -> None:
        """Send a byte too few, in answer to whatever."""
        self.part(start or 1, CONTENT[start + 1 :], first=start + 1)

    def range_without_header(self, start: int) -> None:
        self.answer(206, CONTENT[start:])

    def large_total(self, start: int) -> None:
        """Break, and then promise more than there is."""
        if start:
            self.part(start, CONTENT[start:], total=len(CONTENT) + 5_000)
        else:
            self.breaks(start)

    def small_total(self, start: int) -> None:
        self.part(start or 1, CONTENT[start:], -1, first=start, total=start + 500)

    def huge(self, start: int) -> None:
        self.part(start, CONTENT[start:], 10**12, total=10**12)

    def endless(self, start: int) -> None:
        self.part(start, CONTENT * 2, -1)

    # Another content

    def reversed(self, start: int) -> None:
        self.answer(200, CONTENT[::-1])

    def reversed_breaks(self, start: int) -> None:
        """Break as `breaks` does, in another file."""
        self.some(start, CONTENT[::-1][start : start + CUT])

    def reversed_without_length(self, start: int) -> None:
        self.part(start, CONTENT[::-1][start:], -1)

    def cut_without_length(self, start: int) -> None:
        self.answer(200, CONTENT[:CUT], -1)

    def compressed(self, start: int) -> None:
        self.answer(200, gzip.compress(CONTENT, 1), Content_Encoding="gzip")

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """The server of a test: what it was asked for, and by path how often, and how many bytes of files it has sent."""

    requests: list[tuple[str, int]]
    times: Counter[str]
    sent: Counter[str]
    closing: Event

    def address(self, behaviour: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.server_port}/{behaviour}/archive.tar.gz"


@contextmanager
def serving(context: ssl.SSLContext | None = None, handler: type[BaseHTTPRequestHandler] = Handler) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), handler) as server:
        server.requests = []
        server.times = Counter()
        server.sent = Counter()
        server.closing = Event()
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:  # else a test that fails in the block keeps pytest from ending
            server.closing.set()
            server.shutdown()
            thread.join()


def certificate(directory: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate for 127.0.0.1 that is signed by itself; return it, and what a server needs to show it."""
    path, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*shlex.split(command), "-keyout", key, "-out", path], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, key)
    return path, context


class Proxy(BaseHTTPRequestHandler):
    """A proxy: `GET http://…` fetches, `CONNECT` makes a tunnel. Both are counted as requests of its server."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((f"GET {self.path}", 0))
        url = urlsplit(self.path)
        connection = HTTPConnection(str(url.hostname), url.port, timeout=10)
        connection.request("GET", url.path, headers=dict(self.headers))
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(answer.read())
        connection.close()

    def do_CONNECT(self) -> None:
        self.server.requests.append((f"CONNECT {self.path}", 0))
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as target, suppress(OSError):
            self.send_response(200)
            self.end_headers()
            both = {self.connection: target, target: self.connection}
            while True:
                for side in select.select(list(both), [], [], 10)[0]:
                    data = side.recv(1 << 16)
                    if not data:
                        return
                    both[side].sendall(data)

    def log_message(self, *_: object) -> None:
        pass


def start_python(code: str, directory: Path) -> subprocess.Popen[bytes]:
    """Run Python code of a client in a process of its own, in `directory`; what it prints is of no interest."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
