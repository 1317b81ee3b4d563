"""The tables of docs/results.md, and the sentences that go with them, from published studies."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from dropout_study import calibration, report
from dropout_study.published.claims import ARTICLE_RATE
from dropout_study.published.publication import Published
from dropout_study.results import Result, by_rate, finished
from dropout_study.verdict import QUANTITIES, Quantity, Ranking

SIZE_RATES = (0.0, 0.3, 0.5)
ARTICLE_EPOCHS = 50
FORERUNNER_RATE = 0.2
COLLAPSED_RATES = (0.8, 0.9)
LATE_EPOCHS = 3  # the last ones, in which curves should be flat
LEARNED = 0.98  # training accuracy, with dropout on, from which on a network knows its training images

Row = Sequence[object]


def calibration_rows(study: Published) -> list[Row]:
    """Return for each optimizer and rate: accuracy, confidence, over- or underconfident, and calibration error."""
    rows: list[Row] = []
    for (optimizer, dropout), group in by_rate(finished(study.results)).items():
        whole = calibration.merged(calibration.pooled(study.reliability[run.variant] for run in group))
        error = spread([run.calibration_error for run in group], 100, ".1f")
        way = "over" if whole.confidence > whole.accuracy else "under"
        figures = (f"{100 * whole.accuracy:.1f} %", f"{100 * whole.confidence:.1f} %")
        rows.append((optimizer, dropout, *figures, way, error))
    return rows


def validation(study: Published) -> dict[tuple[str, float], dict[int, list[tuple[float, float]]]]:
    """Return for each optimizer and rate, by epoch: validation accuracy and loss of each run."""
    groups: dict[tuple[str, float], dict[int, list[tuple[float, float]]]] = {}
    for run in study.results:
        epochs = groups.setdefault((run.optimizer, run.dropout), {})
        for row in study.histories.get(run.variant, []):
            if not math.isnan(row["validation_loss"]):
                figures = (row["validation_accuracy"], row["validation_loss"])
                epochs.setdefault(int(row["epoch"]), []).append(figures)
    return groups


def curves(study: Published) -> dict[tuple[str, float], list[tuple[float, float]]]:
    """Return for each optimizer and rate: validation accuracy and loss after each epoch, means over seeds.

    Rates of which no run reached the last epoch are left out.
    """
    return {
        rate: [
            (statistics.fmean(accuracies), statistics.fmean(losses))
            for _, runs in sorted(epochs.items())
            for accuracies, losses in [zip(*runs, strict=True)]
        ]
        for rate, epochs in validation(study).items()
        if study.settings.train.epochs in epochs
    }


def late_rows(study: Published) -> list[Row]:
    """Return for each optimizer and rate: validation accuracy and loss `LATE_EPOCHS` before the end and at it.

    The last column is the lowest validation loss, and the epoch of it.
    """
    rows: list[Row] = []
    for rate, curve in curves(study).items():
        (accuracy, loss), (end_accuracy, end_loss) = curve[-1 - LATE_EPOCHS], curve[-1]
        lowest, epoch = min((loss, epoch) for epoch, (_, loss) in enumerate(curve, 1))
        accuracies = f"{100 * accuracy:.1f} → {100 * end_accuracy:.1f} %"
        rows.append((*rate, accuracies, f"{loss:.3f} → {end_loss:.3f}", f"{lowest:.3f} in epoch {epoch}"))
    return rows


def lowest_losses(study: Published) -> str:
    """Return in a few words which rate has the lowest validation loss of all epochs, by optimizer, means over seeds."""
    lowest: dict[str, tuple[float, float]] = {}
    for (optimizer, dropout), curve in curves(study).items():
        ends = min(loss for _, loss in curve), dropout
        lowest[optimizer] = min(lowest.get(optimizer, ends), ends)
    return report.listed([f"with {optimizer}, {dropout} ({loss:.3f})" for optimizer, (loss, dropout) in lowest.items()])


def still_rising(study: Published) -> str:
    """Return in a sentence where validation accuracy at the article's rate still rose, and faster than at the leader.

    Nothing if it did not: then more epochs are unlikely to help it.
    """
    rises = {rate: 100 * (curve[-1][0] - curve[-1 - LATE_EPOCHS][0]) for rate, curve in curves(study).items()}
    parts = []
    for optimizer, verdicts in study.verdict.optimizers.items():
        here, there = (optimizer, ARTICLE_RATE), (optimizer, verdicts.accuracy.leader)
        if here in rises and there in rises and rises[here] > max(0, rises[there]):
            leader = f"at {there[1]}, which leads: {rises[there]:+.1f}".replace("-", "−")
            parts.append(f"by {rises[here]:.1f} points with {optimizer} ({leader})")
    if not parts:
        return ""
    return (
        f"More epochs might change this: in the last {LATE_EPOCHS} of {study.settings.train.epochs}, validation "
        f"accuracy at {ARTICLE_RATE} still rose {report.listed(parts)}."
    )


def with_more_epochs(longer: Published) -> str:
    """Return in a sentence which rates may be the best in the longer study, which has some of the main one's rates."""
    answer = report.answer(longer.verdict)
    return (
        f"After {longer.settings.train.epochs} epochs ({report.count(longer.results, 'more run')}, at "
        f"{report.listed(longer.settings.study.dropouts)} only): {answer[0].lower()}{answer[1:]}"
    )


def longer_rows(main: Published, longer: Published) -> list[Row]:
    """Return for each optimizer and rate of the longer study: what is measured with fewer epochs, and with more."""
    rows: list[Row] = []
    late = {study.name: {row[:2]: row[2:] for row in late_rows(study)} for study in (main, longer)}
    groups = {study.name: by_rate(study.results) for study in (main, longer)}
    for rate in groups[longer.name]:
        for study in (main, longer):
            group = groups[study.name].get(rate, [])
            accuracies, _, lowest = late[study.name].get(rate, ("–", "–", "–"))
            figures = (measured(group, "train")[0], *measured(group), accuracies, lowest)
            rows.append((*rate, study.settings.train.epochs, *figures))
    return rows


def plateau_rows(study: Published) -> list[Row]:
    """Return for each optimizer and quantity what the verdict says of the forerunner's rate and of the article's."""
    rates = (FORERUNNER_RATE, ARTICLE_RATE)
    return [
        (optimizer, quantity, *(standing(verdicts.by(quantity), quantity, rate) for rate in rates))
        for optimizer, verdicts in study.verdict.optimizers.items()
        for quantity in QUANTITIES
    ]


def standing(ranking: Ranking, quantity: Quantity, dropout: float) -> str:
    """Return in a few words what the verdict says of a rate."""
    if dropout not in ranking.judged or not ranking.may_be_best:
        return "not judged"
    if dropout == ranking.leader:
        return "leads"
    words = "may be the best" if dropout in ranking.may_be_best else "worse"
    return f"{words}: {report.distance_text(ranking.rate(dropout), quantity, ranking.leader)}"


def collapsed_rows(published: Iterable[Published], author: Sequence[Mapping[str, str]]) -> list[Row]:
    """Return what the article's notebook printed at the rates that gave it 10 %, and what is measured there."""
    rows: list[Row] = [
        (
            f"the article's notebook, {row['optimizer']}",
            row["dropout"],
            row["epochs"],
            1,
            f"{100 * float(row['test_accuracy']):.1f} %",
            f"{float(row['test_loss']):.3f}",
            f"{100 * float(row['train_accuracy']):.1f} %",
            f"{float(row['train_loss']):.4f}",
        )
        for row in author
        if float(row["dropout"]) in COLLAPSED_RATES
    ]
    for study in published:
        for (optimizer, dropout), group in by_rate(study.results).items():
            if dropout in COLLAPSED_RATES:
                figures = (runs(group), *measured(group), *measured(group, "train"))
                rows.append((f"`{study.name}`, {optimizer}", dropout, study.settings.train.epochs, *figures))
    return rows


def start_rows(runs: Iterable[Mapping[str, str]]) -> list[Row]:
    """Return how one epoch of the article's training ends, by rate, activation and loss: results/clipped-loss.csv.

    A row has the number of runs, training loss and accuracy, and test accuracy, each with its lowest and highest run.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for run in runs:
        groups.setdefault((run["dropout"], run["first_activation"], run["loss"]), []).append(run)
    rows: list[Row] = []
    for name, group in groups.items():
        loss, accuracy, test = (
            [float(run[column]) for run in group] for column in ("train_loss", "train_accuracy", "validation_accuracy")
        )
        shares = (f"{spread(values, 100, '.1f')} %" for values in (accuracy, test))
        rows.append((*name, len(group), spread(loss, 1, ".2f"), *shares))
    return rows


def amount(study: Published) -> str:
    """Return how many images a study trains on, and how often."""
    return f"{study.settings.images_to_train_on:,} images and {study.settings.train.epochs} epochs"


def size_rows(studies: Iterable[Published]) -> list[Row]:
    """Return for each study, optimizer and rate of `SIZE_RATES`: what is measured.

    Accuracy and loss are followed by their distances to those without dropout.
    """
    rows: list[Row] = []
    for study in studies:
        trained_on = (f"{study.settings.images_to_train_on:,}", study.settings.train.epochs)
        groups = by_rate(study.results)
        for (optimizer, dropout), group in groups.items():
            if dropout in SIZE_RATES:
                accuracy, loss = measured(group)
                without = groups.get((optimizer, 0.0), [])
                figures = (accuracy, change(group, without, "accuracy"), loss, change(group, without, "loss"))
                rows.append((*trained_on, optimizer, dropout, measured(group, "train")[0], *figures))
    return rows


def change(group: Sequence[Result], without: Sequence[Result], quantity: str) -> str:
    """Return how far the mean of a rate is from that without dropout, with its sign; a dash if they are the same."""
    means = [
        statistics.fmean(getattr(run, f"test_{quantity}") for run in alive)
        for alive in (finished(group), finished(without))
        if alive
    ]
    if group == without or len(means) < 2:
        return "–"
    difference = means[0] - means[1]
    value, digits = (100 * difference, 1) if quantity == "accuracy" else (difference, 3)
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # + 0.0: no negative zero


def gain_seen(studies: Sequence[Published], quantity: Quantity) -> str:
    """Return in a sentence whether dropout is seen to better `quantity`: in which studies 0.0 is worse."""
    rankings = {
        f"with {optimizer}, {amount(study)}": verdicts.by(quantity)
        for study in studies
        for optimizer, verdicts in study.verdict.optimizers.items()
    }
    best = report.HAS[quantity]
    worse = [
        f"{name}, where 0.0 is {report.distance_text(ranking.rate(0.0), quantity, ranking.leader)}"
        for name, ranking in rankings.items()
        if 0.0 in ranking.worse
    ]
    if len(worse) == len(rankings):
        return f"By {quantity}, a gain is seen with every amount of data: 0.0 is worse."
    smaller = "though a gain smaller than the margins may be there"
    if not worse:
        return f"By {quantity}, no gain is seen: 0.0 may have {best} with every amount of data, {smaller}."
    return f"By {quantity}, a gain is seen only {'; '.join(worse)}. Elsewhere, 0.0 may have {best}, {smaller}."


def not_learned(studies: Sequence[Published]) -> str:
    """Return in a few words where training accuracy at a rate of `SIZE_RATES` is below `LEARNED` at the end."""
    places = []
    for study in studies:
        means = {
            (optimizer, dropout): statistics.fmean(run.train_accuracy for run in group)
            for (optimizer, dropout), group in by_rate(finished(study.results)).items()
            if dropout in SIZE_RATES
        }
        below = [
            f"{optimizer} at {dropout} ({100 * mean:.1f} %)"
            for (optimizer, dropout), mean in means.items()
            if mean < LEARNED
        ]
        if below:
            places.append(f"{report.listed(below)} with {amount(study)}")
    return "; ".join(places)


def authors_lead(author: Sequence[Mapping[str, str]], main: Published) -> str:
    """Return how far the best rate of the author's table is ahead of the next, and what margin the main study has."""
    first, second = sorted(author, key=lambda row: -float(row["test_accuracy"]))[:2]
    shares = [float(row["test_accuracy"]) for row in (first, second)]
    sentence = (
        f"{first['dropout']} has {100 * shares[0]:.1f} % and {second['dropout']}, the next, {100 * shares[1]:.1f} %: "
        f"{100 * (shares[0] - shares[1]):.1f} points less. Each is one run."
    )
    verdicts = main.verdict.optimizers.get(first["optimizer"])
    rates = verdicts.accuracy.rates if verdicts else ()
    tied = verdicts.accuracy.may_be_best if verdicts else ()
    margins = [rate.margin for rate in rates if rate.dropout in tied and rate.margin]
    if not margins:
        return sentence
    return (
        f"{sentence} In the main study, with fewer images, rates that may be the best have margins of up to "
        f"±{100 * max(margins):.1f} points, with {report.seeds(rate.runs for rate in rates)}."
    )


def article_rows(study: Published, author: Sequence[Mapping[str, str]]) -> list[Row]:
    """Return for each optimizer and rate what is measured, beside what the author's rows have of it.

    The author's figures are those after `ARTICLE_EPOCHS`, and a study of fewer epochs is not compared with them.
    """
    alike = study.settings.train.epochs == ARTICLE_EPOCHS
    printed = {(row["optimizer"], float(row["dropout"])): row for row in author if alike}
    rows: list[Row] = []
    for rate, group in by_rate(study.results).items():
        accuracy, loss = measured(group)
        theirs = printed.get(rate)
        their_accuracy = f"{100 * float(theirs['test_accuracy']):.1f} %" if theirs else "–"
        their_loss = f"{float(theirs['test_loss']):.3f}" if theirs else "–"
        rows.append((*rate, runs(group), their_accuracy, accuracy, their_loss, loss))
    return rows


def measured(group: Sequence[Result], part: str = "test") -> tuple[str, str]:
    """Return accuracy and loss, in `part`, of the runs of a rate that did not diverge."""
    alive = finished(group)
    return spreads(*([getattr(run, f"{part}_{quantity}") for run in alive] for quantity in QUANTITIES))


def spreads(accuracies: Sequence[float], losses: Sequence[float]) -> tuple[str, str]:
    """Return the `spread` of accuracies, in percent, and of losses."""
    accuracy = spread(accuracies, 100, ".1f")
    return f"{accuracy} %" if accuracies else accuracy, spread(losses, 1, ".3f")


def runs(group: Sequence[Result]) -> str:
    """Return the number of runs, and how many of them diverged."""
    diverged = len(group) - len(finished(group))
    return f"{len(group)}, {diverged} diverged" if diverged else str(len(group))


def spread(values: Sequence[float], factor: float, form: str) -> str:
    """Return the mean of `values` and, of several, the lowest and the highest; a dash of none."""
    if not values:
        return "–"
    mean = f"{factor * statistics.fmean(values):{form}}"
    return f"{mean} ({factor * min(values):{form}}–{factor * max(values):{form}})" if len(values) > 1 else mean
