"""The tables behind the page of `dvc plots show`."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dropout_study.results import History, Result

SHOWN_RATES = 10  # more histories beside each other cannot be told apart
HISTORY_COLUMNS = ("variant", "optimizer", "dropout", "seed", "epoch", "part", "loss", "accuracy", "rates")
PIXEL_BIN = 16
PIXEL_UNITS = {"before": "0 to 255", "standardize": "standard deviations", "minmax": "0 to 1"}
PIXEL_COLUMNS = ("normalization", "unit", "channel", "value", "share")
SUMMARY_COLUMNS = ("line", "text")


def shown_rates(dropouts: Iterable[float]) -> list[float]:
    """Return the dropout rates whose histories are drawn, ascending: at most `SHOWN_RATES`.

    Of more rates these are an evenly spaced selection, the lowest and the highest among them.
    """
    ascending = sorted(set(dropouts))
    if len(ascending) <= SHOWN_RATES:
        return ascending
    return [ascending[i * (len(ascending) - 1) // (SHOWN_RATES - 1)] for i in range(SHOWN_RATES)]


def history_rows(results: Sequence[Result], histories: Mapping[str, History]) -> list[tuple[object, ...]]:
    """Return the histories of `shown_rates` as one tidy table, a row for each variant, epoch and part.

    The epoch in which a variant diverged has neither loss nor accuracy. The last column is the number of rates in the
    study.
    """
    dropouts = {result.dropout for result in results}
    shown = shown_rates(dropouts)
    return [
        (
            r.variant,
            r.optimizer,
            r.dropout,
            r.seed,
            int(row["epoch"]),
            part,
            *((row[f"{part}_loss"], row[f"{part}_accuracy"]) if row["epoch"] != r.diverged else (None, None)),
            len(dropouts),
        )
        for r in results
        if r.dropout in shown
        for row in histories[r.variant]
        for part in ("train", "validation")
    ]


def pixel_rows(
    counts: np.ndarray, scale: Sequence[float], offset: Sequence[float], method: str
) -> list[tuple[object, ...]]:
    """Return the distribution of pixel values before and after `value * scale + offset`, as one tidy table.

    `counts`, int64 [256, C], is how often each value occurs in a channel; they are put together by 16. `method` is that
    of the normalization. A row is: before or after, the unit, the channel, the middle of the bin, its share. Channels
    that are all the same are one row.
    """
    channels = counts.shape[1]
    alike = bool((counts == counts[:, :1]).all())
    names = ["all channels"] if alike else ["red", "green", "blue"][:channels]
    binned = counts.reshape(-1, PIXEL_BIN, channels).sum(axis=1)
    shares = binned / binned.sum(axis=0)
    middles = np.arange(len(binned)) * PIXEL_BIN + (PIXEL_BIN - 1) / 2
    return [
        (when, PIXEL_UNITS[method if when == "after" else when], name, float(value), float(share))
        for when in ("before", "after")
        for channel, name in enumerate(names)
        for value, share in zip(
            middles if when == "before" else middles * scale[channel] + offset[channel], shares[:, channel], strict=True
        )
    ]


def summary_rows(studied: str, paragraph: str) -> list[tuple[int, str]]:
    """Return what was studied, and the verdict's `paragraph`, as numbered lines; an empty one starts a new part."""
    return list(enumerate([studied, *paragraph.splitlines()], 1))
