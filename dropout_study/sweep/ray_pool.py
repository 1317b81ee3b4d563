"""Ray as the engine of a sweep: tasks on a cluster that runs already call the worker.

Ray contributes a queue, the counting of cores, and retries on other machines. Code, data and results travel as for
every other machine, by a Git repository and a DVC remote: see `remote`.
"""

import importlib.util
import os
import signal
import socket
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from dropout_study import report
from dropout_study.console import StudyError, printable
from dropout_study.sweep import remote
from dropout_study.sweep.board import ATTEMPTS, FAILED, RUNNING, TRAINED, WAITING, Board

ANSWER_SECONDS = 10  # for a machine of the cluster to accept a connection


class RayOptions(NamedTuple):
    """The cluster's `address`, and what its machines share: a Git repository, and directories of these names."""

    address: str
    repository: str
    scratch: Path
    checkpoints: Path | None = None


def require_ray() -> None:
    """Raise `StudyError` if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise StudyError("Ray is not installed: pip install -c requirements-test.txt -e '.[cluster]'")


def connect(address: str, threads: int) -> Any:
    """Connect to a cluster, and return the module `ray`.

    Raises `StudyError` if there is no cluster, or no machine of it has `threads` cores, for which Ray would wait.
    """
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:  # where nothing listens, Ray would wait for minutes
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise StudyError(f"--address {address}: no Ray cluster: {printable(error)}") from None
    ray: Any = importlib.import_module("ray")  # which imports slowly, and is an extra
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError) as error:
        raise StudyError(f"--address {address}: no Ray cluster: {printable(error)}") from None
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray's would end this process, and leave what it started
    if not any(node["Alive"] and node["Resources"].get("CPU", 0) >= threads for node in ray.nodes()):
        ray.shutdown()
        cores = report.count(threads, "core")
        raise StudyError(f"no machine of the cluster has {cores}, as each training needs; see train.threads")
    return ray


def train(sweep: str, key: str, options: RayOptions) -> None:
    """Train one variant in a Ray task."""
    os.environ.pop("OMP_NUM_THREADS", None)  # which Ray sets, and which moves results
    remote.work(options.repository, sweep, key, options.scratch, options.checkpoints)


class RayPool:
    """Trains by Ray as `options` say, each variant with `threads` cores."""

    def __init__(self, options: RayOptions, threads: int) -> None:
        self.options = options
        self.threads = threads
        self._sweep: str | None = None

    def run(self, board: Board, interrupted: Event) -> None:
        """Train the variants of the board, until all are done or `interrupted` is set."""
        ray = connect(self.options.address, self.threads)
        try:
            self._sweep = remote.send(self.options.repository, board.keys)
            self._run_tasks(ray, board, interrupted)
        finally:
            ray.shutdown()

    def _run_tasks(self, ray: Any, board: Board, interrupted: Event) -> None:
        task = ray.remote(train).options(max_retries=0, num_cpus=self.threads)
        waiting = deque(board.keys)
        running: dict[Any, str] = {}
        losses: Counter[str] = Counter()
        while waiting or running:
            while waiting and len(running) < board.workers:
                key = waiting.popleft()
                board.started(key, "ray")
                running[task.remote(self._sweep, key, self.options)] = key
            done, _ = ray.wait([*running], num_returns=1, timeout=0.5)
            if interrupted.is_set():
                for reference in running:  # the keepers of the workers end the trainings
                    ray.cancel(reference, force=True)
                ray.wait([*running], num_returns=len(running), timeout=30)
                for key in board.in_state(RUNNING):
                    board.ended(key, WAITING, "interrupted")
                return
            for reference in done:
                key = running.pop(reference)
                try:
                    ray.get(reference)
                    board.ended(key, TRAINED)
                except ray.exceptions.RayTaskError as error:
                    board.line(key, str(error.cause))
                    board.ended(key, FAILED)
                except ray.exceptions.RayError as error:  # the worker or its machine is gone
                    board.line(key, str(error))
                    losses[key] += 1
                    if losses[key] < ATTEMPTS:
                        board.ended(key, WAITING, f"{type(error).__name__}, will be tried again")
                        waiting.append(key)
                    else:
                        board.ended(key, FAILED)

    def take_in(self, study_keys: Sequence[str]) -> Mapping[str, str]:
        """Take in what was pushed, and remove the refs of the sweep; return why some is refused, by variant."""
        if self._sweep is None:
            return {}
        collected = remote.collect(self.options.repository, self._sweep, study_keys)
        remote.forget(self.options.repository, self._sweep, collected.left)
        return collected.refused

    def logs(self) -> str:
        """Return where the logs of variants are that failed."""
        return str(remote.logs(self.options.scratch, self._sweep or ""))
