"""The numbers of the verdict: which dropout rates may be the best, as far as the runs can tell.

The method is a range test in rounds, described for readers in docs/statistics.md. It answers "which rates may be the
best?" from a few runs a rate, each of which predicts the same test images. It allows for two kinds of chance: another
seed, and other test images. It is calibrated by simulation (benchmarks/verdict.py): among equally good rates it calls
one worse in about 5 of 100 studies.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import stats

from dropout_study import files
from dropout_study.results import RELIABILITY_COLUMNS, Result, by_rate, finished, machines, reliability_rows
from dropout_study.settings import Settings
from dropout_study.verdict import (
    QUANTITIES,
    AcrossRanking,
    AcrossVerdict,
    OptimizerVerdict,
    Quantity,
    Ranking,
    RateVerdict,
    Verdict,
    pair_name,
    rounded,
    write_verdict,
)

CONFIDENCE = 0.95
# The shared spread counts as much as this many degrees of freedom of a rate's own. More lets a rate that scatters
# widely be called worse too often, less makes the method as blind as one that looks at each rate alone; simulated.
SHARED_WEIGHT = 4
MANY = 1_000  # from here on degrees of freedom count as infinite
TOLERANCE = 1e-12  # what two equal means may differ by in floating point
TOLERANCE_OF_DF = 1e-6  # what degrees of freedom may be below a whole number by in floating point
NEXT_SEEDS = (5, 10, 20, 50, 100)
SHOWN = ("test_accuracy", "test_loss", "accuracy_gap", "calibration_error")
RATE_COLUMNS = (
    "optimizer",
    "dropout",
    "runs",
    *(f"{quantity}{what}" for quantity in SHOWN for what in ("", "_lowest", "_highest", "_guessing")),
    *(f"{quantity}{what}" for quantity in SHOWN[:2] for what in ("_verdict", "_leader", "_limit")),
)


Name = TypeVar("Name", int, float, str)  # of a rate, or of an optimizer and a rate


@dataclass(frozen=True)
class Rate:
    """What the runs of one dropout rate tell. A score is higher if it is better: 1 for a hit, or the log of p.

    runs: the number of runs.
    images: the number of test images, the same for all rates.
    mean: the mean score.
    lowest, highest: the mean score of the worst and of the best run.
    by_image: the mean score of each image over the runs, float [images].
    variance: the sample variance of a run's mean score over seeds; 0 with one run.
    least: what that variance would be if runs erred independently, image by image: no run can scatter less.
    """

    runs: int
    images: int
    mean: float
    lowest: float
    highest: float
    by_image: np.ndarray
    variance: float
    least: float


class Comparison(NamedTuple):
    """A rate beside the leader: by how much it is below, and how much an equally good rate may be, its `margin`.

    `round` is the last in which it was compared, from 1, `df` the degrees of freedom of the margin. `margin_seeds` and
    `margin_images` are the margin's parts by seeds and by test images; the margin is the root of their squares' sum.
    """

    below: float
    margin: float
    round: int
    df: float
    margin_seeds: float
    margin_images: float

    @property
    def worse(self) -> bool:
        """Whether the rate is further below the leader than the margin."""
        return self.below > self.margin + TOLERANCE


def summarize(scores: np.ndarray) -> Rate:
    """Return what `scores`, [runs, images] and higher is better, tell of a rate. Raises `ValueError` without scores."""
    values = np.asarray(scores, np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"scores of shape {values.shape}: expected [runs, images], at least one of each")
    runs, images = values.shape
    by_run = values.mean(axis=1)
    several = runs > 1
    return Rate(
        runs=runs,
        images=images,
        mean=float(values.mean()),
        lowest=float(by_run.min()),
        highest=float(by_run.max()),
        by_image=values.mean(axis=0),
        variance=float(by_run.var(ddof=1)) if several else 0.0,
        least=float(values.var(axis=0, ddof=1).mean()) / images if several else 0.0,
    )


@lru_cache(None)
def factor(rates: int, df: float) -> float:
    """Return by how many standard errors of a difference the best of `rates` equal means is ahead of the worst.

    In 95 of 100 studies it is no more than that. It is the quantile of Tukey's studentized range divided by √2; with
    two rates that of Student's t. `rates` is at least 2, `df` a whole number or infinity.
    """
    return float(stats.studentized_range.isf(1 - CONFIDENCE, rates, df)) / math.sqrt(2)


def images_variance(a: Rate, b: Rate) -> float:
    """Return the variance of the difference of two means that comes from the choice of the test images.

    What the images differ by includes the runs' independent errors, which are counted among the seeds' part already.
    """
    if a.images < 2:
        return 0.0
    total = float((a.by_image - b.by_image).var(ddof=1)) / a.images
    return max(0.0, total - a.least / a.runs - b.least / b.runs)


def shared_variance(rates: Iterable[Rate]) -> float:
    """Return the variance over seeds pooled over `rates`; 0 if all have one run."""
    weights = [(rate.runs - 1, rate.variance) for rate in rates]
    freedom = sum(weight for weight, _ in weights)
    return sum(weight * variance for weight, variance in weights) / freedom if freedom else 0.0


def difference_margin(
    of_seeds: Sequence[float], weights: Sequence[float], of_images: float, rates: int, freedom: int
) -> tuple[float, float]:
    """Return by how many standard errors the difference of two means may be larger than 0, and the degrees of freedom.

    `of_seeds` are the variances of the two means by seeds, each with as many degrees of freedom as `weights` says;
    `of_images` is the variance of the difference by images, which is known well. `rates` is the number of rates in the
    running, and `freedom` that of their runs less one a rate: more degrees of freedom there are not. The degrees of
    freedom are Satterthwaite's, rounded down.
    """
    total = sum(of_seeds)
    df = math.inf  # one run a rate, or runs without any spread: there are only the images
    if total:
        df = total**2 / sum(variance**2 / weight for variance, weight in zip(of_seeds, weights, strict=True))
        df = min(df, freedom) * ((total + of_images) / total) ** 2
        df = max(1, math.floor(df + TOLERANCE_OF_DF)) if df < MANY else math.inf
    return factor(rates, df), df


def compare(leader: Rate, rate: Rate, contenders: Sequence[Rate], number: int) -> Comparison:
    """Return `rate` beside `leader` in the round `number`, in which `contenders`, these two among them, are judged.

    A rate's own spread and that of all contenders are put together as in the moderated t-statistic (G. K. Smyth,
    "Linear models and empirical Bayes methods …", 2004), but with a fixed weight.
    """
    freedom = sum(contender.runs - 1 for contender in contenders)
    shared = shared_variance(contenders)
    weights = [SHARED_WEIGHT + each.runs - 1 for each in (leader, rate)]
    of_seeds = [
        max((SHARED_WEIGHT * shared + (each.runs - 1) * each.variance) / weight, each.least) / each.runs
        for each, weight in zip((leader, rate), weights, strict=True)
    ]
    of_images = images_variance(leader, rate)
    critical, df = difference_margin(of_seeds, weights, of_images, len(contenders), freedom)
    return Comparison(
        below=leader.mean - rate.mean,
        margin=critical * math.sqrt(sum(of_seeds) + of_images),
        round=number,
        df=df,
        margin_seeds=critical * math.sqrt(sum(of_seeds)),
        margin_images=critical * math.sqrt(of_images),
    )


def judge(rates: Mapping[Name, Rate]) -> tuple[Name, list[Name], dict[Name, Comparison]]:
    """Return the leader, the rates that may be the best (in the order of `rates`), and every other beside the leader.

    The leader has the highest mean; of equals it is the first by name. In each round all that are worse than the leader
    are set aside, with the margin of that round, and the rest is judged again among themselves.
    """
    leader = min(rates, key=lambda name: (-rates[name].mean, name))
    contenders, comparisons, number = list(rates), dict[Name, Comparison](), 0
    while len(contenders) > 1:
        number += 1
        among = [rates[name] for name in contenders]
        for name in contenders:
            if name != leader:
                comparisons[name] = compare(rates[leader], rates[name], among, number)
        left = [name for name in contenders if name == leader or not comparisons[name].worse]
        if left == contenders:
            break
        contenders = left
    return leader, contenders, comparisons


def future_margin(leader: Rate, others: Sequence[Rate], runs: int) -> float:
    """Return about how large the largest margin would be if each rate had `runs` runs.

    `others` are the rates that may be the best beside the `leader`. It is rough: the spread is that of the few runs
    there are.
    """
    contenders = [leader, *others]
    shared, count = shared_variance(contenders), len(contenders)
    margins = []
    for other in others:
        of_seeds = [max(shared, each.least) / runs for each in (leader, other)]
        of_images = images_variance(leader, other)
        critical, _ = difference_margin(of_seeds, [SHARED_WEIGHT + runs - 1] * 2, of_images, count, count * (runs - 1))
        margins.append(critical * math.sqrt(sum(of_seeds) + of_images))
    return max(margins)


def remaining_margin(leader: Rate, others: Sequence[Rate]) -> float:
    """Return what the test images alone leave of the largest margin, with any number of runs."""
    return factor(1 + len(others), math.inf) * math.sqrt(max(images_variance(leader, other) for other in others))


def write_tables(
    directory: Path,
    results: Sequence[Result],
    scores: Mapping[str, Mapping[str, np.ndarray]],
    provenances: Mapping[str, Mapping[str, Any]],
    settings: Settings,
) -> tuple[Verdict, list[dict[str, Any]]]:
    """Judge a study, and write its tables: runs, rates, calibration and the verdict; return the verdict and the rates.

    `scores` are by variant what `results.image_scores` returns, and `provenances` what `train` wrote. Numbers are
    rounded to six significant digits.
    """
    judged = judge_study(results, scores, settings.normalize.validation)
    judged = replace(judged, test_epochs=settings.train.test_epochs, machines=machines(provenances))
    judged = write_verdict(directory / files.VERDICT.name, judged)
    rows = rates(results, judged, settings.classes)
    files.write_csv(directory / files.STUDY.name, Result._fields, rounded(results))
    files.write_csv(directory / files.RATES.name, RATE_COLUMNS, rounded([[*row.values()] for row in rows]))
    reliability = rounded(reliability_rows(results, scores))
    files.write_csv(directory / files.RELIABILITY.name, RELIABILITY_COLUMNS, reliability)
    return judged, rows


def judge_study(
    results: Sequence[Result], scores: Mapping[str, Mapping[str, np.ndarray]], validation: float | str
) -> Verdict:
    """Return which rates may be the best for each optimizer, and which pairs of optimizer and rate among all.

    `scores` are by variant what `results.image_scores` returns; `validation` is the setting `normalize.validation`:
    "test" if models were chosen by the test images.
    """
    groups = by_rate(results)
    optimizers = {}
    for optimizer in dict.fromkeys(result.optimizer for result in results):
        runs = {dropout: group for (name, dropout), group in groups.items() if name == optimizer}
        rankings = {quantity: rank(runs, scores, quantity) for quantity in QUANTITIES}
        optimizers[optimizer] = OptimizerVerdict(_validation_choice(runs), **rankings)
    pairs = {pair_name(optimizer, dropout): group for (optimizer, dropout), group in groups.items()}
    several = len(optimizers) > 1
    return Verdict(
        confidence=CONFIDENCE,
        test_images=len(next(iter(scores.values()))["accuracy"]),
        validated_on="test images" if validation == "test" else "held-out images",
        runs=len(results),
        diverged={result.variant: result.diverged for result in results if result.diverged is not None},
        optimizers=optimizers,
        across_optimizers=AcrossVerdict(**{quantity: _across(pairs, scores, quantity) for quantity in QUANTITIES})
        if several
        else None,
    )


def _validation_choice(runs: Mapping[float, Sequence[Result]]) -> float | None:
    """Return the rate with the highest mean validation accuracy; of equals that with the lowest loss."""
    candidates = {dropout: group for dropout, group in runs.items() if len(finished(group)) == len(group)}
    return max(
        candidates,
        key=lambda dropout: (
            fmean(result.validation_accuracy for result in runs[dropout]),
            -fmean(result.validation_loss for result in runs[dropout]),
        ),
        default=None,
    )


def _across(
    pairs: Mapping[str, Sequence[Result]], scores: Mapping[str, Mapping[str, np.ndarray]], quantity: Quantity
) -> AcrossRanking:
    """Return the verdict on all pairs of optimizer and rate, and the optimizer of all that may be the best."""
    ranking = rank(pairs, scores, quantity)
    optimizers = sorted({pairs[str(name)][0].optimizer for name in ranking.may_be_best})
    better = optimizers[0] if len(optimizers) == 1 and ranking.worse else None
    return AcrossRanking(**vars(ranking), better_optimizer=better)


def rank(
    runs: Mapping[Name, Sequence[Result]], scores: Mapping[str, Mapping[str, np.ndarray]], quantity: Quantity
) -> Ranking:
    """Return the verdict on the rates in `runs`, named as there; a rate of which a run diverged is not judged."""
    alive = {name: finished(group) for name, group in runs.items()}
    rates = {
        name: summarize(np.array([scores[run.variant][quantity] for run in group]))
        for name, group in alive.items()
        if group
    }
    contenders = {name: rate for name, rate in rates.items() if len(alive[name]) == len(runs[name])}
    conclusion, comparisons = _conclusion(contenders) if contenders else ({}, {})
    return Ranking(
        **conclusion,
        not_judged=[name for name in runs if name not in contenders],
        rates=[
            RateVerdict(
                dropout=name,
                runs=len(alive[name]),
                diverged=len(runs[name]) - len(alive[name]),
                **_figures(rates.get(name), quantity),
                **_distance(comparisons.get(name), is_leader=name == conclusion.get("leader")),
            )
            for name in runs
        ],
    )


def _conclusion(contenders: Mapping[Name, Rate]) -> tuple[dict[str, Any], dict[Name, Comparison]]:
    """Return what follows for one or more `contenders`, fields of `Ranking`, and every rate beside the leader."""
    leader, left, comparisons = judge(contenders)
    if len(contenders) == 1:
        return {"leader": leader}, {}
    if all(rate.runs == 1 for rate in contenders.values()):
        return {"status": "one seed", "leader": leader, "networks_may_be_best": left}, comparisons
    worse = [name for name in contenders if name not in left]
    tied: list[Rate] = [contenders[name] for name in left if name != leader]
    conclusion: dict[str, Any] = {
        "status": "best" if not tied else "several" if worse else "any",
        "leader": leader,
        "may_be_best": left,
        "worse": worse,
    }
    if tied:
        first = contenders[leader]
        coming = [count for count in NEXT_SEEDS if count > max(rate.runs for rate in [first, *tied])]
        conclusion["margin_with"] = {str(count): future_margin(first, tied, count) for count in coming[:2]}
        conclusion["margin_of_images"] = remaining_margin(first, tied)
    return conclusion, comparisons


def _figures(rate: Rate | None, quantity: Quantity) -> dict[str, Any]:
    """Return mean, lowest and highest run of a rate as people read them: scores of "loss" are negative losses."""
    if rate is None:
        return {}
    if quantity == "loss":
        return {"mean": -rate.mean, "lowest": -rate.highest, "highest": -rate.lowest}
    return {"mean": rate.mean, "lowest": rate.lowest, "highest": rate.highest}


def _distance(comparison: Comparison | None, *, is_leader: bool) -> dict[str, Any]:
    """Return how far a rate is from the leader, and the margin, as far as that is known."""
    if comparison is None:
        return {"below": 0.0} if is_leader else {}
    return {name: value for name, value in comparison._asdict().items() if name != "df"}


def rates(results: Sequence[Result], verdict: Verdict, classes: int) -> list[dict[str, Any]]:
    """Return a row for each optimizer and rate with a run that did not diverge: what the charts draw.

    The keys are `RATE_COLUMNS`: for each quantity the mean, the lowest and the highest run, and what a network has that
    finds each of `classes` classes equally probable; for accuracy and loss what the `verdict` says of the rate ("may be
    the best", "worse", "not judged", or "" where there is no statement), the leader's mean, and the worst mean with
    which this rate might be the best (None where there is no statement).
    """
    guessing = dict.fromkeys(SHOWN, 0.0) | {"test_accuracy": 1 / classes, "test_loss": math.log(classes)}
    rows = []
    for (optimizer, dropout), group in by_rate(results).items():
        runs = finished(group)
        if not runs:
            continue
        row: dict[str, Any] = {"optimizer": optimizer, "dropout": dropout, "runs": len(runs)}
        for quantity in SHOWN:
            values = [getattr(result, quantity) for result in runs]
            row |= {quantity: fmean(values), f"{quantity}_lowest": min(values), f"{quantity}_highest": max(values)}
            row[f"{quantity}_guessing"] = guessing[quantity]
        for by in QUANTITIES:
            row |= _drawn(verdict.optimizers[optimizer].by(by), dropout, by)
        rows.append(row)
    return rows


def _drawn(ranking: Ranking, dropout: float, quantity: Quantity) -> dict[str, Any]:
    """Return what a chart of `quantity` needs of the verdict on one rate."""
    labels = {"may be the best": ranking.may_be_best, "worse": ranking.worse, "not judged": ranking.not_judged}
    words = next((text for text, names in labels.items() if dropout in names), "")
    leader = limit = None
    if ranking.may_be_best:
        leader = ranking.rate(ranking.leader).mean
        margin = ranking.rate(dropout).margin
        if leader is not None and margin is not None:
            limit = leader + margin if quantity == "loss" else leader - margin
    return {f"test_{quantity}_verdict": words, f"test_{quantity}_leader": leader, f"test_{quantity}_limit": limit}
