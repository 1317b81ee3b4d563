"""The whole study with the real trainer, on a tiny network."""

import csv
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.clones import Clone, small_project

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A tiny study of SGD and Adadelta at rate 0.5, run for real. Tests go on with it in the order of this file."""
    clone = small_project(tmp_path_factory.mktemp("real") / "project")
    clone.change(study__dropouts=[0.5])
    assert "train@adadelta-0.5-0" in clone.repro()
    clone.commit("the study")
    return clone


def rows(clone: Clone) -> dict[str, dict[str, str]]:
    with (clone.path / "metrics/study.csv").open() as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def test_a_second_repro_runs_nothing(studied: Clone) -> None:
    assert studied.repro() == []


def test_every_file_is_there_with_a_row_an_epoch(studied: Clone) -> None:
    for key in ("sgd-0.5-0", "adadelta-0.5-0"):
        history = (studied.path / f"metrics/history/{key}.csv").read_text().splitlines()
        assert history[0] == "epoch,train_loss,train_accuracy,validation_loss,validation_accuracy"
        assert [line.split(",")[0] for line in history[1:]] == ["1", "2"]
        timing = json.loads((studied.path / f"metrics/timing/{key}.json").read_text())
        assert (timing["status"], timing["threads"], len(timing["seconds"])) == ("finished", 1, 2)
        probabilities = np.load(studied.path / f"data/predictions/{key}.npy")
        assert probabilities.shape == (500, 10)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_the_best_model_takes_raw_pixels(studied: Clone) -> None:
    best = json.loads((studied.path / "metrics/evaluation.json").read_text())["best"]
    model = keras.models.load_model(studied.path / "models/best.keras")
    found = model.predict(np.load(studied.path / "data/raw/test_images.npy"), verbose=0)
    expected = np.load(studied.path / f"data/predictions/{best['variant']}.npy")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    labels = np.load(studied.path / "data/raw/test_labels.npy")
    assert (found.argmax(axis=1) == labels).mean() == pytest.approx(best["test_accuracy"], abs=1e-6)


def test_another_clone_gets_the_same_bytes(studied: Clone, tmp_path: Path) -> None:
    fresh = Clone(tmp_path / "fresh")
    studied.run("git", "clone", "--quiet", str(studied.path), str(fresh.path))
    # Plot draws what is committed, but also writes the script of the page, which is not.
    assert fresh.repro() == ["download", "normalize", "train@sgd-0.5-0", "train@adadelta-0.5-0", "evaluate", "plot"]
    # In dvc.lock the files of durations differ, and nothing depends on them.
    assert fresh.run("git", "diff", "--name-only").stdout.split() == ["dvc.lock"]
    for name in ("models/best.keras", "models/variants/sgd-0.5-0.weights.h5", "metrics/history/sgd-0.5-0.csv"):
        assert (fresh.path / name).read_bytes() == (studied.path / name).read_bytes()


def test_a_diverged_variant_is_a_result_and_the_others_go_on(studied: Clone) -> None:
    studied.change(train__learning_rate__sgd=1e12)
    output = studied.dvc("repro")
    assert "sgd-0.5-0  diverged: the loss stopped being finite in epoch 1, step" in output
    assert "with sgd at learning rate 1e+12" in output
    results = rows(studied)
    assert (results["sgd-0.5-0"]["diverged"], results["adadelta-0.5-0"]["diverged"]) == ("1", "")
    evaluation = json.loads((studied.path / "metrics/evaluation.json").read_text())
    assert evaluation["best"]["variant"] == "adadelta-0.5-0"
    assert evaluation["variants"]["sgd-0.5-0"]["diverged"] == 1
    timing = json.loads((studied.path / "metrics/timing/sgd-0.5-0.json").read_text())
    assert timing["status"] == "diverged"
    assert timing["diverged"]["epoch"] == 1
    assert "diverged: sgd-0.5-0" in studied.run("dropout-study", "results").stdout
    assert studied.repro() == []


def test_going_back_trains_nothing(studied: Clone) -> None:
    studied.change(train__learning_rate__sgd=0.01)
    assert studied.repro() == ["evaluate", "plot"]
    assert rows(studied)["sgd-0.5-0"]["diverged"] == ""
