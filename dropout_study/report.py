"""The results in words: tables and sentences, from the numbers."""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

from dropout_study.results import QUANTITIES, Result

Row = Mapping[str, Any]

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


def table(verdict: Mapping[str, Any]) -> str:
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


def _cells(verdict: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table of results, a row a rate; a row with runs that diverged has a cell more."""
    rows = []
    for optimizer, judged in verdict["optimizers"].items():
        for accuracy, loss in zip(judged["accuracy"]["rates"], judged["loss"]["rates"], strict=True):
            figures = (
                cell
                for quantity, rate in (("accuracy", accuracy), ("loss", loss))
                for cell in (_mean(rate, quantity), _difference(rate, judged[quantity], quantity))
            )
            total = accuracy["runs"] + accuracy["diverged"]
            note = [f"{accuracy['diverged']} of {total} runs diverged"] if accuracy["diverged"] else []
            rows.append((optimizer, str(accuracy["dropout"]), str(accuracy["runs"]), *figures, *note))
    return rows


def _number(value: float, quantity: str) -> str:
    """Return an accuracy (a share) in percent or points, or a loss in nats, without its unit."""
    return f"{FACTORS[quantity] * value:{FORMS[quantity]}}"


def apart(rate: Row, quantity: str, of: object) -> str:
    """Return `2.1 ± 0.8 points below 0.3`: how far a rate of the verdict is from the leader, which is called `of`."""
    distance = f"{_number(rate['below'], quantity)} ± {_number(rate['margin'], quantity)} {UNITS[quantity]}"
    return f"{distance} {'above' if quantity == 'loss' else 'below'} {of}"


def _mean(rate: Row, quantity: str) -> str:
    """Return the cell with a rate's mean, and its lowest and highest run if there are several."""
    if rate["mean"] is None:
        return "–"
    mean = _number(rate["mean"], quantity) + (" %" if quantity == "accuracy" else "")
    if rate["runs"] < 2:
        return mean
    return f"{mean} ({_number(rate['lowest'], quantity)}–{_number(rate['highest'], quantity)})"


def _difference(rate: Row, judged: Row, quantity: str) -> str:
    """Return the cell that says how far a rate is from the leader, ± the margin, and whether it is worse."""
    name = rate["dropout"]
    if name in judged["not_judged"]:
        return "not judged"
    if name == judged["leader"]:
        return "leader"
    if rate["margin"] is None:
        return "–"
    worse = "worse  " if name in judged["worse"] else ""
    return f"{worse}{_number(rate['below'], quantity)} ± {_number(rate['margin'], quantity)}"


def markdown(verdict: Mapping[str, Any], dataset: str, results: Sequence[Result]) -> str:
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


def paragraph(verdict: Mapping[str, Any]) -> str:
    """Return a verdict as people read it.

    First come the statements, a line an optimizer and one across optimizers; after an empty line the margins, a line an
    optimizer; after another one what "worse" means and what the figures do not cover.
    """
    statements = [f"{optimizer}: {statement(judged)}" for optimizer, judged in verdict["optimizers"].items()]
    if verdict["across_optimizers"]:
        statements.append(f"Across optimizers: {across(verdict['across_optimizers'])}")
    margins = [
        f"{optimizer}: {text}"
        for optimizer, judged in verdict["optimizers"].items()
        if (text := margin_outlook(judged, verdict["test_images"]))
    ]
    return "\n\n".join("\n".join(lines) for lines in (statements, margins, _notes(verdict)) if lines)


def answer(verdict: Mapping[str, Any]) -> str:
    """Return in one sentence which rates may be the best, by optimizer, accuracy and loss."""
    parts = []
    for optimizer, judged in verdict["optimizers"].items():
        every = [rate["dropout"] for rate in judged["accuracy"]["rates"]]
        claims = [
            f"{listed(may, every)} {'has' if len(may) == 1 else 'may have'} {HAS[quantity]}"
            for quantity in QUANTITIES
            if (may := judged[quantity]["may_be_best"])
        ]
        parts.append(f"with {optimizer}, {' and '.join(claims) or 'no rate can be called the best'}")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def statement(judged: Mapping[str, Any]) -> str:
    """Return what the verdict on one optimizer comes to: by accuracy, by loss, and what validation would choose."""
    accuracy = judged["accuracy"]
    sentences = [_conclusion(judged[quantity], quantity) for quantity in QUANTITIES]
    match accuracy["status"]:
        case "none" if accuracy["leader"] is None:
            why = "at every rate a run diverged" if accuracy["not_judged"] else "they were published without scores"
            sentences = [f"The rates are not compared: {why}."]
        case "none":
            sentences = [f"{accuracy['leader']} is the only rate that can be judged: there is nothing to compare."]
        case "one seed":
            first = "With one run a rate, it cannot be said which rate is best: another seed may reverse the order."
            sentences = [first, *sentences]
    if accuracy["not_judged"] and accuracy["leader"] is not None:
        sentences.append(f"Not judged, because runs diverged: {listed(accuracy['not_judged'])}.")
    choice = judged["validation_choice"]
    if accuracy["may_be_best"]:
        chosen = "does not have"
        if choice in accuracy["may_be_best"]:
            chosen = "has" if len(accuracy["may_be_best"]) == 1 else "may have"
        sentences.append(f"Validation would choose {choice}, which {chosen} {HAS['accuracy']}.")
    return " ".join(sentences)


def _conclusion(judged: Mapping[str, Any], quantity: str) -> str:
    """Return what the verdict by one quantity comes to; nothing if there is no statement."""
    every = [rate["dropout"] for rate in judged["rates"] if rate["dropout"] not in judged["not_judged"]]
    has, may = HAS[quantity], judged["may_be_best"]
    match judged["status"]:
        case "best":
            return f"{judged['leader']} has {has}: every other rate is worse."
        case "any":
            counts = seeds(rate["runs"] for rate in judged["rates"] if rate["dropout"] in every)
            return f"Any of {listed(every, every)} may have {has}: no difference is larger than chance with {counts}."
        case "several":
            is_worse = "is" if len(judged["worse"]) == 1 else "are"
            return f"{listed(may, every)} may have {has}; {listed(judged['worse'], every)} {is_worse} worse."
        case "one seed":
            networks = judged["networks_may_be_best"]
            if len(networks) == len(every):
                return f"Any of these {len(every)} networks may have {has} on images like these."
            which = f"that of {networks[0]} has" if len(networks) == 1 else f"those of {listed(networks)} may have"
            return f"Of these {len(every)} networks, {which} {has} on images like these."
    return ""


def across(judged: Mapping[str, Any]) -> str:
    """Return what the verdict on all pairs of optimizer and rate comes to."""
    sentences = []
    for quantity in QUANTITIES:
        by_quantity = judged[quantity]
        may, better, has = by_quantity["may_be_best"], by_quantity["better_optimizer"], HAS[quantity]
        if not may:
            continue
        verb = "has" if len(may) == 1 else "may have"
        rest = f"{better} does better by {quantity}" if better else "no optimizer can be called better"
        every = [rate["dropout"] for rate in by_quantity["rates"]]
        sentences.append(f"{pairs(may, every)} {verb} {has}: {rest}.")
    return " ".join(sentences) or "no statement."


def pairs(names: Sequence[str], every: Sequence[str]) -> str:
    """Return `adadelta at 0.3 to 0.5, sgd at 0.5` for names like `adadelta-0.3`, `every` one in the study's order."""
    chosen, known = (_by_optimizer(some) for some in (names, every))
    return ", ".join(f"{optimizer} at {listed(rates, known[optimizer])}" for optimizer, rates in chosen.items())


def _by_optimizer(names: Sequence[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        optimizer, _, dropout = name.partition("-")
        groups.setdefault(optimizer, []).append(dropout)
    return groups


def margin_outlook(judged: Mapping[str, Any], test_images: int) -> str:
    """Return how large the margins are among the rates that may be the best, and how large with more seeds.

    Empty if there is no statement, or nothing that more seeds could tell apart.
    """
    sentences = []
    for quantity in QUANTITIES:
        by_quantity, unit = judged[quantity], UNITS[quantity]
        among = [rate for rate in by_quantity["rates"] if rate["dropout"] in by_quantity["may_be_best"]]
        margins = [rate["margin"] for rate in among if rate["margin"] is not None]
        if not margins:
            continue
        text = f"by {quantity}, the margin among those that may be the best is about ±{_number(max(margins), quantity)}"
        more = " and ".join(
            f"±{_number(margin, quantity)} with {count} seeds" for count, margin in by_quantity["margin_with"].items()
        )
        remains = _number(by_quantity["margin_of_images"], quantity)
        text += f" {unit}" + (f"; it would be about {more}" if more else "")
        sentences.append(f"{text}; the {test_images:,} test images leave ±{remains} with any number of seeds.")
    return " ".join(text[0].upper() + text[1:] for text in sentences)


def _notes(verdict: Mapping[str, Any]) -> list[str]:
    """Return what "worse" means, and what the figures do and do not cover, a line a subject."""
    lines = []
    judged = [by_optimizer["accuracy"] for by_optimizer in verdict["optimizers"].values()]
    images = f"{verdict['test_images']:,}"
    flattered = "The leader's own figure is a little flattered."
    if any(by_accuracy["may_be_best"] for by_accuracy in judged):
        lines.append(
            "A rate is worse if it is further from the leader than equally good rates would be in 95 of 100 studies. "
            "The margin (±) allows for other seeds, by the spread of all rates still in the running, and for "
            f"{images} other test images. If one rate scatters several times as much as the rest, few seeds mislead "
            f"more often. {flattered}"
        )
    elif any(by_accuracy["status"] == "one seed" for by_accuracy in judged):
        lines.append(f"The margin (±) allows for {images} other test images, and not for other seeds. {flattered}")
    if verdict["validated_on"] == "test images":
        lines.append("The best model was chosen by the test images themselves, which flatters its figures.")
    epochs = verdict.get("test_epochs", 1)  # studies published earlier do not have it
    lines.append(
        "All figures are those of the last epoch."
        if epochs == 1
        else f"Test figures are means over the last {epochs} epochs, all others those of the last epoch."
    )
    if "test_epochs" in verdict:
        chosen = ", which was chosen by the test images," if verdict["validated_on"] == "test images" else ""
        lines.append(f"The test figures at the epoch with the lowest validation loss{chosen} are in study.csv.")
    if verdict["diverged"]:
        diverged = verdict["diverged"]
        lines.append(
            f"Diverged, and left out: {len(diverged)} of {verdict['runs']} runs ({_diverged(verdict, diverged)})."
        )
    if len(verdict["machines"]) > 1:
        lines.append(computed_on(verdict["machines"]))
    return lines


def _diverged(verdict: Mapping[str, Any], variants: Iterable[str]) -> str:
    return ", ".join(f"{variant} in epoch {verdict['diverged'][variant]}" for variant in variants)


def computed_on(machines: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence that names the kinds of machine that the variants were computed on, and where they differ."""
    provenances = [machine["provenance"] for machine in machines]
    names = [
        name
        for name in dict.fromkeys(name for provenance in provenances for name in provenance)
        if any(provenance.get(name) != provenances[0].get(name) for provenance in provenances)
    ]
    kinds = [
        f"{count(machine['variants'], 'variant')} on {_facts(machine['provenance'], names)}" for machine in machines
    ]
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


def other_versions(machines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the packages whose versions, when variants were computed, were not those installed: a text for each."""
    texts = []
    for machine in machines:
        for package, version in machine["provenance"]["versions"].items():
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
