"""The results in words: tables and sentences, from the numbers."""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

from dropout_study.results import Result
from dropout_study.verdict import (
    QUANTITIES,
    AcrossVerdict,
    Machine,
    OptimizerVerdict,
    Quantity,
    Ranking,
    RateVerdict,
    Verdict,
    split_pair,
)

LISTED_RATES = 10  # more are counted, not listed
# Of each quantity: what the leader has, the unit of differences, the factor to it, and the form of a number in it.
HAS = {"accuracy": "the highest accuracy", "loss": "the lowest loss"}
UNITS = {"accuracy": "points", "loss": "nats"}
FACTORS = {"accuracy": 100, "loss": 1}
FORMS = {"accuracy": ".1f", "loss": ".3f"}
HEADER = (
    "optimizer", "dropout", "runs", "accuracy (lowest–highest)", "below the leader", "loss (lowest–highest)",
    "above the leader",
)  # fmt: skip


def studied(dataset: str, results: Sequence[Result]) -> str:
    """Return what was studied, in a line; many rates are counted, not listed."""
    rates = list(dict.fromkeys(result.dropout for result in results))
    facts: dict[str, Iterable[object]] = {
        "Data set": [dataset],
        "Epochs": [max(result.epochs for result in results)],
        "Optimizers": dict.fromkeys(result.optimizer for result in results),
        "Dropout rates": rates if len(rates) <= LISTED_RATES else [f"{len(rates)} from {min(rates)} to {max(rates)}"],
        "Seeds": dict.fromkeys(result.seed for result in results),
    }
    return " ".join(f"{name}: {', '.join(map(str, values))}." for name, values in facts.items())


def table(verdict: Verdict) -> str:
    """Return the results by optimizer and dropout as text: a rate a line, columns as in `HEADER`.

    Means, lowest and highest are of the finished runs, accuracies in percent, losses in nats. Below and above the
    leader are a difference ± its margin; a rate that is further away than the margin is worse.
    """
    rows = [HEADER, *_cells(verdict)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        + "".join(f"  {note}" for note in row[len(HEADER) :])
        for row in rows
    )


def _cells(verdict: Verdict) -> list[tuple[str, ...]]:
    """Return the cells of the table of results, a row a rate; a row with runs that diverged has a cell more."""
    rows = []
    for optimizer, verdicts in verdict.optimizers.items():
        for rate in verdicts.accuracy.rates:
            figures = (cell for quantity in QUANTITIES for cell in _figures(verdicts.by(quantity), rate, quantity))
            total = rate.runs + rate.diverged
            note = [f"{rate.diverged} of {total} runs diverged"] if rate.diverged else []
            rows.append((optimizer, str(rate.dropout), str(rate.runs), *figures, *note))
    return rows


def _figures(ranking: Ranking, of_accuracy: RateVerdict, quantity: Quantity) -> tuple[str, str]:
    """Return the cells of a rate by one quantity: its mean, and its distance to the leader."""
    rate = ranking.rate(of_accuracy.dropout)
    return _mean(rate, quantity), _difference(rate, ranking, quantity)


def _number(value: float | None, quantity: Quantity) -> str:
    """Return an accuracy (a share) in percent or points, or a loss in nats, without its unit; a dash for None."""
    return "–" if value is None else f"{FACTORS[quantity] * value:{FORMS[quantity]}}"


def distance_text(rate: RateVerdict, quantity: Quantity, reference: object) -> str:
    """Return `2.1 ± 0.8 points below 0.3`: how far a rate is from the leader, which is called `reference`."""
    distance = f"{_number(rate.below, quantity)} ± {_number(rate.margin, quantity)} {UNITS[quantity]}"
    return f"{distance} {'above' if quantity == 'loss' else 'below'} {reference}"


def _mean(rate: RateVerdict, quantity: Quantity) -> str:
    """Return the cell with a rate's mean, and its lowest and highest run if there are several."""
    mean = _number(rate.mean, quantity) + (" %" if quantity == "accuracy" and rate.mean is not None else "")
    if rate.runs < 2:
        return mean
    return f"{mean} ({_number(rate.lowest, quantity)}–{_number(rate.highest, quantity)})"


def _difference(rate: RateVerdict, ranking: Ranking, quantity: Quantity) -> str:
    """Return the cell that says how far a rate is from the leader, ± the margin, and whether it is worse."""
    if rate.dropout in ranking.not_judged:
        return "not judged"
    if rate.dropout == ranking.leader:
        return "leader"
    if rate.margin is None:
        return "–"
    worse = "worse  " if rate.dropout in ranking.worse else ""
    return f"{worse}{_number(rate.below, quantity)} ± {_number(rate.margin, quantity)}"


def markdown(verdict: Verdict, dataset: str, results: Sequence[Result]) -> str:
    """Return the verdict as a page that GitHub renders: what was studied, the sentences, the table."""
    head, *rest = paragraph(verdict).split("\n\n")
    rows = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *(_with_notes(row) for row in _cells(verdict))]
    cells = "\n".join(f"| {' | '.join(cell.replace('worse  ', '**worse** ') for cell in row)} |" for row in rows)
    bullets = "\n".join(f"- {line}" for line in head.splitlines())
    notes = "\n\n".join(rest)
    return f"# Which dropout rate is best?\n\n{studied(dataset, results)}\n\n{bullets}\n\n{cells}\n\n{notes}\n"


def _with_notes(row: Sequence[str]) -> tuple[str, ...]:
    """Return a row of the table without a column for notes: the number of runs has them."""
    optimizer, dropout, runs, *figures = row
    notes = figures[len(HEADER) - 3 :]
    return (optimizer, dropout, "; ".join([runs, *notes]), *figures[: len(HEADER) - 3])


def paragraph(verdict: Verdict) -> str:
    """Return a verdict as people read it.

    First come the statements, a line an optimizer and one across optimizers; after an empty line the margins, a line an
    optimizer; after another one what "worse" means and what the figures do not cover.
    """
    statements = [f"{optimizer}: {statement(verdicts)}" for optimizer, verdicts in verdict.optimizers.items()]
    if verdict.across_optimizers:
        statements.append(f"Across optimizers: {across(verdict.across_optimizers)}")
    margins = [
        f"{optimizer}: {text}"
        for optimizer, verdicts in verdict.optimizers.items()
        if (text := margin_outlook(verdicts, verdict.test_images))
    ]
    return "\n\n".join("\n".join(lines) for lines in (statements, margins, _notes(verdict)) if lines)


def answer(verdict: Verdict) -> str:
    """Return in one sentence which rates may be the best, by optimizer, accuracy and loss."""
    parts = []
    for optimizer, verdicts in verdict.optimizers.items():
        every = [rate.dropout for rate in verdicts.accuracy.rates]
        claims = [
            f"{listed(may, every)} {'has' if len(may) == 1 else 'may have'} {HAS[quantity]}"
            for quantity in QUANTITIES
            if (may := verdicts.by(quantity).may_be_best)
        ]
        parts.append(f"with {optimizer}, {' and '.join(claims) or 'no rate can be called the best'}")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def statement(verdicts: OptimizerVerdict) -> str:
    """Return the verdict on one optimizer: by accuracy, by loss, and what validation would choose."""
    accuracy = verdicts.accuracy
    sentences = [_conclusion(verdicts.by(quantity), quantity) for quantity in QUANTITIES]
    match accuracy.status:
        case "none" if accuracy.leader is None:
            why = "at every rate a run diverged" if accuracy.not_judged else "they were published without scores"
            sentences = [f"The rates are not compared: {why}."]
        case "none":
            sentences = [f"{accuracy.leader} is the only rate that can be judged: there is nothing to compare."]
        case "one seed":
            first = "With one run a rate, it cannot be said which rate is best: another seed may reverse the order."
            sentences = [first, *sentences]
    if accuracy.not_judged and accuracy.leader is not None:
        sentences.append(f"Not judged, because runs diverged: {listed(accuracy.not_judged)}.")
    choice = verdicts.validation_choice
    if accuracy.may_be_best:
        chosen = "does not have"
        if choice in accuracy.may_be_best:
            chosen = "has" if len(accuracy.may_be_best) == 1 else "may have"
        sentences.append(f"Validation would choose {choice}, which {chosen} {HAS['accuracy']}.")
    return " ".join(sentences)


def _conclusion(ranking: Ranking, quantity: Quantity) -> str:
    """Return the verdict by one quantity; nothing if there is no statement."""
    every, has, may = ranking.judged, HAS[quantity], ranking.may_be_best
    match ranking.status:
        case "best":
            return f"{ranking.leader} has {has}: every other rate is worse."
        case "any":
            counts = seeds(rate.runs for rate in ranking.rates if rate.dropout in every)
            return f"Any of {listed(every, every)} may have {has}: no difference is larger than chance with {counts}."
        case "several":
            is_worse = "is" if len(ranking.worse) == 1 else "are"
            return f"{listed(may, every)} may have {has}; {listed(ranking.worse, every)} {is_worse} worse."
        case "one seed":
            networks = ranking.networks_may_be_best
            if len(networks) == len(every):
                return f"Any of these {len(every)} networks may have {has} on images like these."
            which = f"that of {networks[0]} has" if len(networks) == 1 else f"those of {listed(networks)} may have"
            return f"Of these {len(every)} networks, {which} {has} on images like these."
    return ""


def across(verdict: AcrossVerdict) -> str:
    """Return the verdict on all pairs of optimizer and rate."""
    sentences = []
    for quantity in QUANTITIES:
        ranking = verdict.by(quantity)
        may, better = ranking.may_be_best, ranking.better_optimizer
        if not may:
            continue
        verb = "has" if len(may) == 1 else "may have"
        rest = f"{better} does better by {quantity}" if better else "no optimizer can be called better"
        every = [rate.dropout for rate in ranking.rates]
        sentences.append(f"{pairs(may, every)} {verb} {HAS[quantity]}: {rest}.")
    return " ".join(sentences) or "no statement."


def pairs(names: Sequence[object], every: Sequence[object]) -> str:
    """Return `adadelta at 0.3 to 0.5, sgd at 0.5` for names like `adadelta-0.3`, `every` one in the study's order."""
    chosen, known = (_by_optimizer(some) for some in (names, every))
    return ", ".join(f"{optimizer} at {listed(rates, known[optimizer])}" for optimizer, rates in chosen.items())


def _by_optimizer(names: Sequence[object]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        optimizer, dropout = split_pair(name)
        groups.setdefault(optimizer, []).append(dropout)
    return groups


def margin_outlook(verdicts: OptimizerVerdict, test_images: int) -> str:
    """Return how large the margins are among the rates that may be the best, and how large with more seeds.

    Empty if there is no statement, or nothing that more seeds could tell apart.
    """
    sentences = []
    for quantity in QUANTITIES:
        ranking, unit = verdicts.by(quantity), UNITS[quantity]
        among = [rate.margin for rate in ranking.rates if rate.dropout in ranking.may_be_best]
        margins = [margin for margin in among if margin is not None]
        if not margins:
            continue
        text = f"by {quantity}, the margin among those that may be the best is about ±{_number(max(margins), quantity)}"
        more = " and ".join(
            f"±{_number(margin, quantity)} with {count} seeds" for count, margin in ranking.margin_with.items()
        )
        remains = _number(ranking.margin_of_images, quantity)
        text += f" {unit}" + (f"; it would be about {more}" if more else "")
        sentences.append(f"{text}; the {test_images:,} test images leave ±{remains} with any number of seeds.")
    return " ".join(text[0].upper() + text[1:] for text in sentences)


def _notes(verdict: Verdict) -> list[str]:
    """Return what "worse" means, and what the figures do and do not cover, a line a subject."""
    lines = []
    by_accuracy = [verdicts.accuracy for verdicts in verdict.optimizers.values()]
    images = f"{verdict.test_images:,}"
    flattered = "The leader's own figure is a little flattered."
    if any(ranking.may_be_best for ranking in by_accuracy):
        lines.append(
            "A rate is worse if it is further from the leader than equally good rates would be in 95 of 100 studies. "
            "The margin (±) allows for other seeds, by the spread of all rates still in the running, and for "
            f"{images} other test images. If one rate scatters several times as much as the rest, few seeds mislead "
            f"more often. {flattered}"
        )
    elif any(ranking.status == "one seed" for ranking in by_accuracy):
        lines.append(f"The margin (±) allows for {images} other test images, and not for other seeds. {flattered}")
    by_test_images = verdict.validated_on == "test images"
    if by_test_images:
        lines.append("The best model was chosen by the test images themselves, which flatters its figures.")
    lines.append(
        "All figures are those of the last epoch."
        if verdict.test_epochs in (1, None)
        else f"Test figures are means over the last {verdict.test_epochs} epochs, all others those of the last epoch."
    )
    if verdict.test_epochs:
        chosen = ", which was chosen by the test images," if by_test_images else ""
        lines.append(f"The test figures at the epoch with the lowest validation loss{chosen} are in study.csv.")
    if verdict.diverged:
        variants = ", ".join(f"{variant} in epoch {epoch}" for variant, epoch in verdict.diverged.items())
        lines.append(f"Diverged, and left out: {len(verdict.diverged)} of {verdict.runs} runs ({variants}).")
    if len(verdict.machines) > 1:
        lines.append(computed_on(verdict.machines))
    return lines


def computed_on(machines: Sequence[Machine]) -> str:
    """Return a sentence that names the kinds of machine that the variants were computed on, and where they differ."""
    provenances = [machine.provenance for machine in machines]
    names = [
        name
        for name in dict.fromkeys(name for provenance in provenances for name in provenance)
        if any(provenance.get(name) != provenances[0].get(name) for provenance in provenances)
    ]
    kinds = [f"{count(machine.variants, 'variant')} on {_facts(machine.provenance, names)}" for machine in machines]
    return (
        f"The variants were not computed alike, in {len(machines)} ways: {'; '.join(kinds)}. Another processor or "
        "number of threads moves results within their spread; other versions or variables may do more."
    )


def count(items: Sized | int, noun: str) -> str:
    """Return how many `items` there are, or that number, with its noun: `1 run`, `2 runs`."""
    number = items if isinstance(items, int) else len(items)
    return f"{number} {noun}{'s' * (number != 1)}"


def _facts(provenance: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return the named facts of a provenance as people read them."""
    texts = []
    for name in names:
        value = provenance.get(name)
        if isinstance(value, dict):
            value = ", ".join(f"{key} {content}" for key, content in value.items()) or "none"
        elif isinstance(value, list):
            value = " ".join(value) or "none"
        texts.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(texts)


def other_versions(machines: Iterable[Machine]) -> list[str]:
    """Return the packages whose versions, when variants were computed, were not those installed: a text for each."""
    texts = []
    for machine in machines:
        for package, version in machine.provenance["versions"].items():
            if package == "python":
                continue
            try:
                installed = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                installed = "none"
            if version != installed:
                texts.append(f"{package} {version} (installed: {installed})")
    return list(dict.fromkeys(texts))


def listed(values: Sequence[object], every: Sequence[object] = ()) -> str:
    """Return `0.3 to 0.6` for three or more values that are neighbours among `every`, else a list of all."""
    if len(values) > 2:
        first = every.index(values[0]) if values[0] in every else 0
        if list(every[first : first + len(values)]) == list(values):
            return f"{values[0]} to {values[-1]}"
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last


def seeds(counts: Iterable[int]) -> str:
    """Return over how many seeds means are, `counts` of runs by rate: "3 seeds", "2 to 3 seeds"; "" of at most one.

    A rate without runs does not count.
    """
    counts = [count for count in counts if count]
    least, most = min(counts, default=0), max(counts, default=0)
    if most < 2:
        return ""
    return f"{most} seeds" if least == most else f"{least} to {most} seeds"
