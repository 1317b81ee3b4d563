"""What the stress tests share: an SSH server, results to compare with, and a look at what a test leaves behind."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clones import Clone
from tests.sweeps import gates, share, undisturbed_outputs, wait_until

MARK = "DROPOUT_STUDY_STRESS"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Server:
    """A real sshd on 127.0.0.1 with keys of its own, which nobody else's configuration touches."""

    def __init__(self, directory: Path) -> None:
        assert SSHD, "sshd is needed: apt-get install openssh-server"
        self.directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("host", "key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
            subprocess.run(command, check=True)
        (directory / "authorized").write_bytes((directory / "key.pub").read_bytes())
        (directory / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {directory}/host\nPidFile none\n"
            f"AuthorizedKeysFile {directory}/authorized\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "Subsystem sftp internal-sftp\n"
        )
        host = (directory / "host.pub").read_text()
        (directory / "known").write_text(f"[127.0.0.1]:{self.port} {host}")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"ssh://127.0.0.1:{self.port}"

    @property
    def git(self) -> str:
        """Return what GIT_SSH_COMMAND is to be."""
        options = f"-o UserKnownHostsFile={self.directory}/known -o IdentitiesOnly=yes"
        return f"ssh -F /dev/null -i {self.directory}/key {options}"

    def start(self) -> None:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks away what it has not yet let in
        command = [str(SSHD), "-D", "-E", str(self.directory / "log"), "-f", str(self.directory / "config")]
        self.process = subprocess.Popen(command)
        wait_until(self._answers, 20)

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.send_signal(signal.SIGCONT)
            self.process.wait(timeout=20)

    def pause(self) -> None:
        """Take connections from now on, and answer none of them."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "ssh").mkdir()
    server = Server(tmp_path / "ssh")
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def nothing_is_left_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test after which a process of it still runs, wherever that works: all inherit a variable."""
    monkeypatch.setenv(MARK, str(tmp_path))
    yield
    wait_until(lambda: marked(tmp_path) == [], 30)


def marked(directory: Path) -> list[str]:
    """Return the command lines of the processes that a test in `directory` started, at whatever depth."""
    mark = f"{MARK}={directory}\0".encode()
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and mark in (process / "environ").read_bytes():
                lines.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return lines


@pytest.fixture
def expected(swept: Clone, tmp_path: Path) -> dict[str, bytes]:
    """What a sequential run gives, without a trace in `gates`."""
    written = undisturbed_outputs(swept, tmp_path / "sequential")
    (gates(swept) / "started").unlink()
    return written


def share_by_ssh(clone: Clone, server: Server, directory: Path) -> str:
    """Do as `share` does, and return the URL of the repository; both are reached through the server only."""
    repository = share(clone, directory)
    clone.dvc("remote", "modify", "shared", "url", f"{server.url}{directory}/remote")
    clone.dvc("remote", "modify", "shared", "keyfile", str(server.directory / "key"))
    clone.commit("a remote over SSH")
    return f"{server.url}{repository}"
