"""The article's preset, run shrunk to a few images and three epochs, with every new setting changed."""

import hashlib
from pathlib import Path

import pytest

from dropout_study import devices
from dropout_study.results import read_history, read_results
from dropout_study.settings import load_settings
from tests.clones import PROJECT, Clone, small_project
from tests.datasets.test_cifar10 import content, write_archive

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]


def shrunk(preset: Path, directory: Path) -> Clone:
    """Make a project with the settings of a preset, but for its size and its archive."""
    clone = small_project(directory / "project")
    clone.run("cp", f"presets/{preset.name}", "params.yaml")
    settings = load_settings(preset)
    rates = [settings.study.dropouts[0], settings.study.dropouts[-1]]
    clone.change(study__dropouts=rates, study__seeds=settings.study.seeds[:1])
    clone.change(normalize__train_size=200, train__epochs=1, train__test_epochs=1, train__batch_size=16)
    clone.change(network__filters=[2, 2, 2, 2], network__units=[4, 4])
    if not devices.BFLOAT16_SETS & {*devices.processor()["instruction_sets"]}:
        clone.change(train__precision="float32")
    if settings.dataset == "cifar10":
        archive = write_archive(directory / "cifar-10-binary.tar.gz", content())
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
        clone.change(download__urls=[archive.as_uri()], download__sha256=sha256)
    return clone


def test_preset_runs_with_every_setting_of_training_changed(tmp_path: Path) -> None:
    clone = shrunk(PROJECT / "presets/article-notebook.yaml", tmp_path)
    clone.change(
        train__loss="clipped", train__epochs=3, train__test_epochs=2, network__dropout_position="after_pooling"
    )

    clone.repro()

    verdict = " ".join((clone.path / "metrics/verdict.md").read_text().split())
    assert "Test figures are means over the last 2 epochs, all others those of the last epoch." in verdict
    assert "lowest validation loss, which was chosen by the test images, are in study.csv" in verdict
    for row in read_results(clone.path / "metrics/study.csv"):
        # Validation is on the test images, so the history has the figures at the best epoch.
        history = read_history(clone.path / f"metrics/history/{row.variant}.csv")
        assert row.best_test_loss == pytest.approx(history[row.best_epoch - 1]["validation_loss"], rel=1e-5)
        last = [epoch["validation_accuracy"] for epoch in history[-2:]]
        assert row.test_accuracy == pytest.approx(sum(last) / 2, rel=1e-5)
