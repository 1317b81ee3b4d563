import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
