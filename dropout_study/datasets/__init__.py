"""The data sets that the study knows, and what is fixed about each."""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set before it is there: sizes, and the names of its classes in label order.

    Class names reach charts and pages unescaped, so they are letters, digits, space and `_.-` only; others raise
    `ValueError`.
    """

    image_size: int
    train_images: int
    test_images: int
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the names."""
        for name in self.classes:
            if not re.fullmatch(r"[A-Za-z0-9 _.-]+", name):
                raise ValueError(f"class name {name!r}: letters, digits, space and _.- are allowed; it reaches charts")


class Arrays(NamedTuple):
    """A data set as it is saved: uint8 images [N, H, W, 3] and uint8 labels [N], for training and test."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


DATASETS = {
    "digits": Dataset(
        image_size=16,
        train_images=400,
        test_images=1_397,
        classes=tuple("0123456789"),
    ),
    "cifar10": Dataset(
        image_size=32,
        train_images=50_000,
        test_images=10_000,
        classes=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
    ),
}


def describe(name: str, arrays: Arrays) -> dict[str, Any]:
    """Return what the article prints of a data set: examples, channels, image size; and counts per class."""
    dataset = DATASETS[name]
    height, width, channels = arrays.train_images.shape[1:]
    parts = {"train": arrays.train_labels, "test": arrays.test_labels}
    return {
        "dataset": name,
        "image_size": [height, width],
        "channels": channels,
        "classes": len(dataset.classes),
        **{
            part: {
                "images": len(labels),
                "per_class": dict(
                    zip(
                        dataset.classes,
                        np.bincount(labels, minlength=len(dataset.classes)).tolist(),
                        strict=True,
                    )
                ),
            }
            for part, labels in parts.items()
        },
    }
