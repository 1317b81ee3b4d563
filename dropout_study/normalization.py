"""Statistics of the training images, and the two transforms that they define.

A pixel has 256 possible values, so everything is computed from counts of values per channel: exactly, in
integers, without a floating-point copy of the images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dropout_study.console import StudyError

VALUES = 256
CHUNK = 1_000  # images at a time: what bounds the memory


@dataclass(frozen=True)
class Statistics:
    """Per channel, float64 [C]: mean, standard deviation, smallest and largest value of the training images."""

    mean: np.ndarray
    standard_deviation: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray


@dataclass(frozen=True)
class Transform:
    """Pixel values [0, 255] to network inputs, `pixel * scale + offset`; scale and offset float32 [C]."""

    scale: np.ndarray
    offset: np.ndarray

    @property
    def table(self) -> np.ndarray:
        """The transform of every possible pixel value, float32 [256, C]."""
        return np.arange(VALUES, dtype=np.float32)[:, None] * self.scale + self.offset

    def to_json(self) -> dict[str, list[float]]:
        """Return the transform as JSON holds it, exactly."""
        return {"scale": self.scale.tolist(), "offset": self.offset.tolist()}


def hold_out(labels: np.ndarray, share: float | Literal["test"], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the images to train on and of those to validate on, both in ascending order.

    The held-out share is drawn by `seed`, stratified by class; nothing is held out if `share` is "test".
    Raises `StudyError` if the images are too few to have every class on both sides.
    """
    from sklearn.model_selection import train_test_split  # half a second that only this function needs

    everything = np.arange(len(labels))
    if share == "test":
        return everything, everything[:0]
    try:
        train, validation = train_test_split(everything, test_size=share, stratify=labels, random_state=seed)
    except ValueError as error:
        raise StudyError(
            f"params.yaml: normalize.validation = {share}: cannot be held out of {len(labels)} images "
            f"with every class on both sides ({error}); use more images or another share"
        ) from error
    return np.sort(train), np.sort(validation)


def count_values(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return how often each pixel value occurs per channel, int64 [256, C], in uint8 images [N, H, W, C]."""
    channels = images.shape[-1]
    counts = np.zeros((channels, VALUES), np.int64)
    for chunk in _chunks(indices):
        block = images[chunk].reshape(-1, channels)
        for channel in range(channels):
            counts[channel] += np.bincount(block[:, channel], minlength=VALUES)
    return counts.T


def statistics(counts: np.ndarray, table: np.ndarray | None = None) -> Statistics:
    """Return the statistics of what `counts` [256, C] counts: pixel values, or their images under a `table`."""
    values = np.arange(VALUES, dtype=np.float64)[:, None] if table is None else table.astype(np.float64)
    values = np.broadcast_to(values, counts.shape)
    total = counts.sum(axis=0)
    mean = (counts * values).sum(axis=0) / total
    variance = (counts * (values - mean) ** 2).sum(axis=0) / total
    seen = counts > 0
    return Statistics(
        mean,
        np.sqrt(variance),
        np.where(seen, values, np.inf).min(axis=0),
        np.where(seen, values, -np.inf).max(axis=0),
    )


def fit(train: Statistics, method: Literal["standardize", "minmax"]) -> Transform:
    """Return the transform that gives the training images zero mean and unit deviation, or the range [0, 1].

    Both per channel. A channel with a single value is only shifted (its scale is 1).
    """
    if method == "standardize":
        low, width = train.mean, train.standard_deviation
    else:
        low, width = train.minimum, train.maximum - train.minimum
    scale = 1 / np.where(width == 0, 1, width)
    return Transform(scale.astype(np.float32), (-low * scale).astype(np.float32))


def transformed(images: np.ndarray, indices: np.ndarray, transform: Transform) -> Iterator[np.ndarray]:
    """Yield the transform of `images[indices]` (uint8 [N, H, W, C]) in float32 blocks along the first axis."""
    for chunk in _chunks(indices):
        block = images[chunk].astype(np.float32)
        block *= transform.scale
        block += transform.offset
        yield block


def summary(counts: np.ndarray, table: np.ndarray | None = None) -> dict[str, float]:
    """Return mean, standard deviation and largest value over all channels, as the article prints them."""
    per_channel = statistics(counts, table)
    # Every channel has equally many values, so the moments of all are the means over the channels.
    mean = per_channel.mean.mean()
    square = (per_channel.standard_deviation**2 + per_channel.mean**2).mean()
    return {
        "mean": _rounded(mean),
        "standard_deviation": _rounded(np.sqrt(square - mean**2)),
        "largest": _rounded(per_channel.maximum.max()),
    }


def _rounded(value: float) -> float:
    return round(float(value), 6) + 0.0  # no negative zero


def _chunks(indices: np.ndarray) -> list[np.ndarray]:
    return [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]
