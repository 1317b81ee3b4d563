"""The article's preset, run shrunk to a few images and three epochs, with every new setting changed."""

from pathlib import Path

import pytest

from dropout_study import devices
from dropout_study.results import read_history, read_results
from tests.clones import small_project

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]


def test_preset_runs_with_every_setting_of_training_changed(tmp_path: Path) -> None:
    """Of a tiny network on the digits, at two rates."""
    clone = small_project(tmp_path / "project")
    clone.run("cp", "presets/article-notebook.yaml", "params.yaml")
    clone.change(dataset="digits", study__dropouts=[0.0, 0.9], normalize__train_size=200, train__batch_size=16)
    clone.change(network__filters=[2, 2, 2, 2], network__units=[4, 4], network__dropout_position="after_pooling")
    clone.change(train__loss="clipped", train__epochs=3, train__test_epochs=2)
    if not devices.BFLOAT16_SETS & {*devices.processor()["instruction_sets"]}:
        clone.change(train__precision="float32")

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
