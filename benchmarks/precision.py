"""Does bfloat16 give the same answer as float32? Differences of means by dropout rate, with one joint margin.

Prints a table from results/precision.csv, which has a row per run of Adadelta at the settings of `cifar10-small`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import NamedTuple

from scipy import stats

from dropout_study import files

TABLE = Path("results/precision.csv")
RATES = (0.0, 0.3, 0.5)
CONFIDENCE = 0.95  # that all margins hold at once


class Run(NamedTuple):
    """The test figures of a run: accuracy a share, loss in nats."""

    precision: str
    dropout: float
    seed: int
    accuracy: float
    loss: float


class Difference(NamedTuple):
    """A difference of means, bfloat16 less float32, and its margin."""

    dropout: float
    quantity: str
    float32: float
    bfloat16: float
    margin: float


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Return the difference of means for each rate and quantity.

    The spread over seeds differs by rate, and is shared by the two precisions of a rate only; by Bonferroni's
    inequality, all margins hold at once with `CONFIDENCE`.
    """
    compared = []
    for quantity in ("accuracy", "loss"):
        for rate in RATES:
            exact, half = (
                [getattr(run, quantity) for run in runs if run[:2] == (precision, rate)]
                for precision in ("float32", "bfloat16")
            )
            freedom = len(exact) + len(half) - 2
            shared = sum((len(values) - 1) * variance(values) for values in (exact, half)) / freedom
            quantile = stats.t.isf((1 - CONFIDENCE) / 2 / (2 * len(RATES)), freedom)
            margin = float(quantile * (shared * (1 / len(exact) + 1 / len(half))) ** 0.5)
            compared.append(Difference(rate, quantity, fmean(exact), fmean(half), margin))
    return compared


def table(compared: Iterable[Difference]) -> str:
    """Return the differences as a table in Markdown: accuracies in percent and points, losses in nats."""
    rows = ["| dropout | | float32 | bfloat16 | difference ± margin |", "| ---: | --- | ---: | ---: | ---: |"]
    for row in compared:
        factor, form, unit = (100, ".1f", " %") if row.quantity == "accuracy" else (1, ".3f", "")
        exact, half, margin = (factor * value for value in (row.float32, row.bfloat16, row.margin))
        outside = " **outside**" if abs(half - exact) > margin else ""
        rows.append(
            f"| {row.dropout} | test {row.quantity} | {exact:{form}}{unit} | {half:{form}}{unit} "
            f"| {half - exact:+z{form}} ± {margin:{form}}{outside} |"
        )
    return "\n".join(rows)


def read(path: Path) -> list[Run]:
    """Return the runs in a table."""
    return [
        Run(row["precision"], float(row["dropout"]), int(row["seed"]), float(row["accuracy"]), float(row["loss"]))
        for row in files.read_csv(path)
    ]


def main() -> None:
    """Print the table of the committed runs."""
    print(table(differences(read(TABLE))))


if __name__ == "__main__":
    main()
