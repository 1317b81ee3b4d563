"""How the driver of a sweep runs DVC; tests/pipeline/test_sweep.py runs all of it."""

import signal
import subprocess
from typing import Any

import pytest

from dropout_study.sweep import driver


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
