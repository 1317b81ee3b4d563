"""A project for tests of the sweep, whose trainings wait and fail as files beside it say; its sweeps and processes."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.clones import Clone, copied

KEYS = ("sgd-0.0-0", "sgd-0.5-0", "adadelta-0.0-0", "adadelta-0.5-0")
# Put before the fake trainer's work: it waits while a file hold-<key> is there, and fails if fail-<key> is.
GATE = """
def main(key: str | None = None) -> None:
    import sys, time
    from pathlib import Path
    from dropout_study import checkpoint
    from dropout_study.console import TrainingReport
    key = key or os.environ["DVC_STAGE"].partition("@")[2]
    gates = Path({gates!r})
    with (gates / "started").open("a") as log:
        log.write(key + "\\n")
    report = TrainingReport(key, images=1234, epochs=2, path=files.progress_file(key))
    figures = {{"train_loss": 1.0, "train_accuracy": 0.1, "validation_loss": 1.0, "validation_accuracy": 0.12}}
    with checkpoint.locked(key):
        report.epoch({{"epoch": 1, **figures}}, [1.0])
        while (gates / f"hold-{{key}}").exists():
            time.sleep(0.05)
        if (gates / f"fail-{{key}}").exists():
            sys.exit(f"error: {{key}} cannot be trained")
        train(key)

"""


def add_gates(clone: Clone) -> None:
    """Have the trainer of the clone obey the files in `gates`."""
    gates(clone).mkdir()
    trainer = clone.path / "stages/train.py"
    source = trainer.read_text().replace("def main(", "def train(")
    place = source.index("\n\nif __name__")
    trainer.write_text(source[:place] + GATE.format(gates=str(gates(clone))) + source[place:])


def gates(clone: Clone) -> Path:
    return clone.path.parent / "gates"


def release(clone: Clone) -> None:
    """Let all trainings that wait go on."""
    for gate in gates(clone).glob("hold-*"):
        gate.unlink()


def share(clone: Clone, directory: Path) -> Path:
    """Give the clone a DVC remote below `directory`, and make a Git repository there, which is returned."""
    clone.dvc("remote", "add", "--default", "shared", str(directory / "remote"))
    clone.commit("a remote")
    repository = directory / "repository.git"
    clone.run("git", "init", "--quiet", "--bare", str(repository))
    return repository


def set_hook(repository: Path, script: str) -> Path:
    """Have a Git repository run a shell script before it takes a push; refs come on standard input. Return its file."""
    hook = repository / "hooks/pre-receive"
    hook.write_text(f"#!/bin/sh\n{script}")
    hook.chmod(0o755)
    return hook


def started(clone: Clone) -> list[str]:
    """Return the variants whose training has been started, in order."""
    log = gates(clone) / "started"
    return log.read_text().split() if log.exists() else []


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Wait until `condition` is true; fail after `seconds`, many times what it takes: a busy machine is no failure."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def command_lines(directory: Path) -> dict[int, list[str]]:
    """Return the command line of each process that works in `directory` or below it, by its ID."""
    top, lines = directory.resolve(), {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(path / "cwd")).is_relative_to(top) and int(path.name) != os.getpid():
                lines[int(path.name)] = (path / "cmdline").read_text().split("\0")[:-1]
        except OSError:  # it has ended
            continue
    return lines


def processes(clone: Clone) -> list[int]:
    """Return the processes that work in the clone or below it."""
    return [*command_lines(clone.path)]


def trainings(clone: Clone) -> list[int]:
    """Return the processes in the clone or below it that train a variant."""
    return [pid for pid, line in command_lines(clone.path).items() if line[1:3] == ["-m", "stages.train"]]


def outputs(clone: Clone) -> dict[str, bytes]:
    """Return dvc.lock and every output of the trainings, of evaluate and of plot; what a killed stage left, too."""
    paths = [path for name in ("models", "metrics", "data/predictions") for path in (clone.path / name).rglob("*")]
    contents = {str(path.relative_to(clone.path)): path.read_bytes() for path in paths if path.is_file()}
    return contents | {"dvc.lock": (clone.path / "dvc.lock").read_bytes()}


def undisturbed_outputs(clone: Clone, copy: Path) -> dict[str, bytes]:
    """Return what one `dvc repro` writes, in a copy of the clone, which is removed again."""
    with copied(clone, copy) as undisturbed:
        undisturbed.repro()
        return outputs(undisturbed)


class Sweep(NamedTuple):
    """A sweep that was sent from `clone` to a Git repository, and the directory of its workers."""

    clone: Clone
    repository: str
    name: str
    scratch: Path

    @property
    def elsewhere(self) -> Clone:
        """A directory that is no project, from which workers are called."""
        return Clone(self.clone.path.parent / "elsewhere")

    def command(self, *arguments: str) -> list[str]:
        return [
            "dropout-study", "sweep", "worker", self.repository, self.name, "--scratch", str(self.scratch), *arguments,
        ]  # fmt: skip

    def collect(self) -> str:
        return self.clone.run("dropout-study", "sweep", "collect", self.repository, self.name).stdout

    def refs(self) -> list[str]:
        listed = self.clone.run("git", "ls-remote", self.repository, "refs/dropout-study/*").stdout
        return re.findall(r"refs/\S+", listed)


def send(clone: Clone, directory: Path) -> Sweep:
    """Send a sweep of the clone to a repository in `directory`, which gets the DVC remote, too."""
    repository = str(share(clone, directory))
    clone.run("git", "remote", "add", "shared", repository)
    printed = clone.run("dropout-study", "sweep", "send", "shared").stdout
    (name,) = re.findall(rf"^  dropout-study sweep worker {repository} (\S+) --index N$", printed, re.MULTILINE)
    (directory / "elsewhere").mkdir()
    return Sweep(clone, repository, name, directory / "scratch")
