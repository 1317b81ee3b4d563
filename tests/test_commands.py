"""Calls of other programs."""

import os
import subprocess
import sys

import pytest

from dropout_study.commands import output, without_credentials
from dropout_study.console import StudyError
from tests.clones import PROJECT


def test_output_raises_what_dvc_calls_an_error_and_nothing_else() -> None:
    script = "echo 'Collecting' >&2; echo 'ERROR: the disk is full' >&2; echo 'Having any troubles?' >&2; exit 1"

    with pytest.raises(StudyError, match=r"` failed: the disk is full$"):
        output("sh", "-c", script)


def test_output_raises_all_that_is_said_without_such_a_line() -> None:
    with pytest.raises(StudyError, match=r"` failed: fatal: no such ref$"):
        output("sh", "-c", "echo 'fatal: no such ref' >&2; exit 1")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@example.org/a.git", "https://example.org/a.git"),
        ("http://token@localhost:8080/a.git and more", "http://localhost:8080/a.git and more"),
        ("ssh://git@example.org/a.git", "ssh://git@example.org/a.git"),
        ("https://example.org/@me/a.git", "https://example.org/@me/a.git"),
    ],
)
def test_without_credentials_keeps_all_but_those_of_http(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


def test_output_raises_without_the_credentials_of_a_url() -> None:
    with pytest.raises(StudyError, match=r"`git ls-remote http://127\.0\.0\.1:1/a` failed: ") as raised:
        output("git", "ls-remote", "http://me:secret@127.0.0.1:1/a")

    assert "secret" not in str(raised.value)


def test_output_names_a_program_that_is_missing() -> None:
    with pytest.raises(StudyError, match="no-such-program is needed, and is not on PATH"):
        output("no-such-program")


def test_output_does_not_pass_on_an_interrupt_of_the_terminal() -> None:
    """Ctrl-C goes to the whole process group; DVC would end with a traceback."""
    assert output("sh", "-c", "kill -INT $$; echo unharmed") == "unharmed"


@pytest.mark.parametrize("path", ["연구".encode(), b"\xff"], ids=["korean", "not-utf-8"])
def test_output_gives_the_bytes_of_a_path_back_in_any_locale(path: bytes) -> None:
    code = (
        "import os, sys\n"
        "from dropout_study.commands import output\n"
        "print([*os.fsencode(output('printf', sys.argv[1]))])"
    )

    for variables in ({"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONUTF8": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", code, path],
            env=os.environ | {"PYTHONPATH": str(PROJECT)} | variables,
            capture_output=True,
            text=True,
            check=False,
        )

        assert done.stdout == f"{[*path]}\n", done.stderr
