"""The tables of docs/results.md, and the sentences that go with them."""

import math
import re

import pytest

from dropout_study.published import tables
from dropout_study.published.publication import Published
from tests.published.test_claims import CLEAR, NEAR, WORSE, published, runs


def change_epoch(study: Published, variant: str, epoch: int, **figures: float) -> None:
    history = [*study.histories[variant]]
    history[epoch - 1] = {**history[epoch - 1], **figures}
    study.histories[variant] = history


def test_still_rising_compares_the_articles_rate_with_the_leader() -> None:
    main = published("cifar10-small", runs("adadelta", {0.0: CLEAR, 0.5: WORSE}))
    alike = tables.still_rising(main)
    for run in main.results:
        if run.dropout == 0.0:
            change_epoch(main, run.variant, 12, validation_accuracy=0.40)

    assert alike == ""
    assert tables.still_rising(main) == (
        "More epochs might change this: in the last 3 of 12, validation accuracy at 0.5 still rose by 15.0 points with "
        "adadelta (at 0.0, which leads: −5.0)."
    )


def test_lowest_losses_names_the_rate_with_the_lowest_loss_of_all_epochs() -> None:
    rows = [*runs("adadelta", {0.0: CLEAR, 0.5: WORSE}), *runs("sgd", {0.0: CLEAR, 0.5: WORSE})]
    main = published("cifar10-small", rows)
    for run in main.results:
        if (run.optimizer, run.dropout) == ("adadelta", 0.5):
            change_epoch(main, run.variant, 3, validation_loss=0.125)

    assert tables.lowest_losses(main) == "with adadelta, 0.5 (0.125) and with sgd, 0.0 (0.167)"


def test_with_more_epochs_says_what_the_longer_study_says() -> None:
    longer = published("cifar10-longer", runs("adadelta", {0.0: WORSE, 0.5: CLEAR}), "cifar10-longer")

    assert tables.with_more_epochs(longer) == (
        "After 24 epochs (6 more runs, at 0.0, 0.3 and 0.5 only): with adadelta, 0.5 has the highest accuracy and 0.5 "
        "has the lowest loss."
    )


def test_longer_rows_have_each_rate_of_the_longer_study_with_fewer_and_more_epochs() -> None:
    main = published("cifar10-small", runs("adadelta", {0.0: CLEAR, 0.1: CLEAR, 0.3: [math.nan], 0.5: WORSE}))
    longer = published("cifar10-longer", runs("adadelta", {0.0: CLEAR, 0.3: NEAR, 0.5: NEAR}), "cifar10-longer")

    rows = tables.longer_rows(main, longer)

    assert [row[:3] for row in rows] == [("adadelta", rate, epochs) for rate in (0.0, 0.3, 0.5) for epochs in (12, 24)]
    assert rows[2][3:] == ("–", "–", "–", "–", "–")
    accuracy, loss = "61.0 (60.0–62.0) %", "1.390 (1.380–1.400)"
    assert rows[4][4:] == (accuracy, loss, "45.0 → 60.0 %", "0.167 in epoch 12")
    accuracy, loss = "80.8 (80.0–81.5) %", "1.192 (1.185–1.200)"
    assert rows[5][4:] == (accuracy, loss, "105.0 → 120.0 %", "0.083 in epoch 24")


@pytest.mark.parametrize(
    ("without", "seen"),
    [
        (CLEAR, "By accuracy, no gain is seen: 0.0 may have the highest accuracy with every amount of data, though"),
        (WORSE, "By accuracy, a gain is seen with every amount of data: 0.0 is worse."),
    ],
)
def test_gain_seen_asks_whether_no_dropout_is_worse(without: list[float], seen: str) -> None:
    study = published("cifar10-small", runs("adadelta", {0.0: without, 0.3: NEAR}))

    assert tables.gain_seen([study], "accuracy").startswith(seen)


def test_gain_seen_names_the_studies_in_which_no_dropout_is_worse_if_there_are_others() -> None:
    main = published("cifar10-small", runs("adadelta", {0.0: CLEAR, 0.3: NEAR}))
    longer = published("cifar10-longer", runs("adadelta", {0.0: WORSE, 0.3: NEAR}), "cifar10-longer")

    observed = tables.gain_seen([main, longer], "accuracy")

    assert re.fullmatch(
        r"By accuracy, a gain is seen only with adadelta, 9,000 images and 24 epochs, where 0\.0 is 19\.9 ± \S+ points "
        r"below 0\.3\. Elsewhere, 0\.0 may have the highest accuracy, though a gain smaller than the margins may be "
        r"there\.",
        observed,
    )


def test_start_rows_have_a_row_per_rate_activation_and_loss() -> None:
    columns = ("dropout", "first_activation", "loss", "train_loss", "train_accuracy", "validation_accuracy")
    runs = [
        dict(zip(columns, values, strict=True))
        for values in (
            ("0.9", "linear", "clipped", "14.5", "0.1", "0.1"),
            ("0.9", "linear", "clipped", "14.4", "0.11", "0.1"),
            ("0.9", "linear", "logits", "2.5", "0.2", "0.15"),
        )
    ]

    assert tables.start_rows(runs) == [
        ("0.9", "linear", "clipped", 2, "14.45 (14.40–14.50)", "10.5 (10.0–11.0) %", "10.0 (10.0–10.0) %"),
        ("0.9", "linear", "logits", 1, "2.50", "20.0 %", "15.0 %"),
    ]
