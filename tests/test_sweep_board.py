"""What people see of a sweep."""

from pathlib import Path

import pytest

from dropout_study.console import TrainingReport, last_progress
from dropout_study.sweep.board import FAILED, TRAINED, Board

KEYS = ("sgd-0.0-0", "sgd-0.5-0", "adadelta-0.0-0", "adadelta-0.5-0")


def test_board_prints_a_line_for_each_epoch_that_the_training_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = Board(KEYS, workers=2)
    board.started(KEYS[0], "worker-1")
    path = tmp_path / "progress.jsonl"
    figures = {"train_loss": 0.5, "train_accuracy": 0.9, "validation_loss": 0.7, "validation_accuracy": 0.8125}
    TrainingReport(KEYS[0], images=12_340, epochs=12, path=path).epoch({"epoch": 3, **figures}, [20.0, 10.0, 10.0])
    capsys.readouterr()

    board.line(KEYS[0], "epoch 3", last_progress(path))
    board.line(KEYS[0], "another line", last_progress(path))

    assert capsys.readouterr().out == "worker-1: epoch 3\n"
    assert [*board.last_lines[KEYS[0]]] == ["epoch 3", "another line"]


def test_board_without_any_training_has_no_time_left() -> None:
    assert Board(KEYS, workers=2).left() is None


def test_board_takes_the_time_left_from_earlier_trainings_until_it_has_its_own() -> None:
    board = Board(KEYS, workers=2, known_seconds=[100.0, 300.0, 100.0])

    before = board.left()
    board.started(KEYS[0], "worker-1")
    board.rows[KEYS[0]].begin -= 60
    board.ended(KEYS[0], TRAINED)
    board.started(KEYS[1], "worker-1")
    board.rows[KEYS[1]].begin -= 20
    after = board.left()

    assert before == 200.0
    assert after == pytest.approx((2 * 60 + 40) / 2, abs=2)


def test_table_has_a_line_for_every_variant() -> None:
    """The one that fails before it is started is on a machine of a Ray cluster without the project."""
    board = Board(KEYS[:3], workers=1)
    board.started(KEYS[0], "worker-1")
    board.ended(KEYS[0], TRAINED)
    board.rows[KEYS[0]].seconds = 65.0
    board.ended(KEYS[1], FAILED)

    lines = [line.split() for line in board.table().splitlines()]

    assert lines == [
        ["variant", "state", "worker", "time", "attempts"],
        [KEYS[0], "trained", "worker-1", "1", "min", "05", "s", "1"],
        [KEYS[1], "failed", "0"],
        [KEYS[2], "waiting", "0"],
    ]
