"""The results in words: tables and sentences, from the numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(found: Mapping[str, Any]) -> str:
    """Return the figures of a verdict by optimizer and dropout as people read them.

    Test accuracy and loss are means over the finished runs, ± half a 95 % interval; then by how many points of
    accuracy, in pairs, a rate is below the best one, and the corrected p of that.
    """
    lines = [
        f"{'optimizer':<10}{'dropout':>8}{'runs':>6}  {'test accuracy':>15}  {'test loss':>15}  {'below the best':>14}"
        f"  {'p (Holm)':>8}"
    ]
    for optimizer, judged in found["optimizers"].items():
        comparisons = {one["dropout"]: one for one in judged["comparisons"]}
        for fact in judged["rates"]:
            dropout = fact["dropout"]
            accuracy = _spread(fact["test_accuracy"], 100, ".1f", " %") if fact["runs"] else "–"
            loss = _spread(fact["test_loss"], 1, ".3f", "") if fact["runs"] else "–"
            below, p = ("best", "–") if dropout == judged["best"] else _below_the_best(comparisons.get(dropout))
            diverged = [f"{variant} in epoch {found['diverged'][variant]}" for variant in fact["diverged"]]
            note = f"  diverged: {', '.join(diverged)}" if diverged else ""
            lines.append(
                f"{optimizer:<10}{dropout:>8}{fact['runs']:>6}  {accuracy:>15}  {loss:>15}  {below:>14}  {p:>8}{note}"
            )
    return "\n".join(line.rstrip() for line in lines)


def _below_the_best(comparison: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return a difference to the best rate and its p as the table has them."""
    if comparison is None or comparison["mean"] is None:
        return "–", "–"
    p = comparison["p_holm"]
    return _spread(comparison, 100, ".1f", ""), "–" if p is None else f"{p:.3f}" if p >= 0.001 else "<0.001"


def _spread(found: Mapping[str, Any], factor: float, form: str, unit: str) -> str:
    """Return the mean of an interval ± half its width, if it has one, times `factor`."""
    half = f" ± {factor * (found['high'] - found['mean']):{form}}" if found["high"] is not None else ""
    return f"{factor * found['mean']:{form}}{half}{unit}"


def paragraph(found: Mapping[str, Any]) -> str:
    """Return a verdict as people read it: a sentence an optimizer, and what the figures do and do not cover."""
    lines = [
        f"{optimizer}: {judged['sentence']}.{_about_best(judged)}" for optimizer, judged in found["optimizers"].items()
    ]
    if found["diverged"]:
        named = ", ".join(f"{variant} in epoch {epoch}" for variant, epoch in found["diverged"].items())
        lines.append(f"Diverged, and left out: {len(found['diverged'])} of {found['runs']} runs ({named}).")
    every = list(found["optimizers"].values())
    facts = [fact for judged in every for fact in judged["rates"] if fact["runs"]]
    tests = " and tests (paired t, at 5 %, corrected by Holm for all pairs of rates)"
    tests = tests if any(one["p"] is not None for judged in every for one in judged["comparisons"]) else ""
    covers = ""
    if any(fact["runs"] > 1 for fact in facts):
        covers = f"Intervals (95 %, t, each for itself){tests} cover seeds, not the finite test set: its"
    elif facts:
        covers = "One run a rate allows neither intervals nor tests. The finite test set's"
    if covers:
        error = 100 * max(fact["test_accuracy_standard_error_of_test_set"] for fact in facts)
        covers += (
            f" {found['test_images']:,} images leave a standard error of up to {error:.1f} points in an accuracy. "
        )
    if any(judged["best"] is not None and judged["comparisons"] for judged in every):
        by = "by the test images themselves" if found["validated_on"] == "test images" else "in the same runs"
        covers += f"The best was chosen {by}, which flatters its own figures. "
    if any(len(judged["not_told_apart"]) > 2 for judged in every):
        covers += "How well the difference is known is said of the two rates for which it is known least. "
    if any(judged["seeds_needed"] for judged in every):
        covers += "How many seeds it would take is a rough estimate, from the spread of those there are. "
    lines.append(f"{covers}All figures are those of the last epoch.")
    return "\n".join(lines)


def _about_best(judged: Mapping[str, Any]) -> str:
    """Return the sentence on the best rate of an optimizer, its accuracy, and which rates are worse."""
    if judged["best"] is None:
        return ""
    fact = next(fact for fact in judged["rates"] if fact["dropout"] == judged["best"])
    accuracy = _spread(fact["test_accuracy"], 100, ".1f", " %")
    said = f" Best in validation{among(judged['rates'])}: {judged['best']}, with a test accuracy of {accuracy}"
    worse = [one["dropout"] for one in judged["comparisons"] if one["told_apart"] and one["mean"] > 0]
    return f"{said}; worse: {listed(worse)}." if 0 < len(worse) < len(judged["comparisons"]) else f"{said}."


def among(facts: Sequence[Mapping[str, Any]]) -> str:
    """Return of which rates the best is the best, if not of all."""
    return " among the rates at which no run diverged" if any(fact["diverged"] for fact in facts) else ""


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
    some = [count for count in counts if count]
    least, most = min(some, default=0), max(some, default=0)
    if most < 2:
        return ""
    return f"{most} seeds" if least == most else f"{least} to {most} seeds"
