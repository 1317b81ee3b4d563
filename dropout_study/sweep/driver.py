"""The sweep: what DVC misses goes to the workers, what they train comes back, DVC does the rest."""

import math
import os
import signal
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Event
from typing import NamedTuple, Protocol

from dropout_study import devices, files, report
from dropout_study.commands import DVC, environment, without_credentials
from dropout_study.console import StudyError, duration, say, training_speed
from dropout_study.settings import Settings, load_settings
from dropout_study.sweep import board as boards
from dropout_study.sweep import project, ray_pool, remote
from dropout_study.sweep.board import FAILED, WAITING, Board
from dropout_study.sweep.local_pool import LocalPool, cpu_sets
from dropout_study.sweep.worker import clear

DEFAULT_WORKERS = 2
STOPPING = "stopping: trainings end after their step, and resume next time"
BUSY = "another sweep runs in this project; `dropout-study status` shows it"


class Engine(Protocol):
    """What trains the variants of a sweep."""

    def run(self, board: Board, interrupted: Event) -> None:
        """Train the variants of the board, and note on it what becomes of each."""

    def take_in(self, study_keys: Sequence[str]) -> Mapping[str, str]:
        """Take the results so far into this project; return why some are refused, by variant.

        `study_keys` has the variants of the study.
        """

    def logs(self) -> str:
        """Return where the logs of variants are that failed."""


class Options(NamedTuple):
    """How to sweep: with how many `workers` (None: as many as make sense), `threads` each (None: cores / workers).

    If a variant fails, no more variants are started by default; `keep_going` starts the others, `fail_fast` ends those
    that run.
    """

    workers: int | None = None
    threads: int | None = None
    keep_going: bool = False
    fail_fast: bool = False
    dry_run: bool = False


def sweep(options: Options, ray: ray_pool.RayOptions | None = None) -> None:
    """Train what is missing of the study with several workers, and evaluate. Raises `StudyError` if anything failed.

    The workers are clones on this machine, or with `ray` tasks of a Ray cluster.
    """
    if ray:
        ray_pool.require_ray(ray.address)
    settings = load_settings()
    project.require_own_repository()
    study_keys = [variant.key for variant in settings.variants]
    if ray and not settings.train.threads:
        raise StudyError(
            f"{files.SETTINGS}: train.threads is 0, all cores; Ray counts cores, but gives a training none of its own: "
            "set it to 1 or more"
        )
    on_cluster = ray is not None and ray.address is not None
    workers = options.workers or (len(study_keys) if on_cluster else DEFAULT_WORKERS)
    threads = threads_per_worker(settings, workers, options.threads)
    with files.locked(project.SWEEP / "lock", BUSY):
        if not options.dry_run:
            boards.STATUS.unlink(missing_ok=True)
            for path in clear(project.SWEEP):
                say(f"removed the clone of a sweep that was killed: {path}")
            if ray:
                ray_pool.take_in_previous(study_keys)
            dvc("repro", "normalize")
        keys = project.missing(study_keys)
        seconds = known_seconds(settings)
        if on_cluster:
            say(f"{len(keys)} of {len(study_keys)} variants to train by the cluster at {ray.address if ray else ''}")
        else:
            _announce(settings, keys, min(workers, len(keys)), threads, seconds)
        if keys:
            _say_what_is_uncommitted()
        if options.dry_run:
            for key in keys:
                say(f"would train {key}")
            return
        if not keys:
            dvc("repro")
            return
        board = Board(keys, min(workers, len(keys)), seconds)
        engine: Engine
        if ray:
            engine = ray_pool.RayPool(ray, threads)
        else:
            cores = cpu_sets(board.workers, threads, pinned=not settings.train.threads)
            engine = LocalPool(cores, keep_going=options.keep_going, fail_fast=options.fail_fast)
        try:
            _train(board, engine, study_keys)
            dvc("repro")
        finally:
            boards.show(boards.final_table(board))


def send(repository: str) -> None:
    """Push what a sweep over machines needs, and say how to train and collect it."""
    settings = load_settings()
    project.require_own_repository()
    with files.locked(project.SWEEP / "lock", BUSY):
        boards.STATUS.unlink(missing_ok=True)
        dvc("repro", "normalize")
        keys = project.missing(variant.key for variant in settings.variants)
        if not keys:
            say("every variant is trained: nothing to send")
            return
        _say_what_is_uncommitted()
        sweep = remote.send(repository, keys)
    say(instructions(repository, sweep, len(keys)))


def instructions(repository: str, sweep: str, variants: int) -> str:
    """Return how to train and collect the `variants` of a sweep that was sent, without the credentials of a URL."""
    place = without_credentials(repository)
    own = "\nThe URL had credentials, left out here: each machine needs its own, as from a Git credential helper."
    return (
        f"{sweep}: {report.count(variants, 'variant')} sent to {place}.{own * (place != repository)} On each machine, "
        f"for 0 to {variants - 1}:\n\n  dropout-study sweep worker {place} {sweep} --index N\n\n"
        f"Then here:\n\n  dropout-study sweep collect {place} {sweep}"
    )


def collect(repository: str, sweep: str) -> None:
    """Take in what workers pushed of a sweep, and evaluate if nothing is missing.

    Raises `StudyError` if entries were refused or are missing.
    """
    study_keys = [variant.key for variant in load_settings().variants]
    with files.locked(project.SWEEP / "lock", BUSY):
        boards.STATUS.unlink(missing_ok=True)
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


def threads_per_worker(settings: Settings, workers: int, chosen: int | None) -> int:
    """Return the threads that each worker computes with; raises `StudyError` if `chosen` cannot be had."""
    fixed = settings.train.threads
    if fixed:
        if chosen not in (None, fixed):
            raise StudyError(
                f"--threads-per-worker {chosen}: {files.SETTINGS} fixes train.threads = {fixed}, a part of "
                "the results; leave the option out, or set train.threads to 0"
            )
        return fixed
    threads = chosen or max(1, devices.cores() // workers)
    if threads > devices.cores():
        raise StudyError(f"--threads-per-worker {threads}: this machine has {devices.cores()} cores; name at most that")
    return threads


def _announce(settings: Settings, keys: Sequence[str], workers: int, threads: int, seconds: Sequence[float]) -> None:
    """Say what is going to be trained here, and how long it should take if trainings took `seconds` before."""
    total, cores = len(settings.variants), devices.cores()
    if not keys:
        say(f"0 of {total} variants to train")
        return
    each = report.count(threads, "thread")
    say(f"{len(keys)} of {total} variants to train with {report.count(workers, 'worker')}, {each} each")
    if seconds:
        took = statistics.median(seconds)
        about = duration(took * math.ceil(len(keys) / workers))
        say(f"about {about} if workers do not slow each other: a training took {duration(took)}, by the logs")
    if not settings.train.threads and threads != cores:
        say(
            f"train.threads is 0: `dvc repro` would train with {cores} threads, not {threads}. Results "
            "differ in their last digits, and provenance shows it; a fixed number gives equal bytes either way."
        )
    if threads * workers > cores:
        say(f"{report.count(workers, 'worker')} × {each} on {report.count(cores, 'core')}: this will not be faster")


def _say_what_is_uncommitted() -> None:
    changed = project.uncommitted()
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        say(f"what runs is the workspace, which is not as committed: {', '.join(changed[:3])}{more}")


def known_seconds(settings: Settings) -> list[float]:
    """Return how long trainings of the study's variants took, by their logs, those with as many epochs as now."""
    speeds = [training_speed(files.progress_file(variant.key)) for variant in settings.variants]
    return [speed.seconds for speed in speeds if speed and speed.epochs == settings.train.epochs]


def _train(board: Board, engine: Engine, study_keys: Sequence[str]) -> None:
    """Train the variants of the board, take in what is trained however that ends, and say what is not.

    `study_keys` has the variants of the study. Raises `StudyError` if some failed, were refused or were not trained.
    """
    with _interruptible(lambda: board.note(STOPPING)) as interrupted:
        try:
            with board.shown():
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
