"""What people see while the study runs: errors, interrupts, output and logs."""

import argparse
import errno
import io
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

# What to do about the errors of a file system that are the user's to fix.
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room for it"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make its directory writable"),
}


START_UP_NOISE = (
    "^WARNING: All log messages before absl::InitializeLog",
    "^I0000 .*(oneDNN|cudart_stub|cpu_feature_guard)",
    "^To enable the following instructions",
    "^I0000 .*(XLA service|StreamExecutor|Compiled cluster using XLA|MLIR crash reproducer)",
)

LINE_SECONDS = 5.0  # before the first line about a download, and between two, where there is no terminal


class StudyError(Exception):
    """An error the user can fix; its message names the file or key, the value, what is allowed, and how to fix it."""


def printable(text: object) -> str:
    """Return `text` in one line that does nothing to a terminal: what cannot be printed is escaped as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def with_remedy(error: OSError) -> str | None:
    """Return what is wrong with a file and what to do about it; None if the user cannot fix it."""
    if error.filename is None or error.errno not in REMEDIES:
        return None
    remedy = f"{REMEDIES[error.errno]}, then run the same command again: what is finished is kept"
    return f"{error.filename}: {error.strerror}; {remedy}"


def prepare_streams() -> None:
    """Replace standard streams that are closed; have output escape what the locale cannot encode, such as ± in ASCII.

    Python's defaults are None and an error. Closed descriptors would be given to the next files that are opened, and
    libraries would write into those what they print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115 (it stays open)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run_stage(main: Callable[..., None], description: str, *arguments: str) -> None:
    """Run a stage's `main` as a command: `--help`, optional positional `arguments`, readable errors.

    A `StudyError` becomes one message on standard error and exit status 1, without a traceback; so do an `OSError` that
    has a remedy, and output that nobody reads. Ctrl-C and SIGTERM raise KeyboardInterrupt in `main`, and end with a
    message and status 130 or 143, as shells expect.
    """
    prepare_streams()
    parser = argparse.ArgumentParser(
        prog=f"python -m {_module_name()}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for argument in arguments:
        name, _, text = argument.partition(": ")
        parser.add_argument(name, nargs="?", help=text)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main(**vars(options))
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it ends
        print("error: standard output was closed by its reader; what is finished is kept", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if (message := with_remedy(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr, flush=True)
        with suppress(OSError):
            sys.stdout.flush()
        # Not sys.exit: if the interrupt came while an extension module ran code, Python would end itself by SIGINT.
        os._exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Delay Ctrl-C and SIGTERM in the block until it calls the yielded function, or ends.

    An exception raised in the middle of a call into TensorFlow can crash the process. A second interrupt, after the
    message, ends the process at once, as the system does by default.
    """
    received: list[int] = []

    def hold(number: int, _: object) -> None:
        received.append(number)
        for held in handlers:
            signal.signal(held, signal.SIG_DFL)
        with suppress(OSError):
            os.write(1, b"stopping after this step; interrupt again to stop immediately\n")

    def stop_if_interrupted() -> None:
        if received:
            raise KeyboardInterrupt(*received)

    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) != signal.SIG_IGN
    }
    try:
        for number in handlers:
            signal.signal(number, hold)
        yield stop_if_interrupted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    stop_if_interrupted()


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else "stages"


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
    """How long a training took, including the epochs of earlier processes, and how fast it was."""

    epochs: int
    seconds: float
    images_per_second: float


def last_progress(path: Path) -> dict[str, Any] | None:
    """Return the last line that `TrainingReport` wrote to `path`; None if there is none."""
    return next(_progress_backwards(path), None)


def training_speed(path: Path) -> Speed | None:
    """Return the speed of the last finished training that `TrainingReport` wrote to `path`; None if there is none."""
    last = next((line for line in _progress_backwards(path) if line["state"] != "training"), None)
    if last is None:
        return None
    return Speed(last["epoch"], last["total_seconds"], last["images"] * last["epoch"] / last["total_seconds"])


def _progress_backwards(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines that `TrainingReport` wrote to `path`, last first, except those that a kill cut off."""
    with suppress(OSError):
        for line in reversed(path.read_bytes().splitlines()):
            with suppress(ValueError):
                yield dict(json.loads(line))


class TrainingReport:
    """Reports the training of the variant `key` for `epochs` epochs of `images` images: on the terminal and to `path`.

    `path` gets a JSON line per epoch, for programs. A training that resumes repeats epochs: the last line of an epoch
    counts. Its `state` is "training", and at the end "finished" or "diverged"; `total_seconds` are those of all epochs,
    interrupted runs included.
    """

    def __init__(self, key: str, images: int, epochs: int, path: Path) -> None:
        self.key = key
        self.images = images
        self.epochs = epochs
        self.path = path

    def started(self, device: str, threads: int, shards: int, precision: str, loss: str) -> None:
        """Print on what the variant is trained, in which precision, and which losses cannot be compared."""
        batch = "batches whole" if shards == 1 else f"each batch in {shards} shards"
        self._say(f"on {device}, {threads} thread{'s' * (threads > 1)}, {batch}, {precision}")
        if loss == "clipped":
            self._say("the training loss is clipped as in Keras 2; validation and test losses are not")
        self._write({"epoch": 0, "state": "training", "total_seconds": 0.0})

    def epoch(self, row: Mapping[str, float], seconds: Sequence[float]) -> None:
        """Report an epoch by its row of the history and the seconds of each epoch so far: figures, speed, time left."""
        self._write_epoch(row, seconds, "training")  # first: who reads the line below finds it written
        # The first epoch that a process trains includes tracing and compiling.
        left = statistics.median(seconds[1:] or seconds) * (self.epochs - row["epoch"])
        at_most = "up to " if len(seconds) == 1 and left else ""
        self._say(
            f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}  "
            f"loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:7.2%}  "
            f"validation loss {row['validation_loss']:.4f}  accuracy {row['validation_accuracy']:7.2%}  "
            f"{self.images / seconds[-1]:6,.0f} images/s  {at_most}{duration(left)} left"
        )

    def diverged(self, epoch: int, step: int | None, optimizer: str, learning_rate: float) -> None:
        """Print where loss, weights or predictions stopped being finite, and with which settings."""
        where = f"in epoch {epoch}, step {step}" if step else f"at the end of epoch {epoch}"
        self._say(
            f"diverged: a loss, weight or prediction stopped being finite {where}, with {optimizer} at learning rate "
            f"{learning_rate:g}; the model has the last finite weights"
        )

    def finished(self, row: Mapping[str, float], seconds: Sequence[float], *, diverged: bool) -> None:
        """Report the end of the training by the last row of the history and the seconds of each epoch."""
        self._say(
            f"finished: {len(seconds)} epoch{'s' * (len(seconds) > 1)} in {sum(seconds):.1f} s, "
            f"{self.images * len(seconds) / sum(seconds):,.0f} images/s"
        )
        self._write_epoch(row, seconds, "diverged" if diverged else "finished")

    def _say(self, text: str) -> None:
        say(f"{self.key}  {text}")

    def _write_epoch(self, row: Mapping[str, float], seconds: Sequence[float], state: str) -> None:
        figures = {name: value if math.isfinite(value) else None for name, value in row.items()}
        speed = {"seconds": seconds[-1], "images_per_second": self.images / seconds[-1], "total_seconds": sum(seconds)}
        self._write({**figures, **speed, "state": state})

    def _write(self, line: Mapping[str, Any]) -> None:
        with suppress(OSError):  # a full disk costs the log, not the training
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _append(self.path, json.dumps({"variant": self.key, "images": self.images, "epochs": self.epochs, **line}))
