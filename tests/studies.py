"""The tables of a study that nobody ran, for the page to show: any number of optimizers, rates, seeds and classes."""

import math
import random
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dropout_study import figures, files, page_tables, report, statistics
from dropout_study.results import Result, make_result
from dropout_study.settings import Variant
from dropout_study.verdict import Verdict, rounded
from tests.clones import PROJECT, Clone

DIGITS = tuple("0123456789")


def made_up_scores(results: Sequence[Result], images: int = 500) -> dict[str, dict[str, np.ndarray]]:
    """Return scores of test images that have the accuracies and losses of `results`: the first images are right."""
    return {
        result.variant: {
            "accuracy": (np.arange(images) < round(images * result.test_accuracy)).astype(float),
            "loss": np.full(images, -result.test_loss),
            "confidence": np.full(images, 0.9),
        }
        for result in results
    }


def verdict_of(results: Sequence[Result], validation: float | str = 0.1) -> Verdict:
    """Return the verdict on `results` that 500 made-up test images give."""
    return statistics.judge_study(results, made_up_scores(results), validation)


def rates_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the rows of `statistics.rates` for `results` of ten classes."""
    return statistics.rates(results, verdict_of(results), 10)


def page_project(path: Path) -> Clone:
    """Make a project that has plots, templates and a page, and no stages, in the directory `path`."""
    shutil.copytree(PROJECT / ".dvc/plots", path / ".dvc/plots")
    clone = Clone(path)
    clone.run("git", "init", "--quiet", "--initial-branch=main")
    shutil.copy(PROJECT / ".dvc/config", path / ".dvc/config")
    plots = (PROJECT / "dvc.yaml").read_text().partition("\nplots:\n")[2]
    (path / "dvc.yaml").write_text(f"plots:\n{plots}")
    (path / "data").mkdir()
    (path / ".gitignore").write_text("data/\n*_plots/\n")
    return clone


def make_up(
    clone: Clone,
    optimizers: Sequence[str] = ("adadelta",),
    rates: Sequence[float] = (0.0, 0.5),
    seeds: int = 3,
    classes: Sequence[str] = DIGITS,
    diverged: Collection[str] = (),
    epochs: int = 4,
) -> None:
    """Write all that the page shows. The losses of the variants in `diverged` stop being finite in epoch 2."""
    chance = random.Random(0)
    results = []
    histories = {}
    for optimizer in optimizers:
        for rate in rates:
            for seed in range(seeds):
                variant = Variant(f"{optimizer}-{rate}-{seed}", optimizer, rate, seed)
                history = []
                for epoch in range(1, 2 if variant.key in diverged else epochs + 1):
                    loss = (2 + 30 * rate**8) / epoch + chance.uniform(0, 0.3)
                    history.append(_epoch(epoch, loss))
                if variant.key in diverged:
                    history.append(_epoch(2, math.nan))
                histories[variant.key] = history
                last = history[-1]
                accuracy = min(1.0, max(0.0, last["validation_accuracy"] + chance.uniform(-0.1, 0.02)))
                scores = {name: np.ones(1) for name in ("accuracy", "loss", "confidence", "scaled_loss")}
                row = make_result(variant, history, scores, scores)
                gap = last["train_accuracy"] - accuracy
                loss = max(0.0, 1.2 - accuracy)
                measured: dict[str, Any] = {"test_loss": loss, "test_accuracy": accuracy, "accuracy_gap": gap}
                results.append(row._replace(**measured, calibration_error=loss / 10))
    verdict = verdict_of(results)
    rate_rows = statistics.rates(results, verdict, len(classes))
    tables: dict[Path, tuple[Sequence[str], Sequence[Sequence[Any]]]] = {
        files.STUDY: (Result._fields, results),
        files.RATES: (statistics.RATE_COLUMNS, [list(row.values()) for row in rate_rows]),
        files.HISTORIES: (page_tables.HISTORY_COLUMNS, page_tables.history_rows(results, histories)),
        files.PIXELS: (
            page_tables.PIXEL_COLUMNS,
            page_tables.pixel_rows(
                np.ones((256, 3), np.int64) if classes is DIGITS else np.arange(1, 769).reshape(256, 3) % 77,
                [1 / 64] * 3,
                [-2.0, -1.9, -1.8],
                "standardize",
            ),
        ),
        files.CONFUSION: (
            ("variant", "actual", "predicted", "images"),
            [
                (results[0].variant, actual, predicted, 40 if actual == predicted else chance.choice([0, 0, 2, 30]))
                for actual in classes
                for predicted in classes
            ],
        ),
        files.SUMMARY: (
            page_tables.SUMMARY_COLUMNS,
            page_tables.summary_rows(report.studied("digits", results), report.paragraph(verdict)),
        ),
    }
    for path, (columns, rows) in tables.items():
        files.write_csv(clone.path / path, columns, rounded(rows))
    pictures = {
        "samples": figures.samples(np.zeros((4, 8, 8, 3), np.uint8), classes[:4], "digits"),
        "mistakes": figures.mistakes(np.zeros((1, 8, 8, 3), np.uint8), ["0\npredicted 1"], "mistakes"),
    }
    for name, figure in pictures.items():
        figures.save(figure, clone.path / files.PLOTS / f"{name}.png")


def _epoch(epoch: int, loss: float) -> dict[str, float]:
    accuracy = math.exp(-loss)
    return {
        "epoch": epoch,
        "train_loss": 0.9 * loss,
        "train_accuracy": accuracy,
        "validation_loss": loss,
        "validation_accuracy": 0.95 * accuracy if math.isfinite(loss) else 0.1,
    }
