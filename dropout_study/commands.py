"""Git and DVC, called by their command lines."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dropout_study.console import StudyError

# DVC as it is installed beside this Python, wherever the path leads.
DVC = (sys.executable, "-m", "dvc")

CREDENTIALS = re.compile(r"(?<=http://)[^/@\s]+@|(?<=https://)[^/@\s]+@")


def without_credentials(text: str) -> str:
    """Return `text` without the names, passwords and tokens in the http and https URLs in it."""
    return CREDENTIALS.sub("", text)


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this environment, with the programs beside this Python first on the path, and `changes`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", **(changes or {})}


def output(*command: str, cwd: Path | None = None, variables: Mapping[str, str] | None = None) -> str:
    """Return what a command prints, without the last newline.

    Raises `StudyError` with the reason if it fails or is not there; DVC gives none with --quiet. Ctrl-C does not reach
    it: whoever called decides.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment(variables),
            capture_output=True,
            encoding=sys.getfilesystemencoding(),  # paths of any locale are the same bytes again
            errors="surrogateescape",
            check=True,
            stdin=subprocess.DEVNULL,
            preexec_fn=_ignore_interrupts,
        )
    except FileNotFoundError:
        raise StudyError(f"{command[0]} is needed, and is not on PATH") from None
    except subprocess.CalledProcessError as error:
        raise failure(command, error.stderr.strip() or error.stdout.strip()) from None
    return done.stdout.rstrip("\n")


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def failure(command: Sequence[str], printed: str) -> StudyError:
    """Return the error that says why a command failed: what DVC calls an error, else all that was printed.

    It goes into logs, so it has no credentials.
    """
    words = " ".join(word for word in command if word not in DVC[:2])
    reasons = [line.removeprefix("ERROR: ") for line in printed.splitlines() if line.startswith("ERROR: ")]
    return StudyError(without_credentials(f"`{words}` failed: {'; '.join(reasons) or printed}"))
