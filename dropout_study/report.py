"""The results in words: tables and sentences, from the numbers."""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def table(verdict: Mapping[str, Any], rates: Iterable[Row]) -> str:
    """Return the results by optimizer and dropout as people read them.

    Test accuracy and loss are means over the finished runs, ± half a 95 % interval, from `rates`, the rows of
    `statistics.rates`; then by how many points of accuracy, in pairs, a rate is below the best one, with the corrected
    p of that.
    """
    means = {(row["optimizer"], row["dropout"]): row for row in rates}
    lines = [
        f"{'optimizer':<10}{'dropout':>8}{'runs':>6}  {'test accuracy':>15}  {'test loss':>15}  {'below the best':>14}"
        f"  {'p (Holm)':>8}"
    ]
    for optimizer, judged in verdict["optimizers"].items():
        comparisons = {comparison["dropout"]: comparison for comparison in judged["comparisons"]}
        for rate in judged["rates"]:
            dropout, mean = rate["dropout"], means.get((optimizer, rate["dropout"]))
            accuracy = _column(mean, "test_accuracy", 100, ".1f", " %") if mean else "–"
            loss = _column(mean, "test_loss", 1, ".3f", "") if mean else "–"
            below, p = ("best", "–") if dropout == judged["best"] else _below_the_best(comparisons.get(dropout))
            note = f"  diverged: {_diverged(verdict, rate['diverged'])}" if rate["diverged"] else ""
            lines.append(
                f"{optimizer:<10}{dropout:>8}{rate['runs']:>6}  {accuracy:>15}  {loss:>15}  {below:>14}  {p:>8}{note}"
            )
    return "\n".join(line.rstrip() for line in lines)


def _diverged(verdict: Mapping[str, Any], variants: Iterable[str]) -> str:
    return ", ".join(f"{variant} in epoch {verdict['diverged'][variant]}" for variant in variants)


def _below_the_best(comparison: Row | None) -> tuple[str, str]:
    """Return a difference to the best rate and its p as the table has them."""
    if comparison is None or comparison["mean"] is None:
        return "–", "–"
    p = comparison["p_holm"]
    below = _spread(comparison["mean"], comparison["high"], 100, ".1f", "")
    return below, "–" if p is None else f"{p:.3f}" if p >= 0.001 else "<0.001"


def _column(row: Row, quantity: str, factor: float, form: str, unit: str) -> str:
    return _spread(row[quantity], row[f"{quantity}_high"], factor, form, unit)


def _spread(mean: float, high: float | None, factor: float, form: str, unit: str) -> str:
    """Return a mean ± half the width of its interval, if it has one, times `factor`."""
    half = f" ± {factor * (high - mean):{form}}" if high is not None else ""
    return f"{factor * mean:{form}}{half}{unit}"


def paragraph(verdict: Mapping[str, Any], rates: Iterable[Row]) -> str:
    """Return a verdict as people read it: a sentence for each optimizer, then what the figures do and do not cover."""
    means = {(row["optimizer"], row["dropout"]): row for row in rates}
    lines = [
        f"{optimizer}: {sentence(judged)}.{_about_best(judged, means.get((optimizer, judged['best'])))}"
        for optimizer, judged in verdict["optimizers"].items()
    ]
    if verdict["diverged"]:
        diverged = verdict["diverged"]
        lines.append(
            f"Diverged, and left out: {len(diverged)} of {verdict['runs']} runs ({_diverged(verdict, diverged)})."
        )
    lines.append(" ".join([*_caveats(verdict), "All figures are those of the last epoch."]))
    if len(verdict["machines"]) > 1:
        lines.append(computed_on(verdict["machines"]))
    return "\n".join(lines)


def sentence(judged: Mapping[str, Any]) -> str:
    """Return what the verdict on one optimizer comes to."""
    best, scope = judged["best"], _scope(judged)
    not_compared = (
        f" (not compared, because too many runs diverged: {listed(judged['not_compared'])})"
        if judged["not_compared"]
        else ""
    )
    match judged["status"], judged["reason"]:
        case "none", "all diverged":
            return "no statement: at every rate a run diverged"
        case "none", "one rate":
            return f"no statement: {best} is the only rate"
        case "none", "one seed":
            return "one seed: no statement"
        case "none", _:
            return f"no statement: {best} is the only rate with two runs that did not diverge"
        case "contradicted", _:
            return (
                f"no rate is best: {best} did best in validation{scope}, "
                f"but {listed(judged['better'])} did better on the test images{not_compared}"
            )
        case "best", _:
            return f"{best} is best{not_compared}"
    group = judged["not_told_apart"]
    if judged["one_group"]:
        text = f"{listed(group, [rate['dropout'] for rate in judged['rates']])} cannot be told apart"
    else:
        text = f"{best} cannot be told apart from {listed([rate for rate in group if rate != best])}"
    text += f" with {seeds(judged['half_width_seeds'])}; the margin is ±{100 * judged['half_width']:.1f} points"
    if judged["seeds_needed"]:
        text += f", and ±1 would take about {judged['seeds_needed']} seeds"
    return f"{text}{not_compared}"


def _about_best(judged: Mapping[str, Any], mean: Row | None) -> str:
    """Return the sentence on the best rate of an optimizer, its accuracy, and which rates are worse."""
    if mean is None:
        return ""
    accuracy = _column(mean, "test_accuracy", 100, ".1f", " %")
    text = f" Best in validation{_scope(judged)}: {judged['best']}, with a test accuracy of {accuracy}"
    worse = [pair["dropout"] for pair in judged["comparisons"] if pair["told_apart"] and pair["mean"] > 0]
    return f"{text}; worse: {listed(worse)}." if 0 < len(worse) < len(judged["comparisons"]) else f"{text}."


def _scope(judged: Mapping[str, Any]) -> str:
    """Return of which rates the best is the best, if not of all."""
    diverged = any(rate["diverged"] for rate in judged["rates"])
    return " among the rates at which no run diverged" if diverged else ""


def _caveats(verdict: Mapping[str, Any]) -> list[str]:
    """Return what the figures cover and what they do not, a sentence each."""
    optimizers = list(verdict["optimizers"].values())
    rates = [rate for judged in optimizers for rate in judged["rates"] if rate["runs"]]
    if not rates:
        return []
    error = 100 * max(rate["standard_error_of_test_set"] for rate in rates)
    standard_error = f"{verdict['test_images']:,} test images adds a standard error of up to {error:.1f} points."
    if any(rate["runs"] > 1 for rate in rates):
        tested = any(pair["p"] is not None for judged in optimizers for pair in judged["comparisons"])
        caveats = [
            "The 95 % t-intervals are not adjusted for multiple comparisons"
            + ("; p is, by Holm's method for all pairs of rates." if tested else "."),
            f"They reflect variation between seeds only; sampling {standard_error}",
        ]
    else:
        caveats = [f"One run a rate allows neither intervals nor tests; sampling {standard_error}"]
    if any(judged["best"] is not None and judged["comparisons"] for judged in optimizers):
        by = "by the test images themselves" if verdict["validated_on"] == "test images" else "in the same runs"
        caveats.append(f"The best was chosen {by}, which flatters its own figures.")
    if any(len(judged["not_told_apart"]) > 2 for judged in optimizers):
        caveats.append("The margin quoted is that of the least certain pair of rates.")
    if any(judged["seeds_needed"] for judged in optimizers):
        caveats.append("How many seeds it would take is a rough estimate.")
    return caveats


def computed_on(machines: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence that names the kinds of machine that the variants were computed on, and where they differ."""
    first = machines[0]["provenance"]
    names = [name for name in first if any(machine["provenance"].get(name) != first[name] for machine in machines)]
    kinds = [
        f"{_count(machine['variants'], 'variant')} on {_facts(machine['provenance'], names)}" for machine in machines
    ]
    return (
        f"The variants were computed on {len(machines)} kinds of machine, which moves results within their spread: "
        f"{'; '.join(kinds)}."
    )


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}{'s' * (len(items) != 1)}"


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


def listed(values: Sequence[float], every: Sequence[float] = ()) -> str:
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
