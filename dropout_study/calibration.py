"""Calibration: whether a network is right as often as it is confident, and its loss when that is corrected."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

BINS = 15  # as in C. Guo et al., "On calibration of modern neural networks", 2017
TEMPERATURES = (1e-2, 1e3)  # the lowest and the highest that are tried


class Bin(NamedTuple):
    """The images whose confidence is above `low` and at most `high`: how many (at least one), and their means.

    The confidence in an image is the probability of its most probable class; `accuracy` is the share of the images that
    are predicted right.
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def reliability(confidence: np.ndarray, correct: np.ndarray) -> list[Bin]:
    """Return the images by confidence, in those of `BINS` bins of equal width that have any.

    `confidence` are floats from 0 to 1, [N]; `correct` is 1 where the most probable class is the image's, else 0, [N],
    or both are means over several predictions of an image.
    Images whose confidence is not finite are in no bin.
    """
    finite = np.isfinite(confidence)
    confidence, correct = confidence[finite], correct[finite]
    edges = np.linspace(0, 1, BINS + 1)
    numbers = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, BINS - 1)
    bins = []
    for number in np.unique(numbers):
        inside = numbers == number
        means = (float(values[inside].mean()) for values in (confidence, correct))
        bins.append(Bin(float(edges[number]), float(edges[number + 1]), int(inside.sum()), *means))
    return bins


def pooled(runs: Iterable[Sequence[Bin]]) -> list[Bin]:
    """Return the bins of several networks put together."""
    together: dict[float, list[Bin]] = {}
    for bins in runs:
        for each in bins:
            together.setdefault(each.low, []).append(each)
    return [merged(together[low]) for low in sorted(together)]


def merged(bins: Sequence[Bin]) -> Bin:
    """Return the images of several bins, at least one, as one bin."""
    images = sum(each.images for each in bins)
    confidence = sum(each.images * each.confidence for each in bins) / images
    accuracy = sum(each.images * each.accuracy for each in bins) / images
    return Bin(bins[0].low, bins[-1].high, images, confidence, accuracy)


def expected_error(bins: Iterable[Bin]) -> float:
    """Return the expected calibration error, a share: the distance of confidence and accuracy in an image's bin.

    It is the mean over images (C. Guo et al. 2017, equation 3); NaN without images.
    """
    weighted = [(each.images, abs(each.accuracy - each.confidence)) for each in bins]
    images = sum(count for count, _ in weighted)
    return sum(count * distance for count, distance in weighted) / images if images else math.nan


def best_temperature(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature, a divisor of the logits, with the lowest mean loss (C. Guo et al. 2017, section 4.2).

    Above 1, the network is overconfident. `log_probabilities` are floats [epochs, N, classes], `labels` integers [N].
    """
    observed = labels[None, :, None]

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(log_probabilities / math.exp(log_temperature), axis=2)
        return -float(np.take_along_axis(scaled, observed, axis=2).mean())

    return math.exp(minimize_scalar(loss, bounds=[*map(math.log, TEMPERATURES)], method="bounded").x)


def scaled_log_probabilities(log_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the log-probability of each image's class at the best temperature, float64 [epochs, N].

    The temperature for the images with an even index is the best one of those with an odd index, and the other way
    round, so that no image has a say in its own. Arguments are as for `best_temperature`.
    """
    scaled = np.empty(log_probabilities.shape[:2])
    for half in (0, 1):
        fitted, applied = slice(1 - half, None, 2), slice(half, None, 2)
        temperature = best_temperature(log_probabilities[:, fitted], labels[fitted])
        values = log_softmax(log_probabilities[:, applied] / temperature, axis=2)
        scaled[:, applied] = np.take_along_axis(values, labels[None, applied, None], axis=2)[..., 0]
    return scaled
