"""What the trained variants amount to: a row for each, the best one, what it confuses, where they were computed."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dropout_study import calibration, files
from dropout_study.architecture import best_epoch
from dropout_study.console import StudyError
from dropout_study.settings import KEY, Variant
from dropout_study.verdict import Machine, pair_name

RELIABILITY_COLUMNS = ("variant", "optimizer", "dropout", "seed", *calibration.Bin._fields)
BEST_FIGURES = ("variant", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
CONFUSION_COLUMNS = ("variant", "actual", "predicted", "images")
VARIANT_FILES = (".keras", ".csv", ".npy", ".json")  # the suffixes of what `train` writes

History = Sequence[Mapping[str, float]]  # a row an epoch


class Result(NamedTuple):
    """A row of the study: a variant, the figures of its last epoch, and those of its predictions of the test images.

    Losses are categorical cross-entropies in nats, accuracies shares. Test figures are means over the last
    `train.test_epochs` epochs. `diverged` is the epoch in which the training diverged, or None; the test figures are
    then those of the last finite epochs, NaN if even these give the test images no finite probabilities.
    `accuracy_gap` is how far the training accuracy, which is taken with dropout on, is above the test accuracy: what is
    left of overfitting. `calibration_error` is the expected calibration error of the test predictions, a share.

    `best_epoch` is the epoch with the lowest validation loss (0 if there is none), where early stopping would stop;
    the figures that follow it are those of its test predictions, or of the untrained network if there is none.
    `scaled_test_loss` is the test loss at the best temperature, see `calibration.scaled_log_probabilities`. Studies
    published earlier do not have these: NaN.
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
    calibration_error: float
    best_epoch: int = 0
    best_test_loss: float = math.nan
    best_test_accuracy: float = math.nan
    best_calibration_error: float = math.nan
    scaled_test_loss: float = math.nan
    best_scaled_test_loss: float = math.nan


def read_history(path: Path) -> History:
    """Return the rows of a history that `train` wrote, an epoch each, exactly."""
    return [{column: float(value) for column, value in row.items()} for row in files.read_csv(path)]


def divergence_epoch(history: History) -> int | None:
    """Return the epoch in which a training diverged, or None: `train` ends such a history with a loss of NaN."""
    last = history[-1]
    return int(last["epoch"]) if math.isnan(last["validation_loss"]) else None


def read_predictions(key: str, images: int, classes: int) -> np.ndarray:
    """Return the log-probabilities that a variant gives the test images, float32 [epochs + 1, images, classes].

    They are those after each of its last epochs, and then those of the epoch with the lowest validation loss. Raises
    `StudyError` if the file is missing or damaged, or has another shape.
    """
    path = files.predictions_file(key)
    predictions = files.read_array(path, (None, images, classes))
    if len(predictions) < 2:
        needed = f"(at least 2, {images}, {classes})"
        raise StudyError(f"{path}: has shape {predictions.shape}, needed is {needed}; {files.WAY_OUT}")
    return predictions


def image_scores(log_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return how good the predictions of each image are, and how confident: means over epochs, float64 [N].

    "accuracy" is how often the image's class is the most probable one, "loss" the log of its probability, which is
    minus the loss in nats: of these two, higher is better. "confidence" is the probability of the most probable class,
    and "scaled_loss" is as "loss", at the best temperature. `log_probabilities` are float32 [epochs, N, classes],
    `labels` integers [N].
    """
    values = log_probabilities.astype(np.float64)
    by_epoch = {
        "accuracy": values.argmax(axis=2) == labels,
        "loss": values[:, np.arange(len(labels)), labels],
        "confidence": np.exp(values.max(axis=2)),
        "scaled_loss": calibration.scaled_log_probabilities(values, labels),
    }
    return {name: scores.mean(axis=0) for name, scores in by_epoch.items()}


def variant_scores(key: str, labels: np.ndarray, classes: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the `image_scores` of a variant's last epochs, and those of the epoch with the lowest validation loss."""
    predictions = read_predictions(key, len(labels), classes)
    return image_scores(predictions[:-1], labels), image_scores(predictions[-1:], labels)


def calibration_error(scores: Mapping[str, np.ndarray]) -> float:
    """Return the expected calibration error, a share, of the predictions whose `image_scores` are given."""
    return calibration.expected_error(calibration.reliability(scores["confidence"], scores["accuracy"]))


def make_result(
    variant: Variant, history: History, scores: Mapping[str, np.ndarray], best_scores: Mapping[str, np.ndarray]
) -> Result:
    """Return the row of `variant` from its history and its `image_scores` of the test images.

    `scores` are those of the last epochs, `best_scores` those of the epoch with the lowest validation loss.
    """
    last: dict[str, Any] = {column: value for column, value in history[-1].items() if column != "epoch"}
    figures = last | measured(last["train_accuracy"], scores, best_scores)
    return Result(
        *variant,
        epochs=int(history[-1]["epoch"]),
        diverged=divergence_epoch(history),
        best_epoch=best_epoch([row["validation_loss"] for row in history]),
        **figures,
    )


def measured(
    train_accuracy: float, scores: Mapping[str, np.ndarray], best_scores: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the columns of `Result` that are figures of the test images, from their `image_scores`."""
    accuracy = float(scores["accuracy"].mean())
    figures: dict[str, Any] = {"test_accuracy": accuracy, "accuracy_gap": train_accuracy - accuracy}
    for prefix, part in (("", scores), ("best_", best_scores)):
        figures |= {
            f"{prefix}test_loss": -float(part["loss"].mean()),
            f"{prefix}calibration_error": calibration_error(part),
            f"{prefix}scaled_test_loss": -float(part["scaled_loss"].mean()),
        }
    return figures | {"best_test_accuracy": float(best_scores["accuracy"].mean())}


def read_results(path: Path = files.STUDY) -> list[Result]:
    """Return the rows of the study that `evaluate` wrote; raises `StudyError` if there are none yet.

    Columns that a study published earlier does not have get their defaults.
    """
    if not path.exists():
        raise StudyError(f"{path}: there are no results yet; `dvc repro` makes them")
    whole_numbers = {"seed", "epochs", "best_epoch"}
    return [
        Result(
            row["variant"],
            row["optimizer"],
            diverged=int(row["diverged"]) if row["diverged"] else None,
            **{  # type: ignore[arg-type]
                column: int(text) if column in whole_numbers else float(text)
                for column, text in row.items()
                if column not in ("variant", "optimizer", "diverged")
            },
        )
        for row in files.read_csv(path)
    ]


def read_rates(path: Path = files.RATES) -> list[dict[str, Any]]:
    """Return the rows of `statistics.rates` that `evaluate` wrote; raises `StudyError` if there are none yet."""
    return [{column: _parsed(column, text) for column, text in row.items()} for row in files.read_csv(path)]


def _parsed(column: str, text: str) -> Any:
    """Return a cell of the table of rates: a word, a number of runs, or a figure, which may be missing."""
    if column == "optimizer" or column.endswith("_verdict"):
        return text
    if column == "runs":
        return int(text)
    return float(text) if text else None


def finished(results: Iterable[Result]) -> list[Result]:
    """Return the results of the runs that did not diverge."""
    return [result for result in results if result.diverged is None]


def choose_best(results: Iterable[Result]) -> Result | None:
    """Return the result with the highest validation accuracy of the last epoch; of equals, the lowest loss.

    A diverged variant is never the best: if there are no others, there is none.
    """
    return max(
        finished(results), key=lambda result: (result.validation_accuracy, -result.validation_loss), default=None
    )


def metrics(results: Iterable[Result], best: Result | None, rates: Iterable[Mapping[str, Any]]) -> dict[str, object]:
    """Return what `dvc metrics diff` compares: the best variant, means by rate, and accuracy and loss of each variant.

    `rates` are rows of `statistics.rates`. JSON has no NaN: a figure that is not finite is None.
    """

    def figures(accuracy: float, loss: float) -> dict[str, float | None]:
        return {"accuracy": accuracy, "loss": loss if math.isfinite(loss) else None}

    variants: dict[str, dict[str, Any]] = {}
    for result in results:
        diverged = {} if result.diverged is None else {"diverged": result.diverged}
        variants[result.variant] = figures(result.test_accuracy, result.test_loss) | diverged
    return {
        "best": best and {name: getattr(best, name) for name in BEST_FIGURES},
        "means": {
            pair_name(row["optimizer"], row["dropout"]): figures(row["test_accuracy"], row["test_loss"])
            for row in rates
        },
        "variants": variants,
    }


def reliability_rows(
    results: Iterable[Result], scores: Mapping[str, Mapping[str, np.ndarray]]
) -> list[tuple[object, ...]]:
    """Return `calibration.reliability` of every variant that did not diverge as one table: `RELIABILITY_COLUMNS`."""
    return [
        (run.variant, run.optimizer, run.dropout, run.seed, *bin_)
        for run in finished(results)
        for bin_ in calibration.reliability(scores[run.variant]["confidence"], scores[run.variant]["accuracy"])
    ]


def read_reliability(path: Path = files.RELIABILITY) -> dict[str, list[calibration.Bin]]:
    """Return the bins of each variant that `evaluate` wrote."""
    bins: dict[str, list[calibration.Bin]] = {}
    for row in files.read_csv(path):
        figures = (float(row[column]) for column in ("confidence", "accuracy"))
        each = calibration.Bin(float(row["low"]), float(row["high"]), int(row["images"]), *figures)
        bins.setdefault(row["variant"], []).append(each)
    return bins


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return how many images of each class (first) are predicted to be of each class (second), a row a pair.

    `labels` and `predicted` are integers [N] that index `classes`.
    """
    pairs = labels.astype(int) * len(classes) + predicted
    counts = np.bincount(pairs, minlength=len(classes) ** 2).reshape(len(classes), -1)
    return [
        (actual, taken_for, int(counts[i, j]))
        for i, actual in enumerate(classes)
        for j, taken_for in enumerate(classes)
    ]


def most_confident_mistakes(labels: np.ndarray, probabilities: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` images for which a wrong class has the highest probability, worst first.

    `labels` are integers [N], `probabilities` float [N, classes]; there may be fewer mistakes.
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


def machines(provenances: Mapping[str, Mapping[str, Any]]) -> list[Machine]:
    """Return the kinds of machine that the variants were computed on, that of most variants first.

    `provenances` are by key what `train` wrote.
    """
    kinds: list[Machine] = []
    for key, provenance in provenances.items():
        known = next((kind for kind in kinds if kind.provenance == provenance), None)
        if known is None:
            kinds.append(known := Machine({**provenance}, []))
        known.variants.append(key)
    return sorted(kinds, key=lambda kind: -len(kind.variants))


def remove_stale_files(keys: Collection[str]) -> list[Path]:
    """Remove and return the trained files of variants that are not among `keys`, which DVC leaves where they are.

    Only files with the name of a variant are removed; others are not the study's.
    """
    stale = [
        path
        for directory in (files.VARIANTS, files.HISTORY, files.PREDICTIONS, files.PROVENANCE)
        for path in sorted(directory.glob("*"))
        if KEY.fullmatch(path.stem) and path.suffix in VARIANT_FILES and path.stem not in keys
    ]
    for path in stale:
        path.unlink()
    return stale
