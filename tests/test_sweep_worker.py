"""What a worker makes of the end of a training; tests/pipeline/test_sweep.py runs it."""

import errno
import fcntl
from contextlib import nullcontext
from pathlib import Path

import pytest

from dropout_study.commands import DVC, output
from dropout_study.console import StudyError
from dropout_study.sweep import remote, worker


@pytest.mark.parametrize(
    ("status", "killed"), [("-9", True), ("137", True), ("143", True), ("130", True), ("1", False), ("13", False)]
)
def test_killed_knows_a_signal_below_a_shell_and_without_one(status: str, killed: bool) -> None:
    line = f"ERROR: failed to reproduce 'train@sgd-0.5-0': failed to run: python -m stages.train, exited with {status}"

    assert bool(worker.KILLED.search(line)) == killed


def test_acquire_refuses_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)

    with pytest.raises(StudyError, match=r"worker-1\.lock: this file system has no locks, which a sweep needs"):
        worker.acquire(tmp_path / "worker-1")


def test_hold_names_the_lock_of_a_clone_in_which_something_still_runs(tmp_path: Path) -> None:
    with (
        worker.acquire(tmp_path / "worker-1"),
        pytest.raises(StudyError, match=r"worker-1\.lock: a process of an earlier sweep still runs; `fuser "),
    ):
        worker.Worker(tmp_path / "worker-1").hold()


def test_url_names_a_repository_on_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output("git", "init", "--quiet", "--bare", "repository.git")
    output("git", "init", "--quiet", "clone")
    monkeypatch.chdir("clone")
    output("git", "remote", "add", "origin", "../repository.git")
    output("git", "remote", "add", "server", "ssh://server.example/repository.git")

    long = f"server.example:{'x' * 300}"  # longer than the name of a file may be
    urls = [remote.url(name) for name in ("origin", "../repository.git", "server", long)]

    path = str(tmp_path / "repository.git")
    assert urls == [path, path, "ssh://server.example/repository.git", long]


@pytest.mark.parametrize("name", ["origni", "../repositry.git", "/no/such/repository"])
def test_url_refuses_what_is_neither_here_nor_a_url(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(StudyError, match=f"{name}: no such directory or Git remote here"):
        remote.url(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "has no default DVC remote"),
        (["--local", "/somewhere"], "has no default DVC remote"),
        (["../somewhere"], "the remote shared is at ../../somewhere, a relative path"),
        (["/somewhere"], None),
        (["ssh://server.example/somewhere"], None),
    ],
)
def test_require_remote_refuses_what_other_clones_do_not_have(
    options: list[str], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output(*DVC, "init", "--quiet", "--no-scm")
    if options:
        output(*DVC, "remote", "add", "--default", *options[:-1], "shared", options[-1])

    refused = pytest.raises(StudyError, match=message) if message else nullcontext()

    with refused:
        remote.require_remote()


def test_work_refuses_a_scratch_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StudyError, match=r"file/scratch: cannot be made: Not a directory; name another .* --scratch"):
        remote.work("repository", "sweep", "sgd-0.5-0", tmp_path / "file/scratch")


def test_retry_tries_again_until_it_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0, 0))
    monkeypatch.setattr(remote, "FULL_MEBIBYTES", 0)
    refusals = iter([True, True, False])

    def action() -> None:
        if next(refusals):
            raise StudyError("not now")

    remote.retry(action, "git push", tmp_path)

    assert [*refusals] == []


def test_retry_gives_up_at_once_if_the_sweep_is_over(tmp_path: Path) -> None:
    def action() -> None:
        raise remote.NoSuchSweepError("over")

    with pytest.raises(remote.NoSuchSweepError, match="over"):
        remote.retry(action, "git push", tmp_path)


def test_retry_gives_up_at_once_if_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "free_mebibytes", lambda directory: 0)
    calls = []

    def action() -> None:
        calls.append("called")
        raise StudyError("no space")

    with pytest.raises(StudyError, match="no space"):
        remote.retry(action, "git push", tmp_path)

    assert calls == ["called"]
