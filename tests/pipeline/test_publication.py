"""`dropout-study publish`: what is kept of a finished study, and what is refused."""

import json
from pathlib import Path

import pytest

from dropout_study.console import TrainingReport
from dropout_study.publication import TABLES, read_published
from tests.clones import Clone

pytestmark = pytest.mark.pipeline


def test_publish_copies_tables_settings_and_charts(clone: Clone) -> None:
    commit = clone.run("git", "rev-parse", "HEAD").stdout.strip()

    printed = clone.run("dropout-study", "publish", "mine").stdout

    assert printed.startswith("published: results/mine/;")
    published = clone.path / "results/mine"
    assert {path.name for path in published.iterdir()} == {*(path.name for path in TABLES), "plots", "provenance.json"}
    for path in TABLES:
        assert (published / path.name).read_bytes() == (clone.path / path).read_bytes()
    pictures = {path.name: path.read_bytes() for path in (published / "plots").iterdir()}
    charts = {path.name: path.read_bytes() for path in (clone.path / "metrics/plots").glob("*.png")}
    for images in ("samples.png", "mistakes.png"):  # of the data set
        del charts[images]
    assert pictures == charts
    assert "loss.png" in pictures
    provenance = json.loads((published / "provenance.json").read_text())
    assert provenance["commit"] == commit
    assert provenance["archive"] is None
    assert provenance["machines"] == json.loads((clone.path / "metrics/verdict.json").read_text())["machines"]


def test_publish_records_the_time_of_each_training_by_its_last_log(clone: Clone) -> None:
    report = TrainingReport("sgd-0.5-0", images=100, epochs=2, path=clone.path / "logs/sgd-0.5-0.jsonl")
    report.finished({"epoch": 2}, [9.0, 9.0], diverged=False)
    report.finished({"epoch": 2}, [1.5, 0.5], diverged=False)

    clone.run("dropout-study", "publish", "mine")

    trainings = json.loads((clone.path / "results/mine/provenance.json").read_text())["trainings"]
    assert trainings["sgd-0.5-0"] == {"epochs": 2, "seconds": 2.0, "images_per_second": 100.0}
    assert trainings["sgd-0.0-0"] is None


def test_publish_replaces_what_was_published_before(clone: Clone) -> None:
    clone.run("dropout-study", "publish", "mine")
    (clone.path / "results/mine/plots/old.png").write_bytes(b"")
    clone.change(study__seeds=[0, 1])
    clone.repro()

    clone.run("dropout-study", "publish", "mine")

    assert not (clone.path / "results/mine/plots/old.png").exists()
    assert not list((clone.path / "results").glob(".*"))
    study = read_published(clone.path / "results")["mine"]
    assert {run.seed for run in study.results} == {0, 1}
    assert study.settings.study.seeds == [0, 1]
    assert set(study.reliability) == {run.variant for run in study.results}


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
