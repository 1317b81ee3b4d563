"""A worker: a clone of the project in which one variant after another is trained, each by `dvc repro`.

Training in a clone keeps `dvc` processes out of each other's way, and DVC's lock short, which is what makes it fast.
Results go into the cache that the clones share; the worker hands back the variant's entry in dvc.lock.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from dropout_study import checkpoint, files
from dropout_study.commands import DVC, environment, failure, output
from dropout_study.console import StudyError, last_progress
from dropout_study.sweep import keeper, lockfile
from dropout_study.sweep.board import LAST_LINES
from dropout_study.sweep.project import LOCK, stage_of

# Exit codes that mean "killed by a signal": -N from Python, 128+N from a shell, as DVC reports them, or the keeper.
KILLED = re.compile(r"exited with (-\d+|129|1[345]\d)$")
SIGNALLED = range(129, 160)
# The data that a training reads, of all that download and normalize write.
DATA = ("data/raw/classes.json", "normalize")
CONFIG = """[core]
    analytics = false
    check_update = false
"""
SHARED_CACHE = """[cache]
    dir = {cache}
    type = "reflink,hardlink,copy"
"""


OnLine = Callable[..., None]  # takes a line and, where it is one of a training, how far that is


class Outcome(NamedTuple):
    """The result of a variant: its entry in dvc.lock, or None and the last lines that were printed.

    `signalled` is whether a signal ended it, which says nothing against the variant.
    """

    entry: str | None
    last_lines: Sequence[str]
    signalled: bool = False


class Worker:
    """A clone of the project in `directory` that trains variants one at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = ""
        self._checkpoints = Path()
        self._held: IO[bytes] | None = None
        self._stop: Callable[[], None] | None = None

    def prepare(self, project: Path, commit: str, cache: Path, lock: str) -> None:
        """Make the clone: the code and settings of `commit` of `project`, its data, its logs and its checkpoints.

        `cache` is DVC's cache, `lock` the dvc.lock that each variant starts from.
        """
        self.hold()
        output("git", "init", "--quiet", str(self.directory))
        objects = (project / output("git", "rev-parse", "--git-path", "objects", cwd=project)).resolve()
        (self.directory / ".git/objects/info/alternates").write_text(f"{objects}\n", encoding="utf-8")
        output("git", "checkout", "--quiet", "--detach", commit, cwd=self.directory)
        self.configure(lock, project / checkpoint.root(), project / files.LOGS, SHARED_CACHE.format(cache=cache))
        self.dvc("checkout", *DATA)

    def hold(self) -> None:
        """Lock the clone for this process and all that it starts in it; raises `StudyError` if it is in use."""
        try:
            self._held = acquire(self.directory)
        except BlockingIOError:
            path = lock_of(self.directory)
            raise StudyError(
                f"{path}: a process of an earlier sweep still runs; `fuser {path}` names it, end it"
            ) from None

    def configure(self, lock: str, checkpoints: Path, logs: Path, config: str = "") -> None:
        """Say what each variant starts from, and where checkpoints and logs are; `config` is of DVC's."""
        self._lock, self._checkpoints = lock, checkpoints
        (self.directory / ".dvc/config.local").write_text(CONFIG + config, encoding="utf-8")
        (self.directory / LOCK).write_text(lock, encoding="utf-8")
        logs.mkdir(parents=True, exist_ok=True)
        (self.directory / files.LOGS).symlink_to(logs)

    def _variables(self) -> dict[str, str]:
        return {"DVC_SITE_CACHE_DIR": str(self.directory / ".dvc/tmp/site")}

    def dvc(self, *arguments: str) -> None:
        """Run `dvc` in the clone; raises `StudyError` if it fails."""
        self.run(*DVC, *arguments, variables=self._variables())

    def run(self, *command: str, variables: Mapping[str, str]) -> None:
        """Run a command in the clone that ends when this process does; raises `StudyError` if it fails."""
        lines: list[str] = []
        if self._run_kept(command, lines.append, variables):
            raise failure(command, "\n".join(lines).strip())

    def train(self, key: str, on_line: OnLine, *options: str) -> Outcome:
        """Train the variant `key`, or take it from DVC's cache.

        `on_line` gets every line that is printed, with the progress of the training (`console.last_progress`);
        `options` are those of `dvc repro`.
        """
        (self.directory / LOCK).write_text(self._lock, encoding="utf-8")
        command = [*DVC, "repro", "--single-item", *options, stage_of(key)]
        variables = self._variables() | {checkpoint.ROOT_VARIABLE: str(self._checkpoints)}
        last_lines: deque[str] = deque(maxlen=LAST_LINES)

        def pass_on(line: str) -> None:
            last_lines.append(line)
            on_line(line, last_progress(self.directory / files.progress_file(key)))

        if status := self._run_kept(command, pass_on, variables):
            signalled = status < 0 or status in SIGNALLED or any(map(KILLED.search, last_lines))
            return Outcome(None, [*last_lines], signalled)
        entry = lockfile.split((self.directory / LOCK).read_text(encoding="utf-8"))[stage_of(key)]
        return Outcome(entry, [*last_lines])

    def _run_kept(self, command: Sequence[str], on_line: Callable[[str], None], variables: Mapping[str, str]) -> int:
        """Run a command under a keeper, which ends it when this process dies; return its exit status.

        The clone stays locked until all that it started has ended.
        """
        assert self._held
        process = subprocess.Popen(
            [sys.executable, keeper.__file__, *command],
            cwd=self.directory,
            env=environment(variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=[self._held.fileno()],
        )
        assert process.stdin
        self._stop = process.stdin.close

        def pass_on() -> None:
            for line in process.stdout or ():
                on_line(line.rstrip("\n"))

        with process:
            try:
                pass_on()
            except BaseException:  # Ctrl-C, or an error of on_line: the command is not left alone
                process.stdin.close()
                pass_on()
                raise
            status = process.wait()
            self._stop = None
        return status

    def stop(self) -> None:
        """End what is being trained, from another thread: after its step, and within seconds."""
        if stop := self._stop:
            stop()

    def remove(self) -> None:
        """Remove the clone, if it is this worker's."""
        if self._held:
            shutil.rmtree(self.directory, ignore_errors=True)
            lock_of(self.directory).unlink(missing_ok=True)
            self._held.close()
            self._held = None


def lock_of(clone: Path) -> Path:
    """Return the lock file of a clone, which is beside it: there before it, and locked as long as it is in use."""
    return clone.with_name(f"{clone.name}.lock")


def acquire(clone: Path) -> IO[bytes]:
    """Return the lock file of a clone, locked as long as it, or a copy of its descriptor, is open in any process.

    Raises `BlockingIOError` if a process holds it, `StudyError` on a file system without locks.
    """
    path = lock_of(clone)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in files.NO_LOCKS:  # without them, nobody can tell which clones are in use
                raise StudyError(f"{path}: this file system has no locks, which a sweep needs") from None
            raise
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # whoever removes leftovers was faster


def remove_leftovers(directory: Path) -> list[Path]:
    """Remove and return the clones below `directory` whose driver was killed; those in which something runs stay."""
    removed = []
    for lock in sorted(directory.glob("worker-*.lock")):
        clone = lock.with_suffix("")
        try:
            file = acquire(clone)
        except BlockingIOError:
            continue
        if clone.exists():
            removed.append(clone)
        shutil.rmtree(clone, ignore_errors=True)
        lock.unlink(missing_ok=True)
        file.close()
    return removed


def clear(directory: Path) -> list[Path]:
    """Remove and return the clones below `directory` whose driver was killed, once what runs there has ended.

    Keepers take some seconds to end it. What still runs then is another's, and stays.
    """
    end = time.monotonic() + 2 * keeper.GRACE_SECONDS
    removed = remove_leftovers(directory)
    while any(directory.glob("worker-*.lock")) and time.monotonic() < end:
        time.sleep(0.2)
        removed += remove_leftovers(directory)
    return removed
