import json
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dropout_study import normalization
from dropout_study.console import StudyError

METHODS: list[Literal["standardize", "minmax"]] = ["standardize", "minmax"]
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(3, 250, (2_345, 4, 4, 3), dtype=np.uint8)
LABELS = np.repeat(np.arange(10, dtype=np.uint8), 30)


def normalized(
    images: np.ndarray, indices: np.ndarray, method: Literal["standardize", "minmax"]
) -> tuple[np.ndarray, normalization.Transform]:
    counts = normalization.count_values(images, indices)
    transform = normalization.fit(normalization.statistics(counts), method)
    return np.concatenate(list(normalization.transformed(images, indices, transform))), transform


def test_statistics_of_counts_are_exact() -> None:
    indices = np.arange(0, len(IMAGES), 2)
    statistics = normalization.statistics(normalization.count_values(IMAGES, indices))

    pixels = IMAGES[indices].reshape(-1, 3).astype(np.float64)

    np.testing.assert_allclose(statistics.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.standard_deviation, pixels.std(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(statistics.minimum, pixels.min(axis=0))
    np.testing.assert_array_equal(statistics.maximum, pixels.max(axis=0))


def test_fit_standardize_gives_each_channel_zero_mean_and_unit_deviation() -> None:
    values, _ = normalized(IMAGES, np.arange(len(IMAGES)), "standardize")

    assert values.dtype == np.float32
    assert values.shape == IMAGES.shape
    np.testing.assert_allclose(values.mean(axis=(0, 1, 2), dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(values.std(axis=(0, 1, 2), dtype=np.float64), 1, atol=1e-6)


def test_fit_minmax_gives_each_channel_the_range_from_0_to_1() -> None:
    values, _ = normalized(IMAGES, np.arange(len(IMAGES)), "minmax")

    np.testing.assert_allclose(values.min(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(values.max(axis=(0, 1, 2)), 1, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_count_values_takes_the_chosen_images_alone(method: Literal["standardize", "minmax"]) -> None:
    chosen = np.arange(100)
    changed = IMAGES.copy()
    changed[100:] = 255
    _, transform = normalized(IMAGES, chosen, method)

    _, same = normalized(changed, chosen, method)

    np.testing.assert_array_equal(transform.table, same.table)


@pytest.mark.parametrize("method", METHODS)
def test_summary_is_that_of_the_written_values(method: Literal["standardize", "minmax"]) -> None:
    indices = np.arange(1_100)
    values, transform = normalized(IMAGES, indices, method)

    counts = normalization.count_values(IMAGES, indices)

    for summary, array in [
        (normalization.summary(counts), IMAGES[indices]),
        (normalization.summary(counts, transform.table), values),
    ]:
        assert summary["mean"] == pytest.approx(array.mean(dtype=np.float64), abs=1e-6)
        assert summary["standard_deviation"] == pytest.approx(array.std(dtype=np.float64), abs=1e-6)
        assert summary["largest"] == pytest.approx(array.max(), abs=1e-6)


@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.just(2), st.just(2), st.integers(1, 3))))
def test_transform_of_any_images_is_finite(images: np.ndarray) -> None:
    for method in METHODS:
        values, _ = normalized(images, np.arange(len(images)), method)
        assert np.isfinite(values).all()


@pytest.mark.parametrize("method", METHODS)
def test_transform_of_a_channel_of_one_value_is_zero(method: Literal["standardize", "minmax"]) -> None:
    values, _ = normalized(np.full((2, 4, 4, 3), 7, np.uint8), np.arange(2), method)

    np.testing.assert_array_equal(values, 0)


def test_transform_survives_json_exactly() -> None:
    _, transform = normalized(IMAGES, np.arange(10), "standardize")
    value = json.loads(json.dumps(transform.to_json()))

    loaded = normalization.Transform(*(np.array(value[name], np.float32) for name in ("scale", "offset")))

    assert loaded.table.tobytes() == transform.table.tobytes()


def test_hold_out_takes_a_stratified_share_and_loses_none() -> None:
    train, validation = normalization.hold_out(LABELS, 0.1, seed=0)

    assert len(validation) == 30
    np.testing.assert_array_equal(np.bincount(LABELS[validation]), 3)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(300))
    assert (np.diff(train) > 0).all()


def test_hold_out_depends_on_the_seed_alone() -> None:
    _, first = normalization.hold_out(LABELS, 0.1, seed=0)
    _, again = normalization.hold_out(LABELS, 0.1, seed=0)

    _, other = normalization.hold_out(LABELS, 0.1, seed=1)

    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_hold_out_for_validation_on_the_test_set_takes_nothing() -> None:
    train, validation = normalization.hold_out(LABELS, "test", seed=0)

    np.testing.assert_array_equal(train, np.arange(300))
    assert len(validation) == 0


def test_hold_out_refuses_too_few_images() -> None:
    with pytest.raises(StudyError, match=r"normalize.validation = 0.1: cannot be held out of 12 images"):
        normalization.hold_out(LABELS[::25], 0.1, seed=0)
