"""What is committed: the project at HEAD, whatever the work tree holds."""

import hashlib
import re
import shutil
from pathlib import Path
from statistics import fmean

import pytest
from ruamel.yaml import YAML

from dropout_study import files, report
from dropout_study.results import by_rate, read_results
from dropout_study.settings import load_settings
from dropout_study.verdict import QUANTITIES, read_verdict
from tests.clones import PROJECT, Clone
from tests.needs import missing

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

    variants = load_settings(committed.path / "params.yaml").variants
    assert [result.variant for result in results] == [variant.key for variant in variants]


def test_readme_shows_the_committed_demonstration(committed: Clone) -> None:
    readme = (committed.path / "README.md").read_text()
    verdict = read_verdict(committed.path / files.VERDICT)

    shown = readme.partition("<!-- demonstration -->")[2].partition("<!-- /demonstration -->")[0]
    table, _, quoted = shown.strip().removeprefix("```text\n").partition("\n```\n")

    assert table == report.table(verdict)
    statements = report.paragraph(verdict).split("\n\n")[0]
    assert re.sub("^>", "", quoted, flags=re.MULTILINE).split() == statements.split()


def test_readme_shows_the_prediction_of_the_committed_model(committed: Clone) -> None:
    model = PROJECT / files.BEST_MODEL
    if not model.exists():
        missing(f"no {files.BEST_MODEL} to try: dvc repro, or dvc checkout")
    readme = (committed.path / "README.md").read_text()
    ((command, shown),) = re.findall(r"^\$ (dropout-study predict .*)\n((?:(?!\$|```).*\n)+)", readme, re.MULTILINE)
    printed = Clone(PROJECT).run("sh", "-c", command).stdout
    lock = YAML(typ="safe").load(committed.path / "dvc.lock")["stages"]["evaluate"]["outs"]

    (committed_md5,) = [out["md5"] for out in lock if out["path"] == str(files.BEST_MODEL)]

    if hashlib.md5(model.read_bytes()).hexdigest() == committed_md5:
        assert printed == shown
    else:  # trained on a machine of another kind: a little different
        assert [line.split()[:2] for line in printed.splitlines()] == [line.split()[:2] for line in shown.splitlines()]


def test_committed_words_are_those_of_the_committed_numbers(committed: Clone) -> None:
    verdict = read_verdict(committed.path / files.VERDICT)
    results = read_results(committed.path / files.STUDY)
    dataset = load_settings(committed.path / "params.yaml").dataset

    page = (committed.path / files.VERDICT_PAGE).read_text()
    summary = [row["text"] for row in files.read_csv(committed.path / files.SUMMARY)]

    assert page == report.markdown(verdict, dataset, results)
    assert summary == [report.studied(dataset, results), *report.paragraph(verdict).splitlines()]


def test_committed_verdict_and_table_have_the_same_means(committed: Clone) -> None:
    verdict = read_verdict(committed.path / files.VERDICT)
    groups = by_rate(read_results(committed.path / files.STUDY))

    for optimizer, verdicts in verdict.optimizers.items():
        for quantity in QUANTITIES:
            for row in verdicts.by(quantity).rates:
                runs = [getattr(run, f"test_{quantity}") for run in groups[optimizer, float(row.dropout)]]
                expected = (fmean(runs), min(runs), max(runs), len(runs))
                assert (row.mean, row.lowest, row.highest, row.runs) == pytest.approx(expected, rel=1e-5)


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
