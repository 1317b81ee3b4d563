"""The sweep: what DVC misses goes to the workers, what they train comes back, DVC does the rest."""

import math
import os
import signal
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Event
from typing import Protocol

from dropout_study import files, report
from dropout_study.commands import DVC, environment, without_credentials
from dropout_study.console import StudyError, duration, say, training_speed
from dropout_study.settings import Settings, load_settings
from dropout_study.sweep import project, ray_pool, remote
from dropout_study.sweep.board import FAILED, WAITING, Board
from dropout_study.sweep.local_pool import LocalPool
from dropout_study.sweep.worker import clear

DEFAULT_WORKERS = 2
STOPPING = b"\nstopping: trainings end after their step, and resume next time\n"
BUSY = "another sweep runs in this project; `dropout-study status` shows it"


class Engine(Protocol):
    """What trains the variants of a sweep."""

    def run(self, board: Board, interrupted: Event) -> None:
        """Train the variants of the board, and note the progress of each on it."""

    def take_in(self, study_keys: Sequence[str]) -> Mapping[str, str]:
        """Take the results so far into this project; return why some are refused, by variant.

        `study_keys` has the variants of the study.
        """

    def logs(self) -> str:
        """Return where the logs of variants are that failed."""


def sweep(
    workers: int | None = None,
    ray: ray_pool.RayOptions | None = None,
    *,
    keep_going: bool = False,
    dry_run: bool = False,
) -> None:
    """Train what is missing of the study, up to `workers` variants at a time, and evaluate.

    The workers are clones on this machine, or with `ray` tasks of a cluster. If a variant fails here, no more are
    started unless `keep_going`. Raises `StudyError` if anything failed.
    """
    if ray:
        ray_pool.require_ray()
    settings = load_settings()
    project.require_own_repository()
    if not settings.train.threads:
        raise StudyError(
            f"{files.SETTINGS}: train.threads = 0, all cores of a machine, which trainings beside each other would "
            "share; set it to 1 or more"
        )
    study_keys = [variant.key for variant in settings.variants]
    with files.locked(project.SWEEP / "lock", BUSY):
        if not dry_run:
            for path in clear(project.SWEEP):
                say(f"removed the clone of a sweep that was killed: {path}")
            dvc("repro", "normalize")
        keys = project.missing(study_keys)
        seconds = known_seconds(settings)
        at_a_time = min(workers or (len(keys) if ray else DEFAULT_WORKERS), len(keys))
        each = report.count(settings.train.threads, "thread")
        by = f" with {report.count(at_a_time, 'worker')}, {each} each" if keys else ""
        say(f"{len(keys)} of {len(study_keys)} variants to train{by}")
        if keys and seconds:
            median = statistics.median(seconds)
            about = duration(median * math.ceil(len(keys) / at_a_time))
            say(f"about {about} if workers do not slow each other: a training took {duration(median)}, by the logs")
        if dry_run:
            for key in keys:
                say(f"would train {key}")
            return
        if keys:
            board = Board(keys, at_a_time, seconds)
            engine: Engine = ray_pool.RayPool(ray, settings.train.threads) if ray else LocalPool(keep_going=keep_going)
            try:
                _train(board, engine, study_keys)
            finally:
                say(f"\n{board.table()}")
        dvc("repro")


def send(repository: str) -> None:
    """Push what a sweep over machines needs, and say how to train and collect it."""
    settings = load_settings()
    project.require_own_repository()
    with files.locked(project.SWEEP / "lock", BUSY):
        dvc("repro", "normalize")
        keys = project.missing(variant.key for variant in settings.variants)
        if not keys:
            say("every variant is trained: nothing to send")
            return
        sweep = remote.send(repository, keys)
    say(instructions(repository, sweep, len(keys)))


def instructions(repository: str, sweep: str, variants: int) -> str:
    """Return how to train and collect the `variants` of a sweep that was sent, without the credentials of a URL."""
    shown = without_credentials(repository)
    own = "\nThe URL had credentials, left out here: each machine needs its own, as from a Git credential helper."
    return (
        f"{sweep}: {report.count(variants, 'variant')} sent to {shown}.{own * (shown != repository)} On each machine, "
        f"for 0 to {variants - 1}:\n\n  dropout-study sweep worker {shown} {sweep} --index N\n\n"
        f"Then here:\n\n  dropout-study sweep collect {shown} {sweep}"
    )


def collect(repository: str, sweep: str) -> None:
    """Take in what workers pushed of a sweep, and evaluate if nothing is missing.

    Raises `StudyError` if entries were refused or are missing.
    """
    study_keys = [variant.key for variant in load_settings().variants]
    with files.locked(project.SWEEP / "lock", BUSY):
        project.lock_text()
        dvc("repro", "normalize")
        collected = remote.collect(repository, sweep, study_keys)
        say(f"{report.count(collected.accepted, 'variant')} taken in")
        missing = project.missing(study_keys)
        problems = [f"{key}: not taken in, {why}" for key, why in collected.refused.items()]
        if problems:
            problems.append("call a worker with the right versions, or `sweep send` what has to be trained with others")
        if missing:
            some = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
            problems.append(f"{len(missing)} of {len(study_keys)} variants are missing ({some}); collect again later")
        if problems:
            raise StudyError("; ".join(problems))
        remote.forget(repository, sweep, collected.left)
        dvc("repro")


def forget(repository: str, sweep: str) -> None:
    """Give a sweep up: remove its snapshot, so that workers train no more of it, and the entries that they pushed."""
    pushed = remote.pushed_variants(repository, sweep)
    remote.forget(repository, sweep, pushed)
    say(f"{sweep}: given up; the outputs of {report.count(pushed, 'trained variant')} stay in the DVC remote")


def known_seconds(settings: Settings) -> list[float]:
    """Return how long trainings of the study's variants took, by their logs, those with as many epochs as now."""
    speeds = [training_speed(files.progress_file(variant.key)) for variant in settings.variants]
    return [speed.seconds for speed in speeds if speed and speed.epochs == settings.train.epochs]


def _train(board: Board, engine: Engine, study_keys: Sequence[str]) -> None:
    """Train the variants of the board, take in what is trained however that ends, and say what is not.

    `study_keys` has the variants of the study. Raises `StudyError` if some failed, were refused or were not trained.
    """
    with _interruptible(lambda: os.write(2, STOPPING)) as interrupted:
        try:
            engine.run(board, interrupted)
        finally:
            refused = engine.take_in(study_keys)
    failed, waiting = board.in_state(FAILED), board.in_state(WAITING)
    for key in failed:
        say(f"\n{key} failed on {board.rows[key].worker}; the last lines, of {engine.logs()}/{key}.log:")
        say("\n".join(f"    {line}" for line in board.last_lines[key]))
    problems = [f"{key}: not taken in, {why}" for key, why in refused.items()]
    if failed:
        problems.append(f"{len(failed)} of {len(board.keys)} variants failed; `dropout-study sweep` tries them again")
    if waiting:
        problems.append(f"{len(waiting)} of {len(board.keys)} variants were not trained")
    if problems:
        kept = len(board.keys) - len(failed) - len(waiting) - len(refused)
        raise StudyError("; ".join(problems) + f"; {kept} are trained and kept")


@contextmanager
def _interruptible(on_interrupt: Callable[[], object]) -> Iterator[Event]:
    """Yield an event that Ctrl-C or SIGTERM sets, after `on_interrupt`; at the end, raise KeyboardInterrupt if set."""
    interrupted = Event()

    def interrupt(number: int, _: object) -> None:
        on_interrupt()
        interrupted.set()

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if interrupted.is_set():
        raise KeyboardInterrupt


def dvc(*arguments: str) -> None:
    """Run `dvc` for the user to see; raises `StudyError` if it fails.

    Ctrl-C or SIGTERM interrupts it and its stage, which then have the time they need: a kill may cut off dvc.lock.
    """
    groups: list[int] = []

    def interrupt() -> None:
        for group in groups:
            with suppress(ProcessLookupError):  # it has ended
                os.killpg(group, signal.SIGINT)

    # DVC is in a group of its own, to which interrupts of a terminal do not go by themselves. It is started while they
    # are handled here, so that it does not inherit that they are ignored, as in the background of a script.
    with _interruptible(interrupt) as interrupted:
        process = subprocess.Popen([*DVC, *arguments], env=environment(), stdin=subprocess.DEVNULL, process_group=0)
        groups.append(process.pid)
        if interrupted.is_set():  # while DVC was being started
            interrupt()
        status = process.wait()
    if status:
        raise StudyError(f"`dvc {' '.join(arguments)}` failed")
