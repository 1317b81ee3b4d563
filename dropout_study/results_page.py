"""docs/results.md: what the published studies say about the article's claims. `make results-page` writes it.

results/page.md.jinja has the words; every number and every judgement in it comes from the tables beside it.
"""

import re
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from dropout_study import calibration, files, progress, report
from dropout_study.publication import DIRECTORY, PICTURES, Published, read_published, renew
from dropout_study.results import QUANTITIES, Result, by_rate, finished
from dropout_study.settings import load_settings

PAGE = Path("docs/results.md")
README = Path("README.md")
BEGIN, END = "<!-- results -->", "<!-- /results -->"  # around the headline
TEMPLATE = DIRECTORY / "page.md.jinja"
AUTHOR = DIRECTORY / "article-adadelta.csv"  # what the article's notebook printed
PRESET = Path("presets/cifar10-small.yaml")  # of the main study
LINKS = Path("..") / DIRECTORY  # from the page

# The studies that the page is about; those that are not published yet are missing from it.
MAIN = "cifar10-small"
LONGER = "cifar10-longer"  # the main study at some of its rates, with more epochs
NOTEBOOK = "article-notebook"
ARTICLE = (NOTEBOOK, "article-adadelta", "article-sgd")
PART = re.compile(r"-\d+$")  # of the name of a study with more runs of a preset, from another machine or another day
SIZES = ("cifar10-1000", "cifar10-3000", MAIN, LONGER)  # of the training set, smallest first
SIZE_RATES = (0.0, 0.3, 0.5)
ARTICLE_RATE = 0.5
ARTICLE_EPOCHS = 50
ARTICLE_RUNS = "The article trained once per rate, with 50,000 images, batches of 512 and 50 epochs"
FORERUNNER_RATE = 0.2
COLLAPSED_RATES = (0.8, 0.9)
LATE_EPOCHS = 3  # the last ones, in which curves should be flat
LEARNED = 0.98  # training accuracy, with dropout on, from which on a network knows its training images
UNDECIDED = "not decidable"

# What is in the archives that studies were computed from, by SHA-256.
ARCHIVES = {
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd": "CIFAR-10 as its authors publish it",
    "1c5aab95c1ca78e32ee31fc15c969da3d814bf41155ffb33cc2803d15124bb3e": (
        "a JPEG-recompressed copy of CIFAR-10 (all 60,000 images, official labels and order; mean absolute pixel error "
        "5.8 of 255), not the archive that you download: your figures will differ a little"
    ),
}

Row = Sequence[object]


class Judgement(NamedTuple):
    """What became of a claim: "seen", "not seen" or "not decidable", and why, in a sentence or two."""

    verdict: str
    reason: str


def judge_rate(judged: Mapping[str, Any] | None, quantity: str, dropout: float = ARTICLE_RATE) -> Judgement:
    """Return whether `dropout` is seen to be the best by `quantity`, from the verdict on an optimizer.

    It is seen if every other rate is worse, not seen if it is worse than the leader, and not decidable if it is one of
    several that may be the best, or if there is no verdict on it.
    """
    if judged is None:
        return Judgement(UNDECIDED, "No study with this optimizer is published yet.")
    rows = {row["dropout"]: row for row in judged["rates"]}
    every = [name for name in rows if name not in judged["not_judged"]]
    may, leader = judged["may_be_best"], judged["leader"]
    if dropout not in rows:
        return Judgement(UNDECIDED, f"{dropout} was not trained.")
    if dropout not in every:
        return Judgement(UNDECIDED, f"Runs at {dropout} diverged.")
    if not may:
        return Judgement(UNDECIDED, "One run per rate gives no verdict.")
    if dropout in judged["worse"]:
        return Judgement("not seen", f"{dropout} is {report.apart(rows[dropout], quantity, leader)}.")
    if may == [dropout]:
        closest = min((rows[name] for name in judged["worse"]), key=lambda row: row["below"])
        return Judgement(
            "seen",
            f"Every other rate is worse; the closest, {closest['dropout']}, is "
            f"{report.apart(closest, quantity, dropout)}.",
        )
    second = min((rows[name] for name in may if name != leader), key=lambda row: row["below"])
    distance = report.apart(second if dropout == leader else rows[dropout], quantity, leader)
    reason = f"{report.listed(may, every)} may have {report.HAS[quantity]}: "
    return Judgement(UNDECIDED, f"{reason}{second['dropout'] if dropout == leader else dropout} is {distance}.")


def judge_optimizer(across: Mapping[str, Any] | None, claimed: str) -> Judgement:
    """Return whether the optimizer `claimed` is seen to do better than the others, by test accuracy.

    `across` is the verdict across optimizers. It is seen if all that may have the highest accuracy are of `claimed`,
    not seen if all are of another, and else not decidable. The reason has the loss, too.
    """
    if across is None:
        return Judgement(UNDECIDED, "No study with both optimizers is published yet.")
    reasons = []
    for quantity in report.HAS:
        leader = across[quantity]["leader"]
        if leader is None or not across[quantity]["may_be_best"]:
            return Judgement(UNDECIDED, "One run per rate gives no verdict.")
        optimizer = leader.partition("-")[0]
        others = [
            row
            for row in across[quantity]["rates"]
            if row["margin"] is not None and row["dropout"].partition("-")[0] != optimizer
        ]
        reason = f"By {quantity}, {report.pairs([leader], [leader])} leads"
        if others:
            closest = min(others, key=lambda row: row["below"])
            name = report.pairs([closest["dropout"]], [closest["dropout"]])
            reason += f"; {name}, the best of the other, is {report.apart(closest, quantity, 'it')}"
        reasons.append(f"{reason}.")
    better = across["accuracy"]["better_optimizer"]
    verdict = UNDECIDED if better is None else "seen" if better == claimed else "not seen"
    return Judgement(verdict, " ".join(reasons))


def claims(study: Published | None) -> list[tuple[str, Judgement]]:
    """Return the article's four claims, each with what a study says of it."""
    optimizers = study.verdict["optimizers"] if study else {}

    def rate(optimizer: str, quantity: str) -> Judgement:
        return judge_rate(optimizers.get(optimizer, {}).get(quantity), quantity)

    return [
        ("With SGD, dropout 0.5 has the highest test accuracy.", rate("sgd", "accuracy")),
        ("With SGD, dropout 0.5 has the lowest test loss.", rate("sgd", "loss")),
        ("With Adadelta, dropout 0.5 has the highest test accuracy.", rate("adadelta", "accuracy")),
        (
            "Adadelta does better than SGD.",
            judge_optimizer(study.verdict["across_optimizers"] if study else None, "adadelta"),
        ),
    ]


def claim_rows(study: Published | None) -> list[Row]:
    """Return the article's claims, numbered, with the verdict on each and the reason."""
    return [(i, claim, f"**{verdict}**", reason) for i, (claim, (verdict, reason)) in enumerate(claims(study), 1)]


def context(published: Mapping[str, Published], author: Sequence[Mapping[str, str]], planned: int) -> dict[str, Any]:
    """Return what the template of the page is filled with: the published studies, and tables of them."""
    main, longer = published.get(MAIN), published.get(LONGER)
    sizes = [published[name] for name in SIZES if name in published]
    if len({study.settings.images_to_train_on for study in sizes}) < 2:
        sizes = []  # nothing to compare
    of_article = {
        preset: [study for name, study in published.items() if PART.sub("", name) == preset] for preset in ARTICLE
    }
    return {
        "main": main,
        "planned": planned,
        "longer": longer,
        "claims": claim_rows(main),
        "claims_longer": claim_rows(longer),
        "article_rate": ARTICLE_RATE,
        "article_runs": ARTICLE_RUNS,
        "answer_to_article": answer_to_article(main.verdict) if main else "",
        "best_by_all": best_by_all(main.verdict, main.settings.train.epochs) if main else "",
        "conditions": conditions(main) if main else "",
        "with_more_epochs": with_more_epochs(main, longer) if main else "",
        "still_rising_longer": still_rising(longer) if longer else "",
        "longer_rows": longer_rows(main, longer) if main and longer else [],
        "article_by_loss": article_by_loss(main.verdict) if main else "",
        "authors_lead": authors_lead(author, main) if main else "",
        "late": late_rows(main) if main else [],
        "late_epochs": LATE_EPOCHS,
        "lowest_losses": lowest_losses(main) if main else "",
        "calibration": calibration_rows(main) if main else [],
        "plateau": plateau_rows(main) if main else [],
        "collapsed": collapsed_rows(published.values(), author),
        "sizes": sizes,
        "amount": amount,
        "size_rows": size_rows(sizes),
        "gains_seen": [gain_seen(sizes, quantity) for quantity in QUANTITIES],
        "not_learned": not_learned(sizes),
        "article": {
            preset: article_rows(parts, author if preset == NOTEBOOK else [])
            for preset, parts in of_article.items()
            if parts
        },
        "cut_short": any(
            part.settings.train.epochs < ARTICLE_EPOCHS for parts in of_article.values() for part in parts
        ),
        "studies": published.values(),
        "report": report,
        "facts": facts,
        "picture": lambda study, name: f"{LINKS}/{study.name}/{PICTURES}/{name}.png",
        "links": LINKS,
    }


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
    for row in study.histories:
        if row["part"] == "validation" and row["accuracy"]:
            epochs = groups.setdefault((row["optimizer"], float(row["dropout"])), {})
            epochs.setdefault(int(row["epoch"]), []).append((float(row["accuracy"]), float(row["loss"])))
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
    for optimizer, judged in study.verdict["optimizers"].items():
        here, there = (optimizer, ARTICLE_RATE), (optimizer, judged["accuracy"]["leader"])
        if here in rises and there in rises and rises[here] > max(0, rises[there]):
            leader = f"at {there[1]}, which leads: {rises[there]:+.1f}".replace("-", "−")
            parts.append(f"by {rises[here]:.1f} points with {optimizer} ({leader})")
    if not parts:
        return ""
    return (
        f"More epochs might change this: in the last {LATE_EPOCHS} of {study.settings.train.epochs}, validation "
        f"accuracy at {ARTICLE_RATE} still rose {report.listed(parts)}."
    )


def with_more_epochs(main: Published, longer: Published | None) -> str:
    """Return in a sentence which rates may be the best in the longer study; without one, where more epochs might help.

    `longer` has some of the rates of `main`.
    """
    if longer is None:
        return still_rising(main)
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
    return [
        (optimizer, quantity, *(place(judged[quantity], quantity, rate) for rate in (FORERUNNER_RATE, ARTICLE_RATE)))
        for optimizer, judged in study.verdict["optimizers"].items()
        for quantity in QUANTITIES
    ]


def place(judged: Mapping[str, Any], quantity: str, dropout: float) -> str:
    """Return in a few words what the verdict says of a rate."""
    rows = {row["dropout"]: row for row in judged["rates"]}
    if dropout not in rows or dropout in judged["not_judged"] or not judged["may_be_best"]:
        return "not judged"
    if dropout == judged["leader"]:
        return "leads"
    words = "may be the best" if dropout in judged["may_be_best"] else "worse"
    return f"{words}: {report.apart(rows[dropout], quantity, judged['leader'])}"


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


def gain_seen(studies: Sequence[Published], quantity: str) -> str:
    """Return in a sentence whether dropout is seen to better `quantity`: in which studies 0.0 is worse."""
    judged = [
        (f"with {optimizer}, {amount(study)}", of[quantity])
        for study in studies
        for optimizer, of in study.verdict["optimizers"].items()
    ]
    best = report.HAS[quantity]
    worse = [
        f"{name}, where 0.0 is {report.apart(row, quantity, of['leader'])}"
        for name, of in judged
        for row in of["rates"]
        if row["dropout"] == 0.0 and 0.0 in of["worse"]
    ]
    if len(worse) == len(judged):
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
    judged = main.verdict["optimizers"].get(first["optimizer"], {}).get("accuracy", {"rates": [], "may_be_best": []})
    margins = [row["margin"] for row in judged["rates"] if row["dropout"] in judged["may_be_best"] and row["margin"]]
    if not margins:
        return sentence
    return (
        f"{sentence} In the main study, with fewer images, rates that may be the best have margins of up to "
        f"±{100 * max(margins):.1f} points, with {report.seeds(row['runs'] for row in judged['rates'])}."
    )


def article_rows(parts: Iterable[Published], author: Sequence[Mapping[str, str]]) -> list[Row]:
    """Return for each rate what is measured, beside what the author's rows have of it.

    `parts` are studies that differ in their rates and their number of epochs only, and are validated on the test
    images. A longer one also has a row for the epoch in which a shorter one ended. The author's figures are those after
    `ARTICLE_EPOCHS`.
    """
    parts = list(parts)
    ends = sorted({study.settings.train.epochs for study in parts})
    printed = {float(row["dropout"]): row for row in author}
    rows: list[tuple[int, Row]] = []
    for study in parts:
        last = study.settings.train.epochs
        for (optimizer, dropout), group in by_rate(study.results).items():
            for epoch in ends[: ends.index(last) + 1]:
                accuracy, loss = measured(group) if epoch == last else measured_after(study, optimizer, dropout, epoch)
                theirs = printed.get(dropout) if epoch == ARTICLE_EPOCHS else None
                their_accuracy = f"{100 * float(theirs['test_accuracy']):.1f} %" if theirs else "–"
                their_loss = f"{float(theirs['test_loss']):.3f}" if theirs else "–"
                figures = (their_accuracy, accuracy, their_loss, loss)
                rows.append((epoch, (optimizer, dropout, f"`{study.name}`", runs(group), epoch, *figures)))
    return [row for _, row in sorted(rows, key=lambda pair: (pair[0], str(pair[1][:3])))]


def measured_after(study: Published, optimizer: str, dropout: float, epoch: int) -> tuple[str, str]:
    """Return validation accuracy and loss after an epoch, of the runs of a rate."""
    pairs = validation(study).get((optimizer, dropout), {}).get(epoch, [])
    return spreads([accuracy for accuracy, _ in pairs], [loss for _, loss in pairs])


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


def facts(study: Published) -> list[str]:
    """Return how a study was computed, a line a subject."""
    settings, provenance = study.settings, study.provenance
    alive = {run.variant for run in finished(study.results)}
    diverged = len(study.results) - len(alive)
    trained = {key: speed for key, speed in provenance["trainings"].items() if speed}
    # A run that diverges ends early, and its speed means nothing.
    speeds = [speed["images_per_second"] for key, speed in trained.items() if key in alive]
    lines = [
        f"{report.count(study.results, 'run')}, {diverged or 'none'} diverged; {settings.images_to_train_on:,} "
        f"training images, {settings.train.epochs} epochs, batches of {settings.train.batch_size}",
        *(machine(kind, len(study.results)) for kind in provenance["machines"]),
    ]
    if speeds:
        seconds = sum(speed["seconds"] for speed in trained.values())
        range_of = f", {min(speeds):,.0f} to {max(speeds):,.0f}" if len(speeds) > 1 else ""
        added_up = ", added up" if len(trained) > 1 else ""
        lines.append(
            f"{progress.duration(seconds)} for {report.count(trained, 'training')}{added_up}; images per second: "
            f"median {statistics.median(speeds):,.0f}{range_of}"
        )
    lines.append(f"commit {provenance['commit'][:10]}, published on {provenance['date']}")
    if provenance["archive"]:
        what = ARCHIVES.get(provenance["archive"], "which this project does not know")
        lines.append(f"images: archive with the SHA-256 {provenance['archive']}, {what}")
    return lines


def machine(kind: Mapping[str, Any], runs: int) -> str:
    """Return a kind of machine with its versions, and how many of the `runs` were computed on it if not all."""
    provenance = kind["provenance"]
    device = provenance["processor"] if provenance["device"] == "CPU" else provenance["device"]
    threads = f"{provenance['threads']} thread{'s' * (provenance['threads'] > 1)}"
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    share = f"{len(kind['variants'])} of {runs} runs: " if len(kind["variants"]) < runs else ""
    sets = " ".join(provenance["instruction_sets"])
    return f"{share}{device} with {sets}, {threads}, {provenance['system']}; {versions}"


def page(published: Mapping[str, Published], author: Sequence[Mapping[str, str]], planned: int, template: str) -> str:
    """Return docs/results.md: Markdown, from the published studies by name and the rows of the author's table.

    `planned` is how many runs the main study has when it is complete.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(template).render(context(published, author, planned))
    return re.sub(r"\n{3,}", "\n\n", text.strip()) + "\n"  # a table ends with a newline of its own


def runs_planned() -> int:
    """Return how many runs the main study has when it is complete, by its preset."""
    return len(load_settings(PRESET).variants)


def best_by_all(verdict: Mapping[str, Any], epochs: int) -> str:
    """Return which rates may be the best by accuracy and by loss, with every optimizer; of one, how often it leads.

    `epochs` is how many the verdict is about.
    """
    of_all = [judged[quantity] for judged in verdict["optimizers"].values() for quantity in QUANTITIES]
    every = list(dict.fromkeys(row["dropout"] for judged in of_all for row in judged["rates"]))
    common = [rate for rate in every if all(rate in judged["may_be_best"] for judged in of_all)]
    names = [*verdict["optimizers"]]
    with_all = names[0] if len(names) == 1 else "both optimizers" if len(names) == 2 else "every optimizer"
    by = f"by both accuracy and loss, with {with_all}, after {epochs} epochs"
    if not common:
        return f"**No single rate may be the best {by}.**"
    if len(common) > 1:
        return f"**{report.listed(common, every)} may be the best {by}.**"
    leads = sum(judged["leader"] == common[0] for judged in of_all)
    return (
        f"**{common[0]} is the only rate that may be the best {by}.** It leads in {leads or 'none'} of the "
        f"{len(of_all)} comparisons, and is worse in none."
    )


def images_of(study: Published) -> str:
    """Return in a few words what a study's images are."""
    return ARCHIVES.get(study.provenance["archive"], "an archive that this project does not know").partition(" (")[0]


def conditions(study: Published) -> str:
    """Return under which conditions a study was run, in a sentence."""
    train = study.settings.train
    rates = [f"{getattr(train.learning_rate, name):g} with {name}" for name in study.settings.study.optimizers]
    falling = f", times {train.learning_rate_decay:g} after each epoch" if train.learning_rate_decay < 1 else ""
    return (
        f"{study.settings.images_to_train_on:,} training images of {images_of(study)}, {train.epochs} epochs, batches "
        f"of {train.batch_size}, a learning rate of {report.listed(rates)}{falling}"
    )


def answer_to_article(verdict: Mapping[str, Any]) -> str:
    """Return in a sentence whether the article's rate is seen to have the highest accuracy, by optimizer."""
    judged = {name: judge_rate(of["accuracy"], "accuracy") for name, of in verdict["optimizers"].items()}
    verdicts = {judgement.verdict for judgement in judged.values()}
    word = "Yes" if verdicts == {"seen"} else "No" if verdicts == {"not seen"} else "It depends, or cannot be decided"
    reasons = "; ".join(f"with {name}, {of.reason[0].lower()}{of.reason[1:-1]}" for name, of in judged.items())
    return f"{word}, by accuracy: {reasons}."


def article_by_loss(verdict: Mapping[str, Any]) -> str:
    """Return in a sentence with which optimizers the article's rate may have the lowest loss; nothing if with none."""
    names = [name for name, of in verdict["optimizers"].items() if ARTICLE_RATE in of["loss"]["may_be_best"]]
    return f"By loss, {ARTICLE_RATE} may be the best with {report.listed(names)}." if names else ""


def headline(main: Published, longer: Published | None, planned: int) -> str:
    """Return what the README shows of the main study and of the longer one: the answer and the main table.

    `planned` is how many runs the main study has when it is complete.
    """
    running = f" The study still runs: {len(main.results)} of {planned} runs are in." * (len(main.results) < planned)
    best = best_by_all(main.verdict, main.settings.train.epochs)
    paragraphs = (
        f"{best} Is {ARTICLE_RATE} the best? {answer_to_article(main.verdict)} "
        f"{' '.join(filter(None, (article_by_loss(main.verdict), with_more_epochs(main, longer))))}{running}",
        f"These are {report.count(main.results, 'run')}: {conditions(main)}. {ARTICLE_RUNS}.",
    )
    answer = "\n\n".join(textwrap.fill(paragraph, 120) for paragraph in paragraphs)
    return f"{answer}\n\n```text\n{report.table(main.verdict)}\n```"


def with_headline(readme: str, shown: str) -> str:
    """Return the text of the README with the headline `shown` between its markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{shown}\n{end}{after}"


def main() -> None:
    """Write docs/results.md, the README's headline, and the words and pictures of each published study."""
    published, planned = read_published(), runs_planned()
    for study in published.values():
        renew(study)
    text = page(published, files.read_csv(AUTHOR), planned, TEMPLATE.read_text(encoding="utf-8"))
    files.write_bytes(PAGE, text.encode())
    if MAIN in published:
        shown = headline(published[MAIN], published.get(LONGER), planned)
        readme = with_headline(README.read_text(encoding="utf-8"), shown)
        files.write_bytes(README, readme.encode())
    progress.say(f"written: {PAGE}, the results in {README}, the verdicts and pictures in {DIRECTORY}/")


if __name__ == "__main__":
    main()
