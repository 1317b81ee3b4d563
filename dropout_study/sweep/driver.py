"""The sweep: what DVC misses goes to the workers, what they train comes back, DVC does the rest."""

import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from typing import NamedTuple

from dropout_study import devices, files, report
from dropout_study.commands import DVC, environment
from dropout_study.errors import StudyError
from dropout_study.progress import duration, logged_training, say
from dropout_study.settings import Settings, load_settings
from dropout_study.sweep import board as boards
from dropout_study.sweep import project, ray_pool, remote
from dropout_study.sweep.board import FAILED, TRAINED, WAITING, Board
from dropout_study.sweep.keeper import GRACE_SECONDS
from dropout_study.sweep.worker import Outcome, Worker, remove_leftovers

ATTEMPTS = 3  # of a variant whose training a signal ended
BUSY = "another sweep runs in this project; `dropout-study status` shows it"


class Options(NamedTuple):
    """How to sweep: `threads` per worker (None: cores / workers), and what to do when a variant fails.

    By default no more variants are started then; `keep_going` starts the others, `fail_fast` ends those that run.
    """

    workers: int
    threads: int | None = None
    keep_going: bool = False
    fail_fast: bool = False
    dry_run: bool = False


class RayOptions(NamedTuple):
    """The cluster's `address` (None: one of this machine alone), and what its machines share and have."""

    address: str | None
    repository: str
    scratch: Path
    checkpoints: Path | None = None
    gpus: float = 0.0


def sweep(options: Options) -> None:
    """Train what is missing of the study with several workers, and evaluate. Raises `StudyError` if anything failed."""
    settings = load_settings()
    threads = threads_per_worker(settings, options)
    with files.locked(project.SWEEP / "lock", BUSY):
        for path in remove_leftovers(project.SWEEP):
            say(f"removed the clone of a sweep that was killed: {path}")
        keys = prepared(settings)
        _announce(settings, keys, options, threads)
        if options.dry_run:
            return
        if keys:
            _train_all(keys, options, threads)
        dvc("repro")


def prepared(settings: Settings) -> list[str]:
    """Have DVC make the data, and return the variants that are missing or out of date."""
    dvc("repro", "--quiet", "normalize")
    return project.missing(variant.key for variant in settings.variants)


def send(repository: str) -> None:
    """Push what a sweep over machines needs, and say how to train and collect it."""
    settings = load_settings()
    keys = prepared(settings)
    if not keys:
        say("every variant is trained: nothing to send")
        return
    _say_what_is_uncommitted()
    sweep = remote.send(repository, keys)
    say(f"{sweep}: {report.count(keys, 'variant')} sent to {repository}. On each machine, for 0 to {len(keys) - 1}:\n")
    say(f"  dropout-study sweep worker {repository} {sweep} --index N\n")
    say(f"Then here:\n\n  dropout-study sweep collect {repository} {sweep}")


def collect(repository: str, sweep: str) -> None:
    """Take in what workers pushed of a sweep, and evaluate if nothing is missing.

    Raises `StudyError` if entries were refused or are missing.
    """
    settings = load_settings()
    with files.locked(project.SWEEP / "lock", BUSY):
        entries, refused = remote.collect(repository, sweep, [variant.key for variant in settings.variants])
        say(f"{report.count(entries, 'variant')} taken in")
        missing = project.missing(variant.key for variant in settings.variants)
        problems = [f"{key}: not taken in, {why}" for key, why in refused.items()]
        if missing:
            some = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
            problems.append(
                f"{len(missing)} of {len(settings.variants)} variants are missing ({some}); collect again later"
            )
        if problems:
            raise StudyError("; ".join(problems))
        remote.forget(repository, sweep, entries)
        dvc("repro")


def sweep_on_ray(options: Options, ray: RayOptions) -> None:
    """Train what is missing of the study by Ray, and evaluate. Raises `StudyError` if anything failed."""
    ray_pool.require_ray()
    settings = load_settings()
    threads = threads_per_worker(settings, options)
    with files.locked(project.SWEEP / "lock", BUSY):
        keys = prepared(settings)
        _announce(settings, keys, options, threads)
        if options.dry_run:
            return
        if keys:
            _train_on_ray(keys, options, ray, threads)
        dvc("repro")


def _train_on_ray(keys: Sequence[str], options: Options, ray: RayOptions, threads: int) -> None:
    settings = load_settings()
    name = remote.send(ray.repository, keys)
    board = Board(keys, options.workers, known_seconds(settings))
    asked = ray_pool.resources(threads, ray.gpus)
    where = (ray.repository, name, ray.scratch, ray.checkpoints)
    try:
        with (
            ray_pool.connected(ray.address, threads * options.workers) as module,
            board.shown(),
            _interruptible() as interrupted,
        ):
            failures = ray_pool.run(module, board, where, asked, interrupted)
    finally:  # what was pushed is taken in, whatever ended the sweep
        if ray.address is None:
            _clear(ray.scratch)
        entries, refused = remote.collect(ray.repository, name, keys)
        remote.forget(ray.repository, name, remote.trained(ray.repository, name))
    boards.show(boards.final_table(board))
    problems = [f"{key}: {why}" for key, why in (failures | refused).items()]
    if problems:
        raise StudyError(f"{'; '.join(problems)}; {len(entries)} of {len(keys)} are trained and kept")


def _clear(scratch: Path) -> None:
    """Remove the clones of Ray's workers on this machine, when their keepers have ended what runs there."""
    end = time.monotonic() + 2 * GRACE_SECONDS
    while any(scratch.glob("worker-*")) and time.monotonic() < end:
        remove_leftovers(scratch)
        time.sleep(0.2)


def threads_per_worker(settings: Settings, options: Options) -> int:
    """Return the threads that each worker computes with; raises `StudyError` if they are not to be chosen."""
    fixed = settings.train.threads
    if fixed:
        if options.threads not in (None, fixed):
            raise StudyError(
                f"--threads-per-worker {options.threads}: {files.SETTINGS} fixes train.threads = {fixed}, a part of "
                "the results; leave the option out, or set train.threads to 0"
            )
        return fixed
    threads = options.threads or max(1, devices.cores() // options.workers)
    if threads > devices.cores():
        raise StudyError(f"--threads-per-worker {threads}: this machine has {devices.cores()} cores; name at most that")
    return threads


def _announce(settings: Settings, keys: Sequence[str], options: Options, threads: int) -> None:
    """Say what is going to be trained, and how long it should take."""
    total = len(settings.variants)
    workers, each = report.count(range(options.workers), "worker"), report.count(range(threads), "thread")
    say(f"{len(keys)} of {total} variants to train with {workers}, {each} each")
    seconds = known_seconds(settings)
    if keys and seconds:
        took = statistics.median(seconds)
        about = duration(took * len(keys) / min(options.workers, len(keys)))
        say(f"about {about} if workers do not slow each other: a training took {duration(took)}, by the logs")
    if not settings.train.threads and threads != devices.cores():
        say(
            f"train.threads is 0: `dvc repro` would train with {devices.cores()} threads, not {threads}. Results "
            "differ in their last digits, and provenance shows it; a fixed number gives equal bytes either way."
        )
    if threads * options.workers > devices.cores():
        say(f"{options.workers} workers × {threads} threads on {devices.cores()} cores: this will not be faster")
    _say_what_is_uncommitted()
    if options.dry_run:
        for key in keys:
            say(f"would train {key}")


def _say_what_is_uncommitted() -> None:
    changed = project.uncommitted()
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        say(f"what runs is the workspace, which is not as committed: {', '.join(changed[:3])}{more}")


def known_seconds(settings: Settings) -> list[float]:
    """Return how long trainings of the study's variants took, by their logs, those with as many epochs as now."""
    speeds = [logged_training(files.log_file(variant.key)) for variant in settings.variants]
    return [speed.seconds for speed in speeds if speed and speed.epochs == settings.train.epochs]


def _train_all(keys: Sequence[str], options: Options, threads: int) -> None:
    settings = load_settings()
    board = Board(keys, min(options.workers, len(keys)), known_seconds(settings))
    entries: dict[str, str] = {}
    failures: dict[str, Outcome] = {}
    try:
        with board.shown(), _interruptible() as interrupted:
            _run_pool(board, entries, failures, options, _shares(board.workers, threads, settings), interrupted)
    finally:
        project.remove_snapshot()
        refused = {key: why for key, entry in entries.items() if (why := project.refusal(key, entry))}
        # In DVC's order, not in that of finishing: dvc.lock is then that of `dvc repro`.
        project.take_in({key: entries[key] for key in keys if key in entries and key not in refused})
    boards.show(boards.final_table(board))
    for key, outcome in failures.items():
        say(f"\n{key} failed; the last lines of {files.log_file(key)}:")
        say("\n".join(f"    {line}" for line in outcome.last_lines))
    problems = [f"{key}: not taken in, {why}" for key, why in refused.items()]
    if failures:
        problems.append(f"{len(failures)} of {len(keys)} variants failed; `dropout-study sweep` tries them again")
    waiting = board.count(WAITING)
    if waiting:
        problems.append(f"{waiting} of {len(keys)} variants were not trained")
    if problems:
        raise StudyError("; ".join(problems) + f"; {len(entries) - len(refused)} are trained and kept")


def _shares(workers: int, threads: int, settings: Settings) -> list[frozenset[int] | None]:
    """Return the cores of each worker: its own if train.threads is 0, else any."""
    if settings.train.threads or not hasattr(os, "sched_getaffinity"):
        return [None] * workers
    cores = sorted(os.sched_getaffinity(0))
    return [frozenset(cores[(i * threads + j) % len(cores)] for j in range(threads)) for i in range(workers)]


@contextmanager
def _interruptible() -> Iterator[Event]:
    """Yield an event that Ctrl-C or SIGTERM sets; at the end, raise KeyboardInterrupt if it is set."""
    interrupted = Event()

    def interrupt(number: int, _: object) -> None:
        if not interrupted.is_set():
            os.write(2, b"\nstopping: trainings end after their step, and resume next time\n")
        interrupted.set()

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if interrupted.is_set():
        raise KeyboardInterrupt


def _run_pool(
    board: Board,
    entries: dict[str, str],
    failures: dict[str, Outcome],
    options: Options,
    shares: Sequence[frozenset[int] | None],
    interrupted: Event,
) -> None:
    """Train the variants of the board in clones on this machine, a thread of this process for each."""
    commit, cache, lock = project.snapshot("What a sweep trains"), project.cache_directory(), project.data_entries()
    waiting: Queue[str] = Queue()
    for key in board.keys:
        waiting.put(key)
    stopping = Event()
    errors: list[BaseException] = []
    workers = [Worker(Path.cwd() / project.SWEEP / f"worker-{i}", cores) for i, cores in enumerate(shares, 1)]

    def work(worker: Worker) -> None:
        name = worker.directory.name
        try:
            worker.prepare(Path.cwd(), commit, cache, lock)
            while not stopping.is_set() and not interrupted.is_set():
                try:
                    key = waiting.get_nowait()
                except Empty:
                    return
                board.started(key, name)
                outcome = worker.train(key, lambda line, key=key: board.line(key, line))  # type: ignore[misc]
                if outcome.entry:
                    entries[key] = outcome.entry
                    board.ended(key, TRAINED, outcome.cpu_seconds)
                elif interrupted.is_set() or stopping.is_set():
                    board.ended(key, WAITING, outcome.cpu_seconds, "interrupted")
                elif outcome.signalled and board.rows[key].attempts < ATTEMPTS:
                    board.ended(key, WAITING, outcome.cpu_seconds, "killed, will be tried again")
                    waiting.put(key)
                else:
                    failures[key] = outcome
                    board.ended(key, FAILED, outcome.cpu_seconds)
                    if not options.keep_going:
                        stopping.set()
        except BaseException as error:  # a thread's error is the sweep's
            errors.append(error)
            stopping.set()

    threads = [Thread(target=work, args=[worker], daemon=True) for worker in workers]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            interrupted.wait(0.2)
            if interrupted.is_set() or (stopping.is_set() and options.fail_fast):
                for worker in workers:
                    worker.stop()
            for thread in threads:
                thread.join(0.2)
            board.write()
    finally:
        for worker in workers:
            worker.remove()
    if errors:
        raise errors[0]


def dvc(*arguments: str) -> None:
    """Run `dvc` for the user to see; raises `StudyError` if it fails."""
    status = subprocess.run([*DVC, *arguments], env=environment(), check=False).returncode
    if status:
        raise StudyError(f"`dvc {' '.join(arguments)}` failed")
