"""DVC's other commands, as its users know them."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from tests.clones import Clone

pytestmark = pytest.mark.pipeline


def test_params_diff_names_exactly_what_changed(clone: Clone) -> None:
    assert json.loads(clone.dvc("params", "diff", "--json")) == {}
    clone.change(train__epochs=3, train__learning_rate__sgd=0.02)
    assert json.loads(clone.dvc("params", "diff", "--json")) == {
        "params.yaml": {
            "train.epochs": {"old": 2, "new": 3, "diff": 1},
            "train.learning_rate.sgd": {"old": 0.01, "new": 0.02, "diff": 0.01},
        }
    }


def test_metrics_diff_shows_the_variants_that_changed(clone: Clone) -> None:
    clone.change(train__learning_rate__sgd=0.02)
    clone.repro()
    changed = json.loads(clone.dvc("metrics", "diff", "--json"))["metrics/evaluation.json"]
    variants = {key for key in changed if key.startswith("variants.")}
    assert variants
    assert all(key.startswith("variants.sgd-") for key in variants)
    assert "variants.sgd-0.5-0.loss" in variants
    assert all({"old", "new"} <= set(value) for value in changed.values())


def test_plots_show_and_plots_diff_write_a_page(clone: Clone) -> None:
    clone.dvc("plots", "show")
    page = (clone.path / "dvc_plots/index.html").read_text()
    for part in ("test_accuracy", "samples.png", "mistakes.png", "vegaEmbed"):
        assert part in page
    clone.change(train__learning_rate__sgd=0.02)
    clone.repro()
    clone.dvc("plots", "diff", "HEAD")
    page = (clone.path / "dvc_plots/index.html").read_text()
    assert "workspace" in page
    assert "HEAD" in page


def test_a_fresh_clone_pulls_and_runs_nothing(clone: Clone, tmp_path: Path) -> None:
    clone.change(study__dropouts=[0.0, 0.25, 0.5])
    clone.repro()
    clone.commit("a rate added")
    clone.change(study__dropouts=[0.0, 0.5])
    clone.repro()
    remote = tmp_path / "remote"
    clone.dvc("remote", "add", "--default", "storage", str(remote))
    clone.commit("the rate removed, a remote")
    clone.dvc("push")

    fresh = Clone(tmp_path / "fresh")
    clone.run("git", "clone", "--quiet", str(clone.path), str(fresh.path))
    fresh.dvc("pull")
    assert fresh.repro() == []
    assert fresh.run("git", "status", "--porcelain").stdout == ""
    assert (fresh.path / "models/best.keras").read_bytes() == (clone.path / "models/best.keras").read_bytes()


def test_another_clone_takes_trainings_from_the_shared_run_cache(clone: Clone, tmp_path: Path) -> None:
    clone.dvc("remote", "add", "--default", "storage", str(tmp_path / "remote"))
    clone.commit("a remote")
    fresh = Clone(tmp_path / "fresh")
    clone.run("git", "clone", "--quiet", str(clone.path), str(fresh.path))
    clone.change(train__epochs=3)
    clone.repro()
    clone.dvc("push", "--run-cache")

    fresh.change(train__epochs=3)
    ran = fresh.repro("--pull")
    assert not [stage for stage in ran if stage.startswith("train@")]


def test_the_committed_state_is_up_to_date_without_any_data(clone: Clone, tmp_path: Path) -> None:
    fresh = Clone(tmp_path / "fresh")
    clone.run("git", "clone", "--quiet", str(clone.path), str(fresh.path))
    assert "Running stage" not in fresh.dvc("repro", "--dry", "--allow-missing")
    fresh.change(train__epochs=3)
    stale = fresh.run("dvc", "repro", "--dry", "--allow-missing", check=False)
    assert "train@sgd-0.0-0" in stale.stdout + stale.stderr
    assert stale.returncode != 0 or "Running stage" in stale.stdout


def test_an_experiment_runs_and_is_shown(clone: Clone) -> None:
    output = clone.dvc("exp", "run", "--name", "just-one-rate", "-S", "study.dropouts=[0.2]")
    assert "Running stage 'train@sgd-0.2-0'" in output
    assert "Running stage 'download'" not in output
    rows = list(csv.DictReader(io.StringIO(clone.dvc("exp", "show", "--csv"))))
    (experiment,) = [row for row in rows if row["Experiment"] == "just-one-rate"]
    assert experiment["study.dropouts"] == "[0.2]"
    assert float(experiment["variants.sgd-0.2-0.accuracy"]) >= 0
    study = (clone.path / "metrics/study.csv").read_text()
    assert "sgd-0.2-0" in study
    assert "sgd-0.5-0" not in study


def test_gc_keeps_what_the_workspace_and_commits_use(clone: Clone) -> None:
    clone.change(train__epochs=3)
    clone.repro()
    clone.dvc("gc", "--workspace", "--all-commits", "--force")
    clone.run("git", "checkout", "--quiet", "--", ".")
    clone.dvc("checkout")
    assert clone.repro() == []


def test_files_of_a_killed_write_are_cleared_away(clone: Clone) -> None:
    shutil.copy(
        clone.path / "models/variants/sgd-0.5-0.keras",
        clone.path / "models/variants/.4711.sgd-0.5-0.keras",
    )
    assert clone.repro() == ["evaluate"]
    assert not (clone.path / "models/variants/.4711.sgd-0.5-0.keras").exists()
    assert clone.repro() == []


def test_the_cache_may_link_instead_of_copy(clone: Clone) -> None:
    clone.dvc("config", "cache.type", "reflink,hardlink,copy")
    clone.change(study__dropouts=[0.0, 0.25, 0.5])
    assert len(clone.repro()) == 4
    clone.change(study__dropouts=[0.0])
    assert clone.repro() == ["evaluate", "plot"]
    assert clone.repro() == []
