"""What people see of a sweep: a line when a variant starts, ends an epoch or ends, and a table at the end."""

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

from dropout_study.console import duration, say

WAITING, RUNNING, TRAINED, FAILED = "waiting", "running", "trained", "failed"
ATTEMPTS = 3  # of a variant whose training, worker or machine was lost
LAST_LINES = 15


@dataclass
class Row:
    """A variant of the sweep: its state, the worker that has it, seconds since 1970, seconds, and its last epoch."""

    state: str = WAITING
    worker: str = ""
    begin: float = 0.0
    seconds: float = 0.0
    epoch: int = 0
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

    def started(self, key: str, worker: str) -> None:
        """Note that `worker` has begun with a variant."""
        with self._lock:
            row = self.rows[key]
            row.state, row.worker, row.begin, row.attempts = RUNNING, worker, time.time(), row.attempts + 1
            say(f"{worker}: {key} started")

    def line(self, key: str, text: str, progress: Mapping[str, Any] | None = None) -> None:
        """Note a line that the training of a variant printed, and its `progress` (`console.last_progress`)."""
        with self._lock:
            self.last_lines[key].append(text)
            row = self.rows[key]
            if progress and progress["state"] == "training" and progress["epoch"] != row.epoch:
                row.epoch = progress["epoch"]
                say(f"{row.worker}: {text}")

    def ended(self, key: str, state: str, reason: str = "") -> None:
        """Note that a variant is trained, has failed, or waits again."""
        with self._lock:
            row = self.rows[key]
            row.state, row.seconds = state, time.time() - row.begin if row.begin else 0.0
            left = self.left()
            say(
                f"{row.worker}: {key} {state}{f' ({reason})' if reason else ''} after {duration(row.seconds)}; "
                f"{len(self.in_state(TRAINED))} of {len(self.rows)}{f', {duration(left)} left' if left else ''}"
            )

    def in_state(self, state: str) -> list[str]:
        """Return the variants that are in a state."""
        return [key for key, row in self.rows.items() if row.state == state]

    def left(self) -> float | None:
        """Return how many seconds the rest should take, by the trainings so far; None if there are none."""
        trained = [row.seconds for row in self.rows.values() if row.state == TRAINED] or [*self._known_seconds]
        if not trained:
            return None
        each = statistics.median(trained)
        running = sum(max(0.0, each - (time.time() - self.rows[key].begin)) for key in self.in_state(RUNNING))
        return (len(self.in_state(WAITING)) * each + running) / self.workers

    def table(self) -> str:
        """Return a line per variant: its state, worker, time and number of attempts."""
        rows = [("variant", "state", "worker", "time", "attempts")]
        for key, row in self.rows.items():
            rows.append((key, row.state, row.worker, duration(row.seconds) if row.begin else "", str(row.attempts)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
