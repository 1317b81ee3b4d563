"""Stages that find a pickle, or an array of another shape, where they expect an array: one line, and nothing lost."""

import shutil

import numpy as np
import pytest

from dropout_study import files
from tests.clones import PROJECT, Clone
from tests.test_hostile_arrays import evil_npy

pytestmark = pytest.mark.pipeline

KEY = "sgd-0.5-0"
READ = {
    "normalize": ["data/raw/train_images.npy", "data/raw/test_labels.npy"],
    f"train@{KEY}": ["data/normalized/train_images.npy", "data/normalized/test_images.npy"],
    "evaluate": ["data/normalized/test_labels.npy", f"data/predictions/{KEY}.npy"],
    "plot": ["data/normalized/pixel_counts.npy", "data/raw/train_labels.npy", "data/predictions/BEST.npy"],
}


def run_refused(clone: Clone, stage: str, path: str, before: str) -> None:
    """Run `stage`, which is to refuse the file `path` in one line that has `before`."""
    name = stage.partition("@")[0]

    done = clone.run("python", "-m", f"stages.{name}", check=False, DVC_STAGE=stage)

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {path}: {before}")
    assert done.stderr.count("\n") == 1
    assert not [*clone.path.rglob("PWNED")]


@pytest.mark.parametrize("stage", READ)
def test_stage_refuses_a_pickle_in_place_of_an_array(clone: Clone, stage: str) -> None:
    shutil.copy(PROJECT / "stages/train.py", clone.path / "stages/train.py")
    best = files.read_csv(clone.path / files.CONFUSION)[0]["variant"]
    for name in READ[stage]:
        path = name.replace("BEST", best)
        original = (clone.path / path).read_bytes()
        (clone.path / path).unlink()  # it may be a link into DVC's cache
        (clone.path / path).write_bytes(evil_npy())

        run_refused(clone, stage, path, "no array of numbers, or cut off (Array can't be memory-mapped: Python objects")

        (clone.path / path).write_bytes(original)


@pytest.mark.parametrize(
    ("stage", "path", "missing", "epochs"),
    [
        ("normalize", "data/raw/train_labels.npy", 0, ""),
        ("evaluate", f"data/predictions/{KEY}.npy", 0, "at least 2"),
        ("evaluate", f"data/predictions/{KEY}.npy", 1, "any"),
        ("evaluate", f"data/predictions/{KEY}.npy", 2, "any"),
        ("plot", "data/raw/test_labels.npy", 0, ""),
        (f"train@{KEY}", "data/normalized/train_labels.npy", 0, ""),
    ],
)
def test_stage_names_both_shapes_if_they_differ(clone: Clone, stage: str, path: str, missing: int, epochs: str) -> None:
    shutil.copy(PROJECT / "stages/train.py", clone.path / "stages/train.py")
    array = np.load(clone.path / path)
    smaller = np.delete(array, 0, axis=missing)
    (clone.path / path).unlink()
    np.save(clone.path / path, smaller)

    needed = str(array.shape).replace("(2, ", f"({epochs}, ") if epochs else str(array.shape)
    run_refused(clone, stage, path, f"has shape {smaller.shape}, needed is {needed}; remove it")


@pytest.mark.parametrize(
    ("stage", "path"),
    [("normalize", "data/raw/test_images.npy"), (f"train@{KEY}", "data/normalized/validation_images.npy")],
)
def test_stage_names_both_shapes_of_images_that_differ(clone: Clone, stage: str, path: str) -> None:
    shutil.copy(PROJECT / "stages/train.py", clone.path / "stages/train.py")
    array = np.load(clone.path / path)
    (clone.path / path).unlink()
    np.save(clone.path / path, array[:, 1:])

    needed = ", ".join(str(size) for size in array.shape[1:])
    run_refused(clone, stage, path, f"has shape {array[:, 1:].shape}, needed is (any, {needed}); remove it")


def test_repro_restores_an_array_that_was_refused_and_removed(clone: Clone) -> None:
    path = clone.path / files.predictions_file(KEY)
    original = path.read_bytes()
    path.unlink()
    path.write_bytes(evil_npy())
    run_refused(clone, "evaluate", str(files.predictions_file(KEY)), "no array of numbers")

    path.unlink()

    assert clone.repro() == []
    assert path.read_bytes() == original
