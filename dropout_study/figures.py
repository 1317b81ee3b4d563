"""The pictures: the article's, and better ones, in one style.

No picture's size depends on the number of rates, except that of the small multiples, which is limited. `save` writes
the same bytes for the same figure.
"""

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, PercentFormatter

from dropout_study import calibration, files, report
from dropout_study.calibration import Bin
from dropout_study.page_tables import shown_rates
from dropout_study.results import History, Result, by_rate, finished, most_confident_mistakes
from dropout_study.verdict import QUANTITIES

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
LOSS_LIMIT = 5.0  # loss axes end about here or before: a first epoch at rate 0.9 must not flatten all the others
RATES_PER_ROW = 5
FEW_IMAGES = 20  # whose accuracy is too uncertain to draw
MANY_RATES = 40  # with more, marks are thin
LABEL_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_WIDTH = 0.85  # the least share of a figure's width that the x axis takes
_DIGIT = 0.65  # the width of a digit, as a share of the font size (DejaVu Sans: 0.636)

# Ignores a user's own matplotlibrc: the same figure is the same bytes everywhere.
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
    """Return up to twelve test images, uint8 [N, H, W, 3], each below its title, in rows of four."""
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
    """Return the twelve mistakes that `variant` is most confident of, with actual and predicted class.

    `images` are the test images, uint8 [N, H, W, 3], `labels` their classes [N], and `probabilities`, float32
    [N, classes], the predictions of `variant`.
    """
    worst = most_confident_mistakes(labels, probabilities, MISTAKES)
    titles = [
        f"{classes[label]}\npredicted {classes[prediction.argmax()]}\n({prediction.max():.1%})"
        for label, prediction in zip(labels[worst], probabilities[worst], strict=True)
    ]
    title = f"Most confident mistakes of {variant}" if titles else f"{variant} makes no mistake"
    return mistakes(images[worst], titles, title)


def of_study(
    rates: Sequence[Mapping[str, Any]],
    results: Sequence[Result],
    histories: Mapping[str, History],
    bins: Mapping[str, Sequence[Bin]],
) -> dict[str, Figure]:
    """Return the figures of a study that need neither images nor models: `accuracy`, `loss`, and `of_optimizers`."""
    by_quantity = {quantity: by_dropout(rates, results, f"test_{quantity}") for quantity in QUANTITIES}
    return by_quantity | of_optimizers(rates, results, histories, bins)


def of_optimizers(
    rates: Sequence[Mapping[str, Any]],
    results: Sequence[Result],
    histories: Mapping[str, History],
    bins: Mapping[str, Sequence[Bin]],
) -> dict[str, Figure]:
    """Return for each optimizer the article's two bar charts, its histories as small multiples, and its reliability.

    `rates` are rows of `statistics.rates`; `histories` has the history of each variant, `bins` the reliability of each
    that did not diverge. The names of the figures are `accuracy-<optimizer>`, `loss-<optimizer>`,
    `history-<optimizer>` and `reliability-<optimizer>`.
    """
    pictures = {}
    groups = by_rate(results)
    for optimizer in dict.fromkeys(result.optimizer for result in results):
        runs = {dropout: group for (name, dropout), group in groups.items() if name == optimizer}
        for quantity in ("accuracy", "loss"):
            pictures[f"{quantity}-{optimizer}"] = bars(rates, [*runs], optimizer, f"test_{quantity}")
        pictures[f"history-{optimizer}"] = small_multiples(
            {dropout: [histories[result.variant] for result in group] for dropout, group in runs.items()},
            {dropout: len(group) - len(finished(group)) for dropout, group in runs.items()},
            optimizer,
        )
        alive = {dropout: finished(group) for dropout, group in runs.items() if finished(group)}
        pooled = {
            dropout: calibration.pooled([bins[result.variant] for result in group]) for dropout, group in alive.items()
        }
        pictures[f"reliability-{optimizer}"] = reliability(pooled, optimizer, {result.dropout for result in results})
    return pictures


@_styled
def bars(rates: Sequence[Mapping[str, Any]], dropouts: Sequence[float], optimizer: str, column: str) -> Figure:
    """Return the article's bar chart: the mean of `column` at each of `dropouts`, in this order.

    `rates` are rows of `statistics.rates`. A rate of `optimizer` has no row if all of its runs diverged; it is a cross.
    """
    rows = {row["dropout"]: row for row in rates if row["optimizer"] == optimizer}
    quantity = column.replace("_", " ")
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    places = range(len(dropouts))
    width = 0.7 if len(dropouts) <= MANY_RATES else 1  # gaps below a pixel would only make the bars pale
    means = {place: rows[dropout][column] for place, dropout in enumerate(dropouts) if dropout in rows}
    axes.bar([*means], [*means.values()], width, color=COLORS[optimizer], linewidth=0)
    diverged = [place for place, dropout in enumerate(dropouts) if dropout not in rows]
    if diverged:
        bottom = axes.get_xaxis_transform()
        axes.plot(diverged, [0.02] * len(diverged), "x", color=MUTED, transform=bottom, label="all runs diverged")
        figure.legend(loc="outside lower center", frameon=False)
    # A label for each rate, for every 2nd, 5th, 10th … where there are more.
    step = next(n for n in LABEL_STEPS if len(dropouts) <= n * _most_labels(axes, dropouts))
    axes.set_xticks(places[::step], [str(dropout) for dropout in dropouts[::step]])
    axes.set_xlim(-0.6, len(dropouts) - 0.4)
    seeds = report.seeds(row["runs"] for row in rows.values())
    axes.set_title(f"{optimizer}: {quantity} by dropout" + (f", mean of {seeds}" if seeds else ""))
    axes.set_xlabel("dropout rate")
    _label(axes, quantity)
    return figure


def _most_labels(axes: Any, labels: Sequence[float]) -> int:
    """Return how many of `labels` fit side by side on the x axis, with a space between them."""
    longest = max(len(str(label)) for label in labels)
    return int(_WIDTH * 72 * axes.figure.get_figwidth() / ((longest + 1) * _DIGIT * STYLE["font.size"]))


def _label(axes: Any, quantity: str) -> None:
    """Label the y axis with a quantity and its unit."""
    share = "accuracy" in quantity
    axes.set_ylabel(f"{quantity} ({'%' if share else 'nats'})")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=None) if share else FormatStrFormatter("%g"))


@_styled
def by_dropout(rates: Sequence[Mapping[str, Any]], results: Sequence[Result], column: str) -> Figure:
    """Return `column`, "test_accuracy" or "test_loss", by dropout: runs, means, and what the verdict says of them.

    `rates` are rows of `statistics.rates`. Optimizers differ in colour and marker, and are side by side at each rate.
    Large marks are means: filled if the rate may be the best or if there is no verdict, hollow and grey if it is worse,
    hollow if it is not judged. A thin line goes from the lowest to the highest run, which are pale beside it. A band
    begins at the leader's mean: a mean within it may be the best; so may the rates above the brackets under the axis.
    Runs that diverged are a cross at the bottom, with their number if there are several. What guessing gives is a line
    if any figure is that bad.
    """
    quantity = column.replace("_", " ")
    figure = _figure(7.2, 4.6)
    axes = figure.subplots()
    axes.use_sticky_edges = False  # else the band's begin would be the edge of the picture
    optimizers = list(dict.fromkeys(result.optimizer for result in results))
    dropouts = sorted({result.dropout for result in results})
    many = len(dropouts) * len(optimizers) > MANY_RATES
    slot = 0.6 * min([*np.diff(dropouts), 0.1]) / len(optimizers)
    seeds = report.seeds(row["runs"] for row in rates)
    for i, optimizer in enumerate(optimizers):
        shift = slot * (i - (len(optimizers) - 1) / 2)
        rows = [row for row in rates if row["optimizer"] == optimizer]
        _draw_verdict(axes, rows, column, shift, slot, dropouts, i)
        variants = [result for result in results if result.optimizer == optimizer]
        runs = finished(variants) if seeds else []
        axes.plot(
            [result.dropout + shift - 0.25 * slot for result in runs],
            [getattr(result, column) for result in runs],
            MARKERS[optimizer],
            color=COLORS[optimizer],
            alpha=0.35,
            markersize=2 if many else 4,
            markeredgewidth=0,
        )
        axes.vlines(
            [row["dropout"] + shift for row in rows if row["runs"] > 1],
            [row[f"{column}_lowest"] for row in rows if row["runs"] > 1],
            [row[f"{column}_highest"] for row in rows if row["runs"] > 1],
            color=COLORS[optimizer],
            linewidth=0.5 if many else 1.2,
        )
        _draw_means(axes, rows, column, shift, 2 if many else 7)
        diverged = Counter(result.dropout + shift for result in variants if result.diverged is not None)
        if diverged:
            bottom: dict[str, Any] = {"color": COLORS[optimizer], "transform": axes.get_xaxis_transform()}
            axes.plot([*diverged], [0.02] * len(diverged), "x", **bottom, markersize=6, label=f"{optimizer}: diverged")
            for place, count in diverged.items():
                if count > 1 and not many:
                    axes.text(place, 0.04, str(count), **bottom, ha="center", fontsize=8)
    low, high = axes.get_ylim()
    for guessing in {row[f"{column}_guessing"] for row in rates}:
        if low <= guessing <= high:  # else it would press all that differs into a corner
            axes.axhline(guessing, color=MUTED, linestyle="--", linewidth=1, label="guessing")
    axes.set_xlim(dropouts[0] - 0.05, dropouts[-1] + 0.05)
    span = dropouts[-1] - dropouts[0] + 0.1
    if len(dropouts) == 1 or min(np.diff(dropouts)) >= span / _most_labels(axes, dropouts):
        # Else matplotlib's round numbers, which have room.
        axes.set_xticks(dropouts, [str(dropout) for dropout in dropouts])
    # A band may go where no accuracy or loss can be.
    axes.set_ylim(max(low, -0.02 * high), min(high, 1.02) if "accuracy" in column else high)
    axes.set_title(f"{quantity.capitalize()} by dropout\n", fontsize=12)
    subtitle = f"mean over {seeds}, lowest and highest run; pale: single runs" if seeds else "one run per rate"
    axes.text(0, 1.03, subtitle, transform=axes.transAxes, color=MUTED)
    axes.tick_params(axis="x", pad=4 + 5 * len(optimizers))
    axes.set_xlabel("dropout rate")
    _label(axes, quantity)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_verdict(
    axes: Any,
    rows: Sequence[Mapping[str, Any]],
    column: str,
    shift: float,
    slot: float,
    dropouts: Sequence[float],
    number: int,
) -> None:
    """Draw which means of an optimizer may be the best: the band at each rate, and brackets under the axis.

    `number` is that of the optimizer, from 0: the brackets of several are below each other.
    """
    judged = [row for row in rows if row[f"{column}_limit"] is not None]
    if not judged:
        return
    color = COLORS[rows[0]["optimizer"]]
    leader = judged[0][f"{column}_leader"]
    axes.bar(
        [row["dropout"] + shift for row in judged],
        [row[f"{column}_limit"] - leader for row in judged],
        slot,
        bottom=leader,
        color=color,
        alpha=0.18,
        linewidth=0,
        label="may be the best",
    )
    axes.hlines(leader, dropouts[0], dropouts[-1], color=color, linewidth=0.6, linestyle=":")
    best = [dropouts.index(row["dropout"]) for row in rows if row[f"{column}_verdict"] == "may be the best"]
    for i in best:
        # Neighbours share a bracket.
        end = dropouts[i + 1] - slot / 2 if i + 1 in best else dropouts[i] + slot / 2
        height = -0.02 * (number + 1)
        where = axes.get_xaxis_transform()
        axes.plot([dropouts[i] - slot / 2, end], [height] * 2, color=color, linewidth=3, transform=where, clip_on=False)


def _draw_means(axes: Any, rows: Sequence[Mapping[str, Any]], column: str, shift: float, size: float) -> None:
    """Draw the means of an optimizer, joined by a line, each marked by what the verdict says of it."""
    if not rows:
        return
    optimizer = rows[0]["optimizer"]
    color = COLORS[optimizer]
    axes.plot([row["dropout"] + shift for row in rows], [row[column] for row in rows], color=color, linewidth=1)
    looks: dict[str, dict[str, Any]] = {
        optimizer: {"color": color},
        "worse": {"markeredgecolor": MUTED, "markerfacecolor": "white"},
        "not judged": {"markeredgecolor": color, "markerfacecolor": "white"},
    }
    for label, look in looks.items():
        marked = [
            row for row in rows if (row[f"{column}_verdict"] == label) or (label == optimizer and _filled(row, column))
        ]
        if marked:
            places, means = [row["dropout"] + shift for row in marked], [row[column] for row in marked]
            axes.plot(places, means, MARKERS[optimizer], **look, markersize=size, label=label)


def _filled(row: Mapping[str, Any], column: str) -> bool:
    """Return whether the mean of a rate is a filled mark: it may be the best, or there is no verdict."""
    return row[f"{column}_verdict"] in ("may be the best", "")


@_styled
def reliability(bins: Mapping[float, Sequence[Bin]], optimizer: str, dropouts: Iterable[float]) -> Figure:
    """Return the reliability diagram of an optimizer: accuracy by confidence, a line a dropout rate.

    `bins` are those of `calibration.pooled` by rate, of which `shown_rates` are drawn. Points of fewer than
    `FEW_IMAGES` images are left out. `dropouts` are all rates of the study: a rate has the same colour in the diagram
    of each optimizer, though all its runs diverged with another.
    """
    figure = _figure(7.2, 5.2)
    axes = figure.subplots()
    axes.grid(visible=True, axis="both")
    axes.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1, label="calibrated")
    every = sorted({*dropouts})
    colors = dict(zip(every, matplotlib.colormaps["viridis"](np.linspace(0, 0.93, len(every))), strict=True))
    for dropout in shown_rates(bins):
        points = [(each.confidence, each.accuracy) for each in bins[dropout] if each.images >= FEW_IMAGES]
        axes.plot(*np.array(points).reshape(-1, 2).T, ".-", color=colors[dropout], label=str(dropout), clip_on=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_title(f"{optimizer}: accuracy by confidence, a line per dropout rate")
    axes.set_xlabel("confidence: mean probability of the predicted class (%)")
    axes.set_ylabel("accuracy (%)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=None))
    figure.legend(loc="outside right center", frameon=False, title="dropout rate")
    return figure


@_styled
def confusion(rows: Sequence[tuple[str, str, int]], variant: str) -> Figure:
    """Return the confusion matrix of `variant`, shaded by the share of the actual class.

    `rows` are (actual class, predicted class, number of images), all pairs of classes in order.
    """
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
    axes.set_title(f"Confusion matrix of {variant}", fontsize=12)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("actual class")
    figure.colorbar(picture, label="share of the actual class (%)", format=PercentFormatter(1, symbol=None), shrink=0.8)
    return figure


@_styled
def small_multiples(
    histories: Mapping[float, Sequence[History]], diverged: Mapping[float, int], optimizer: str
) -> Figure:
    """Return loss (top) and accuracy (bottom) by epoch, training and validation, for each dropout rate.

    `histories` has the runs of each rate, `diverged` how many of them diverged. Of many rates a selection is drawn,
    `shown_rates`, and the title says so. A loss above the end of the axis is a triangle there.
    """
    dropouts = shown_rates(histories)
    rows = -(-len(dropouts) // RATES_PER_ROW)
    columns = -(-len(dropouts) // rows)
    figure = _figure(max(6.4, 2.2 * columns), 0.8 + 4.2 * rows)
    grid = figure.subplots(2 * rows, columns, squeeze=False, sharex=True, sharey="row")
    for axes in grid.flat:
        axes.set_visible(False)  # the last row may be shorter
    highest = _highest_loss([history for dropout in dropouts for history in histories[dropout]])
    limit = 1.05 * min(highest, LOSS_LIMIT)
    for i, dropout in enumerate(dropouts):
        row, column = divmod(i, columns)
        loss, accuracy = grid[2 * row : 2 * row + 2, column]
        for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
            axes.set_visible(True)
            for history in histories[dropout]:
                _draw_history(axes, history, quantity, limit)
            if column == 0:
                _label(axes, quantity)
        loss.set_title(f"dropout {dropout}")
        loss.set_ylim(0, limit)
        if diverged[dropout]:
            text = f"{diverged[dropout]} of {len(histories[dropout])} diverged"
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # lines may pass behind the text
            loss.text(0.98, 0.97, text, transform=loss.transAxes, ha="right", va="top", color=MUTED, bbox=box)
        accuracy.set_ylim(0, 1)
        accuracy.set_xlabel("epoch")
        accuracy.tick_params(labelbottom=True)
        accuracy.xaxis.get_major_locator().set_params(integer=True)
    if highest > limit:
        grid[0, 0].plot([], [], "^", color=MUTED, markersize=4, label="loss above the axis")
    title = f"{optimizer}: training and validation, one line per seed"
    if len(dropouts) < len(histories):
        title += f"; {len(dropouts)} of {len(histories)} dropout rates"
    figure.suptitle(title)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_history(axes: Any, history: History, quantity: str, limit: float) -> None:
    """Draw the training and validation `quantity` of one run; losses above `limit` as triangles at the limit."""
    epochs = [row["epoch"] for row in history]
    for part, label, color, line in (
        ("train", "training", TRAINING, "-"),
        ("validation", "validation", VALIDATION, "--"),
    ):
        values = [row[f"{part}_{quantity}"] for row in history]
        marker = "." if np.isfinite(values).sum() == 1 else ""  # one point is no line
        axes.plot(epochs, values, line, linewidth=1.2, color=color, marker=marker, label=label)
        above = [epoch for epoch, value in zip(epochs, values, strict=True) if value > limit]
        if quantity == "loss" and above:
            axes.plot(above, [limit] * len(above), "^", color=color, markersize=4, clip_on=False)


def _highest_loss(histories: Sequence[History]) -> float:
    """Return the highest finite loss of some histories, in training or validation; 1 if there is none."""
    losses = [row[f"{part}_loss"] for history in histories for row in history for part in ("train", "validation")]
    return max((loss for loss in losses if np.isfinite(loss)), default=1.0)
