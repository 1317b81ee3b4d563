import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from dropout_study import calibration
from dropout_study.calibration import Bin

# Two images of which the network is sure, and is right in one; three of which it is less sure, and is right in all.
CONFIDENCE = np.array([0.95, 0.97, 0.55, 0.56, 0.57])
CORRECT = np.array([1.0, 0.0, 1.0, 1.0, 1.0])


def test_reliability_has_the_means_of_each_bin_with_images() -> None:
    less_sure, sure = calibration.reliability(CONFIDENCE, CORRECT)

    assert less_sure == pytest.approx((8 / 15, 9 / 15, 3, 0.56, 1.0))
    assert sure == pytest.approx((14 / 15, 1.0, 2, 0.96, 0.5))


def test_expected_error_weighs_the_distance_in_each_bin_by_its_images() -> None:
    bins = calibration.reliability(CONFIDENCE, CORRECT)

    assert calibration.expected_error(bins) == pytest.approx((3 * 0.44 + 2 * 0.46) / 5)


def test_reliability_puts_an_edge_into_the_bin_below_and_the_ends_into_the_outer_bins() -> None:
    bins = calibration.reliability(np.array([0.0, 1 / 15, 0.2, 1.0]), np.ones(4))

    assert [(round(15 * each.low), each.images) for each in bins] == [(0, 2), (2, 1), (14, 1)]


def test_reliability_leaves_out_images_without_a_finite_confidence() -> None:
    bins = calibration.reliability(np.array([math.nan, 0.5]), np.array([0.0, 1.0]))

    assert [each.images for each in bins] == [1]


def test_expected_error_without_images_is_nan() -> None:
    assert math.isnan(calibration.expected_error(calibration.reliability(np.array([math.nan]), np.zeros(1))))


@given(st.integers(0, 2**32 - 1), st.integers(1, 200))
def test_expected_error_of_a_network_right_as_often_as_it_is_sure_is_zero(seed: int, images: int) -> None:
    correct = np.random.default_rng(seed).integers(0, 2, images).astype(float)

    bins = calibration.reliability(np.full(images, correct.mean()), correct)

    assert calibration.expected_error(bins) == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_pooled_bins_of_parts_are_those_of_the_whole(seed: int) -> None:
    chance = np.random.default_rng(seed)
    confidence, correct = chance.random(60), chance.integers(0, 2, 60).astype(float)
    whole = calibration.reliability(confidence, correct)

    parts = [calibration.reliability(confidence[part::3], correct[part::3]) for part in range(3)]

    assert [pytest.approx(each) for each in calibration.pooled(parts)] == whole
    assert all(isinstance(each, Bin) for each in whole)


def overconfident(images: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities [2, images, 4] whose logits are `temperature` times as large as they should be."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, images, 4))
    logits[1] = logits[0]
    labels = np.array([random.choice(4, p=row) for row in softmax(logits[0], axis=1)])
    return log_softmax(temperature * logits, axis=2), labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.0])
def test_best_temperature_is_the_factor_by_which_logits_are_too_large(temperature: float) -> None:
    log_probabilities, labels = overconfident(20_000, temperature)

    assert calibration.best_temperature(log_probabilities, labels) == pytest.approx(temperature, rel=0.05)


def test_scaled_log_probabilities_use_the_temperature_of_the_other_half() -> None:
    log_probabilities, labels = overconfident(4_000, 3.0)
    log_probabilities[:, 1::2] /= 2  # of the images with an odd index

    scaled = calibration.scaled_log_probabilities(log_probabilities, labels)

    odd = calibration.best_temperature(log_probabilities[:, 1::2], labels[1::2])
    expected = log_softmax(log_probabilities[:, ::2] / odd, axis=2)[:, np.arange(2_000), labels[::2]]
    np.testing.assert_allclose(scaled[:, ::2], expected)
    assert odd == pytest.approx(1.5, rel=0.1)


def test_scaled_log_probabilities_of_a_diverged_run_are_not_finite() -> None:
    scaled = calibration.scaled_log_probabilities(np.full((1, 6, 3), np.nan), np.zeros(6, int))

    assert np.isnan(scaled).all()
