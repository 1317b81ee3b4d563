"""What a test needs of the machine. Where that is missing, the test is skipped; in CI, nothing may be missing."""

import os
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

IN_CI = bool(os.environ.get("CI"))


def missing(reason: str) -> NoReturn:
    """Skip the test or fixture that calls this; in CI, fail it."""
    if IN_CI:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def possible(*command: str, directory: Path | None = None) -> None:
    """Skip the test or fixture that calls this if `command` fails in `directory`; in CI, fail it."""
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"not possible here: {' '.join(command)}: {done.stderr}")


def needs(available: bool, reason: str) -> pytest.MarkDecorator:
    """Return the mark of a test that is skipped unless what it needs is `available`; in CI, it runs, and fails."""
    return pytest.mark.skipif(not (available or IN_CI), reason=reason)
