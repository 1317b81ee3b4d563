"""The stage `normalize`: the test set and the held-out images have no say in the statistics."""

import numpy as np
import pytest

from dropout_study import files
from dropout_study.normalization import hold_out
from dropout_study.settings import load_settings
from tests.clones import Clone

pytestmark = pytest.mark.pipeline


def test_normalize_takes_statistics_from_the_images_that_are_trained_on_alone(clone: Clone) -> None:
    expected = (clone.path / files.STATISTICS).read_bytes()
    settings = load_settings(clone.path / "params.yaml").normalize
    raw = clone.path / files.RAW
    images, labels = (np.load(raw / f"train_{kind}.npy") for kind in ("images", "labels"))
    _, held_out = hold_out(labels[: settings.train_size], settings.validation, settings.seed)
    images[held_out] = 255
    images[settings.train_size :] = 255
    np.save(raw / "train_images.npy", images)
    np.save(raw / "test_images.npy", np.full_like(np.load(raw / "test_images.npy"), 255))

    clone.run("python", "-m", "stages.normalize")

    assert (clone.path / files.STATISTICS).read_bytes() == expected
    assert (np.load(clone.path / files.NORMALIZED / "validation_images.npy") > 0).all()  # they were changed


def test_normalize_would_notice_a_changed_training_image(clone: Clone) -> None:
    expected = (clone.path / files.STATISTICS).read_bytes()
    path = clone.path / files.RAW / "train_images.npy"
    images = np.load(path)
    images[:200] = 255 - images[:200]
    np.save(path, images)

    clone.run("python", "-m", "stages.normalize")

    assert (clone.path / files.STATISTICS).read_bytes() != expected
