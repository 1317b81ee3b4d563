"""How the driver of a sweep runs DVC; tests/pipeline/test_sweep.py runs all of it."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dropout_study import files
from dropout_study.commands import output
from dropout_study.console import StudyError, TrainingReport
from dropout_study.settings import load_settings
from dropout_study.sweep import driver, project


def test_dvc_is_ended_by_an_interrupt_that_comes_while_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def interrupted_start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(driver, "DVC", ("sleep", "30"))
    monkeypatch.setattr(subprocess, "Popen", interrupted_start)

    with pytest.raises(KeyboardInterrupt):
        driver.dvc()

    assert started[0].returncode == -signal.SIGINT


def test_require_own_repository_refuses_a_directory_of_a_larger_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output("git", "init", "--quiet", str(tmp_path))
    (tmp_path / "studies/dropout").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    project.require_own_repository()

    monkeypatch.chdir("studies/dropout")

    with pytest.raises(StudyError, match="this project is studies/dropout/ of a larger Git repository; "):
        project.require_own_repository()


def test_require_own_repository_refuses_a_directory_without_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    with pytest.raises(StudyError, match="not a git repository"):
        project.require_own_repository()


def test_instructions_name_the_url_without_its_credentials() -> None:
    text = driver.instructions("https://me:secret@example.org/a.git", "20261127-abc", 4)

    assert "secret" not in text
    assert "credentials, left out here" in text
    assert "\n  dropout-study sweep worker https://example.org/a.git 20261127-abc --index N\n" in text
    assert "\n  dropout-study sweep collect https://example.org/a.git 20261127-abc" in text


def test_instructions_say_nothing_of_credentials_if_there_are_none() -> None:
    assert "credentials" not in driver.instructions("ssh://git@example.org/a.git", "20261127-abc", 4)


def test_known_seconds_are_those_of_trainings_with_as_many_epochs_as_now(
    write_settings: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(write_settings(train__epochs=12))
    monkeypatch.chdir(tmp_path)
    for variant, (epochs, seconds) in zip(settings.variants, [(12, 60.0), (2, 10.0), (12, 80.0)], strict=False):
        report = TrainingReport(variant.key, 100, epochs, files.progress_file(variant.key))
        report.finished({"epoch": epochs}, [seconds], diverged=False)

    assert driver.known_seconds(settings) == [60.0, 80.0]
