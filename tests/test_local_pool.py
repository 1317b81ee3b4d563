"""When the pool of this machine tries a variant again; tests/pipeline/test_sweep.py runs it with real workers."""

from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from dropout_study.sweep import local_pool, project
from dropout_study.sweep.board import FAILED, TRAINED, WAITING, Board
from dropout_study.sweep.local_pool import LocalPool
from dropout_study.sweep.worker import Outcome

KEYS = ("sgd-0.0-0", "sgd-0.5-0", "sgd-0.8-0")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Board]:
    """Return a function that runs a pool of one worker that trains nothing, and returns the board.

    It takes the outcome of some variants, the others are trained, and the options of the pool.
    """

    def run(outcomes: dict[str, Outcome], **options: bool) -> Board:
        class FakeWorker:
            def __init__(self, directory: Path) -> None:
                self.directory = directory

            def train(self, key: str, _: Callable[[str], None]) -> Outcome:
                return outcomes.get(key, Outcome("an entry", []))

            def prepare(self, *_: object) -> None: ...

            def stop(self) -> None: ...

            def remove(self) -> None: ...

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(local_pool, "Worker", FakeWorker)
        for name in ("snapshot", "cache_directory", "data_entries"):
            monkeypatch.setattr(project, name, lambda *_: "")
        board = Board(KEYS, workers=1)
        LocalPool(**options).run(board, Event())
        return board

    return run


def test_training_that_is_always_killed_fails_at_the_third_attempt(run: Callable[..., Board]) -> None:
    board = run({KEYS[0]: Outcome(None, [], signalled=True)}, keep_going=True)

    assert (board.rows[KEYS[0]].state, board.rows[KEYS[0]].attempts) == (FAILED, 3)
    assert [(board.rows[key].state, board.rows[key].attempts) for key in KEYS[1:]] == [(TRAINED, 1)] * 2


@pytest.mark.parametrize(("keep_going", "third"), [(False, WAITING), (True, TRAINED)])
def test_training_that_fails_is_not_tried_again(run: Callable[..., Board], keep_going: bool, third: str) -> None:
    board = run({KEYS[1]: Outcome(None, ["error: cannot be trained"])}, keep_going=keep_going)

    assert [board.rows[key].state for key in KEYS] == [TRAINED, FAILED, third]
    assert board.rows[KEYS[1]].attempts == 1
