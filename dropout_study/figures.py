"""The article's pictures, and the histories as one table.

Every function returns a figure of a fixed size; `save` writes the same bytes for the same figure.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dropout_study import files
from dropout_study.evaluation import Result

STYLE: Any = {
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": "#dddddd",
    "savefig.dpi": 120,
    "svg.hashsalt": "dropout-study",
}
BAR = "#7ba7cc"
POINT = "#12355b"
CHANCE = "#b2182b"
SAMPLES = (0, 4, 8, 12)  # the training images that the article shows

History = Sequence[Mapping[str, float]]


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as a PNG without a date or the name of a program in it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    files.write_bytes(path, content.getvalue())


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


@matplotlib.rc_context(STYLE)
def samples(images: np.ndarray, names: Sequence[str]) -> Figure:
    """Return four pictures, uint8 [4, H, W, 3], with their names, smoothed as in the article (bicubic)."""
    figure = _figure(6.4, 6.6)
    for axes, image, name in zip(figure.subplots(2, 2).flat, images, names, strict=True):
        axes.imshow(image, interpolation="bicubic")
        axes.set_title(name)
        axes.set_axis_off()
    return figure


@matplotlib.rc_context(STYLE)
def bars(by_rate: Mapping[float, Sequence[float]], optimizer: str, quantity: str, chance: float | None) -> Figure:
    """Return the article's bar chart: the mean of `quantity` for each dropout rate, a point for every seed.

    A rate without values has none because its runs diverged, and says so. `chance`, where it makes sense, is drawn
    as a line: what guessing would get.
    """
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    for i, values in enumerate(by_rate.values()):
        if not values:
            axes.annotate("diverged", (i, 0), xytext=(0, 4), textcoords="offset points", ha="center", color=CHANCE)
            continue
        axes.bar(i, fmean(values), color=BAR, width=0.7)
        if len(values) > 1:
            spread = np.linspace(-0.12, 0.12, len(values))
            axes.plot(i + spread, values, "o", color=POINT, markersize=4)
    if chance is not None:
        axes.axhline(chance, color=CHANCE, linestyle="--", linewidth=1)
        axes.annotate(
            "chance",
            (1, chance),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=CHANCE,
        )
    axes.set_xticks(range(len(by_rate)), [f"{rate:g}" for rate in by_rate])
    runs = max(len(values) for values in by_rate.values())
    axes.set_title(f"{optimizer}: {quantity} by dropout" + (f", mean of {runs} seeds" if runs > 1 else ""))
    axes.set_xlabel("dropout rate")
    axes.set_ylabel(quantity)
    return figure


@matplotlib.rc_context(STYLE)
def histories(by_rate: Mapping[float, Sequence[History]], optimizer: str) -> Figure:
    """Return loss (top) and accuracy (bottom) by epoch, a column a dropout rate, training and validation."""
    columns = len(by_rate)
    figure = _figure(max(6.4, 2.2 * columns), 5)
    grid = figure.subplots(2, columns, squeeze=False, sharex=True, sharey="row")
    for column, (rate, runs) in enumerate(by_rate.items()):
        for axes, quantity in zip(grid[:, column], ("loss", "accuracy"), strict=True):
            for run, history in enumerate(runs):
                epochs = [row["epoch"] for row in history]
                for part, color, line in (("train", BAR, "-"), ("validation", POINT, "--")):
                    values = [row[f"{part}_{quantity}"] for row in history]
                    label = {"train": "training", "validation": "validation"}[part] if run == 0 else None
                    axes.plot(epochs, values, line, color=color, linewidth=1.2, label=label)
        grid[0, column].set_title(f"dropout {rate:g}")
        grid[1, column].set_xlabel("epoch")
        grid[1, column].set_ylim(0, 1)
        grid[1, column].xaxis.get_major_locator().set_params(integer=True)
    grid[0, 0].set_ylabel("loss (nats)")
    grid[1, 0].set_ylabel("accuracy")
    grid[0, 0].set_ylim(0, _loss_limit(by_rate))
    figure.suptitle(f"{optimizer}: training and validation, a line a seed")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _loss_limit(by_rate: Mapping[float, Sequence[History]]) -> float:
    """Return where to cut the loss axis: a first epoch at rate 0.9 must not flatten all the others."""
    losses = np.array(
        [
            row[f"{part}_loss"]
            for runs in by_rate.values()
            for history in runs
            for row in history
            for part in ("train", "validation")
        ]
    )
    losses = losses[np.isfinite(losses)]
    return 1.05 * min(losses.max(), 5.0) if len(losses) else 1.0


def history_rows(results: Iterable[Result], histories: Mapping[str, History]) -> list[tuple[object, ...]]:
    """Return the histories as one tidy table, a row for each variant, epoch and part; unfinished epochs left out."""
    return [
        (
            r.variant,
            r.optimizer,
            r.dropout,
            r.seed,
            int(row["epoch"]),
            part,
            row[f"{part}_loss"],
            row[f"{part}_accuracy"],
        )
        for r in results
        for row in histories[r.variant]
        if np.isfinite(row["validation_loss"])
        for part in ("train", "validation")
    ]


HISTORY_COLUMNS = ("variant", "optimizer", "dropout", "seed", "epoch", "part", "loss", "accuracy")
