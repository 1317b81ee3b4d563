"""What the stress tests share: results to compare with, and a look at what a test leaves behind."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clones import Clone
from tests.sweeps import gates, undisturbed_outputs, wait_until

MARK = "DROPOUT_STUDY_STRESS"


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
