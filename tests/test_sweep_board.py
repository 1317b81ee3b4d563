"""What people see of a sweep; tests/pipeline/test_sweep.py shows it on a terminal."""

from pathlib import Path

import pytest
from rich.console import Console

from dropout_study.console import TrainingReport, last_progress
from dropout_study.sweep.board import FAILED, RUNNING, TRAINED, WAITING, Board, drawn, final_table, read_status, show

KEYS = ("sgd-0.0-0", "sgd-0.5-0", "adadelta-0.0-0", "adadelta-0.5-0")


@pytest.fixture(autouse=True)
def in_empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def text(renderable: object) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def test_board_shows_the_progress_that_the_training_reports(tmp_path: Path) -> None:
    board = Board(KEYS, workers=2)
    board.started(KEYS[0], "worker-1")
    path = tmp_path / "progress.jsonl"
    figures = {"train_loss": 0.5, "train_accuracy": 0.9, "validation_loss": 0.7, "validation_accuracy": 0.8125}
    TrainingReport(KEYS[0], images=12_340, epochs=12, path=path).epoch({"epoch": 3, **figures}, [20.0, 10.0, 10.0])

    board.line(KEYS[0], "a line", last_progress(path))

    row = board.rows[KEYS[0]]
    assert (row.epoch, row.accuracy, row.speed) == ("3/12", "81.25%", "1,234")
    assert board.last_lines[KEYS[0]][-1] == "a line"


def test_board_without_any_training_has_no_time_left() -> None:
    assert Board(KEYS, workers=2).left() is None


def test_board_takes_the_time_left_from_earlier_trainings_until_it_has_its_own() -> None:
    board = Board(KEYS, workers=2, known_seconds=[100.0, 300.0, 100.0])

    before = board.left()
    board.started(KEYS[0], "worker-1")
    board.rows[KEYS[0]].begin -= 60
    board.ended(KEYS[0], TRAINED, 1.0)
    board.started(KEYS[1], "worker-1")
    board.rows[KEYS[1]].begin -= 20
    after = board.left()

    assert before == 200.0
    assert after == pytest.approx((2 * 60 + 40) / 2, abs=2)


def test_drawn_counts_variants_and_has_a_line_for_each_that_runs() -> None:
    board = Board(KEYS, workers=2)
    board.started(KEYS[0], "worker-1")
    board.ended(KEYS[0], TRAINED, 1.0)
    board.started(KEYS[1], "worker-2")
    board.ended(KEYS[1], FAILED, 1.0)
    board.started(KEYS[2], "worker-1")

    observed = text(drawn(board.rows, 90.0))

    assert "1 of 4 trained, 1 failed, 1 min 30 s left" in observed
    assert [line.split()[:3] for line in observed.splitlines()[1:]] == [["worker-1", KEYS[2], "starting"]]


def test_variant_that_fails_before_it_is_started_took_no_time() -> None:
    """As on a machine of a Ray cluster without the project."""
    board = Board(KEYS, workers=2)

    board.ended(KEYS[0], FAILED, 0.0)

    assert board.rows[KEYS[0]].seconds == 0.0


def test_final_table_has_every_variant() -> None:
    board = Board(KEYS[:2], workers=1)
    board.started(KEYS[0], "worker-1")
    board.ended(KEYS[0], TRAINED, 61.5)
    board.rows[KEYS[0]].seconds = 65.0

    header, trained, waiting = (line.split() for line in text(final_table(board)).splitlines())

    assert header[:3] == ["variant", "state", "worker"]
    assert trained == [KEYS[0], TRAINED, "worker-1", "1", "min", "05", "s", "61.5", "s", "1"]
    assert waiting == [KEYS[1], WAITING]


def test_show_without_a_terminal_prints_a_row_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    worker = f"{'node' * 20}.cluster.example.org, process 30569"
    board = Board(KEYS[:1], workers=1)
    board.started(KEYS[0], worker)

    for renderable in (drawn(board.rows, None), final_table(board)):
        show(renderable)

        _, row = capsys.readouterr().out.splitlines()
        assert KEYS[0] in row
        assert worker in row


def test_note_is_written_at_once_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    board = Board(KEYS, workers=2)

    with board.shown():
        board.note("stopping")

    assert capfd.readouterr().err == "\nstopping\n"


def test_note_is_drawn_below_the_variants_on_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written beside a display that is drawn in place is drawn over."""
    board = Board(KEYS, workers=2)
    board.started(KEYS[0], "worker-1")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    with board.shown():
        board.note("stopping")

    assert text(board.render()).splitlines()[-1] == "stopping"
    assert capfd.readouterr().err == ""


def test_status_file_has_the_rows_that_the_board_wrote() -> None:
    board = Board(KEYS, workers=2, known_seconds=[10.0])
    board.started(KEYS[0], "worker-1")

    board.write(now=True)

    status = read_status()
    assert status is not None
    rows, left = status
    assert rows[KEYS[0]].state == RUNNING
    assert rows == board.rows
    assert left == pytest.approx(20.0, abs=1)
