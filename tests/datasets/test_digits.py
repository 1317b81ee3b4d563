import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dropout_study.datasets import DATASETS, describe, digits


def test_load_digits_has_the_shape_of_cifar10() -> None:
    arrays = digits.load()

    assert arrays.train_images.shape == (400, 16, 16, 3)
    assert arrays.test_images.shape == (1_397, 16, 16, 3)
    assert all(array.dtype == np.uint8 for array in arrays)
    assert arrays.train_images.max() == 255
    assert arrays.train_images.min() == 0


def test_load_digits_has_every_digit_once_with_each_pixel_doubled() -> None:
    arrays = digits.load()
    images = np.concatenate([arrays.train_images, arrays.test_images])

    labels = np.concatenate([arrays.train_labels, arrays.test_labels])

    for channel in range(3):
        np.testing.assert_array_equal(images[..., channel], images[..., 0])
    np.testing.assert_array_equal(images[:, ::2, ::2], images[:, 1::2, 1::2])

    original = load_digits()
    small = np.rint(images[:, ::2, ::2, 0].astype(float) * 16 / 255)
    observed = sorted((label, image.tobytes()) for label, image in zip(labels, small, strict=True))
    expected = sorted((label, image.tobytes()) for label, image in zip(original.target, original.images, strict=True))

    assert observed == expected


def test_load_digits_splits_by_class_always_the_same_way() -> None:
    arrays = digits.load()

    np.testing.assert_array_equal(arrays.test_labels, digits.load().test_labels)

    share = np.bincount(arrays.test_labels) / np.bincount(load_digits().target)

    np.testing.assert_allclose(share, 1397 / 1797, atol=0.01)


@pytest.mark.parametrize("name", DATASETS)
def test_dataset_class_names_are_safe_in_charts_and_pages(name: str) -> None:
    classes = DATASETS[name].classes

    assert len(set(classes)) == 10
    assert all(re.fullmatch(r"[A-Za-z0-9 _.-]+", text) for text in classes)


@pytest.mark.parametrize("name", ["<b>", "a&b", 'say "cat"', "{scripts}", "cat\n", "", "Kätzchen"])
def test_dataset_refuses_a_class_name_that_is_markup(name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits, space"):
        replace(DATASETS["digits"], classes=("cat", name))


def test_dataset_sizes_are_as_registered() -> None:
    arrays = digits.load()

    facts = DATASETS["digits"]

    assert (len(arrays.train_labels), len(arrays.test_labels)) == (facts.train_images, facts.test_images)
    assert describe("digits", arrays)["image_size"] == [facts.image_size] * 2
