"""The pictures: the article's, and better ones, in one style.

Every function returns a figure of a fixed size; `save` writes the same bytes for the same figure.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, PercentFormatter

from dropout_study import files, report
from dropout_study.results import History, Result, by_rate, finished, most_confident_mistakes

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "font.size": 10,
    "grid.color": "#dddddd",
}
# Colours that colour-blind people tell apart (M. Okabe and K. Ito, "Color Universal Design", 2008), those of the page,
# and markers for print.
COLORS = {"sgd": "#0072B2", "adadelta": "#D55E00", "adam": "#009E73"}
MARKERS = {"sgd": "o", "adadelta": "s", "adam": "^"}
TRAINING = "#56B4E9"
VALIDATION = "#D55E00"
MUTED = "#666666"
SAMPLES = (0, 4, 8, 12)  # the training images that the article shows
MISTAKES = 12
LOSS_LIMIT = 5.0  # where loss axes end, at the latest

# Nothing of a user's own matplotlibrc: the same figure is the same bytes everywhere.
_styled = matplotlib.style.context(STYLE, after_reset=True)


@_styled
def save(figure: Figure, path: Path) -> None:
    """Write `figure` as a PNG without a date or the name of a program in it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    files.write_bytes(path, content.getvalue())


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


@_styled
def samples(images: np.ndarray, names: Sequence[str], dataset: str) -> Figure:
    """Return four training images, uint8 [4, H, W, 3], with their names, smoothed as in the article (bicubic)."""
    figure = _figure(6.4, 6.8)
    for axes, image, name in zip(figure.subplots(2, 2).flat, images, names, strict=True):
        _show(axes, image, name, "bicubic")
    figure.suptitle(f"{dataset}: training images {', '.join(map(str, SAMPLES))}")
    return figure


@_styled
def mistakes(images: np.ndarray, titles: Sequence[str], title: str) -> Figure:
    """Return up to twelve test images, uint8 [N, H, W, 3], each with what is said of it, in rows of four."""
    rows = max(1, -(-len(images) // 4))
    figure = _figure(8, 0.5 + 2.7 * rows)
    figure.set_layout_engine("constrained", h_pad=0.1)
    grid = figure.subplots(rows, 4, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, name in zip(grid, images, titles, strict=False):
        _show(axes, image, name, "nearest")
    figure.suptitle(title)
    return figure


def _show(axes: Any, image: np.ndarray, title: str, interpolation: str) -> None:
    axes.imshow(image, interpolation=interpolation)
    axes.set_title(title, loc="center")
    axes.set_axis_off()


def mistakes_of(
    variant: str, classes: Sequence[str], images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> Figure:
    """Return the mistakes of `variant`, which gave the test images these `probabilities`, float32 [N, classes]."""
    worst = most_confident_mistakes(labels, probabilities, MISTAKES)
    taken = probabilities[worst]
    titles = [
        f"{classes[label]}\ntaken for {classes[one.argmax()]}\n({one.max():.1%})"
        for label, one in zip(labels[worst], taken, strict=True)
    ]
    title = f"Where {variant} was most confidently wrong" if titles else f"{variant} made no mistake"
    return mistakes(images[worst], titles, title)


def of_optimizers(results: Sequence[Result], histories: Mapping[str, History]) -> dict[str, Figure]:
    """Return the article's two bar charts, and the histories by variant as small multiples, for each optimizer."""
    pictures = {}
    groups = by_rate(results)
    for optimizer in dict.fromkeys(result.optimizer for result in results):
        rates = {rate: group for (name, rate), group in groups.items() if name == optimizer}
        for quantity in ("accuracy", "loss"):
            values = {
                rate: [getattr(result, f"test_{quantity}") for result in finished(group)]
                for rate, group in rates.items()
            }
            pictures[f"{quantity}-{optimizer}"] = bars(values, optimizer, f"test {quantity}")
        runs = {rate: [histories[r.variant] for r in group] for rate, group in rates.items()}
        pictures[f"history-{optimizer}"] = small_multiples(runs, optimizer)
    return pictures


@_styled
def bars(by_rate: Mapping[float, Sequence[float]], optimizer: str, quantity: str) -> Figure:
    """Return the article's bar chart: the mean of `quantity` for each dropout rate.

    A rate without values has none because its runs diverged, and says so.
    """
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    for i, values in enumerate(by_rate.values()):
        if values:
            axes.bar(i, fmean(values), color=COLORS[optimizer], width=0.7)
        else:
            offset: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points"}
            axes.annotate("diverged", (i, 0), **offset, ha="center", va="bottom", rotation=90, color=MUTED)
    axes.set_xticks(range(len(by_rate)), [str(rate) for rate in by_rate])
    axes.set_xlim(-0.6, len(by_rate) - 0.4)
    over = report.seeds(len(values) for values in by_rate.values())
    axes.set_title(f"{optimizer}: {quantity} by dropout" + (f", mean of {over}" if over else ""))
    axes.set_xlabel("dropout rate")
    _label(axes, quantity)
    return figure


def _label(axes: Any, quantity: str) -> None:
    """Label the y axis with a quantity and its unit."""
    share = "accuracy" in quantity
    axes.set_ylabel(f"{quantity} ({'%' if share else 'nats'})")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=None) if share else FormatStrFormatter("%g"))


@_styled
def by_dropout(rates: Sequence[Mapping[str, Any]], results: Sequence[Result], column: str) -> Figure:
    """Return `column` of the study by dropout: a point a run, mean and 95 % interval over seeds, and guessing.

    `rates` are rows of `statistics.rates`. Optimizers differ in colour and marker, and stand side by side at each rate.
    Runs that diverged are a cross at the bottom, with their number if there are several.
    """
    quantity = column.replace("_", " ")
    figure = _figure(7.2, 4.4)
    axes = figure.subplots()
    optimizers = list(dict.fromkeys(result.optimizer for result in results))
    places = sorted({result.dropout for result in results})
    slot = 0.6 * min([*np.diff(places), 0.1]) / len(optimizers)
    over = report.seeds(row["runs"] for row in rates)
    for i, optimizer in enumerate(optimizers):
        shift = slot * (i - (len(optimizers) - 1) / 2)
        look: dict[str, Any] = {"color": COLORS[optimizer], "marker": MARKERS[optimizer]}
        mine = [result for result in results if result.optimizer == optimizer]
        runs = finished(mine) if over else []
        axes.plot(
            [result.dropout + shift - 0.25 * slot for result in runs],
            [getattr(result, column) for result in runs],
            **look,
            linestyle="",
            alpha=0.35,
            markersize=4,
        )
        rows = [row for row in rates if row["optimizer"] == optimizer]
        axes.plot(
            [row["dropout"] + shift for row in rows], [row[column] for row in rows], **look, lw=1, label=optimizer
        )
        for row in rows:
            if row[f"{column}_low"] is not None:
                axes.errorbar(
                    row["dropout"] + shift,
                    row[column],
                    [[row[column] - row[f"{column}_low"]], [row[f"{column}_high"] - row[column]]],
                    color=COLORS[optimizer],
                    capsize=4,
                )
        diverged = Counter(result.dropout + shift for result in mine if result.diverged is not None)
        if diverged:
            bottom: dict[str, Any] = {"color": COLORS[optimizer], "transform": axes.get_xaxis_transform()}
            axes.plot([*diverged], [0.02] * len(diverged), "x", **bottom, label=f"{optimizer}: diverged")
            for place, count in diverged.items():
                if count > 1:
                    axes.text(place, 0.04, str(count), **bottom, ha="center", fontsize=8)
    for guessing in {row[f"{column}_guessing"] for row in rates}:
        axes.axhline(guessing, color=MUTED, linestyle="--", linewidth=1, label="guessing")
    axes.set_xticks(places)
    axes.set_xlim(places[0] - 0.05, places[-1] + 0.05)
    if column != "accuracy_gap":
        # An interval by t may go where no accuracy or loss can be.
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02 * high), min(high, 1.02) if "accuracy" in column else high)
    axes.set_title(f"{quantity.capitalize()} by dropout\n", fontsize=12)
    shown = f"mean and 95 % interval (t) over {over}; pale: single runs" if over else "one run a rate"
    axes.text(0, 1.03, shown, transform=axes.transAxes, color=MUTED)
    axes.set_xlabel("dropout rate")
    _label(axes, quantity)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


@_styled
def confusion(rows: Sequence[tuple[str, str, int]], variant: str) -> Figure:
    """Return which class (a row) is taken for which (a column): counts, shaded by the share of the row."""
    classes = list(dict.fromkeys(actual for actual, _, _ in rows))
    counts = np.array([count for _, _, count in rows]).reshape(len(classes), -1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _figure(7.2, 6.6)
    axes = figure.subplots()
    axes.grid(visible=False)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        if count:
            axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    slanted: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, classes)) > 3 else {}
    axes.set_xticks(range(len(classes)), classes, **slanted)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_title(f"What {variant} takes the test images for", fontsize=12)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("actual class")
    figure.colorbar(picture, label="share of the actual class (%)", format=PercentFormatter(1, symbol=None), shrink=0.8)
    return figure


@_styled
def small_multiples(by_rate: Mapping[float, Sequence[History]], optimizer: str) -> Figure:
    """Return loss (top) and accuracy (bottom) by epoch, a column a dropout rate, training and validation.

    Losses beyond the end of the axis are triangles there; how many runs of a rate diverged is said.
    """
    columns = len(by_rate)
    figure = _figure(max(6.4, 2.2 * columns), 5)
    grid = figure.subplots(2, columns, squeeze=False, sharex=True, sharey="row")
    limit = _loss_limit(by_rate)
    for column, (rate, runs) in enumerate(by_rate.items()):
        for axes, quantity in zip(grid[:, column], ("loss", "accuracy"), strict=True):
            for run, history in enumerate(runs):
                epochs = [row["epoch"] for row in history]
                for part, label, color, line in (
                    ("train", "training", TRAINING, "-"),
                    ("validation", "validation", VALIDATION, "--"),
                ):
                    values = [row[f"{part}_{quantity}"] for row in history]
                    look: dict[str, Any] = {"color": color, "label": label if run == 0 else None}
                    look["marker"] = "." if np.isfinite(values).sum() == 1 else ""  # one point is no line
                    axes.plot(epochs, values, line, linewidth=1.2, **look)
                    beyond = [epoch for epoch, value in zip(epochs, values, strict=True) if value > limit]
                    if quantity == "loss" and beyond:
                        axes.plot(beyond, [limit] * len(beyond), "^", color=color, markersize=4, clip_on=False)
        grid[0, column].set_title(f"dropout {rate}")
        diverged = sum(not np.isfinite(history[-1]["validation_loss"]) for history in runs)
        if diverged:
            said = f"{diverged} of {len(runs)} diverged"
            grid[0, column].text(
                0.98, 0.98, said, transform=grid[0, column].transAxes, ha="right", va="top", color=MUTED
            )
        grid[1, column].set_xlabel("epoch")
        grid[1, column].set_ylim(0, 1)
        grid[1, column].xaxis.get_major_locator().set_params(integer=True)
    for axes, quantity in zip(grid[:, 0], ("loss", "accuracy"), strict=True):
        _label(axes, quantity)
    grid[0, 0].set_ylim(0, limit)
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
    return 1.05 * min(losses.max(), LOSS_LIMIT) if len(losses) else 1.0
