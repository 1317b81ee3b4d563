"""The pictures: the article's, and better ones, in one style.

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
from matplotlib.ticker import FormatStrFormatter, PercentFormatter

from dropout_study import evaluation, files
from dropout_study.evaluation import Result

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
# Colours that colour-blind people tell apart (M. Okabe and K. Ito, "Color Universal Design", 2008), and markers for
# print: one of each for an optimizer, in the order of the study.
COLORS = ("#0072B2", "#D55E00", "#009E73")
MARKERS = ("o", "s", "^")
TRAINING = "#56B4E9"
MUTED = "#666666"
SAMPLES = (0, 4, 8, 12)  # the training images that the article shows
MISTAKES = 12
LOSS_LIMIT = 5.0  # where loss axes end, at the latest

History = Sequence[Mapping[str, float]]


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as a PNG without a date or the name of a program in it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    files.write_bytes(path, content.getvalue())


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


@matplotlib.rc_context(STYLE)
def samples(images: np.ndarray, names: Sequence[str], dataset: str) -> Figure:
    """Return four training images, uint8 [4, H, W, 3], with their names, smoothed as in the article (bicubic)."""
    figure = _figure(6.4, 6.8)
    for axes, image, name in zip(figure.subplots(2, 2).flat, images, names, strict=True):
        _show(axes, image, name, "bicubic")
    figure.suptitle(f"{dataset}: training images {', '.join(map(str, SAMPLES))}")
    return figure


@matplotlib.rc_context(STYLE)
def mistakes(images: np.ndarray, titles: Sequence[str], title: str) -> Figure:
    """Return up to twelve test images, uint8 [N, H, W, 3], each with what is said of it, in rows of four."""
    rows = max(1, -(-len(images) // 4))
    figure = _figure(8, 0.5 + 2.4 * rows)
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
    worst = evaluation.mistakes(labels, probabilities, MISTAKES)
    taken = probabilities[worst]
    titles = [
        f"{classes[label]} taken for {classes[one.argmax()]}\n({one.max():.1%})"
        for label, one in zip(labels[worst], taken, strict=True)
    ]
    title = f"Where {variant} was most confidently wrong" if titles else f"{variant} made no mistake"
    return mistakes(images[worst], titles, title)


def of_optimizers(results: Sequence[Result], histories: Mapping[str, History]) -> dict[str, Figure]:
    """Return the article's two bar charts, and the histories by variant as small multiples, for each optimizer."""
    pictures = {}
    groups = evaluation.by_rate(results)
    for optimizer in dict.fromkeys(result.optimizer for result in results):
        rates = {rate: group for (name, rate), group in groups.items() if name == optimizer}
        for quantity in ("accuracy", "loss"):
            values = {
                rate: [getattr(result, f"test_{quantity}") for result in evaluation.finished(group)]
                for rate, group in rates.items()
            }
            pictures[f"{quantity}-{optimizer}"] = bars(values, optimizer, f"test {quantity}")
        runs = {rate: [histories[r.variant] for r in group] for rate, group in rates.items()}
        pictures[f"history-{optimizer}"] = small_multiples(runs, optimizer)
    return pictures


@matplotlib.rc_context(STYLE)
def bars(by_rate: Mapping[float, Sequence[float]], optimizer: str, quantity: str) -> Figure:
    """Return the article's bar chart: the mean of `quantity` for each dropout rate.

    A rate without values has none because its runs diverged, and says so.
    """
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    for i, values in enumerate(by_rate.values()):
        if values:
            axes.bar(i, fmean(values), color=COLORS[0], width=0.7)
        else:
            axes.annotate("diverged", (i, 0), xytext=(0, 4), textcoords="offset points", ha="center", color=MUTED)
    axes.set_xticks(range(len(by_rate)), [str(rate) for rate in by_rate])
    runs = max(len(values) for values in by_rate.values())
    axes.set_title(f"{optimizer}: {quantity} by dropout" + (f", mean of {runs} seeds" if runs > 1 else ""))
    axes.set_xlabel("dropout rate")
    _label(axes, quantity)
    return figure


def _label(axes: Any, quantity: str) -> None:
    """Label the y axis with a quantity and its unit."""
    share = "accuracy" in quantity
    axes.set_ylabel(f"{quantity} ({'%' if share else 'nats'})")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=None) if share else FormatStrFormatter("%g"))


@matplotlib.rc_context(STYLE)
def by_dropout(rates: Sequence[Mapping[str, Any]], results: Sequence[Result], column: str) -> Figure:
    """Return `column` of the study by dropout: a point a run, mean and 95 % interval over seeds, and guessing.

    `rates` are rows of `verdict.rates`. Optimizers differ in colour and marker. A run that diverged is a cross at the
    bottom.
    """
    quantity = column.replace("_", " ")
    figure = _figure(7.2, 4.4)
    axes = figure.subplots()
    optimizers = list(dict.fromkeys(result.optimizer for result in results))
    for i, optimizer in enumerate(optimizers):
        shift = 0.012 * (i - (len(optimizers) - 1) / 2)
        look: dict[str, Any] = {"color": COLORS[i], "marker": MARKERS[i]}
        mine = [result for result in results if result.optimizer == optimizer]
        runs = evaluation.finished(mine)
        axes.plot(
            [result.dropout + shift - 0.015 for result in runs],
            [getattr(result, column) for result in runs],
            **look,
            linestyle="",
            alpha=0.35,
            markersize=4,
        )
        rows = [row for row in rates if row["optimizer"] == optimizer]
        places = [row["dropout"] + shift for row in rows]
        axes.plot(places, [row[column] for row in rows], **look, linewidth=1, label=optimizer)
        for place, row in zip(places, rows, strict=True):
            if row[f"{column}_low"] is not None:
                axes.errorbar(
                    place,
                    row[column],
                    [[row[column] - row[f"{column}_low"]], [row[f"{column}_high"] - row[column]]],
                    color=COLORS[i],
                    capsize=4,
                )
        diverged = [result.dropout + shift for result in mine if result.diverged is not None]
        if diverged:
            axes.plot(
                diverged,
                [0.02] * len(diverged),
                "x",
                color=COLORS[i],
                transform=axes.get_xaxis_transform(),
                label=f"{optimizer}: diverged",
            )
    for guessing in {row[f"{column}_guessing"] for row in rates}:
        axes.axhline(guessing, color=MUTED, linestyle="--", linewidth=1, label="guessing")
    axes.set_xticks(sorted({result.dropout for result in results}))
    axes.set_title(f"{quantity.capitalize()} by dropout\n", fontsize=12)
    axes.text(0, 1.03, _what_is_shown(rates), transform=axes.transAxes, color=MUTED)
    axes.set_xlabel("dropout rate")
    _label(axes, quantity)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _what_is_shown(rates: Sequence[Mapping[str, Any]]) -> str:
    runs = max((row["runs"] for row in rates), default=0)
    if runs < 2:
        return "one run a rate"
    return f"mean and 95 % interval (t) over {runs} seeds; pale: single runs"


@matplotlib.rc_context(STYLE)
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
    axes.set_xticks(range(len(classes)), classes, rotation=45 if max(map(len, classes)) > 3 else 0)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_title(f"What {variant} takes the test images for", fontsize=12)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("actual class")
    figure.colorbar(picture, label="share of the actual class (%)", format=PercentFormatter(1, symbol=None), shrink=0.8)
    return figure


@matplotlib.rc_context(STYLE)
def small_multiples(by_rate: Mapping[float, Sequence[History]], optimizer: str) -> Figure:
    """Return loss (top) and accuracy (bottom) by epoch, a column a dropout rate, training and validation.

    Losses beyond the end of the axis are triangles there.
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
                    ("validation", "validation", COLORS[1], "--"),
                ):
                    values = [row[f"{part}_{quantity}"] for row in history]
                    axes.plot(epochs, values, line, color=color, linewidth=1.2, label=label if run == 0 else None)
                    beyond = [epoch for epoch, value in zip(epochs, values, strict=True) if value > limit]
                    if quantity == "loss" and beyond:
                        axes.plot(beyond, [limit] * len(beyond), "^", color=color, markersize=4, clip_on=False)
        grid[0, column].set_title(f"dropout {rate}")
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


def pixel_rows(counts: np.ndarray, scale: Sequence[float], offset: Sequence[float]) -> list[tuple[object, ...]]:
    """Return the distribution of pixel values before and after `value * scale + offset`, as one tidy table.

    `counts`, int64 [256, C], is how often each value occurs in a channel; they are put together by 16. A row is: before
    or after, the channel, the middle of the bin, its share. Channels that are all the same are one row.
    """
    channels = counts.shape[1]
    alike = bool((counts == counts[:, :1]).all())
    names = ["all channels"] if alike else ["red", "green", "blue"][:channels]
    binned = counts.reshape(-1, PIXEL_BIN, channels).sum(axis=1)
    shares = binned / binned.sum(axis=0)
    middles = np.arange(len(binned)) * PIXEL_BIN + (PIXEL_BIN - 1) / 2
    return [
        (when, name, float(value), float(share))
        for when in ("before", "after")
        for channel, name in enumerate(names)
        for value, share in zip(
            middles if when == "before" else middles * scale[channel] + offset[channel], shares[:, channel], strict=True
        )
    ]


PIXEL_BIN = 16
PIXEL_COLUMNS = ("normalization", "channel", "value", "share")
