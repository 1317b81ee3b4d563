import numpy as np
import pytest

from dropout_study import page_tables
from tests.test_figures import HISTORY
from tests.test_results import result


def test_shown_rates_are_all_of_ten_and_ten_of_more_with_both_ends() -> None:
    ten, many = [i / 10 for i in range(10)], [i / 301 for i in range(301)]

    assert page_tables.shown_rates(reversed(ten)) == ten
    assert len(page_tables.shown_rates(many)) == 10
    assert page_tables.shown_rates(many)[0] == many[0]
    assert page_tables.shown_rates(many)[-1] == many[-1]


def test_history_rows_are_those_of_the_shown_rates() -> None:
    study = [result(f"sgd-{i / 20}-0") for i in range(20)]

    rows = page_tables.history_rows(study, {row.variant: HISTORY for row in study})

    assert sorted({float(str(row[2])) for row in rows}) == page_tables.shown_rates(row.dropout for row in study)
    assert {row[-1] for row in rows} == {20}


def test_pixel_rows_are_shares_by_channel_before_and_after() -> None:
    counts = np.zeros((256, 3), np.int64)
    counts[0], counts[255] = [3, 0, 1], [1, 4, 3]

    rows = page_tables.pixel_rows(counts, scale=[0.1, 0.2, 1], offset=[-1, 0, 0], method="standardize")

    assert len(rows) == 2 * 3 * 16
    assert {row[:2] for row in rows} == {("before", "0 to 255"), ("after", "standard deviations")}
    assert {(row[0], *row[2:4]): row[4] for row in rows if row[4]} == {
        ("before", "red", 7.5): 0.75,
        ("before", "red", 247.5): 0.25,
        ("before", "green", 247.5): 1,
        ("before", "blue", 7.5): 0.25,
        ("before", "blue", 247.5): 0.75,
        ("after", "red", -0.25): 0.75,
        ("after", "red", 23.75): 0.25,
        ("after", "green", 49.5): 1,
        ("after", "blue", 7.5): 0.25,
        ("after", "blue", 247.5): 0.75,
    }


def test_pixel_rows_of_equal_channels_are_given_once() -> None:
    rows = page_tables.pixel_rows(np.ones((256, 3), np.int64), scale=[1, 1, 1], offset=[0, 0, 0], method="minmax")

    assert {row[2] for row in rows} == {"all channels"}
    assert sum(float(str(row[4])) for row in rows if row[0] == "after") == pytest.approx(1)


def test_history_rows_have_no_figures_of_the_epoch_that_diverged() -> None:
    last = dict.fromkeys(HISTORY[0], float("nan")) | {"epoch": 4.0, "train_loss": 1.0}

    rows = page_tables.history_rows([result("sgd-0.1-0")._replace(diverged=4)], {"sgd-0.1-0": [*HISTORY, last]})

    assert len(rows) == 8
    assert rows[0] == ("sgd-0.1-0", "sgd", 0.1, 0, 1, "train", 2.0, 0.1, 1)
    assert rows[7] == ("sgd-0.1-0", "sgd", 0.1, 0, 4, "validation", None, None, 1)
    assert len(page_tables.HISTORY_COLUMNS) == len(rows[0])


def test_summary_rows_number_what_was_studied_and_the_verdict() -> None:
    rows = page_tables.summary_rows("Data set: digits.", "sgd: 0.5 has the lowest loss.\n\nA note.")

    assert rows == [(1, "Data set: digits."), (2, "sgd: 0.5 has the lowest loss."), (3, ""), (4, "A note.")]
