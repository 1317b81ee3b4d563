"""Where people run the study: under any user, in any directory, locale and kind of clone.

Each works, with the results of an undisturbed run, or says what is needed; docs/troubleshooting.md has the commands.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clones import Clone, copied, environment, small_project, use_fakes
from tests.needs import possible
from tests.sweeps import outputs, undisturbed_outputs

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

KEY = "sgd-0.5-0"
USER = 12345  # of no name
# A service's surroundings: no home directory, no language, no terminal, not even a standard input.
BARE = ("env", "-u", "HOME", "-u", "LANG", "-u", "TERM", "LC_ALL=C", "PYTHONUTF8=0", "sh", "-c", '"$@" <&-', "sh")
# May read every file, as one may where Python is installed for all users.
NAMELESS = (
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
# What docs/troubleshooting.md says that such a user needs, with a directory that nobody can write, not even root.
NAME_AND_HOME = ("env", "USER=me", "HOME=/proc")
Runner = Callable[..., str]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A small project with the fake stages and one variant, committed, never run."""
    clone = small_project(tmp_path_factory.mktemp("fresh") / "project")
    clone.commit("what a shallow clone does not have")
    use_fakes(clone)
    clone.change(study__optimizers=["sgd"], study__dropouts=[0.5])
    clone.commit("never run")
    return clone


@pytest.fixture(scope="module")
def expected(fresh: Clone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run makes of it."""
    return undisturbed_outputs(fresh, tmp_path_factory.mktemp("expected") / "project")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter, as pytest's own may not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def runner(clone: Clone, *surroundings: str) -> Runner:
    """Return a function that runs a command in the clone behind `surroundings`, and returns what it prints."""

    def run(*command: str) -> str:
        done = clone.run(*surroundings, *command)
        return done.stdout + done.stderr

    return run


def study(run: Runner, *options: str) -> None:
    """Do what the README says, by `run`, and see that it works; `options` are those of `dvc repro`."""
    assert "params.yaml: valid. digits" in run("dropout-study", "check")
    assert re.search("Running stage '.*plot'", run("dvc", "repro", *options))
    assert "1 of 1 variants are trained; nothing runs" in run("dropout-study", "status")
    assert re.search(r"^sgd +0\.5 +1 ", run("dropout-study", "results"), re.MULTILINE)


def sweep(run: Runner, clone: Clone) -> None:
    """Sweep over another seed."""
    clone.change(study__seeds=[0, 1])

    assert "1 of 2 variants to train with 1 worker" in run("dropout-study", "sweep", "--workers", "1")
    assert "2 of 2 variants are trained; nothing runs" in run("dropout-study", "status")


def test_study_runs_in_a_detached_worktree_with_an_unusual_path_and_no_writable_home(
    fresh: Clone, expected: dict[str, bytes], tmp_path: Path
) -> None:
    with copied(fresh, tmp_path / "project") as clone:
        worktree = Clone(tmp_path / "나의 연구 1")
        clone.run("git", "worktree", "add", "--quiet", "--detach", str(worktree.path))
        run = runner(worktree, "env", "HOME=/proc", "LC_ALL=C")

        study(run)

        assert outputs(worktree) == expected
        sweep(run, worktree)
        assert worktree.run("git", "rev-parse", "--abbrev-ref", "HEAD").stdout == "HEAD\n"


def test_study_runs_for_a_user_without_name_home_locale_or_terminal(public: Path) -> None:
    """With the real trainer, as the libraries below it look for a home directory."""
    possible("sh", "-c", '"$@"', "sh", *NAMELESS, "true")  # only root can become another user
    clone = small_project(public / "project")
    clone.change(study__optimizers=["sgd"], study__dropouts=[0.5])
    clone.commit("never run")
    for path in [clone.path, *clone.path.rglob("*")]:
        os.chown(path, USER, USER, follow_symlinks=False)
    run = runner(clone, *BARE, *NAMELESS, *NAME_AND_HOME)

    study(run)
    sweep(run, clone)


def test_study_runs_in_a_shallow_clone_from_a_subdirectory(
    fresh: Clone, expected: dict[str, bytes], tmp_path: Path
) -> None:
    shallow = Clone(tmp_path / "shallow")
    fresh.run("git", "clone", "--quiet", "--depth", "1", fresh.path.as_uri(), str(shallow.path))

    study(runner(shallow, "sh", "-c", 'cd docs && "$@"', "sh"), "--all-pipelines")

    assert shallow.run("git", "rev-parse", "--is-shallow-repository").stdout == "true\n"
    assert outputs(shallow) == expected


def test_study_runs_without_git_but_for_the_sweep(fresh: Clone, expected: dict[str, bytes], tmp_path: Path) -> None:
    with copied(fresh, tmp_path / "project") as clone:
        shutil.rmtree(clone.path / ".git")
        clone.dvc("config", "core.no_scm", "true")

        study(runner(clone))
        assert outputs(clone) == expected
        clone.change(study__seeds=[0, 1])
        sweep = clone.run("dropout-study", "sweep", check=False)

        assert sweep.returncode == 1
        assert re.search("^error: .*git", sweep.stderr, re.MULTILINE)
        assert "Traceback" not in sweep.stderr


PRINTING = [("python", "-m", "stages.normalize"), ("dropout-study", "results")]


@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_command_runs_where_standard_streams_are_closed(clone: Clone, command: tuple[str, ...]) -> None:
    expected = outputs(clone)

    done = clone.run("sh", "-c", '"$@" <&- >&-', "sh", *command)

    assert (done.stdout, done.stderr) == ("", "")
    assert outputs(clone) == expected


@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_command_whose_reader_has_ended_prints_no_traceback(clone: Clone, command: tuple[str, ...]) -> None:
    """As in `dropout-study results | head -1`, but surely before the first line is written."""
    reading, writing = os.pipe()
    os.close(reading)

    with open(writing) as pipe:
        done = subprocess.run(
            command, cwd=clone.path, env=environment(), stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=300
        )

    message = "error: standard output was closed by its reader; what is finished is kept\n"
    assert (done.returncode, done.stderr) == (1, message if command[0] == "python" else "")
