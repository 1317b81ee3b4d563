"""The numbers of the verdict: which dropout rate is best, as far as the seeds can tell.

Every statement is about one optimizer. Intervals and tests are Student's t over seeds; rates are compared in pairs
over the seeds that both have, because a seed fixes weights and shuffling and so is common to all rates.

Which rate is the best is found in the runs that are then compared, and runs that are good in validation are good in
the test too. Corrected for the comparisons with the best only, the tests would find a difference where there is none in
13 of 100 studies in place of 5 (simulated: ten equal rates, ten seeds). So they are corrected for all pairs of
rates: that holds whichever rate is chosen, and lets one speak of a group of rates.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from dropout_study.results import Result, by_rate, finished

CONFIDENCE = 0.95
QUANTITIES = ("test_accuracy", "test_loss", "accuracy_gap")
RATE_COLUMNS = (
    "optimizer",
    "dropout",
    "runs",
    *(f"{quantity}{what}" for quantity in QUANTITIES for what in ("", "_low", "_high", "_guessing")),
)
TARGET_HALF_WIDTH = 0.01  # of the interval of a difference: one point of accuracy


class Interval(NamedTuple):
    """A mean and its 95 % interval, which one value does not have."""

    mean: float
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """How much better the best rate is than another in test accuracy (a share), paired over `seeds` seeds.

    Below two seeds there is no interval and no p: such a pair is not compared. The interval is this pair's alone;
    `p_holm` is p corrected for all pairs of rates of the optimizer.
    """

    dropout: float
    seeds: int
    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None = None

    @property
    def told_apart(self) -> bool:
        """Whether the two rates differ by more than chance would have it."""
        return self.p_holm is not None and self.p_holm < 1 - CONFIDENCE

    @property
    def half_width(self) -> float:
        """Half the width of the interval, of a pair that is compared."""
        assert self.low is not None
        assert self.high is not None
        return (self.high - self.low) / 2


def interval(values: Sequence[float], least_deviation: float = 0.0) -> Interval:
    """Return the mean of `values` and its 95 % interval, mean ± t(0.975; n - 1) · s / √n.

    The interval is Student's for the mean of a normal population; see for example the NIST/SEMATECH e-Handbook of
    Statistical Methods, 1.3.5.2. s is at least `least_deviation`. Raises `ValueError` without values.
    """
    if not values:
        raise ValueError("an interval of no values")
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = _quantile(len(values)) * max(stdev(values), least_deviation) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def _quantile(count: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))


def difference(dropout: float, best: Mapping[int, float], rest: Mapping[int, float], step: float) -> Difference:
    """Return by how much `best` exceeds `rest`, two mappings from seed to test accuracy, over the seeds of both.

    p is that of the paired t-test. Accuracies come in steps of one test image, `step`; the standard deviation of the
    differences is taken to be at least that, because a few equal ones are no proof that there is no spread.
    """
    pairs = [best[seed] - rest[seed] for seed in best if seed in rest]
    if not pairs:
        return Difference(dropout, 0, None, None, None, None)
    mean_difference = interval(pairs, step)
    if len(pairs) < 2:
        return Difference(dropout, 1, *mean_difference, p=None)
    t = mean_difference.mean / (max(stdev(pairs), step) / math.sqrt(len(pairs)))
    return Difference(dropout, len(pairs), *mean_difference, p=float(2 * stats.t.sf(abs(t), len(pairs) - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number, in the order given.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979):
    the k-th smallest of m is multiplied by m - k + 1, and none may be below a smaller one's; 1 is the most.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.array(p_values, float)[order] * np.arange(len(order), 0, -1)
    result = np.empty(len(order))
    result[order] = np.minimum(np.maximum.accumulate(adjusted), 1)
    return result.tolist()


def seeds_needed(deviation: float, half_width: float) -> int:
    """Return the fewest seeds, at least 2, with which t(0.975; n - 1) · `deviation` / √n is at most `half_width`.

    `deviation` is the standard deviation over seeds; both are in the same unit, and `half_width` is above 0.
    """
    # A lower bound to count up from: the quantiles of t are above those of the normal distribution.
    normal = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    count = max(2, math.floor((normal * deviation / half_width) ** 2))
    while _quantile(count) * deviation / math.sqrt(count) > half_width:
        count += 1
    return count


def rates(results: Iterable[Result], classes: int) -> list[dict[str, Any]]:
    """Return a row for each optimizer and rate with a run that did not diverge: means and intervals.

    The keys are `RATE_COLUMNS`; `guessing` is what a network has that finds each of `classes` classes equally probable.
    """
    guessing = {"test_accuracy": 1 / classes, "test_loss": math.log(classes), "accuracy_gap": 0.0}
    rows = []
    for (optimizer, dropout), group in by_rate(results).items():
        runs = finished(group)
        if not runs:
            continue
        row: dict[str, Any] = {"optimizer": optimizer, "dropout": dropout, "runs": len(runs)}
        for quantity in QUANTITIES:
            mean, low, high = interval([getattr(result, quantity) for result in runs])
            row |= {quantity: mean, f"{quantity}_low": low, f"{quantity}_high": high}
            row[f"{quantity}_guessing"] = guessing[quantity]
        rows.append(row)
    return rows


def verdict(results: Sequence[Result], test_images: int, validation: float | str) -> dict[str, Any]:
    """Return what follows from the results for each optimizer: which rate is best, and the differences to it.

    `test_images` is the number of images that the test accuracies are of, `validation` the setting
    `normalize.validation`: "test" if the best was chosen by the test images.
    """
    optimizers = dict.fromkeys(result.optimizer for result in results)
    return {
        "confidence": CONFIDENCE,
        "test_images": test_images,
        "validated_on": "test images" if validation == "test" else "held-out images",
        "runs": len(results),
        "diverged": {result.variant: result.diverged for result in results if result.diverged is not None},
        "optimizers": {
            optimizer: _judge([result for result in results if result.optimizer == optimizer], test_images)
            for optimizer in optimizers
        },
    }


def _judge(results: Sequence[Result], test_images: int) -> dict[str, Any]:
    """Return the part of the verdict that is about one optimizer."""
    groups = {dropout: group for (_, dropout), group in by_rate(results).items()}
    runs_by_rate = {dropout: finished(group) for dropout, group in groups.items()}
    facts = [
        {
            "dropout": dropout,
            "runs": len(runs),
            "diverged": [result.variant for result in groups[dropout] if result.diverged is not None],
            "standard_error_of_test_set": _test_set_error([run.test_accuracy for run in runs], test_images),
        }
        for dropout, runs in runs_by_rate.items()
    ]
    # A rate at which a run diverged is not the best, however well the others went.
    candidates = [dropout for dropout in groups if len(runs_by_rate[dropout]) == len(groups[dropout])]
    if not candidates:
        return {**_conclusion("none", reason="all diverged"), "best": None, "rates": facts, "comparisons": []}
    best = max(
        candidates,
        key=lambda dropout: (
            fmean(result.validation_accuracy for result in runs_by_rate[dropout]),
            -fmean(result.validation_loss for result in runs_by_rate[dropout]),
        ),
    )
    accuracies = {dropout: {r.seed: r.test_accuracy for r in runs} for dropout, runs in runs_by_rate.items()}
    pairs = compare_all(accuracies, best, 1 / test_images)
    comparisons = [pairs[frozenset({best, dropout})] for dropout in groups if dropout != best]
    return {
        **conclude(best, len(runs_by_rate[best]), pairs),
        "best": best,
        "rates": facts,
        "comparisons": [comparison._asdict() | {"told_apart": comparison.told_apart} for comparison in comparisons],
    }


def _test_set_error(accuracies: Sequence[float], test_images: int) -> float | None:
    """Return the standard error that the choice of the test images leaves in an accuracy; None without runs."""
    if not accuracies:
        return None
    return math.sqrt(fmean(share * (1 - share) for share in accuracies) / test_images)


def compare_all(
    accuracies: Mapping[float, Mapping[int, float]], best: float, step: float
) -> dict[frozenset[float], Difference]:
    """Return the differences of all pairs of rates, those of `best` to the others and of lower to higher ones.

    `accuracies` are test accuracies by rate and seed, in steps of `step`.
    """
    order = sorted(accuracies, key=lambda dropout: (dropout != best, dropout))
    pairs = {
        frozenset({first, second}): difference(second, accuracies[first], accuracies[second], step)
        for first, second in combinations(order, 2)
    }
    p_values = {pair: compared.p for pair, compared in pairs.items() if compared.p is not None}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {pair: compared._replace(p_holm=corrected.get(pair)) for pair, compared in pairs.items()}


def _conclusion(status: str, **facts: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "reason": None,
        "better": [],
        "not_compared": [],
        "not_told_apart": [],
        "one_group": False,
        "half_width": None,
        "half_width_seeds": [],
        "seeds_needed": None,
    }
    return {"status": status} | nothing | facts


def conclude(best: float, seeds: int, pairs: Mapping[frozenset[float], Difference]) -> dict[str, Any]:
    """Return what follows from the differences of all `pairs` of rates if `best`, with `seeds` runs, won in validation.

    `status` is one of these:

    - "best": every rate that can be compared is worse.
    - "tied": `not_told_apart` are the best and the rates that are not told apart from it; `one_group` says whether
      these are not told apart from each other either. `half_width` is half the widest interval of their differences
      (without `one_group`, of those to the best), from the least and most seeds in `half_width_seeds`. `seeds_needed`
      would make it a point of accuracy; None if it is not wider.
    - "contradicted": the rates in `better` did better than `best` on the test images.
    - "none": no statement; the `reason` is "one rate", "one seed" or "no pairs".

    Rates in `not_compared` have too few runs that did not diverge.
    """
    comparisons = [pair for names, pair in pairs.items() if best in names]
    if not comparisons:
        return _conclusion("none", reason="one rate")
    if seeds < 2:
        return _conclusion("none", reason="one seed")
    compared = [pair for pair in comparisons if pair.seeds > 1]
    if not compared:
        return _conclusion("none", reason="no pairs")
    not_compared = [pair.dropout for pair in comparisons if pair.seeds < 2]
    better = [pair.dropout for pair in compared if pair.told_apart and (pair.mean or 0) < 0]
    if better:
        return _conclusion("contradicted", better=better, not_compared=not_compared)
    tied = [pair for pair in compared if not pair.told_apart]
    if not tied:
        return _conclusion("best", not_compared=not_compared)

    group = sorted([best, *(pair.dropout for pair in tied)])
    within = [pairs[frozenset(names)] for names in combinations(group, 2)]
    one_group = not any(pair.told_apart for pair in within)
    counted = [pair for pair in within if pair.seeds > 1] if one_group else tied
    widest = max(counted, key=lambda pair: pair.half_width)
    deviation = widest.half_width * math.sqrt(widest.seeds) / _quantile(widest.seeds)
    too_wide = widest.half_width > TARGET_HALF_WIDTH
    return _conclusion(
        "tied",
        not_compared=not_compared,
        not_told_apart=group,
        one_group=one_group,
        half_width=widest.half_width,
        half_width_seeds=[min(pair.seeds for pair in counted), max(pair.seeds for pair in counted)],
        seeds_needed=seeds_needed(deviation, TARGET_HALF_WIDTH) if too_wide else None,
    )
