"""What people read while the study runs: on the terminal, and in the log of each training."""

import os
import re
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

START_UP_NOISE = (
    "^WARNING: All log messages before absl::InitializeLog",
    "^I0000 .*(oneDNN|cudart_stub|cpu_feature_guard)",
    "^To enable the following instructions",
    "^I0000 .*(XLA service|StreamExecutor|Compiled cluster using XLA|MLIR crash reproducer)",
)

LINE_SECONDS = 5.0  # before the first line about a download, and between two, where there is no terminal


def say(text: str) -> None:
    """Print one line at once, so that it is seen when DVC passes it on.

    It is one write, even where Python is told not to buffer: another stream of the log cannot come between.
    """
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def _piped(stream: TextIO, descriptor: int, command: Sequence[str]) -> Iterator[None]:
    """Send what the block writes to a file descriptor, `stream`'s or a library's, through a process of its own.

    So the last words of a library that aborts are not lost. Ctrl-C does not reach that process.
    """
    stream.flush()
    original = os.dup(descriptor)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=original, start_new_session=True) as process:
        assert process.stdin
        os.dup2(process.stdin.fileno(), descriptor)
        try:
            yield
        finally:
            stream.flush()
            os.dup2(original, descriptor)
            os.close(original)


@contextmanager
def without_start_up_noise() -> Iterator[None]:
    """Hide what TensorFlow's libraries write about themselves when they are loaded and first used; pass on the rest.

    They write it to file descriptor 2 before any setting that should silence them is in force
    (https://github.com/tensorflow/tensorflow/issues/100442), four lines in every stage.
    """
    noise = [*START_UP_NOISE] if Path("/dev/nvidiactl").exists() else [*START_UP_NOISE, "failed call to cuInit"]
    command = ["grep", "--text", "--line-buffered", "--invert-match", "--extended-regexp", "|".join(noise)]
    with _piped(sys.stderr, 2, command):
        yield


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append to the file `path` all that is printed in the block, and what ended it, under a line with the time.

    What cannot be logged is still printed: a full disk costs the log, not the training.
    """
    problem = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  process {os.getpid()}")
    except OSError as error:
        problem = error.strerror
    if problem:
        say(f"warning: {path}: no log is written ({problem})")
        yield
        return
    try:
        with _piped(sys.stdout, 1, ["tee", "-a", str(path)]), _piped(sys.stderr, 2, ["tee", "-a", str(path)]):
            yield
    except BaseException:
        with suppress(OSError):
            _append(path, traceback.format_exc().rstrip())
        raise


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


@contextmanager
def download_bar(name: str, done: int, total: int | None) -> "Iterator[tqdm[Any]]":
    """Show how many of `total` bytes of `name` have come, `done` of them earlier; `update(n)` counts on.

    A bar on a terminal; elsewhere a plain line every `LINE_SECONDS`.
    """
    terminal = sys.stderr.isatty()
    with tqdm(
        desc=name,
        initial=done,
        total=total,
        unit="B",
        unit_scale=True,
        delay=0 if terminal else LINE_SECONDS,
        mininterval=0.1 if terminal else LINE_SECONDS,
        miniters=1,  # at any rate: tqdm would guess from the rate so far how many bytes to wait for
        bar_format=None if terminal else "{desc}: {n_fmt} of {total_fmt} at {rate_fmt}\n",
    ) as bar:
        yield bar


def duration(seconds: float) -> str:
    """Return a time as people say it: `8 s`, `2 min 05 s`, `1 h 02 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class Speed(NamedTuple):
    """How long a training took, those of its epochs included that an earlier process trained, and how fast it was."""

    epochs: int
    seconds: float
    images_per_second: float


STARTED = re.compile(r"^.*  process \d+$", re.MULTILINE)  # as `logged` writes it
FINISHED = re.compile(r"finished: (\d+) epochs? in ([\d.]+) s, ([\d,]+) images/s$", re.MULTILINE)


def finished_training(log: str) -> Speed | None:
    """Return the speed of the last training that the text of a log says is finished; None if there is none."""
    lines = FINISHED.findall(log)
    if not lines:
        return None
    epochs, seconds, images_per_second = lines[-1]
    return Speed(int(epochs), float(seconds), float(images_per_second.replace(",", "")))


def logged_training(path: Path) -> Speed | None:
    """Return the speed of the last training that the log `path` says is finished; None if there is none, or no log."""
    try:
        return finished_training(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


class TrainingReport:
    """The lines that are printed while the variant `key` is trained for `epochs` epochs of `images` images."""

    def __init__(self, key: str, images: int, epochs: int) -> None:
        self.key = key
        self.images = images
        self.epochs = epochs

    def device(self, name: str, threads: int, shards: int) -> None:
        """Print what the variant is trained on."""
        batch = "batches whole" if shards == 1 else f"each batch in {shards} shards"
        self._say(f"on {name}, {threads} thread{'s' * (threads > 1)}, {batch}")

    def epoch(self, row: Sequence[float], seconds: Sequence[float]) -> None:
        """Print an epoch's row of the history, its speed, and the time left by the seconds of each epoch so far."""
        number, train_loss, train_accuracy, validation_loss, validation_accuracy = row
        # The first epoch that a process trains includes tracing and compiling.
        left = statistics.median(seconds[1:] or seconds) * (self.epochs - number)
        at_most = "up to " if len(seconds) == 1 and left else ""
        self._say(
            f"epoch {number:>{len(str(self.epochs))}}/{self.epochs}  "
            f"loss {train_loss:.4f}  accuracy {train_accuracy:7.2%}  "
            f"validation loss {validation_loss:.4f}  accuracy {validation_accuracy:7.2%}  "
            f"{self.images / seconds[-1]:6,.0f} images/s  {at_most}{duration(left)} left"
        )

    def diverged(self, epoch: int, step: int | None, optimizer: str, learning_rate: float) -> None:
        """Print where loss, weights or predictions stopped being finite, and with which settings."""
        where = f"in epoch {epoch}, step {step}" if step else f"at the end of epoch {epoch}"
        self._say(
            f"diverged: a loss, weight or prediction stopped being finite {where}, with {optimizer} at learning rate "
            f"{learning_rate:g}; the model has the last finite weights"
        )

    def finished(self, seconds: Sequence[float]) -> None:
        """Print how long the training took, by the seconds of each epoch, those of interrupted runs included.

        `finished_training` reads the line again.
        """
        self._say(
            f"finished: {len(seconds)} epoch{'s' * (len(seconds) > 1)} in {sum(seconds):.1f} s, "
            f"{self.images * len(seconds) / sum(seconds):,.0f} images/s"
        )

    def _say(self, text: str) -> None:
        say(f"{self.key}  {text}")
