"""What people see of a sweep: how far each variant is, on a terminal, in plain lines, and from another terminal."""

import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from threading import RLock
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dropout_study import files
from dropout_study.console import duration, say
from dropout_study.sweep.project import SWEEP

STATUS = SWEEP / "status.json"
STATUS_SECONDS = 1.0  # between two writes of the status file, at least, and
STATUS_SHARE = 0.01  # of the time that writing it may take
WAITING, RUNNING, TRAINED, FAILED = "waiting", "running", "trained", "failed"
ATTEMPTS = 3  # of a variant whose training, worker or machine was lost
LAST_LINES = 15
UNLIMITED_WIDTH = 1_000


@dataclass
class Row:
    """A variant of the sweep: its state, the worker that has it, seconds, and what its last epoch was like."""

    state: str = WAITING
    worker: str = ""
    begin: float = 0.0  # seconds since 1970
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    epoch: str = ""
    accuracy: str = ""
    speed: str = ""
    attempts: int = 0


class Board:
    """The state of every variant of a sweep; safe to change from several threads.

    `known_seconds` is how long trainings took before the sweep.
    """

    def __init__(self, keys: Sequence[str], workers: int, known_seconds: Sequence[float] = ()) -> None:
        self.keys = keys
        self.workers = workers
        self.rows = {key: Row() for key in keys}
        self.last_lines: dict[str, deque[str]] = {key: deque(maxlen=LAST_LINES) for key in keys}
        self._known_seconds = known_seconds
        self._lock = RLock()
        self._shown = False
        self._live: Live | None = None
        self._note = ""
        self._next_write = 0.0

    def started(self, key: str, worker: str) -> None:
        """Note that `worker` has begun with a variant."""
        with self._lock:
            row = self.rows[key]
            row.state, row.worker, row.begin, row.attempts = RUNNING, worker, time.time(), row.attempts + 1
        self._changed(f"{worker}: {key} started")

    def line(self, key: str, text: str, progress: Mapping[str, Any] | None = None) -> None:
        """Note a line that the training of a variant printed, and its `progress` (`console.last_progress`)."""
        self.last_lines[key].append(text)
        row = self.rows[key]
        epoch = f"{progress['epoch']}/{progress['epochs']}" if progress and progress["epoch"] else ""
        if progress and epoch != row.epoch and progress["state"] == "training":
            with self._lock:
                row.epoch = epoch
                accuracy = progress.get("validation_accuracy")
                row.accuracy = "" if accuracy is None else f"{accuracy:.2%}"
                row.speed = f"{progress['images_per_second']:,.0f}" if epoch else ""
            self._changed(f"{row.worker}: {text}")

    def ended(self, key: str, state: str, cpu_seconds: float, why: str = "") -> None:
        """Note that a variant is trained, has failed, or waits again; `cpu_seconds` are those of this attempt."""
        with self._lock:
            row = self.rows[key]
            row.state, row.seconds = state, time.time() - row.begin if row.begin else 0.0
            row.cpu_seconds += cpu_seconds
        left = self.left()
        rest = f", {duration(left)} left" if left else ""
        text = f"{row.worker}: {key} {state}{f' ({why})' if why else ''} after {duration(row.seconds)}"
        self._changed(f"{text}; {self.count(TRAINED)} of {len(self.rows)}{rest}")

    def count(self, state: str) -> int:
        """Return how many variants are in a state."""
        return len(self.in_state(state))

    def in_state(self, state: str) -> list[str]:
        """Return the variants that are in a state."""
        return [key for key, row in self.rows.items() if row.state == state]

    def left(self) -> float | None:
        """Return how many seconds the rest should take, by the trainings so far; None if there are none."""
        with self._lock:
            took = [row.seconds for row in self.rows.values() if row.state == TRAINED] or [*self._known_seconds]
            if not took:
                return None
            each = statistics.median(took)
            running = sum(
                max(0.0, each - (time.time() - row.begin)) for row in self.rows.values() if row.state == RUNNING
            )
            return (self.count(WAITING) * each + running) / self.workers

    def _changed(self, text: str) -> None:
        if self._live is None and self._shown:
            say(text)
        self.write()

    def note(self, text: str) -> None:
        """Show a line below the variants, at once where there is no terminal. A signal handler may call this."""
        self._note = text
        if self._live is None:  # which would draw over what another writes
            os.write(2, f"\n{text}\n".encode())

    def write(self, *, now: bool = False) -> None:
        """Write the status file, unless it was written a moment ago; with `now`, in any case."""
        with self._lock:
            begin = time.time()
            if now or begin > self._next_write:
                rows = {key: asdict(row) for key, row in self.rows.items()}
                with suppress(OSError):  # a full disk: the trainings are worth more than the view of them
                    files.write_json(STATUS, {"left": self.left(), "rows": rows})
                end = time.time()
                self._next_write = end + max(STATUS_SECONDS, (end - begin) / STATUS_SHARE)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the board while the block runs: in place on a terminal, as plain lines elsewhere."""
        self._shown = True
        try:
            if sys.stdout.isatty():
                with Live(get_renderable=self.render, refresh_per_second=2) as self._live:
                    yield
            else:
                yield
        finally:
            self._live, self._shown = None, False
            self.write(now=True)

    def render(self) -> Group:
        """Return a bar over all variants, a line for each that runs, and the note if there is one."""
        with self._lock:
            return Group(drawn(self.rows, self.left()), *([Text(self._note)] if self._note else []))


def drawn(rows: Mapping[str, Row], left: float | None) -> Group:
    """Return a bar over all variants with the time left, and a line for each that runs."""
    trained, failed = (sum(row.state == state for row in rows.values()) for state in (TRAINED, FAILED))
    text = f" {trained} of {len(rows)} trained" + (f", {failed} failed" if failed else "")
    head = Table.grid()
    head.add_row(ProgressBar(total=len(rows), completed=trained, width=40), Text(text + _remaining(left)))
    running = Table.grid(padding=(0, 2))
    for key, row in rows.items():
        if row.state == RUNNING:
            epoch = f"epoch {row.epoch}" if row.epoch else "starting"
            speed = f"{row.speed} images/s" if row.speed else ""
            running.add_row(row.worker, key, epoch, row.accuracy, speed, duration(time.time() - row.begin))
    return Group(head, running)


def _remaining(left: float | None) -> str:
    return f", {duration(left)} left" if left else ""


def final_table(board: Board) -> Table:
    """Return what came of each variant: where, how long, and the validation accuracy of its last epoch."""
    table = Table(
        "variant", "state", "worker", "time", "CPU time", "accuracy", "attempts", box=None, header_style="bold"
    )
    for key, row in board.rows.items():
        took = duration(row.seconds) if row.seconds else ""
        cpu = f"{row.cpu_seconds:.1f} s" if row.cpu_seconds else ""
        table.add_row(key, row.state, row.worker, took, cpu, row.accuracy, str(row.attempts or ""))
    return table


def show(renderable: Any) -> None:
    """Print something that `rich` draws; where there is no terminal, as wide as it is, so that a row is a line."""
    Console(width=None if sys.stdout.isatty() else UNLIMITED_WIDTH).print(renderable)


def read_status() -> tuple[dict[str, Row], float | None] | None:
    """Return the rows and the time left of the sweep that runs or ran last in this project; None if there is none."""
    if not STATUS.exists():
        return None
    status = files.read_json(STATUS)
    return {key: Row(**row) for key, row in status["rows"].items()}, status["left"]
