"""What people read while the study runs, and where and how fast it ran."""

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

START_UP_NOISE = (
    "^WARNING: All log messages before absl::InitializeLog",
    "^I0000 .*(oneDNN|cudart_stub|cpu_feature_guard)",
    "^To enable the following instructions",
    "^I0000 .*(XLA service|StreamExecutor|Compiled cluster using XLA|MLIR crash reproducer)",
)


def say(text: str) -> None:
    """Print one line at once, so that it is seen when DVC passes it on."""
    print(text, flush=True)


@contextmanager
def without_start_up_noise() -> Iterator[None]:
    """Keep back what TensorFlow's libraries say of themselves when they are loaded and first used; pass on the rest.

    They write it to file descriptor 2 before any setting that should silence them is in force
    (https://github.com/tensorflow/tensorflow/issues/100442), four lines in every stage. A process of its own
    filters them, so that the last words of a library that aborts are not lost; Ctrl-C does not reach it.
    """
    noise = [*START_UP_NOISE] if Path("/dev/nvidiactl").exists() else [*START_UP_NOISE, "failed call to cuInit"]
    command = ["grep", "--text", "--line-buffered", "--invert-match", "--extended-regexp", "|".join(noise)]
    sys.stderr.flush()
    stderr = os.dup(2)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stderr, start_new_session=True) as rest:
        assert rest.stdin
        os.dup2(rest.stdin.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)


@contextmanager
def download_bar(name: str, done: int, total: int | None) -> "Iterator[tqdm[Any]]":
    """Show how many of `total` bytes of `name` have come, `done` of them earlier; `update(n)` counts on.

    A bar on a terminal; elsewhere a plain line about every 30 seconds.
    """
    terminal = sys.stderr.isatty()
    with tqdm(
        desc=name,
        initial=done,
        total=total,
        unit="B",
        unit_scale=True,
        delay=0 if terminal else 1,
        mininterval=0.1 if terminal else 30,
        maxinterval=10 if terminal else 60,
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


class TrainingReport:
    """What is said while the variant `key` is trained for `epochs` epochs of `images` images."""

    def __init__(self, key: str, images: int, epochs: int) -> None:
        self.key = key
        self.images = images
        self.epochs = epochs

    def epoch(self, row: Sequence[float], seconds: Sequence[float]) -> None:
        """Say what an epoch came to: its row of the history, and the seconds that each took so far."""
        number, train_loss, train_accuracy, validation_loss, validation_accuracy = row
        # The first epoch that a process trains has tracing and compiling in it.
        left = statistics.median(seconds[1:] or seconds) * (self.epochs - number)
        at_most = "up to " if len(seconds) == 1 and left else ""
        self._say(
            f"epoch {number:>{len(str(self.epochs))}}/{self.epochs}  "
            f"loss {train_loss:.4f}  accuracy {train_accuracy:7.2%}  "
            f"validation loss {validation_loss:.4f}  accuracy {validation_accuracy:7.2%}  "
            f"{self.images / seconds[-1]:6,.0f} images/s  {at_most}{duration(left)} left"
        )

    def diverged(self, epoch: int, step: int, optimizer: str, learning_rate: float) -> None:
        """Say where a loss stopped being finite, and with which settings."""
        self._say(
            f"diverged: the loss stopped being finite in epoch {epoch}, step {step}, with {optimizer} at learning rate "
            f"{learning_rate:g}; kept: the weights of the last epoch before it"
        )

    def _say(self, text: str) -> None:
        say(f"{self.key}  {text}")


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine(*packages: str) -> dict[str, object]:
    """Return on what a result was computed: processor, cores, system, versions of Python and `packages`."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "system": platform.platform(terse=True),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(": ")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
