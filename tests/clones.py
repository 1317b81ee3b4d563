"""A small clone of the project in which the real `dvc` runs. Where time demands it, `train` and `plot` are fakes."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[1]
SMALL = {
    "study.optimizers": ["sgd", "adadelta"],
    "study.dropouts": [0.0, 0.5],
    "study.seeds": [0],
    "normalize.train_size": 200,
    "normalize.validation": 0.1,
    "network.filters": [2, 3],
    "network.units": [4],
    "train.epochs": 2,
    "train.batch_size": 64,
    "train.learning_rate": {"sgd": 0.01, "adadelta": 1.0, "adam": 0.001},
    "train.learning_rate_decay": 1.0,
    "train.checkpoint_every": 1,
    "train.threads": 1,
}

# As sitecustomize.py: the process of one stage sends itself a signal when it is about to name a file it has written.
SIGNAL_YOURSELF = """
import os, sys
from pathlib import Path
renames = 0
def count(event, arguments):
    global renames
    if event == "os.rename" and not str(arguments[1]).endswith(".pyc"):
        renames += 1
        if renames == {rename}:
            Path({reached!r}).touch()
            os.kill(os.getpid(), {number})
if sys.orig_argv[1:] == ["-m", "stages.{stage}"]:
    sys.addaudithook(count)
"""


def environment(**changes: str) -> dict[str, str]:
    """Return this environment, with the programs beside this Python first on the path, and `changes`.

    Commits are not signed, as a developer's own may be, and an archive of CIFAR-10 that .ci/run has is not used.
    """
    bin_directory = str(Path(sys.executable).parent)
    inherited = {name: value for name, value in os.environ.items() if name != "CIFAR10_ARCHIVE"}
    return inherited | {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "commit.gpgsign",
        "GIT_CONFIG_VALUE_0": "false",
        "PATH": f"{bin_directory}:{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "GIT_AUTHOR_NAME": "a test",
        "GIT_AUTHOR_EMAIL": "test@example.com",
        "GIT_COMMITTER_NAME": "a test",
        "GIT_COMMITTER_EMAIL": "test@example.com",
        **changes,
    }


STARTED: list[subprocess.Popen[str]] = []  # by `Clone.start`, in this test


@dataclass
class Clone:
    """A clone of the project at `path`."""

    path: Path

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone; if it fails and should not have, its output is in the error."""
        done = subprocess.run(
            command, cwd=self.path, env=environment(**variables), capture_output=True, text=True, timeout=300
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        """Start a command in the clone, in a process group of its own; what it prints, errors too, is one stream.

        It is killed with its group if it still runs when the test ends.
        """
        process = subprocess.Popen(
            command,
            cwd=self.path,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        STARTED.append(process)
        return process

    def dvc(self, *arguments: str, check: bool = True) -> str:
        """Run `dvc` and return what it printed."""
        return self.run("dvc", *arguments, check=check).stdout

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro` and return the stages that really ran, in order."""
        return stages_run(self.dvc("repro", *arguments))

    def change(self, **settings: Any) -> None:
        """Change settings in params.yaml, given as `train__epochs=3`."""
        change_settings(self.path / "params.yaml", {key.replace("__", "."): value for key, value in settings.items()})

    def append(self, file: str, text: str = "\n# changed\n") -> None:
        """Append `text` to a file of the clone."""
        with (self.path / file).open("a") as stream:
            stream.write(text)

    def commit(self, message: str) -> str:
        """Commit everything to Git and return the commit."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)
        return self.run("git", "rev-parse", "HEAD").stdout.strip()

    def results(self) -> dict[str, bytes]:
        """Return the outputs that `evaluate` and `plot` commit to Git."""
        metrics = self.path / "metrics"
        files = [metrics / "study.csv", metrics / "evaluation.json", *sorted((metrics / "plots").iterdir())]
        return {str(path.relative_to(self.path)): path.read_bytes() for path in files}


def finish(process: subprocess.Popen[str], seconds: float = 300) -> str:
    """Wait for the end of a process that `start` returned, which has to be a good one; return what it printed."""
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return printed


def self_signalling(directory: Path, stage: str, number: signal.Signals, rename: int) -> dict[str, str]:
    """Return variables with which the process of `stage` sends itself a signal; `directory` is made for what they need.

    It does so just before it gives a file its final name for the `rename`th time, and makes the file `reached` there.
    """
    directory.mkdir()
    values = {"stage": stage, "number": int(number), "rename": rename, "reached": str(directory / "reached")}
    (directory / "sitecustomize.py").write_text(SIGNAL_YOURSELF.format(**values))
    return {"PYTHONPATH": str(directory)}


@contextmanager
def copied(original: Clone, path: Path) -> Iterator[Clone]:
    """Copy a clone to `path`, DVC's cache included, to be changed at will; remove the copy at the end."""
    shutil.copytree(original.path, path, symlinks=True)
    yield Clone(path)
    shutil.rmtree(path)


def change_settings(path: Path, changes: dict[str, Any]) -> None:
    """Change settings in the file `path`, given by dotted keys; comments stay."""
    yaml = YAML()
    settings = yaml.load(path)
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = settings
        for part in sections:
            section = section[part]
        section[name] = value
    yaml.dump(settings, path)


def stages_run(output: str) -> list[str]:
    """Return the stages whose command DVC says it ran."""
    return re.findall(r"^Running stage '([^']+)'", output, flags=re.MULTILINE)


def copy_project(destination: Path) -> Clone:
    """Copy what Git has or would take of the project, but for published results, and make a Git repository of it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (PROJECT / name).exists() and not name.startswith("results/"):
            target = destination / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, target)
    clone = Clone(destination)
    clone.run("git", "init", "--quiet", "--initial-branch=main")
    return clone


def use_fakes(clone: Clone) -> None:
    """Have the clone train and draw with the fake stages."""
    for stage in ("train", "plot"):
        shutil.copy(PROJECT / f"tests/fake_{stage}.py", clone.path / f"stages/{stage}.py")


def small_project(destination: Path) -> Clone:
    """Copy the project with a tiny network and without results."""
    clone = copy_project(destination)
    shutil.copy(PROJECT / "presets/quick.yaml", destination / "params.yaml")
    clone.change(**{key.replace(".", "__"): value for key, value in SMALL.items()})
    shutil.rmtree(destination / "metrics")
    (destination / "dvc.lock").unlink(missing_ok=True)
    return clone
