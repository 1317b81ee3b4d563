"""DVC commands other than plain `dvc repro`, as its users know them."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from tests.clones import PROJECT, Clone

pytestmark = pytest.mark.pipeline


def test_params_diff_names_exactly_what_changed(clone: Clone) -> None:
    unchanged = json.loads(clone.dvc("params", "diff", "--json"))
    clone.change(train__epochs=3, train__learning_rate__sgd=0.02)
    changed = json.loads(clone.dvc("params", "diff", "--json"))

    assert unchanged == {}
    assert changed == {
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


@pytest.mark.slow
def test_plots_show_writes_what_git_ignores_in_a_subdirectory(clone: Clone) -> None:
    clone.run("sh", "-c", "cd metrics && dvc plots show")

    assert (clone.path / "metrics/dvc_plots/index.html").exists()
    assert clone.run("git", "status", "--porcelain").stdout == ""


def test_pull_into_a_fresh_clone_leaves_nothing_to_run(clone: Clone, tmp_path: Path) -> None:
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


def test_repro_pull_takes_trainings_from_the_shared_run_cache(clone: Clone, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_repro_allow_missing_needs_no_data_to_tell_what_is_stale(clone: Clone, tmp_path: Path) -> None:
    fresh = Clone(tmp_path / "fresh")
    clone.run("git", "clone", "--quiet", str(clone.path), str(fresh.path))

    unchanged = fresh.dvc("repro", "--dry", "--allow-missing")
    fresh.change(train__epochs=3)
    stale = fresh.run("dvc", "repro", "--dry", "--allow-missing", check=False)

    assert "Running stage" not in unchanged
    assert "train@sgd-0.0-0" in stale.stdout + stale.stderr
    assert stale.returncode != 0 or "Running stage" in stale.stdout


def test_exp_run_trains_what_is_new_and_exp_show_shows_it(clone: Clone) -> None:
    output = clone.dvc("exp", "run", "--name", "just-one-rate", "-S", "study.dropouts=[0.2]")
    rows = list(csv.DictReader(io.StringIO(clone.dvc("exp", "show", "--csv"))))

    assert "Running stage 'train@sgd-0.2-0'" in output
    assert "Running stage 'download'" not in output
    (experiment,) = [row for row in rows if row["Experiment"] == "just-one-rate"]
    assert experiment["study.dropouts"] == "[0.2]"
    assert float(experiment["variants.sgd-0.2-0.accuracy"]) >= 0
    study = (clone.path / "metrics/study.csv").read_text()
    assert "sgd-0.2-0" in study
    assert "sgd-0.5-0" not in study


@pytest.mark.slow
def test_gc_keeps_what_the_workspace_and_commits_use(clone: Clone) -> None:
    clone.change(train__epochs=3)
    clone.repro()

    clone.dvc("gc", "--workspace", "--all-commits", "--force")
    clone.run("git", "checkout", "--quiet", "--", ".")
    clone.dvc("checkout")

    assert clone.repro() == []


@pytest.mark.slow
def test_repro_works_with_a_cache_of_links(clone: Clone) -> None:
    clone.dvc("config", "cache.type", "reflink,hardlink,copy")

    clone.change(study__dropouts=[0.0, 0.25, 0.5])
    more = clone.repro()
    clone.change(study__dropouts=[0.0])
    fewer = clone.repro()

    assert more == ["train@sgd-0.25-0", "train@adadelta-0.25-0", "evaluate", "plot"]
    assert fewer == ["evaluate", "plot"]
    assert clone.repro() == []


# What file managers, file systems, Jupyter, editors and office programs write where someone looks at files; and what
# killed stages leave.
LITTER = (
    ".DS_Store",
    "._sgd-0.5-0.csv",
    "Thumbs.db",
    "desktop.ini",
    ".directory",
    ".nfs000000000012",
    ".fuse_hidden0000001",
    ".ipynb_checkpoints/x-checkpoint.csv",
    "x.csv~",
    ".x.csv.swp",
    "#x.csv#",
    ".~lock.x.csv#",
    "~$x.csv",
    ".idea/workspace.xml",
    ".unfinished-x.csv",
)
EMACS_LOCK = ".#x.csv"  # a symbolic link to nothing


def write_litter(directory: Path) -> list[Path]:
    """Write such files into `directory` and return their paths."""
    paths = [directory / name for name in LITTER]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    lock = directory / EMACS_LOCK
    lock.symlink_to("me@machine.4711")
    return [*paths, lock]


def test_status_ignores_files_that_no_stage_writes(clone: Clone) -> None:
    for directory in ("metrics/history", "metrics/plots", "models/variants", "data/predictions"):
        write_litter(clone.path / directory)
    write_litter(clone.path)
    (clone.path / "logs").mkdir()
    (clone.path / "logs/sgd-0.5-0.log").touch()

    assert "up to date" in clone.dvc("status")
    assert clone.run("git", "status", "--porcelain").stdout == ""


@pytest.mark.slow
def test_status_notices_other_files(clone: Clone) -> None:
    (clone.path / "metrics/history/logs").mkdir()
    (clone.path / "metrics/history/logs/notes.csv").touch()

    assert "metrics/history" in clone.dvc("status")


@pytest.mark.slow
def test_checkout_keeps_files_that_no_stage_writes(clone: Clone) -> None:
    paths = write_litter(clone.path / "data/predictions")
    (clone.path / "data/predictions/sgd-0.5-0.npy").unlink()

    clone.dvc("checkout")

    assert "up to date" in clone.dvc("status")
    assert all(path.is_symlink() or path.exists() for path in paths)


def test_dvcignore_and_gitignore_have_the_same_list() -> None:
    patterns = [
        {line for line in (PROJECT / name).read_text().splitlines() if line and not line.startswith("#")}
        for name in (".dvcignore", ".gitignore")
    ]

    assert patterns[0] <= patterns[1]


@pytest.mark.slow
@pytest.mark.parametrize("option", ["core.autocrlf=true", "core.eol=crlf"])
def test_status_is_empty_where_git_writes_windows_line_endings(clone: Clone, tmp_path: Path, option: str) -> None:
    fresh = Clone(tmp_path / "fresh")
    clone.run("git", "clone", "--quiet", "-c", option, str(clone.path), str(fresh.path))
    shutil.copytree(clone.path / ".dvc/cache", fresh.path / ".dvc/cache")

    fresh.dvc("checkout")

    assert "up to date" in fresh.dvc("status")
    assert "w/crlf" not in fresh.run("git", "ls-files", "--eol").stdout


def test_evaluate_says_when_variants_were_computed_on_different_machines(clone: Clone) -> None:
    path = clone.path / "metrics/provenance/sgd-0.5-0.json"
    path.write_text(path.read_text().replace('"fake"', '"another processor"'))

    printed = clone.run("python", "-m", "stages.evaluate").stdout

    sentence = (
        "The variants were not computed alike, in 2 ways: "
        "3 variants on processor fake; 1 variant on processor another processor."
    )
    machines = json.loads((clone.path / "metrics/verdict.json").read_text())["machines"]
    assert sentence in printed
    assert sentence in (clone.path / "metrics/verdict.md").read_text()
    assert sentence in clone.run("dropout-study", "results").stdout
    assert [len(machine["variants"]) for machine in machines] == [3, 1]
    assert machines[1]["provenance"]["processor"] == "another processor"


def test_evaluate_says_nothing_of_machines_if_there_is_one_kind(clone: Clone) -> None:
    printed = clone.run("python", "-m", "stages.evaluate").stdout

    assert "not computed alike" not in printed
