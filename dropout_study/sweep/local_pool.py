"""The default engine of a sweep: clones on this machine, each with a thread of the driver that waits for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread

from dropout_study import files
from dropout_study.console import StudyError
from dropout_study.sweep import project
from dropout_study.sweep.board import ATTEMPTS, FAILED, TRAINED, WAITING, Board
from dropout_study.sweep.worker import Worker


class LocalPool:
    """Trains in clones on this machine. If a variant fails, no more are started, unless `keep_going`."""

    def __init__(self, *, keep_going: bool = False) -> None:
        self.keep_going = keep_going
        self._entries: dict[str, str] = {}
        self._waiting: Queue[str] = Queue()
        self._stopping = Event()
        self._errors: list[BaseException] = []

    def run(self, board: Board, interrupted: Event) -> None:
        """Train the variants of the board, until all are done, one fails, or `interrupted` is set."""
        commit, cache, lock = project.snapshot("What a sweep trains"), project.cache_directory(), project.data_entries()
        for key in board.keys:
            self._waiting.put(key)
        directory = Path.cwd() / project.SWEEP
        workers = [Worker(directory / f"worker-{i}") for i in range(1, board.workers + 1)]

        def work(worker: Worker) -> None:
            try:
                worker.prepare(Path.cwd(), commit, cache, lock)
                self._train_with(worker, board, interrupted)
            except BaseException as error:  # a thread's error is the sweep's
                if not (interrupted.is_set() and isinstance(error, StudyError)):  # else a command that `stop` ended
                    self._errors.append(error)
                self._stopping.set()

        threads = [Thread(target=work, args=[worker], daemon=True) for worker in workers]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                if interrupted.wait(0.2):
                    for worker in workers:
                        worker.stop()
                for thread in threads:
                    thread.join(0.2)
        finally:
            for worker in workers:
                worker.remove()
        if self._errors:
            raise self._errors[0]

    def _train_with(self, worker: Worker, board: Board, interrupted: Event) -> None:
        """Train one waiting variant after another with a worker."""
        while not self._stopping.is_set() and not interrupted.is_set():
            try:
                key = self._waiting.get_nowait()
            except Empty:
                return
            board.started(key, worker.directory.name)
            outcome = worker.train(key, lambda *line, key=key: board.line(key, *line))
            if outcome.entry:
                self._entries[key] = outcome.entry
                board.ended(key, TRAINED)
            elif interrupted.is_set():
                board.ended(key, WAITING, "interrupted")
            elif outcome.signalled and board.rows[key].attempts < ATTEMPTS:
                board.ended(key, WAITING, "killed, will be tried again")
                self._waiting.put(key)
            else:
                board.ended(key, FAILED)
                if not self.keep_going:
                    self._stopping.set()

    def take_in(self, study_keys: Sequence[str]) -> Mapping[str, str]:
        """Take in the results so far; return why some are refused, by variant. `study_keys` has those of the study."""
        project.remove_snapshot()
        refused = project.refusals(self._entries)
        project.take_in({key: entry for key, entry in self._entries.items() if key not in refused}, study_keys)
        return refused

    def logs(self) -> str:
        """Return where the logs of variants are that failed."""
        return str(files.LOGS)
