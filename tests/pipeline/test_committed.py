"""The committed state of the project itself."""

import re

import pytest

from tests.clones import PROJECT, copy_project

pytestmark = pytest.mark.pipeline


def test_the_lock_file_is_never_stale(tmp_path_factory: pytest.TempPathFactory) -> None:
    clone = copy_project(tmp_path_factory.mktemp("committed") / "project")
    assert "Running stage" not in clone.dvc("repro", "--dry", "--allow-missing")


def test_every_result_is_committed_and_no_cached_output_is(tmp_path_factory: pytest.TempPathFactory) -> None:
    clone = copy_project(tmp_path_factory.mktemp("committed") / "project")
    tracked = set(clone.run("git", "ls-files", "--others", "--exclude-standard").stdout.splitlines())
    assert {"metrics/study.csv", "metrics/evaluation.json", "metrics/confusion.csv"} <= tracked
    assert "metrics/plots/accuracy-adadelta.png" in tracked
    assert not {name for name in tracked if re.match(r"data/|models/|metrics/(history|timing)/", name)}


def test_gitignore_has_every_cached_output() -> None:
    ignored = (PROJECT / ".gitignore").read_text().splitlines()
    for line in ("/data/raw/", "/data/normalized/", "/data/predictions/", "/models/", "/metrics/history/"):
        assert line in ignored
