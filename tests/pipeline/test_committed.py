"""What is committed: the project at HEAD, whatever the work tree holds."""

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dropout_study import files, report, statistics
from dropout_study.results import read_rates, read_results
from tests.clones import PROJECT, Clone

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone of the project at HEAD, without any data."""
    clone = Clone(tmp_path_factory.mktemp("committed") / "project")
    clone.path.mkdir()
    clone.run("git", "clone", "--quiet", str(PROJECT), ".")
    return clone


def test_lock_file_is_not_stale(committed: Clone, tmp_path: Path) -> None:
    assert "Running stage" not in committed.dvc("repro", "--dry", "--allow-missing")

    # And this check can fail.
    changed = Clone(tmp_path / "changed")
    shutil.copytree(committed.path, changed.path)
    changed.append("stages/plot.py")
    stale = changed.run("dvc", "repro", "--dry", "--allow-missing", check=False)

    assert stale.returncode != 0 or "Running stage 'plot'" in stale.stdout


def test_params_are_the_quick_preset(committed: Clone) -> None:
    assert (committed.path / "params.yaml").read_bytes() == (committed.path / "presets/quick.yaml").read_bytes()


def test_study_has_the_variants_of_the_settings(committed: Clone) -> None:
    results = read_results(committed.path / "metrics/study.csv")

    assert len(results) == 15
    assert {result.variant for result in results} == {
        f"adadelta-{rate}-{seed}" for rate in (0.0, 0.3, 0.5, 0.7, 0.9) for seed in (0, 1, 2)
    }


def test_readme_shows_the_committed_results(committed: Clone) -> None:
    readme = (committed.path / "README.md").read_text()
    shown = readme.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    found = files.read_json(committed.path / files.VERDICT)
    rates = read_rates(committed.path / files.RATES)
    table, said = report.table(found, rates), report.paragraph(found, rates)

    text, _, quoted = shown.strip().removeprefix("```text\n").partition("\n```\n")

    assert text == table
    assert re.sub("^>", "", quoted, flags=re.MULTILINE).split() == said.split()


def test_readme_shows_the_prediction_of_the_committed_model(committed: Clone) -> None:
    model = PROJECT / files.BEST_MODEL
    if not model.exists():
        reason = f"no {files.BEST_MODEL} to try: dvc repro, or dvc checkout"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    readme = (committed.path / "README.md").read_text()
    ((command, shown),) = re.findall(r"^\$ (dropout-study predict .*)\n((?:(?!\$|```).*\n)+)", readme, re.MULTILINE)
    printed = Clone(PROJECT).run("sh", "-c", command).stdout
    lock = YAML(typ="safe").load(committed.path / "dvc.lock")["stages"]["evaluate"]["outs"]

    (committed_md5,) = [out["md5"] for out in lock if out["path"] == str(files.BEST_MODEL)]

    if hashlib.md5(model.read_bytes()).hexdigest() == committed_md5:
        assert printed == shown
    else:  # trained on a machine of another kind: a little different
        assert [line.split()[:2] for line in printed.splitlines()] == [line.split()[:2] for line in shown.splitlines()]


def test_verdict_is_that_of_the_committed_results(committed: Clone) -> None:
    results = read_results(committed.path / "metrics/study.csv")
    found = files.read_json(committed.path / files.VERDICT)
    validation = YAML(typ="safe").load(committed.path / "params.yaml")["normalize"]["validation"]
    again = statistics.verdict(results, found["test_images"], validation)
    again["machines"] = found["machines"]

    rates = read_rates(committed.path / files.RATES)

    assert report.paragraph(again, rates) == report.paragraph(found, rates)
    for comparison, expected in zip(
        again["optimizers"]["adadelta"]["comparisons"], found["optimizers"]["adadelta"]["comparisons"], strict=True
    ):
        assert comparison == pytest.approx(expected, rel=1e-4)  # the table of results is rounded


def test_outputs_are_either_cached_and_ignored_or_committed(committed: Clone) -> None:
    tracked = committed.run("git", "ls-files").stdout.splitlines()

    for stage in YAML(typ="safe").load(committed.path / "dvc.yaml")["stages"].values():
        for out in [*stage["outs"], *stage.get("metrics", [])]:
            name = out if isinstance(out, str) else next(iter(out))
            name = name.replace("${key}", "adadelta-0.5-0")
            # With a slash for a directory that is not there, as in a clone without data.
            ignored = any(
                committed.run("git", "check-ignore", "--quiet", path, check=False).returncode == 0
                for path in (name, f"{name}/")
            )
            is_tracked = any(path == name or path.startswith(f"{name}/") for path in tracked)
            assert (ignored, is_tracked) == ((True, False) if isinstance(out, str) else (False, True)), name
