"""The study's statistics against worked examples, and against chance."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropout_study import verdict
from dropout_study.evaluation import Result
from tests.test_evaluation import result

# Hours of sleep that ten patients gained by two drugs: Student, "The probable error of a mean", Biometrika 6 (1908).
# R has them as the data set `sleep`; its t.test gives the figures below.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_the_interval_of_the_sleep_data() -> None:
    assert verdict.interval(DRUG_1) == pytest.approx((0.75, -0.5297804, 2.0297804), abs=1e-7)


def test_the_paired_difference_of_the_sleep_data() -> None:
    found = verdict.difference(0.5, dict(enumerate(DRUG_1)), dict(enumerate(DRUG_2)), step=0)
    assert (found.dropout, found.seeds) == (0.5, 10)
    assert (found.mean, found.low, found.high) == pytest.approx((-1.58, -2.4598858, -0.7001142), abs=1e-7)
    assert found.p == pytest.approx(0.002833, abs=1e-6)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = verdict.difference(0.5, {0: 0.5, 1: 0.6, 2: 0.9}, {2: 0.6, 1: 0.5, 7: 0.0}, step=0.01)
    assert found.seeds == 2
    assert found.mean == pytest.approx(0.2)
    assert verdict.difference(0.5, {0: 0.5}, {1: 0.5}, 0.01) == (0.5, 0, None, None, None, 1.0, 1.0)
    assert verdict.difference(0.5, {0: 0.5}, {0: 0.25}, 0.01) == (0.5, 1, 0.25, None, None, 1.0, 1.0)


def test_one_value_has_no_interval() -> None:
    assert verdict.interval([0.5]) == (0.5, None, None)
    with pytest.raises(ValueError, match="no values"):
        verdict.interval([])


def test_equal_differences_have_the_spread_of_a_test_image() -> None:
    """t = 0.1 / (0.002 / √3) = 86.6 with 2 degrees of freedom, for which p = 1 - t / √(t² + 2)."""
    best = {0: 0.75, 1: 0.5, 2: 1.0}
    same = verdict.difference(0.5, best, best, step=0.002)
    assert (same.mean, same.p) == (0, 1)
    # t(0.975; 2) = 4.3027
    assert same.high == pytest.approx(4.3027 * 0.002 / math.sqrt(3), rel=1e-4)
    far = verdict.difference(0.5, best, {seed: one - 0.1 for seed, one in best.items()}, step=0.002)
    assert far.p == pytest.approx(1 - 86.6025 / math.sqrt(86.6025**2 + 2), rel=1e-3)


def test_the_correction_of_holms_procedure() -> None:
    """The example of four hypotheses with which the procedure is usually explained; R's p.adjust agrees."""
    assert verdict.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert verdict.holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert verdict.holm([0.7, 0.6]) == [1, 1]
    assert verdict.holm([0.01]) == [0.01]
    assert verdict.holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_corrected_p_values_keep_their_order_and_are_at_least_as_large(p_values: list[float]) -> None:
    found = verdict.holm(p_values)
    assert all(p <= corrected <= 1 for p, corrected in zip(p_values, found, strict=True))
    by_size = [found[i] for i in np.argsort(p_values, kind="stable")]
    assert by_size == sorted(by_size)


def test_seeds_needed_are_those_of_the_table_of_t() -> None:
    """t(0.975; 6) = 2.447 and t(0.975; 5) = 2.571; t(0.975; 17) = 2.110 and t(0.975; 16) = 2.120."""
    assert 2.447 / math.sqrt(7) < 1 < 2.571 / math.sqrt(6)
    assert verdict.seeds_needed(1.0, 1.0) == 7
    assert 2.110 / math.sqrt(18) < 0.5 < 2.120 / math.sqrt(17)
    assert verdict.seeds_needed(1.0, 0.5) == 18
    assert verdict.seeds_needed(0.0, 1.0) == 2
    assert verdict.seeds_needed(1.0, 0.01) == 38_418  # the normal distribution's: (1.959964 / 0.01)²


def study(
    accuracies: Mapping[float, Sequence[float | None]], validation: Mapping[float, float] | None = None
) -> list[Result]:
    """Return results by rate and seed; None is a run that diverged. Validation is as the mean of the test."""
    return [
        result(
            f"sgd-{rate}-{seed}",
            (validation or {}).get(rate, float(np.mean([one or 0 for one in values]))),
            dropout=rate,
            test_accuracy=value or 0.1,
            diverged=3 if value is None else None,
        )
        for rate, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def sentence(results: list[Result]) -> str:
    said = verdict.verdict(results, 500)["optimizers"]["sgd"]["sentence"]
    assert isinstance(said, str)
    return said


CLEAR = [0.80, 0.81, 0.82, 0.83]
WORSE = [0.70, 0.72, 0.71, 0.74]


def test_a_rate_that_beats_all_others_is_best() -> None:
    assert sentence(study({0.0: WORSE, 0.5: CLEAR, 0.9: [0.1, 0.11, 0.09, 0.1]})) == "0.5 is best"


def test_neighbours_that_cannot_be_told_apart_are_a_range_with_the_seeds_it_would_take() -> None:
    said = sentence(
        study({0.0: WORSE, 0.3: [0.82, 0.80, 0.83, 0.80], 0.5: CLEAR, 0.6: [0.79, 0.83, 0.81, 0.82], 0.9: WORSE})
    )
    # Differences of 0.5 and 0.3: -2, 1, -1, 3 points; s = 2.217, t(0.975; 3) = 3.182, so ± 3.5. Those of 0.5 and 0.6
    # are 1, -2, 1, 1, narrower. t(0.975; 21) = 2.080, and 2.080 × 2.217 / √22 < 1; with 21 it is 1.009.
    assert said == (
        "0.3 to 0.6 cannot be told apart with 4 seeds; the difference is known to ±3.5 points, "
        "±1 would take about 22 seeds"
    )


def test_rates_that_are_no_neighbours_are_listed_and_a_narrow_interval_asks_for_no_more_seeds() -> None:
    said = sentence(study({0.0: [0.801, 0.809, 0.821, 0.829], 0.3: WORSE, 0.5: CLEAR}))
    # The spread is that of one of 500 images: 3.182 × 0.2 / √4.
    assert said == "0.0 and 0.5 cannot be told apart with 4 seeds; the difference is known to ±0.3 points"
    assert verdict._listed([0.0, 0.2, 0.5], [0.0, 0.1, 0.2, 0.5]) == "0.0, 0.2 and 0.5"


def test_one_seed_allows_no_statement() -> None:
    assert sentence(study({0.0: [0.7], 0.5: [0.8]})) == "one seed: no statement"


def test_one_rate_allows_no_statement() -> None:
    assert sentence(study({0.5: [0.7, 0.8]})) == "no statement: 0.5 is the only rate"


def test_a_rate_with_a_diverged_run_is_not_best_but_is_compared() -> None:
    results = study({0.0: CLEAR, 0.5: [0.99, 0.98, None, 0.99]}, validation={0.0: 0.8, 0.5: 0.99})
    judged = verdict.verdict(results, 500)
    assert judged["diverged"] == {"sgd-0.5-2": 3}
    assert judged["optimizers"]["sgd"]["best"] == 0.0
    assert judged["optimizers"]["sgd"]["comparisons"][0]["seeds"] == 3
    assert "1 of 8 runs diverged and are left out: sgd-0.5-2 in epoch 3." in verdict.paragraph(judged)


def test_a_rate_that_always_diverged_is_named_and_spoils_no_other_comparison() -> None:
    results = study({0.0: CLEAR, 0.5: WORSE, 0.9: [None] * 4})
    judged = verdict.verdict(results, 500)
    assert judged["optimizers"]["sgd"]["sentence"] == (
        "0.0 is best (not compared, as too many of its runs diverged: 0.9)"
    )
    first, second = judged["optimizers"]["sgd"]["comparisons"]
    assert first["p_holm"] == first["p"] < 0.05
    assert (second["seeds"], second["p_holm"]) == (0, 1)
    assert [row["dropout"] for row in verdict.rates(results, 10)] == [0.0, 0.5]
    assert "4 of 12 runs diverged" in verdict.paragraph(judged)
    json.dumps(judged, allow_nan=False)


def test_if_a_run_of_every_rate_diverged_there_is_no_statement() -> None:
    judged = verdict.verdict(study({0.0: [None, 0.5], 0.5: [0.6, None]}), 500)
    assert judged["optimizers"]["sgd"]["sentence"] == "no statement: at every rate a run diverged"
    assert "standard error" not in verdict.paragraph(judged)


def test_with_one_run_left_of_all_other_rates_there_is_no_statement() -> None:
    said = sentence(study({0.0: [0.5, 0.6], 0.5: [0.6, None]}))
    assert said == "no statement: 0.0 is the only rate with two runs that did not diverge"


def test_the_test_images_may_contradict_the_validation() -> None:
    said = sentence(study({0.0: WORSE, 0.5: CLEAR}, validation={0.0: 0.9, 0.5: 0.8}))
    assert said == "no rate is best: 0.0 is on the validation images, but 0.5 did better on the test images"


def test_of_equal_validation_accuracies_the_lower_loss_is_the_best() -> None:
    results = study({0.0: CLEAR, 0.5: WORSE}, validation={0.0: 0.9, 0.5: 0.9})
    results = [one._replace(validation_loss=0.1 if one.dropout == 0.5 else 0.2) for one in results]
    assert verdict.verdict(results, 500)["optimizers"]["sgd"]["best"] == 0.5


def test_the_file_has_figures_by_rate_and_the_error_of_the_test_set() -> None:
    judged = verdict.verdict(study({0.0: CLEAR, 0.5: WORSE}), 400)
    assert judged["test_images"] == 400
    first = judged["optimizers"]["sgd"]["rates"][0]
    assert (first["dropout"], first["runs"], first["diverged"]) == (0.0, 4, [])
    # s = 1.291 points, t(0.975; 3) = 3.182
    assert first["test_accuracy"] == {
        "mean": 0.815,
        "low": pytest.approx(0.815 - 0.02054, abs=1e-5),
        "high": pytest.approx(0.815 + 0.02054, abs=1e-5),
    }
    # √(0.815 × 0.185 / 400) = 0.0194
    assert first["test_accuracy_standard_error_of_test_set"] == pytest.approx(0.0194, abs=1e-4)
    assert json.loads(json.dumps(judged, allow_nan=False)) == judged


def test_the_paragraph_says_what_the_figures_cover() -> None:
    said = verdict.paragraph(verdict.verdict(study({0.0: CLEAR, 0.5: WORSE, 0.9: WORSE}), 500))
    assert said.splitlines() == [
        "sgd: 0.0 is best. Best in validation: 0.0, with a test accuracy of 81.5 ± 2.1 %.",
        "Intervals (95 %, t) and tests (paired t, Holm, at 5 %) cover seeds, not the finite test set: its 500 images "
        "leave a standard error of 1.7 points in each accuracy. All figures are those of the last epoch.",
    ]


def test_each_optimizer_is_judged_alone() -> None:
    results = study({0.0: CLEAR, 0.5: WORSE})
    others = [one._replace(optimizer="adam", test_accuracy=0.9 - one.test_accuracy / 2) for one in results]
    judged = verdict.verdict([*results, *others], 500)["optimizers"]
    assert list(judged) == ["sgd", "adam"]
    assert judged["sgd"]["sentence"] == "0.0 is best"
    assert "0.5 did better on the test images" in judged["adam"]["sentence"]


def test_rates_have_mean_interval_and_guessing_by_quantity() -> None:
    (row,) = verdict.rates(study({0.5: [0.7, 0.9]}), classes=10)
    assert tuple(row) == verdict.RATE_COLUMNS
    assert (row["optimizer"], row["dropout"], row["runs"], row["test_accuracy"]) == ("sgd", 0.5, 2, pytest.approx(0.8))
    # t(0.975; 1) = 12.706, s / √2 = 0.1
    assert row["test_accuracy_high"] == pytest.approx(0.8 + 1.2706, abs=1e-4)
    assert row["accuracy_gap"] == pytest.approx(0.75 - 0.8)
    assert [row[f"{name}_guessing"] for name in verdict.QUANTITIES] == [0.1, math.log(10), 0]
    (alone,) = verdict.rates(study({0.5: [0.7]}), classes=10)
    assert alone["test_loss_low"] is None


def test_the_table_has_mean_and_interval_by_rate_in_order() -> None:
    lines = verdict.table(
        [
            result("sgd-0.5-0", test_accuracy=0.8, test_loss=0.5),
            result("adam-0-0", test_accuracy=0.123, test_loss=2.5, diverged=1),
            result("sgd-0.1-0"),
            result("sgd-0.5-1", test_accuracy=0.9, test_loss=0.7),
        ]
    ).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["sgd", "0.1", "1", "80.0", "%", "0.500"],
        ["sgd", "0.5", "2", "85.0", "±", "63.5", "%", "0.600", "±", "1.271"],
        ["adam", "0.0", "0", "–", "–", "diverged:", "adam-0-0", "in", "epoch", "1"],
    ]
    assert len({line.index("%") for line in lines[1:3]}) == 1


def simulated(random: np.random.Generator, means: list[float]) -> dict[str, Any]:
    """Return the verdict on a study of five seeds whose accuracies are `means` and a spread of two points."""
    accuracies = {rate / 10: [float(random.normal(mean, 0.02)) for _ in range(5)] for rate, mean in enumerate(means)}
    validation = {rate / 10: float(random.normal(mean, 0.02)) for rate, mean in enumerate(means)}
    judged: dict[str, Any] = verdict.verdict(study(accuracies, validation), 10_000)["optimizers"]["sgd"]
    return judged


def test_where_there_is_no_difference_one_is_found_in_a_twentieth_of_the_studies() -> None:
    """The family-wise error of Holm's procedure, over 400 studies of six equal rates: at most 5 %, up to chance."""
    random = np.random.default_rng(1)
    wrong = sum(any(one["told_apart"] for one in simulated(random, [0.7] * 6)["comparisons"]) for _ in range(400))
    assert 0 < wrong <= 20 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_a_large_difference_is_found() -> None:
    random = np.random.default_rng(2)
    assert [simulated(random, [0.5, 0.8, 0.5])["sentence"] for _ in range(20)] == ["0.1 is best"] * 20


def test_intervals_hold_the_mean_in_95_of_100() -> None:
    random = np.random.default_rng(3)
    found = [verdict.interval(random.normal(5, 2, 3).tolist()) for _ in range(4_000)]
    held = np.mean([(one.low or 0) <= 5 <= (one.high or 0) for one in found])
    assert held == pytest.approx(0.95, abs=3 * math.sqrt(0.05 * 0.95 / 4_000))
