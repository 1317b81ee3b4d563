"""The verdict: which dropout rate is best, as far as the seeds can tell.

Every statement is about one optimizer. Intervals and tests are Student's t over seeds; rates are compared in pairs
over the seeds that both have, because a seed fixes weights and shuffling and so is common to all rates.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from dropout_study.evaluation import Result, by_rate, finished

CONFIDENCE = 0.95
QUANTITIES = ("test_accuracy", "test_loss", "accuracy_gap")
RATE_COLUMNS = (
    "optimizer",
    "dropout",
    "runs",
    *(f"{quantity}{what}" for quantity in QUANTITIES for what in ("", "_low", "_high", "_guessing")),
)
WANTED = 0.01  # half a width of an interval that would do: one point of accuracy


class Interval(NamedTuple):
    """A mean and its 95 % interval, which one value does not have."""

    mean: float
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """How much better the best rate is than another in test accuracy (a share), paired over `seeds` seeds.

    Below two seeds there is no interval, and p is 1: such a pair is not compared. `p_holm` is p corrected for all
    comparisons of an optimizer.
    """

    dropout: float
    seeds: int
    mean: float | None
    low: float | None
    high: float | None
    p: float
    p_holm: float = 1.0

    @property
    def told_apart(self) -> bool:
        """Whether the two rates differ by more than chance would have it."""
        return self.p_holm < 1 - CONFIDENCE


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


def difference(dropout: float, best: Mapping[int, float], other: Mapping[int, float], step: float) -> Difference:
    """Return by how much `best` exceeds `other`, two mappings from seed to test accuracy, over the seeds of both.

    p is that of the paired t-test. Accuracies come in steps of one test image, `step`; the standard deviation of the
    differences is taken to be at least that, because a few equal ones are no proof that there is no spread.
    """
    pairs = [best[seed] - other[seed] for seed in best if seed in other]
    if not pairs:
        return Difference(dropout, 0, None, None, None, 1.0)
    found = interval(pairs, step)
    if len(pairs) < 2:
        return Difference(dropout, 1, *found, p=1.0)
    t = found.mean / (max(stdev(pairs), step) / math.sqrt(len(pairs)))
    return Difference(dropout, len(pairs), *found, p=float(2 * stats.t.sf(abs(t), len(pairs) - 1)))


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
            found = interval([getattr(result, quantity) for result in runs])
            row |= {quantity: found.mean, f"{quantity}_low": found.low, f"{quantity}_high": found.high}
            row[f"{quantity}_guessing"] = guessing[quantity]
        rows.append(row)
    return rows


def table(results: Sequence[Result]) -> str:
    """Return test accuracy and loss by optimizer and dropout: means over the finished runs, ± half a 95 % interval."""
    lines = [f"{'optimizer':<10}{'dropout':>8}{'runs':>6}  {'test accuracy':>17}  {'test loss':>17}"]
    for (optimizer, dropout), group in by_rate(results).items():
        runs = finished(group)
        accuracy = _spread([100 * result.test_accuracy for result in runs], ".1f", " %")
        loss = _spread([result.test_loss for result in runs], ".3f", "")
        diverged = [f"{r.variant} in epoch {r.diverged}" for r in group if r.diverged is not None]
        note = f"  diverged: {', '.join(diverged)}" if diverged else ""
        lines.append(f"{optimizer:<10}{dropout:>8}{len(runs):>6}  {accuracy:>17}  {loss:>17}{note}")
    return "\n".join(lines)


def _spread(values: Sequence[float], form: str, unit: str) -> str:
    if not values:
        return "–"
    found = interval(values)
    half = f" ± {found.high - found.mean:{form}}" if found.high is not None else ""
    return f"{found.mean:{form}}{half}{unit}"


def verdict(results: Sequence[Result], test_images: int) -> dict[str, Any]:
    """Return what `metrics/verdict.json` holds: for each optimizer its rates, comparisons and the sentence."""
    optimizers = dict.fromkeys(result.optimizer for result in results)
    found: dict[str, Any] = {
        "confidence": CONFIDENCE,
        "test_images": test_images,
        "runs": len(results),
        "diverged": {result.variant: result.diverged for result in results if result.diverged is not None},
        "optimizers": {
            optimizer: _judge([result for result in results if result.optimizer == optimizer], test_images)
            for optimizer in optimizers
        },
    }
    return _rounded(found)


def _rounded(value: Any) -> Any:
    """Return `value` with every float in it rounded to six significant digits."""
    match value:
        case dict():
            return {key: _rounded(one) for key, one in value.items()}
        case list():
            return [_rounded(one) for one in value]
        case float():
            return float(f"{value:.6g}")
        case _:
            return value


def _judge(results: Sequence[Result], test_images: int) -> dict[str, Any]:
    """Return the part of the verdict that is about one optimizer."""
    groups = {dropout: group for (_, dropout), group in by_rate(results).items()}
    runs_by_rate = {dropout: finished(group) for dropout, group in groups.items()}
    facts = []
    for dropout, runs in runs_by_rate.items():
        diverged = [result.variant for result in groups[dropout] if result.diverged is not None]
        fact: dict[str, Any] = {"dropout": dropout, "runs": len(runs), "diverged": diverged}
        if runs:
            shares = [result.test_accuracy for result in runs]
            fact["validation_accuracy"] = fmean(result.validation_accuracy for result in runs)
            fact["test_accuracy"] = interval(shares)._asdict()
            fact["test_accuracy_standard_error_of_test_set"] = math.sqrt(
                fmean(share * (1 - share) for share in shares) / test_images
            )
            fact["test_loss"] = interval([result.test_loss for result in runs])._asdict()
        facts.append(fact)

    # A rate at which a run diverged is not the best, however well the others went.
    candidates = [dropout for dropout in groups if len(runs_by_rate[dropout]) == len(groups[dropout])]
    if not candidates:
        return {"sentence": "no statement: at every rate a run diverged", "best": None, "rates": facts}
    best = max(
        candidates,
        key=lambda dropout: (
            fmean(result.validation_accuracy for result in runs_by_rate[dropout]),
            -fmean(result.validation_loss for result in runs_by_rate[dropout]),
        ),
    )
    accuracies = {dropout: {r.seed: r.test_accuracy for r in runs} for dropout, runs in runs_by_rate.items()}
    comparisons = [
        difference(dropout, accuracies[best], accuracies[dropout], 1 / test_images)
        for dropout in groups
        if dropout != best
    ]
    corrected = iter(holm([one.p for one in comparisons if one.seeds > 1]))
    comparisons = [one._replace(p_holm=next(corrected)) if one.seeds > 1 else one for one in comparisons]
    return {
        "sentence": sentence(best, len(runs_by_rate[best]), comparisons),
        "best": best,
        "rates": facts,
        "comparisons": [one._asdict() | {"told_apart": one.told_apart} for one in comparisons],
    }


def sentence(best: float, seeds: int, comparisons: Sequence[Difference]) -> str:
    """Return what follows from the comparisons of the rate `best`, chosen by validation, with all the others."""
    if not comparisons:
        return f"no statement: {best} is the only rate"
    if seeds < 2:
        return "one seed: no statement"
    compared = [one for one in comparisons if one.seeds > 1]
    if not compared:
        return f"no statement: {best} is the only rate with two runs that did not diverge"
    others = [one.dropout for one in comparisons if one.seeds < 2]
    but = f" (not compared, as too many of its runs diverged: {_listed(others)})" if others else ""
    better = [one.dropout for one in compared if one.told_apart and (one.mean or 0) < 0]
    if better:
        on_test = f"{_listed(better)} did better on the test images"
        return f"no rate is best: {best} is on the validation images, but {on_test}{but}"
    tied = [one for one in compared if not one.told_apart]
    if not tied:
        return f"{best} is best{but}"
    every = sorted([best, *(one.dropout for one in comparisons)])
    widest = max(tied, key=_half_width)
    half = _half_width(widest)
    text = (
        f"{_listed(sorted([best, *(one.dropout for one in tied)]), every)} cannot be told apart with {widest.seeds} "
        f"seeds; the difference is known to ±{100 * half:.1f} points"
    )
    if half > WANTED:
        deviation = half * math.sqrt(widest.seeds) / _quantile(widest.seeds)
        text += f", ±{100 * WANTED:g} would take about {seeds_needed(deviation, WANTED)} seeds"
    return text + but


def _half_width(one: Difference) -> float:
    assert one.low is not None
    assert one.high is not None
    return (one.high - one.low) / 2


def _listed(values: Sequence[float], every: Sequence[float] = ()) -> str:
    """Return `0.3 to 0.6` for three or more values that are neighbours among `every`, else a list of all."""
    if len(values) > 2:
        first = every.index(values[0]) if values[0] in every else 0
        if list(every[first : first + len(values)]) == list(values):
            return f"{values[0]} to {values[-1]}"
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last


def paragraph(found: Mapping[str, Any]) -> str:
    """Return a verdict as people read it: a sentence an optimizer, and what the figures do and do not cover."""
    lines = []
    errors = []
    for optimizer, judged in found["optimizers"].items():
        line = f"{optimizer}: {judged['sentence']}."
        if judged["best"] is not None:
            fact = next(fact for fact in judged["rates"] if fact["dropout"] == judged["best"])
            low, high = fact["test_accuracy"]["low"], fact["test_accuracy"]["high"]
            spread = f" ± {100 * (high - low) / 2:.1f}" if low is not None else ""
            line += (
                f" Best in validation: {judged['best']}, with a test accuracy of "
                f"{100 * fact['test_accuracy']['mean']:.1f}{spread} %"
            )
            worse = [one["dropout"] for one in judged["comparisons"] if one["told_apart"] and one["mean"] > 0]
            line += f"; worse: {_listed(worse)}." if 0 < len(worse) < len(judged["comparisons"]) else "."
            errors.append(fact["test_accuracy_standard_error_of_test_set"])
        lines.append(line)
    if found["diverged"]:
        named = ", ".join(f"{variant} in epoch {epoch}" for variant, epoch in found["diverged"].items())
        lines.append(f"{len(found['diverged'])} of {found['runs']} runs diverged and are left out: {named}.")
    covers = f"Intervals (95 %, t) and tests (paired t, Holm, at {100 * (1 - found['confidence']):.0f} %) cover seeds"
    if errors:
        covers += (
            f", not the finite test set: its {found['test_images']:,} images leave a standard error of "
            f"{100 * max(errors):.1f} points in each accuracy"
        )
    lines.append(f"{covers}. All figures are those of the last epoch.")
    return "\n".join(lines)
