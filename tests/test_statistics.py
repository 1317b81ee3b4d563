"""The study's statistics against worked examples, known distributions, and chance."""

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks import verdict as simulation
from dropout_study import statistics
from dropout_study.results import Result
from dropout_study.statistics import Rate
from dropout_study.verdict import QUANTITIES, Ranking
from tests.clones import PROJECT
from tests.studies import made_up_scores, rates_of, verdict_of
from tests.test_results import result

Expected = Mapping[float, tuple[float, float, int, float]]  # below, margin, round, degrees of freedom


def runs_alone(means: Sequence[float]) -> Rate:
    """Return a rate of which only the mean scores of its runs are known, and nothing by image."""
    return Rate(
        runs=len(means),
        images=2,
        mean=float(np.mean(means)),
        lowest=min(means),
        highest=max(means),
        by_image=np.zeros(2),
        variance=float(np.var(means, ddof=1)) if len(means) > 1 else 0.0,
        least=0.0,
    )


def predictions(*runs: str) -> Rate:
    """Return a rate whose runs predict images right ("1") or wrong ("0")."""
    return statistics.summarize(np.array([[int(hit) for hit in run] for run in runs]))


@pytest.mark.parametrize(
    ("rates", "df", "expected"),
    [(2, 4, 2.7764), (3, 6, 3.0683), (5, 10, 3.2911), (10, 20, 3.5411), (5, math.inf, 2.7278)],
)
def test_factor_equals_tables_of_the_studentized_range(rates: int, df: float, expected: float) -> None:
    assert statistics.factor(rates, df) == pytest.approx(expected, abs=1e-4)


def test_factor_of_two_rates_is_the_quantile_of_t() -> None:
    assert statistics.factor(2, 7) == pytest.approx(stats.t.ppf(0.975, 7), abs=1e-6)


def test_summarize_of_eight_images_by_hand() -> None:
    """Means of runs 1 and 7/8; the last image differs: variance 1/2, over 8 images 1/16, over 8 again 1/128."""
    rate = predictions("11111111", "11111110")

    assert (rate.runs, rate.images, rate.mean, rate.lowest, rate.highest) == (2, 8, 15 / 16, 7 / 8, 1)
    assert rate.by_image.tolist() == [1] * 7 + [0.5]
    assert rate.variance == rate.least == 1 / 128


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (3,)])
def test_summarize_refuses_scores_of_nothing(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        statistics.summarize(np.zeros(shape))


THIS_MACHINE = {
    0.0: [0.988, 0.984, 0.980],
    0.3: [0.938, 0.978, 0.974],
    0.5: [0.946, 0.966, 0.920],
    0.7: [0.788, 0.800, 0.694],
    0.9: [0.102, 0.100, 0.102],
}
ANOTHER_MACHINE = {
    0.0: [0.990, 0.980, 0.986],
    0.3: [0.958, 0.978, 0.924],
    0.5: [0.960, 0.926, 0.924],
    0.7: [0.800, 0.784, 0.746],
    0.9: [0.098, 0.102, 0.102],
}
UNEVEN = {0.0: [0.61, 0.62, 0.60, 0.61], 0.3: [0.60, 0.62], 0.5: [0.55]}
# Computed by an implementation of its own, written before this one.
KNOWN: dict[str, tuple[Mapping[float, Rate], list[float], Expected]] = {
    "two rates": (
        {0.0: runs_alone([0.90, 0.92, 0.94]), 0.5: runs_alone([0.84, 0.86, 0.88])},
        [0.0],
        {0.5: (0.06, 0.045339, 1, 4)},
    ),
    "uneven": (
        {rate: runs_alone(means) for rate, means in UNEVEN.items()},
        [0.0, 0.3],
        {0.3: (0, 0.025054, 2, 4), 0.5: (0.06, 0.039273, 1, 4)},
    ),
    "this machine": (
        {rate: runs_alone(means) for rate, means in THIS_MACHINE.items()},
        [0.0, 0.3, 0.5],
        {
            0.3: (0.020667, 0.044335, 2, 6),
            0.5: (0.04, 0.044882, 2, 6),
            0.7: (0.223333, 0.093163, 1, 9),
            0.9: (0.882667, 0.065276, 1, 10),
        },
    ),
    "another machine": (
        {rate: runs_alone(means) for rate, means in ANOTHER_MACHINE.items()},
        [0.0, 0.3],
        {
            0.3: (0.032, 0.0445, 3, 4),
            0.5: (0.048667, 0.045831, 2, 6),
            0.7: (0.208667, 0.053275, 1, 10),
            0.9: (0.884667, 0.043804, 1, 10),
        },
    ),
    "eight images": (
        {
            0.0: predictions("11111111", "11111110"),
            0.5: predictions("11111100", "11110110"),
            0.9: predictions("10000000", "01000000"),
        },
        [0.0, 0.5],
        {0.9: (0.8125, 0.452359, 1, 3), 0.5: (0.1875, 0.465776, 2, 2)},
    ),
    "eight images, one seed": (
        {0.0: predictions("11111111"), 0.5: predictions("11111100"), 0.9: predictions("10000000")},
        [0.0, 0.5],
        {0.9: (0.875, 0.292963, 1, math.inf), 0.5: (0.25, 0.320774, 2, math.inf)},
    ),
    "equal runs": ({0.0: runs_alone([0.9, 0.9]), 0.5: runs_alone([0.9, 0.9])}, [0.0, 0.5], {0.5: (0, 0, 1, math.inf)}),
    "one rate": ({0.5: runs_alone([0.9, 0.8])}, [0.5], {}),
}


@pytest.mark.parametrize("name", KNOWN)
def test_judge_gives_the_known_answer(name: str) -> None:
    rates, may_be_best, expected = KNOWN[name]

    leader, left, comparisons = statistics.judge(rates)

    assert left == may_be_best
    assert leader == may_be_best[0]
    assert comparisons.keys() == expected.keys()
    for rate, (below, margin, number, df) in expected.items():
        comparison = comparisons[rate]
        assert (comparison.round, comparison.df) == (number, df)
        assert comparison.below == pytest.approx(below, abs=1e-6)
        assert comparison.margin == pytest.approx(margin, abs=1e-6)
        assert comparison.margin == pytest.approx(math.hypot(comparison.margin_seeds, comparison.margin_images))


# A study: for each of two to five rates the hits of one to four runs on ten images.
HITS = st.lists(
    st.lists(st.lists(st.integers(0, 1), min_size=10, max_size=10), min_size=1, max_size=4), min_size=2, max_size=5
)
STUDIES = HITS.map(lambda rates: {i / 10: np.array(runs, float) for i, runs in enumerate(rates)})


def judged(scores: Mapping[float, np.ndarray]) -> tuple[float, set[float], dict[float, Any]]:
    leader, left, comparisons = statistics.judge({rate: statistics.summarize(of) for rate, of in scores.items()})
    return leader, set(left), comparisons


def distances(comparisons: Mapping[float, Any], factor: float = 1) -> dict[float, Any]:
    """Return differences and margins times `factor`, to be compared with others."""
    return {
        rate: pytest.approx((factor * comparison.below, factor * comparison.margin), abs=1e-9)
        for rate, comparison in sorted(comparisons.items())
    }


def plain(comparisons: Mapping[float, Any]) -> dict[float, tuple[float, float]]:
    return {rate: (comparison.below, comparison.margin) for rate, comparison in sorted(comparisons.items())}


@settings(deadline=None)
@given(scores=STUDIES, seed=st.integers(0, 99))
def test_judge_ignores_the_order_of_rates_seeds_and_images(scores: dict[float, np.ndarray], seed: int) -> None:
    random = np.random.default_rng(seed)
    images = random.permutation(10)
    shuffled = {rate: scores[rate][random.permutation(len(scores[rate]))][:, images] for rate in reversed(scores)}

    leader, left, comparisons = judged(shuffled)

    expected_leader, expected_left, expected = judged(scores)
    assert (leader, left) == (expected_leader, expected_left)
    assert plain(comparisons) == distances(expected)


@settings(deadline=None)
@given(scores=STUDIES, constant=st.integers(-3, 3), factor=st.sampled_from([0.5, 2.0, 4.0]))
def test_judge_is_free_of_origin_and_scale(scores: dict[float, np.ndarray], constant: int, factor: float) -> None:
    moved = {rate: factor * (of + constant) for rate, of in scores.items()}

    leader, left, comparisons = judged(moved)

    expected_leader, expected_left, expected = judged(scores)
    assert (leader, left) == (expected_leader, expected_left)
    assert plain(comparisons) == distances(expected, factor)


def test_judge_of_two_rates_equals_students_t_test() -> None:
    random = np.random.default_rng(1)
    agreed = 0
    for _ in range(200):
        first, second = random.normal(0.9, 0.02, 3), random.normal(0.88, 0.02, 3)

        _, left, _ = statistics.judge({0.0: runs_alone(first.tolist()), 0.5: runs_alone(second.tolist())})

        agreed += (len(left) == 1) == (stats.ttest_ind(first, second).pvalue < 0.05)
    assert agreed == 200


def test_judge_of_equal_spreads_begins_with_tukeys_intervals() -> None:
    samples = [[mean - 0.01, mean, mean + 0.01] for mean in (0.90, 0.89, 0.88, 0.87, 0.86)]
    tukey = stats.tukey_hsd(*samples).confidence_interval()
    half = float(tukey.high[0, 4] - tukey.low[0, 4]) / 2
    rates = [runs_alone(sample) for sample in samples]

    comparison = statistics.compare(rates[0], rates[4], rates, 1)

    assert half == pytest.approx(0.026872, abs=1e-6)
    assert comparison.margin == pytest.approx(half, rel=1e-6)


def test_judge_calls_an_equal_rate_worse_in_about_5_of_100_studies() -> None:
    """The promise, on five equally good rates of three seeds each."""
    false, _ = simulation.frequencies("A1", "this method", seeds=3, studies=2_000)

    assert 3 <= false <= 8


def test_judge_tells_a_rate_far_below_the_best() -> None:
    """A rate 22 points below, whose runs scatter by 5.5 points, beside steady ones: the digits on one machine."""
    _, told = simulation.frequencies("B1", "this method", seeds=3, studies=2_000)

    assert told[0.761] >= 98


def test_future_margin_shrinks_towards_what_the_images_leave() -> None:
    random = np.random.default_rng(2)
    difficulty = random.beta(5, 1, 500)
    best, other = (statistics.summarize(random.random((3, 500)) < difficulty**power) for power in (1, 1.5))

    margins = [statistics.future_margin(best, [other], runs) for runs in (3, 5, 10, 100, 100_000)]

    remaining = statistics.remaining_margin(best, [other])
    assert margins == sorted(margins, reverse=True)
    assert 0 < remaining < margins[-1] < 1.01 * remaining


def test_future_margin_of_equal_spreads_is_the_margin_of_that_many_seeds() -> None:
    rates = [runs_alone([mean - 0.01, mean, mean + 0.01]) for mean in (0.9, 0.9, 0.9)]

    margin = statistics.future_margin(rates[0], rates[1:], 3)

    assert margin == pytest.approx(statistics.compare(rates[0], rates[1], rates, 1).margin)


def study(
    accuracies: Mapping[float, Sequence[float | None]], validation: Mapping[float, float] | None = None
) -> list[Result]:
    """Return results by rate and seed; None is a run that diverged. Loss goes with accuracy, and so does validation."""
    return [
        result(
            f"sgd-{rate}-{seed}",
            (validation or {}).get(rate, float(np.mean([value or 0 for value in values]))),
            dropout=rate,
            test_accuracy=value or 0.1,
            test_loss=1.2 - (value or 0.1),
            diverged=3 if value is None else None,
        )
        for rate, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def verdict_by_accuracy(results: Sequence[Result]) -> Ranking:
    return verdict_of(results).optimizers["sgd"].accuracy


CLEAR = [0.80, 0.81, 0.82, 0.83]
NEAR = [0.82, 0.80, 0.83, 0.80]
WORSE = [0.70, 0.72, 0.71, 0.74]
WORST = [0.1, 0.11, 0.09, 0.1]


@pytest.mark.parametrize(
    ("rates", "status", "may_be_best", "worse"),
    [
        ({0.0: WORSE, 0.5: CLEAR, 0.9: WORST}, "best", [0.5], [0.0, 0.9]),
        ({0.0: WORSE, 0.3: NEAR, 0.5: CLEAR}, "several", [0.3, 0.5], [0.0]),
        ({0.3: NEAR, 0.5: CLEAR}, "any", [0.3, 0.5], []),
        ({0.3: NEAR[:1], 0.5: CLEAR[:1]}, "one seed", [], []),
        ({0.5: CLEAR}, "none", [], []),
    ],
)
def test_verdict_has_a_status_and_the_rates_that_may_be_best(
    rates: dict[float, Sequence[float]], status: str, may_be_best: list[float], worse: list[float]
) -> None:
    judged = verdict_of(study(rates)).optimizers["sgd"]

    for quantity in QUANTITIES:
        by_quantity = judged.by(quantity)
        assert by_quantity.status == status
        assert (by_quantity.may_be_best, by_quantity.worse) == (may_be_best, worse)


def test_verdict_of_a_rate_has_its_figures_and_its_distance() -> None:
    verdict = verdict_of(study({0.0: WORSE, 0.5: CLEAR}))

    judged = verdict.optimizers["sgd"]
    worse, leader = judged.accuracy.rates
    assert (worse.dropout, worse.runs, worse.diverged) == (0.0, 4, 0)
    assert (worse.mean, worse.lowest, worse.highest) == pytest.approx((0.7175, 0.70, 0.74))
    assert worse.below == pytest.approx(0.815 - 0.7175)
    assert worse.margin is not None
    assert worse.below is not None
    assert 0 < worse.margin < worse.below
    assert worse.round == 1
    assert (leader.below, leader.margin, leader.round) == (0, None, None)
    above = judged.loss.rates[0]
    assert (above.mean, above.lowest, above.highest) == pytest.approx((0.4825, 0.46, 0.50))
    assert above.below == pytest.approx(0.815 - 0.7175)


def test_verdict_does_not_judge_a_rate_of_which_a_run_diverged() -> None:
    results = study({0.0: WORSE, 0.3: CLEAR, 0.5: [0.99, 0.98, None, 0.99], 0.9: [None] * 4})

    judged = verdict_by_accuracy(results)

    assert judged.not_judged == [0.5, 0.9]
    assert (judged.leader, judged.may_be_best, judged.worse) == (0.3, [0.3], [0.0])
    assert [(row.runs, row.diverged, row.below) for row in judged.rates[2:]] == [(3, 1, None), (0, 4, None)]
    assert judged.rates[2].mean == pytest.approx(0.98667, abs=1e-5)
    assert judged.rates[3].mean is None


def test_verdict_is_none_if_a_run_of_every_rate_diverged() -> None:
    verdict = verdict_of(study({0.0: [None, 0.5], 0.5: [0.6, None]}))

    judged = verdict.optimizers["sgd"]
    assert (judged.accuracy.status, judged.accuracy.leader, judged.validation_choice) == (
        "none",
        None,
        None,
    )
    assert verdict.diverged == {"sgd-0.0-0": 3, "sgd-0.5-1": 3}


def test_verdict_of_one_seed_is_about_networks() -> None:
    judged = verdict_by_accuracy(study({0.0: [0.806], 0.5: [0.81], 0.9: [0.1]}))

    assert judged.status == "one seed"
    assert judged.networks_may_be_best == [0.0, 0.5]
    assert (judged.margin_with, judged.margin_of_images) == ({}, None)


def test_verdict_has_the_margins_of_the_next_two_numbers_of_seeds() -> None:
    judged = verdict_by_accuracy(study({0.3: NEAR, 0.5: CLEAR}))

    assert list(judged.margin_with) == ["5", "10"]
    five, ten = judged.margin_with.values()
    assert judged.margin_of_images is not None
    assert judged.rates[0].margin is not None
    assert judged.margin_of_images < ten < five < judged.rates[0].margin


def test_validation_choice_is_the_best_mean_accuracy_then_loss() -> None:
    rows = study({0.0: CLEAR, 0.5: WORSE})
    seen = {0.0: [0.9, 0.7, 0.8, 0.8], 0.5: [0.95, 0.5, 0.9, 0.8]}  # the highest of all is not in the highest mean
    rows = [row._replace(validation_accuracy=seen[row.dropout][row.seed]) for row in rows]
    equal = study({0.0: CLEAR, 0.5: WORSE}, validation={0.0: 0.9, 0.5: 0.9})
    equal = [row._replace(validation_loss={0.0: 0.2, 0.5: 0.1}[row.dropout]) for row in equal]

    by_mean, by_loss = verdict_of(rows), verdict_of(equal)

    assert by_mean.optimizers["sgd"].validation_choice == 0.0
    assert by_loss.optimizers["sgd"].validation_choice == 0.5


def test_validation_choice_is_no_rate_of_which_a_run_diverged() -> None:
    verdict = verdict_of(study({0.0: CLEAR, 0.5: [0.99, None]}, validation={0.5: 0.99}))

    assert verdict.optimizers["sgd"].validation_choice == 0.0


def other_optimizer(results: Sequence[Result], factor: float) -> list[Result]:
    """Return the same study with Adam, with accuracies times `factor`."""
    return [
        row._replace(
            variant=row.variant.replace("sgd", "adam"), optimizer="adam", test_accuracy=factor * row.test_accuracy
        )
        for row in results
    ]


def test_verdict_across_optimizers_names_the_better_one() -> None:
    results = study({0.3: NEAR, 0.5: CLEAR})

    across = verdict_of([*results, *other_optimizer(results, 0.8)]).across_optimizers

    assert across

    assert across.accuracy.may_be_best == ["sgd-0.3", "sgd-0.5"]
    assert across.accuracy.worse == ["adam-0.3", "adam-0.5"]
    assert across.accuracy.better_optimizer == "sgd"
    assert (across.loss.status, across.loss.better_optimizer) == ("any", None)


def test_verdict_across_optimizers_needs_two() -> None:
    assert verdict_of(study({0.3: NEAR, 0.5: CLEAR})).across_optimizers is None


def test_verdict_judges_each_optimizer_alone() -> None:
    results = study({0.0: CLEAR, 0.5: WORSE})
    other = [row._replace(test_accuracy=0.9 - row.test_accuracy / 2) for row in other_optimizer(results, 1)]

    judged = verdict_of([*results, *other]).optimizers

    assert list(judged) == ["sgd", "adam"]
    assert judged["sgd"].accuracy.leader == 0.0
    assert judged["adam"].accuracy.leader == 0.5


def test_verdict_names_what_models_were_chosen_by() -> None:
    results = study({0.0: CLEAR})

    assert verdict_of(results, validation=0.1).validated_on == "held-out images"
    assert verdict_of(results, validation="test").validated_on == "test images"
    assert statistics.judge_study(results, made_up_scores(results, images=400), 0.1).test_images == 400


def test_rates_have_what_the_charts_draw() -> None:
    worse, leader = rates_of(study({0.0: [0.6, 0.61], 0.5: [0.8, 0.81]}))

    assert tuple(worse) == statistics.RATE_COLUMNS
    assert (worse["optimizer"], worse["dropout"], worse["runs"]) == ("sgd", 0.0, 2)
    assert (worse["test_accuracy"], worse["test_accuracy_lowest"], worse["test_accuracy_highest"]) == pytest.approx(
        (0.605, 0.6, 0.61)
    )
    assert worse["accuracy_gap"] == pytest.approx(0.75 - 0.605)
    assert [worse[f"{name}_guessing"] for name in statistics.SHOWN] == [0.1, math.log(10), 0, 0]
    assert (worse["test_accuracy_verdict"], leader["test_accuracy_verdict"]) == ("worse", "may be the best")
    assert (
        worse["test_accuracy"] < worse["test_accuracy_limit"] < worse["test_accuracy_leader"] == leader["test_accuracy"]
    )
    assert worse["test_loss"] > worse["test_loss_limit"] > worse["test_loss_leader"] == leader["test_loss"]
    assert leader["test_loss_limit"] is None


def test_rates_of_one_seed_have_no_band() -> None:
    rows = rates_of(study({0.0: [0.6], 0.5: [0.8]}))

    assert [
        (row["test_accuracy_verdict"], row["test_accuracy_leader"], row["test_accuracy_limit"]) for row in rows
    ] == [("", None, None)] * 2


def test_rates_omit_those_of_which_all_runs_diverged() -> None:
    rows = rates_of(study({0.0: CLEAR, 0.3: WORSE, 0.5: [0.7, None], 0.9: [None, None]}))

    assert [(row["dropout"], row["runs"], row["test_loss_verdict"]) for row in rows] == [
        (0.0, 4, "may be the best"),
        (0.3, 4, "worse"),
        (0.5, 1, "not judged"),
    ]


def test_simulation_prints_its_tables() -> None:
    command = [sys.executable, "-m", "benchmarks.verdict", "--studies", "2", "--truths", "A1", "B1"]

    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)

    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")]
    assert rows[2] == "A1: five equal"
    assert rows[5:] == [f"B1: {points} points below" for points in (2.1, 4.0, 22.3, 88.3)]
    assert done.stdout.count("| this method |") == 2
