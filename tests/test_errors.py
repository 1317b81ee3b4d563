"""Signals, sent to a process of its own; what it prints in a locale without the letters."""

import os
import signal
import subprocess
import sys

import pytest

from tests.clones import PROJECT

# Waits for a line on standard input, not for some time, so that no test depends on how busy the machine is. A signal
# that comes just before a read blocks would be handled after it: hence the polling.
HELD = """
import select, signal, sys
from dropout_study.errors import interrupts_held
def wait():
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        pass
    sys.stdin.readline()
signal.signal(signal.SIGINT, {handler})
try:
    with interrupts_held() as stop_if_interrupted:
        print("held", flush=True)
        {inside}
    print("block ended", flush=True)
except KeyboardInterrupt as interrupt:
    print("interrupted by", interrupt.args, flush=True)
wait()
print("end", flush=True)
"""
STOPPING = "stopping after this step; interrupt again to stop immediately\n"


def start(inside: str, handler: str = "signal.default_int_handler") -> subprocess.Popen[str]:
    """Start a process that holds interrupts while it runs `inside`, and wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HELD.format(inside=inside, handler=handler)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert read_line(process) == "held\n"
    return process


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "inside",
    [
        "while True: wait(); print('step', flush=True); stop_if_interrupted()",
        "wait(); print('step', flush=True)",
    ],
    ids=["when asked", "at the end of the block"],
)
def test_interrupts_held_raises_after_the_step(inside: str, number: signal.Signals) -> None:
    process = start(inside)

    process.send_signal(number)

    assert read_line(process) == STOPPING
    printed, _ = process.communicate("continue\n", timeout=30)
    assert printed == f"step\ninterrupted by ({number:d},)\nend\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_held_lets_second_interrupt_end_the_process(number: signal.Signals) -> None:
    process = start("wait()")

    process.send_signal(signal.SIGINT)

    assert read_line(process) == STOPPING
    assert process.poll() is None

    process.send_signal(number)

    assert process.wait(30) == -number
    assert process.communicate()[0] == ""


def test_interrupts_held_leaves_ignored_signal_ignored() -> None:
    """As in the background of a shell script."""
    process = start("wait()", handler="signal.SIG_IGN")

    process.send_signal(signal.SIGINT)

    assert process.communicate("continue\n", timeout=30)[0] == "block ended\nend\n"
    assert process.returncode == 0


def test_interrupts_held_restores_handlers() -> None:
    process = start("pass")
    assert read_line(process) == "block ended\n"

    process.send_signal(signal.SIGTERM)

    assert process.wait(30) == -signal.SIGTERM
    process.communicate()


def test_run_stage_escapes_what_the_locale_cannot_encode() -> None:
    code = (
        "from dropout_study.errors import run_stage\n"
        "from dropout_study.progress import say\n"
        r"run_stage(lambda: say('7.5 \xb1 7.0 \u2192 \udcff'), 'A stage.')"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(PROJECT), "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("7.5 \\xb1 7.0 \\u2192 \\udcff\n", "")
