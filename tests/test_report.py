"""The words of the verdict, and that table, sentences and charts say the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropout_study import figures, report
from dropout_study.results import Result
from dropout_study.verdict import QUANTITIES, Machine, Quantity, Ranking, RateVerdict
from tests.studies import rates_of, verdict_of
from tests.test_results import result
from tests.test_statistics import CLEAR, NEAR, WORSE, WORST, other_optimizer, study


def statement(results: Sequence[Result]) -> str:
    return report.statement(verdict_of(results).optimizers["sgd"])


def test_statement_names_what_may_be_best_and_what_is_worse() -> None:
    text = statement(study({0.0: WORSE, 0.3: NEAR, 0.5: CLEAR, 0.6: NEAR, 0.9: WORST}))

    assert text == (
        "0.3 to 0.6 may have the highest accuracy; 0.0 and 0.9 are worse. "
        "0.3 to 0.6 may have the lowest loss; 0.0 and 0.9 are worse. "
        "Validation would choose 0.5, which may have the highest accuracy."
    )


def test_statement_of_one_rate_left_says_that_it_is_best() -> None:
    text = statement(study({0.0: WORSE, 0.5: CLEAR}))

    assert text == (
        "0.5 has the highest accuracy: every other rate is worse. 0.5 has the lowest loss: every other rate is worse. "
        "Validation would choose 0.5, which has the highest accuracy."
    )


def test_statement_of_no_difference_says_so() -> None:
    text = statement(study({0.3: NEAR, 0.5: CLEAR, 0.6: NEAR}))

    assert text.startswith(
        "Any of 0.3 to 0.6 may have the highest accuracy: no difference is larger than chance with 4 seeds."
    )


def test_statement_of_one_seed_is_about_networks() -> None:
    text = statement(study({0.0: [0.1], 0.3: [0.806], 0.5: [0.81]}))

    assert text == (
        "With one run a rate, it cannot be said which rate is best: another seed may reverse the order. "
        "Of these 3 networks, those of 0.3 and 0.5 may have the highest accuracy on images like these. "
        "Of these 3 networks, that of 0.5 has the lowest loss on images like these."
    )


def test_statement_of_one_seed_and_no_difference() -> None:
    text = statement(study({0.3: [0.81], 0.5: [0.81]}))

    assert "Any of these 2 networks may have the highest accuracy on images like these." in text


def test_statement_of_one_rate_has_nothing_to_compare() -> None:
    assert statement(study({0.5: CLEAR})) == "0.5 is the only rate that can be judged: there is nothing to compare."


def test_statement_if_a_run_of_every_rate_diverged() -> None:
    text = statement(study({0.0: [None, 0.5], 0.5: [None, 0.6]}))

    assert text == "The rates are not compared: at every rate a run diverged."


def test_statement_names_rates_that_are_not_judged() -> None:
    text = statement(study({0.0: CLEAR, 0.5: WORSE, 0.9: [0.1, None]}))

    assert "Not judged, because runs diverged: 0.9." in text


def test_statement_says_if_validation_would_choose_a_worse_rate() -> None:
    text = statement(study({0.0: CLEAR, 0.5: WORSE}, validation={0.0: 0.5, 0.5: 0.9}))

    assert text.endswith("Validation would choose 0.5, which does not have the highest accuracy.")


def test_across_names_the_better_optimizer_and_its_rates() -> None:
    results = study({0.0: WORST, 0.3: NEAR, 0.5: CLEAR})

    lines = report.paragraph(verdict_of([*results, *other_optimizer(results, 0.8)])).splitlines()

    assert lines[2] == (
        "Across optimizers: sgd at 0.3 and 0.5 may have the highest accuracy: sgd does better by accuracy. "
        "sgd at 0.3 and 0.5, adam at 0.3 and 0.5 may have the lowest loss: no optimizer can be called better."
    )


def test_margin_outlook_says_what_more_seeds_would_give() -> None:
    verdict = verdict_of(study({0.3: NEAR, 0.5: CLEAR}))
    judged = verdict.optimizers["sgd"].accuracy

    text = report.margin_outlook(verdict.optimizers["sgd"], 500)

    five, ten = (f"{100 * judged.margin_with[count]:.1f}" for count in ("5", "10"))
    now, images = f"{100 * (judged.rates[0].margin or 0):.1f}", f"{100 * (judged.margin_of_images or 0):.1f}"
    assert text.startswith(
        f"By accuracy, the margin among those that may be the best is about ±{now} points; it would be about "
        f"±{five} with 5 seeds and ±{ten} with 10 seeds; the 500 test images leave ±{images} with any number of seeds. "
        "By loss,"
    )


def test_margin_outlook_of_a_single_best_rate_is_empty() -> None:
    verdict = verdict_of(study({0.0: WORSE, 0.5: CLEAR}))

    assert report.margin_outlook(verdict.optimizers["sgd"], 500) == ""


def test_paragraph_has_statements_then_margins_then_notes() -> None:
    statements, margins, notes = report.paragraph(verdict_of(study({0.3: NEAR, 0.5: CLEAR}))).split("\n\n")

    assert statements.startswith("sgd: Any of 0.3 and 0.5 may have the highest accuracy")
    assert margins.startswith("sgd: By accuracy, the margin")
    assert notes.startswith(
        "A rate is worse if it is further from the leader than equally good rates would be in 95 of"
    )
    assert "500 other test images" in notes
    assert notes.endswith("All figures are those of the last epoch.")


def test_paragraph_of_one_seed_has_no_word_about_other_seeds() -> None:
    text = report.paragraph(verdict_of(study({0.3: [0.8], 0.5: [0.9]})))

    assert "allows for 500 other test images, and not for other seeds" in text
    assert "95 of 100 studies" not in text


def test_paragraph_names_diverged_runs_and_validation_on_the_test_images() -> None:
    text = report.paragraph(verdict_of(study({0.0: CLEAR, 0.5: [0.9, None]}), validation="test"))

    assert "Diverged, and left out: 1 of 6 runs (sgd-0.5-1 in epoch 3)." in text
    assert "The best model was chosen by the test images themselves, which flatters its figures." in text


def test_table_has_means_ranges_and_distances_by_rate() -> None:
    results = [
        *study({0.1: [0.8, 0.81], 0.5: [0.9, 0.92], 0.8: [0.5, None]}),
        result("adam-0-0", test_accuracy=0.123, test_loss=2.5, diverged=1),
    ]

    header, *lines = report.table(verdict_of(results)).splitlines()

    cells = [line.split() for line in lines]
    assert header.split("  ")[0] == "optimizer"
    assert cells[0][:7] == ["sgd", "0.1", "2", "80.5", "%", "(80.0–81.0)", "worse"]
    assert cells[0][7:9] == ["10.5", "±"]
    assert cells[1] == ["sgd", "0.5", "2", "91.0", "%", "(90.0–92.0)", "leader", "0.290", "(0.280–0.300)", "leader"]
    assert cells[2] == [
        "sgd", "0.8", "1", "50.0", "%", "not", "judged", "0.700", "not", "judged", "1", "of", "2", "runs", "diverged"
    ]  # fmt: skip
    assert cells[3] == [
        "adam",
        "0.0",
        "0",
        "–",
        "not",
        "judged",
        "–",
        "not",
        "judged",
        "1",
        "of",
        "1",
        "runs",
        "diverged",
    ]


def test_markdown_has_the_words_and_the_cells_of_results() -> None:
    results = study({0.0: WORSE, 0.3: NEAR, 0.5: CLEAR, 0.8: [0.7, None]})
    verdict = verdict_of(results)

    page = report.markdown(verdict, "digits", results)

    assert page.startswith("# Which dropout rate is best?\n\nData set: digits. Epochs: 6. Optimizers: sgd.")
    for line in report.paragraph(verdict).splitlines():
        assert line in page
    rows = [line for line in page.splitlines() if line.startswith("| sgd")]
    assert len(rows) == 4
    assert rows[0].startswith("| sgd | 0.0 | 4 | 71.8 % (70.0–74.0) | **worse** 9.7 ± ")
    assert rows[3].startswith("| sgd | 0.8 | 1; 1 of 2 runs diverged | 70.0 % | not judged |")
    assert {line.count("|") for line in page.splitlines() if line.startswith("|")} == {8}


def test_studied_counts_many_rates() -> None:
    few = report.studied("digits", [result(f"sgd-{rate}-{seed}") for rate in (0.0, 0.5) for seed in (0, 1)])
    many = report.studied("digits", [result(f"sgd-{i / 20}-0") for i in range(11)])

    assert few == "Data set: digits. Epochs: 6. Optimizers: sgd. Dropout rates: 0.0, 0.5. Seeds: 0, 1."
    assert "Dropout rates: 11 from 0.0 to 0.5." in many


@pytest.mark.parametrize(
    ("values", "every", "text"),
    [
        ([0.3, 0.5, 0.6], [0.0, 0.3, 0.5, 0.6, 0.9], "0.3 to 0.6"),
        ([0.0, 0.2, 0.5], [0.0, 0.1, 0.2, 0.5], "0.0, 0.2 and 0.5"),
        ([0.3, 0.5], [0.3, 0.5], "0.3 and 0.5"),
        ([0.5], [0.5], "0.5"),
    ],
)
def test_listed_names_neighbours_as_a_range(values: list[float], every: list[float], text: str) -> None:
    assert report.listed(values, every) == text


def test_computed_on_names_where_machines_differ() -> None:
    machines = [
        Machine({"processor": "Intel", "threads": 2}, ["a", "b"]),
        Machine({"processor": "AMD", "threads": 2, "device": "GPU"}, ["c"]),
    ]

    text = report.computed_on(machines)

    assert "2 variants on processor Intel, device None; 1 variant on processor AMD, device GPU" in text
    assert "threads" not in text.partition(". ")[0]


RATES = (0.0, 0.2, 0.5, 0.8)
# By optimizer and rate: the mean accuracy, the spread over seeds, and how many of three runs diverged.
CELLS = st.tuples(st.floats(0.1, 1), st.sampled_from([0.001, 0.01, 0.05]), st.sampled_from([0, 0, 0, 0, 1, 3]))
STUDIES = st.dictionaries(st.sampled_from(["sgd", "adam"]), st.lists(CELLS, min_size=4, max_size=4), min_size=1)


def generated(cells: dict[str, list[tuple[float, float, int]]], seeds: int, random_seed: int) -> list[Result]:
    random = np.random.default_rng(random_seed)
    results = []
    for optimizer, by_rate in cells.items():
        for rate, (mean, spread, diverged) in zip(RATES, by_rate, strict=True):
            for seed in range(seeds):
                accuracy = round(500 * float(np.clip(random.normal(mean, spread), 0, 1))) / 500
                epoch = 2 if seed < diverged else None
                key = f"{optimizer}-{rate}-{seed}"
                results.append(result(key, test_accuracy=accuracy, test_loss=1.3 - accuracy, diverged=epoch))
    return results


@settings(deadline=None, max_examples=10)
@given(cells=STUDIES, seeds=st.integers(1, 3), random_seed=st.integers(0, 9))
def test_table_sentences_and_chart_agree(
    cells: dict[str, list[tuple[float, float, int]]], seeds: int, random_seed: int
) -> None:
    results = generated(cells, seeds, random_seed)
    verdict = verdict_of(results)
    rates = rates_of(results)

    lines = report.table(verdict).splitlines()[1:]
    charts = {quantity: figures.by_dropout(rates, results, f"test_{quantity}").axes[0] for quantity in QUANTITIES}

    rows = iter(lines)
    for number, (optimizer, judged) in enumerate(verdict.optimizers.items()):
        by_rate = {rate: next(rows) for rate in RATES}
        text = report.statement(judged)
        for quantity, axes in charts.items():
            by_quantity = judged.by(quantity)
            check_table(by_quantity, by_rate, quantity)
            check_sentence(by_quantity, text, quantity)
            check_chart(by_quantity, axes, optimizer, len(cells), number, quantity)


def check_table(judged: Ranking, lines: dict[float, str], quantity: Quantity) -> None:
    """The table says "worse" of the rates that are, and a difference above the margin stands nowhere else."""
    for row in judged.rates:
        rate = float(row.dropout)
        cell = report._difference(row, judged, quantity)
        assert cell in lines[rate]
        assert cell.startswith("worse") == (rate in judged.worse)
        if judged.status not in ("none", "one seed") and row.margin is not None:
            assert ((row.below or 0) > row.margin + 1e-12) == (rate in judged.worse)


def check_sentence(judged: Ranking, text: str, quantity: Quantity) -> None:
    has = report.HAS[quantity]
    may, worse = judged.may_be_best, judged.worse
    every = judged.judged
    match judged.status:
        case "best":
            assert f"{may[0]} has {has}: every other rate is worse." in text
            assert sorted([*may, *worse]) == every
        case "several":
            assert f"{report.listed(may, every)} may have {has}; {report.listed(worse, every)} " in text
            assert sorted([*may, *worse]) == every
        case "any":
            assert f"Any of {report.listed(every, every)} may have {has}" in text
            assert may == every
        case _:
            assert not may
            assert not worse


def check_chart(judged: Ranking, axes: Any, optimizer: str, optimizers: int, number: int, quantity: Quantity) -> None:
    """Filled means are in the band, hollow grey ones are outside."""
    color, marker = figures.COLORS[optimizer], figures.MARKERS[optimizer]
    slot = 0.06 / optimizers
    shift = slot * (number - (optimizers - 1) / 2)
    means = {
        (round(float(x - shift), 6), float(y)): line
        for line in axes.lines
        if line.get_marker() == marker and not line.get_alpha() and line.get_label() != "guessing"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    bands = {
        round(float(patch.get_x() + patch.get_width() / 2 - shift), 6): sorted(
            (patch.get_y(), patch.get_y() + patch.get_height())
        )
        for patch in axes.patches
    }
    for row in judged.rates:
        rate = float(row.dropout)
        if row.mean is None:
            continue
        line = means[rate, drawn_mean(row.mean, means, rate)]
        hollow = line.get_markerfacecolor() == "white"
        assert hollow == (rate in judged.worse or rate in judged.not_judged)
        assert (line.get_label() == "worse") == (rate in judged.worse)
        if judged.may_be_best and row.margin is not None:
            low, high = bands[rate]
            inside = low - 1e-9 <= row.mean <= high + 1e-9
            assert inside == (rate in judged.may_be_best)
    assert all(line.get_color() == color for line in means.values() if line.get_label() == optimizer)


def drawn_mean(mean: float, means: dict[tuple[float, float], Any], rate: float) -> float:
    """Return the drawn mean at `rate` that is `mean`."""
    (drawn,) = (y for (x, y) in means if x == rate and abs(y - mean) < 1e-9)
    return drawn


def test_answer_names_in_a_sentence_what_may_be_best_by_optimizer() -> None:
    rows = [*study({0.0: WORSE, 0.3: CLEAR, 0.5: NEAR}), *other_optimizer(study({0.0: [0.8], 0.5: [0.7]}), 0)]

    assert report.answer(verdict_of(rows)) == (
        "With sgd, 0.3 and 0.5 may have the highest accuracy and 0.3 and 0.5 may have the lowest loss; "
        "with adam, no rate can be called the best."
    )


def test_distance_text_has_distance_margin_and_direction() -> None:
    row = RateVerdict(0.5, 3, 0, below=0.0123, margin=0.0046)

    assert report.distance_text(row, "accuracy", 0.3) == "1.2 ± 0.5 points below 0.3"
    assert report.distance_text(row, "loss", "it") == "0.012 ± 0.005 nats above it"
