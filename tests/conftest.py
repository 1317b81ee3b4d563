"""What all tests share: the project's directory, settings to spoil, a clone to run."""

import fcntl
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.clones import PROJECT, STARTED, Clone, change_settings, copied, small_project, use_fakes
from tests.sweeps import add_gates

# A shell that starts pytest in the background has it ignore Ctrl-C, and so every process that a test interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Where tests run must not matter: below a Git hook, whose repository would get their commits; where a CI system asks
# for colours; where studies share their checkpoints.
for name in (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX"),
    *("FORCE_COLOR", "TTY_COMPATIBLE", "DROPOUT_STUDY_CHECKPOINTS"),
):
    os.environ.pop(name, None)

# A busy machine is no failure.
hypothesis.settings.register_profile("study", deadline=None)
hypothesis.settings.load_profile("study")


def pytest_configure() -> None:
    """Choose the seed of the campaigns of stress tests. The workers of pytest-xdist have it from here."""
    os.environ.setdefault("STRESS_SEED", str(random.SystemRandom().randrange(2**32)))


def pytest_report_header() -> str:
    """Print the seed, with which the same inputs are drawn again, whatever ends the tests."""
    return f"STRESS_SEED={os.environ['STRESS_SEED']}"


@pytest.fixture(autouse=True)
def kill_what_still_runs() -> Iterator[None]:
    """Kill what a test has started and, because it failed, has not waited for."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def write_settings(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the default settings with some keys ("train.epochs") changed."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "params.yaml"
        shutil.copy(PROJECT / "presets/quick.yaml", path)
        change_settings(path, {key.replace("__", "."): value for key, value in changes.items()})
        return path

    return write


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A small project that has been run once, with the fake stages, and committed. Not to be changed."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers: the first one makes it
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        clone = Clone(shared / "finished")
        if not clone.path.exists():
            small_project(clone.path)
            use_fakes(clone)
            ran = clone.repro()
            names = [name.partition("@")[0] for name in ran]
            assert names == ["download", "normalize", *["train"] * 4, "evaluate", "plot"]
            clone.commit("the study")
    return clone


@pytest.fixture
def clone(finished: Clone, tmp_path: Path) -> Iterator[Clone]:
    """A copy of the finished project, DVC's cache included, to change at will."""
    with copied(finished, tmp_path / "project") as copy:
        yield copy


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A small project with the fake stages, data and four variants, none of which is trained."""
    clone = small_project(tmp_path_factory.mktemp("untrained") / "project")
    use_fakes(clone)
    clone.repro("normalize")
    clone.commit("no variant is trained")
    return clone


@pytest.fixture
def clone_of(tmp_path: Path) -> Iterator[Callable[[Clone], Clone]]:
    """Return a function that copies a clone, to be changed at will."""
    with ExitStack() as copies:
        yield lambda original: copies.enter_context(copied(original, tmp_path / "project"))


@pytest.fixture
def swept(untrained: Clone, tmp_path: Path) -> Iterator[Clone]:
    """A copy of it, whose trainer waits and fails as files in `gates` beside it say."""
    with copied(untrained, tmp_path / "project") as clone:
        add_gates(clone)
        clone.commit("a trainer with gates")
        yield clone
