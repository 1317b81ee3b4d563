"""`dropout-study publish`: what is kept of a finished study, and what is refused."""

import csv
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from dropout_study.console import TrainingReport
from dropout_study.published.publication import CONTENT, SCORES, read_published, read_scores, write_scores
from dropout_study.results import image_scores
from dropout_study.settings import load_settings
from tests.clones import Clone
from tests.sweeps import KEYS

pytestmark = pytest.mark.pipeline


def figures(path: Path) -> list[list[str]]:
    with path.open() as file:
        return list(csv.reader(file))


def test_publish_keeps_settings_tables_scores_charts_and_times(clone: Clone) -> None:
    commit = clone.run("git", "rev-parse", "HEAD").stdout.strip()
    report = TrainingReport("sgd-0.5-0", images=100, epochs=2, path=clone.path / "logs/sgd-0.5-0.jsonl")
    report.finished({"epoch": 2}, [9.0, 9.0], diverged=False)
    report.finished({"epoch": 2}, [1.5, 0.5], diverged=False)

    printed = clone.run("dropout-study", "publish", "mine").stdout

    assert printed.startswith("published: results/mine/;")
    published = clone.path / "results/mine"
    assert {path.name for path in published.iterdir()} == {*CONTENT, SCORES}
    assert load_settings(published / "params.yaml") == load_settings(clone.path / "params.yaml")
    charts = {path.name for path in (published / "plots").iterdir()}
    assert {"accuracy.png", "loss.png", "confusion.png"} <= charts
    assert not {"samples.png", "mistakes.png"} & charts
    assert (published / "plots/confusion.png").read_bytes() == (clone.path / "metrics/plots/confusion.png").read_bytes()
    provenance = json.loads((published / "provenance.json").read_text())
    assert provenance["archive"] is None
    assert tuple(provenance["variants"]) == KEYS
    assert {origin["commit"] for origin in provenance["variants"].values()} == {commit}
    assert provenance["variants"][KEYS[0]]["provenance"]["processor"] == "fake"
    times = {key: origin["training"] for key, origin in provenance["variants"].items()}
    assert times["sgd-0.5-0"] == {"epochs": 2, "seconds": 2.0, "images_per_second": 100.0}
    assert times["sgd-0.0-0"] is None
    # Judged by the scores, which are rounded, as `evaluate` does by the predictions.
    for name in ("study.csv", "rates.csv"):
        read, computed = (figures(directory / name) for directory in (published, clone.path / "metrics"))
        assert read[0] == computed[0]
        for row, expected in zip(read[1:], computed[1:], strict=True):
            for cell, value in zip(row, expected, strict=True):
                with suppress(ValueError):
                    assert float(cell) == pytest.approx(float(value), abs=2e-3), (row, expected)


def test_scores_file_of_ten_thousand_images_is_at_most_100_kilobytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 10_000)
    logits = random.normal(size=(11, 10_000, 10)) * 2
    logits[:, np.arange(10_000), labels] += 3
    predictions = log_softmax(logits, axis=2).astype(np.float32)
    last, best = image_scores(predictions[:-1], labels), image_scores(predictions[-1:], labels)

    write_scores(tmp_path / "scores.npy.xz", last, best)

    assert (tmp_path / "scores.npy.xz").stat().st_size <= 100_000
    for written, read in zip((last, best), read_scores(tmp_path / "scores.npy.xz"), strict=True):
        assert written.keys() == read.keys()
        for name, values in written.items():
            assert read[name].mean() == pytest.approx(values.mean(), abs=5e-5)


def test_publish_adds_runs_that_need_not_form_a_grid(clone: Clone) -> None:
    clone.run("dropout-study", "publish", "mine")
    before = read_published(clone.path / "results")["mine"]
    scores = (clone.path / f"results/mine/scores/{KEYS[0]}.npy.xz").read_bytes()
    clone.change(study__optimizers=["adadelta"], study__dropouts=[0.25], study__seeds=[7], train__checkpoint_every=2)
    clone.repro()

    clone.run("dropout-study", "publish", "mine")

    study = read_published(clone.path / "results")["mine"]
    assert {run.variant for run in study.results} == {*KEYS, "adadelta-0.25-7"}
    assert (study.settings.study.dropouts, study.settings.study.seeds) == ([0.0, 0.25, 0.5], [0, 7])
    assert [run for run in study.results if run.variant in KEYS] == before.results
    assert study.histories.keys() == {*KEYS, "adadelta-0.25-7"}
    assert study.histories[KEYS[0]] == before.histories[KEYS[0]]
    assert study.verdict.runs == len(KEYS) + 1
    assert (clone.path / f"results/mine/scores/{KEYS[0]}.npy.xz").read_bytes() == scores
    assert study.provenance["variants"].keys() == study.histories.keys()
    assert not list((clone.path / "results").glob(".*"))


@pytest.mark.slow
def test_publish_replaces_a_run_that_is_published(clone: Clone) -> None:
    clone.run("dropout-study", "publish", "mine")
    path = clone.path / "results/mine/study.csv"
    path.write_text(path.read_text().replace("sgd-0.0-0,sgd,0.0,0,2", "sgd-0.0-0,sgd,0.0,0,1"))

    clone.run("dropout-study", "publish", "mine")

    assert {run.epochs for run in read_published(clone.path / "results")["mine"].results} == {2}


def test_publish_refuses_to_add_runs_with_another_setting(clone: Clone) -> None:
    clone.run("dropout-study", "publish", "mine")
    before = (clone.path / "results/mine/study.csv").read_bytes()
    clone.change(train__epochs=3)
    clone.repro()

    done = clone.run("dropout-study", "publish", "mine", check=False)

    assert done.returncode == 1
    assert "error: results/mine/params.yaml: its runs have other settings than params.yaml" in done.stderr
    assert "train.epochs = 2 there, 3 here" in done.stderr
    assert (clone.path / "results/mine/study.csv").read_bytes() == before


def test_study_without_a_finished_run_is_judged_and_published_without_a_best_model(clone: Clone) -> None:
    clone.change(study__optimizers=["sgd"], study__dropouts=[0.9], train__learning_rate__sgd=1e3)

    clone.repro()

    assert (clone.path / "models/best.keras").read_bytes() == b""
    words = (clone.path / "metrics/verdict.md").read_text()
    assert "The rates are not compared: at every rate a run diverged." in words
    predicted = clone.run("dropout-study", "predict", "metrics/plots/loss.png", check=False)
    assert "empty, as `evaluate` leaves it if every run diverged" in predicted.stderr
    clone.run("dropout-study", "publish", "mine")
    assert not (clone.path / "results/mine/plots/confusion.png").exists()
    assert [run.diverged for run in read_published(clone.path / "results")["mine"].results] == [2]
    clone.run("dvc", "plots", "show")


def test_publish_refuses_results_of_other_settings(clone: Clone) -> None:
    clone.change(train__epochs=3)

    done = clone.run("dropout-study", "publish", "mine", check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("error: the results are not up to date (train@")
    assert "`dvc repro`" in done.stderr
    assert not (clone.path / "results/mine").exists()


@pytest.mark.parametrize("name", ["../mine", "Mine", ".mine", "a b"])
def test_publish_refuses_names_that_are_no_directory_of_results(clone: Clone, name: str) -> None:
    done = clone.run("dropout-study", "publish", name, check=False)

    assert done.returncode == 1
    assert f"error: {name!r}: not a name for a study" in done.stderr
    assert not (clone.path / "results" / name).exists()


def test_read_published_ignores_directories_without_a_study(tmp_path: Path) -> None:
    (tmp_path / "results/empty").mkdir(parents=True)

    assert read_published(tmp_path / "results") == {}
