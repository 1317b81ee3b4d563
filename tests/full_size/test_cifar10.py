"""Download and normalize on all 60,000 images of the archive that CIFAR10_ARCHIVE names."""

import hashlib
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from tests.clones import Clone, copy_project
from tests.needs import missing

pytestmark = pytest.mark.full_size

# The training images of the recompressed copy that the project is tested with, and of the official archive.
MOMENTS = {
    "1c5aab95c1ca78e32ee31fc15c969da3d814bf41155ffb33cc2803d15124bb3e": (120.688, 63.856),
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd": (120.708, 64.150),
}
GIGABYTE = 1_000_000_000


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The project after download and normalize, on all of CIFAR-10, validated on the test set."""
    if "CIFAR10_ARCHIVE" not in os.environ:
        missing("CIFAR10_ARCHIVE names no archive: the full-size tests did not run")
    archive = Path(os.environ["CIFAR10_ARCHIVE"])
    clone = copy_project(tmp_path_factory.mktemp("full") / "project")
    clone.run("cp", "presets/article.yaml", "params.yaml")
    clone.change(download__sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    clone.run("dvc", "repro", "normalize", CIFAR10_ARCHIVE=str(archive.resolve()))
    return clone


def test_normalize_finds_the_statistics_of_this_copy(prepared: Clone) -> None:
    sha256 = next((prepared.path / "data/downloads").iterdir()).name
    train = json.loads((prepared.path / "metrics/normalization.json").read_text())["train"]

    mean, deviation = MOMENTS[sha256]

    assert train["images"] == 50_000
    assert round(train["before"]["mean"], 3) == mean
    assert round(train["before"]["standard_deviation"], 3) == deviation
    assert train["after"]["mean"] == 0
    assert train["after"]["standard_deviation"] == 1


def test_download_finds_the_counts_of_the_article(prepared: Clone) -> None:
    facts = json.loads((prepared.path / "metrics/dataset.json").read_text())

    assert (facts["train"]["images"], facts["test"]["images"]) == (50_000, 10_000)
    assert set(facts["train"]["per_class"].values()) == {5_000}


def test_normalize_writes_what_the_statistics_say(prepared: Clone) -> None:
    for part, count in (("train", 50_000), ("validation", 10_000), ("test", 10_000)):
        images = np.load(prepared.path / f"data/normalized/{part}_images.npy", mmap_mode="r")
        assert images.shape == (count, 32, 32, 3)
        assert images.dtype == np.float32

    train = np.load(prepared.path / "data/normalized/train_images.npy", mmap_mode="r")
    moments = np.array([[chunk.mean(), (chunk**2).mean()] for chunk in np.array_split(train, 50)])

    np.testing.assert_allclose(moments.mean(axis=0), [0, 1], atol=1e-4)


def test_download_and_normalize_need_less_than_a_gigabyte(prepared: Clone) -> None:
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < GIGABYTE
