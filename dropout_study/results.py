"""What the study found: a row a variant, the best one, and what it confuses."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dropout_study import files
from dropout_study.errors import StudyError
from dropout_study.settings import Variant

History = Sequence[Mapping[str, float]]  # a row an epoch


class Result(NamedTuple):
    """A row of the study: a variant, its last epoch's figures, and what it makes of the test images.

    Losses are categorical cross-entropies in nats, accuracies shares. `diverged` is the epoch in which the loss
    stopped being finite, or None; the test figures are then those of the last finite weights. `accuracy_gap` is how
    far the training accuracy, which is taken with dropout on, is above the test accuracy: what is left of overfitting.
    """

    variant: str
    optimizer: str
    dropout: float
    seed: int
    epochs: int
    diverged: int | None
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    test_loss: float
    test_accuracy: float
    accuracy_gap: float


def make_result(variant: Variant, history: Sequence[dict[str, str]], test_loss: float, test_accuracy: float) -> Result:
    """Return the row of `variant` from the rows of its history and its figures on the test images."""
    last = history[-1]
    epochs = int(last["epoch"])
    figures: dict[str, Any] = {column: float(value) for column, value in last.items() if column != "epoch"}
    diverged = None if all(map(math.isfinite, [*figures.values(), test_loss])) else epochs
    return Result(
        *variant,
        epochs=epochs,
        diverged=diverged,
        **figures,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        accuracy_gap=figures["train_accuracy"] - test_accuracy,
    )


def read_results(path: Path = files.STUDY) -> list[Result]:
    """Return the rows of the study that `evaluate` wrote; raises `StudyError` if there are none yet."""
    if not path.exists():
        raise StudyError(f"{path}: there are no results yet; `dvc repro` makes them")
    return [
        Result(
            row["variant"],
            row["optimizer"],
            float(row["dropout"]),
            int(row["seed"]),
            int(row["epochs"]),
            int(row["diverged"]) if row["diverged"] else None,
            *(float(row[column]) for column in Result._fields[6:]),
        )
        for row in files.read_csv(path)
    ]


def finished(results: Iterable[Result]) -> list[Result]:
    """Return the results of the runs that did not diverge."""
    return [result for result in results if result.diverged is None]


def choose_best(results: Iterable[Result]) -> Result:
    """Return the result with the highest validation accuracy of the last epoch; of equals, the lowest loss.

    A diverged variant is never the best; raises `StudyError` if there are no others.
    """
    candidates = finished(results)
    if not candidates:
        raise StudyError(
            "every variant of the study diverged, so there is no best model; lower train.learning_rate in params.yaml"
        )
    return max(candidates, key=lambda result: (result.validation_accuracy, -result.validation_loss))


def summary(results: Sequence[Result], best: Result, rates: Iterable[dict[str, Any]]) -> dict[str, object]:
    """Return what `dvc metrics diff` compares: the best variant, test accuracy and loss of each, and means by rate.

    `rates` are rows of `statistics.rates`.
    """
    variants: dict[str, dict[str, float | None]] = {}
    for result in results:
        variants[result.variant] = {
            "accuracy": _rounded(result.test_accuracy),
            "loss": _rounded(result.test_loss),
        }
        if result.diverged is not None:
            variants[result.variant]["diverged"] = result.diverged
    means = {
        f"{row['optimizer']}-{row['dropout']}": {
            "accuracy": _rounded(row["test_accuracy"]),
            "loss": _rounded(row["test_loss"]),
        }
        for row in rates
    }
    return {
        "best": {
            "variant": best.variant,
            **{column: _rounded(getattr(best, column)) for column in Result._fields[8:12]},
        },
        "means": means,
        "variants": variants,
    }


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return how many test images of each class (first) are taken for each class (second), a row a pair."""
    from sklearn.metrics import confusion_matrix  # half a second that only this function needs

    counts = confusion_matrix(labels, predicted, labels=range(len(classes)))
    return [
        (actual, taken_for, int(counts[i, j]))
        for i, actual in enumerate(classes)
        for j, taken_for in enumerate(classes)
    ]


def most_confident_mistakes(labels: np.ndarray, probabilities: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` images that are most confidently taken for a wrong class, worst first.

    `labels` [N] are the classes, `probabilities` [N, classes] what a network gives them; there may be fewer mistakes.
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]


def by_rate(results: Iterable[Result]) -> dict[tuple[str, float], list[Result]]:
    """Return the results by optimizer and dropout rate, rates in ascending order within an optimizer."""
    groups: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        groups.setdefault((result.optimizer, result.dropout), []).append(result)
    order = list(dict.fromkeys(optimizer for optimizer, _ in groups))
    return dict(sorted(groups.items(), key=lambda group: (order.index(group[0][0]), group[0][1])))


def remove_strangers(variants: Iterable[Variant]) -> list[Path]:
    """Remove and return the trained files of variants that are not in the study: DVC leaves them behind.

    Nothing is lost: DVC has them in its cache, and takes them from there when the variant comes back.
    """
    keys = [variant.key for variant in variants]
    expected = {name(key) for key in keys for name in (files.weights_file, files.history_file, files.timing_file)}
    found = [
        *files.VARIANTS.glob("*.weights.h5"),
        *files.HISTORY.glob("*.csv"),
        *files.TIMING.glob("*.json"),
    ]
    strangers = sorted(path for path in found if path not in expected)
    for path in strangers:
        path.unlink()
    return strangers
