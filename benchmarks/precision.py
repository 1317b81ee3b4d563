"""Does bfloat16 give the same answer as float32? Differences of means by dropout rate, with one joint margin.

Prints a table from results/precision.csv, which has a row per run of Adadelta at the settings of `cifar10-small`. To
write that from the table of a published study, and from what has been trained in a clone so far:

    python -m benchmarks.precision float32=results/cifar10-small/study.csv bfloat16=../another-clone
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, variance
from typing import NamedTuple

from scipy import stats

from dropout_study import files
from dropout_study.results import image_scores, read_results

TABLE = Path("results/precision.csv")
OPTIMIZER, RATES, SEEDS = "adadelta", (0.0, 0.3, 0.5), (0, 1, 2)
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


def collect(studies: Mapping[str, Path]) -> list[Run]:
    """Return the runs of each precision to compare, of the table of a study or of a clone in which some are trained."""
    runs = []
    for precision, path in studies.items():
        figures = trained(path) if path.is_dir() else published(path)
        runs += [
            Run(precision, rate, seed, *(float(f"{figure:.6g}") for figure in figures[rate, seed]))
            for rate in RATES
            for seed in SEEDS
            if (rate, seed) in figures
        ]
    return runs


def published(table: Path) -> dict[tuple[float, int], tuple[float, float]]:
    """Return test accuracy and loss by rate and seed."""
    results = [result for result in read_results(table) if result.optimizer == OPTIMIZER]
    return {(result.dropout, result.seed): (result.test_accuracy, result.test_loss) for result in results}


def trained(clone: Path) -> dict[tuple[float, int], tuple[float, float]]:
    """Return test accuracy and loss by rate and seed, of the predictions that are there."""
    labels = files.read_array(clone / files.labels_file(files.NORMALIZED, "test"))
    figures = {}
    for rate, seed in product(RATES, SEEDS):
        path = clone / files.predictions_file(f"{OPTIMIZER}-{rate}-{seed}")
        if path.exists():
            scores = image_scores(files.read_array(path)[:-1], labels)
            figures[rate, seed] = (float(scores["accuracy"].mean()), -float(scores["loss"].mean()))
    return figures


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


def main() -> None:
    """Print the table, of the studies that are named or of those in the committed file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("study", nargs="*", metavar="PRECISION=STUDY.CSV")
    studies = dict(argument.split("=", 1) for argument in parser.parse_args().study)
    if studies:
        files.write_csv(TABLE, Run._fields, collect({name: Path(path) for name, path in studies.items()}))
    runs = read(TABLE)
    print(f"{len(runs)} of {2 * len(RATES) * len(SEEDS)} runs")
    if len(runs) == 2 * len(RATES) * len(SEEDS):
        print(table(differences(runs)))


def read(path: Path) -> list[Run]:
    """Return the runs in a file that `main` wrote."""
    return [
        Run(row["precision"], float(row["dropout"]), int(row["seed"]), float(row["accuracy"]), float(row["loss"]))
        for row in files.read_csv(path)
    ]


if __name__ == "__main__":
    main()
