"""What a worker makes of the end of a training; tests/pipeline/test_sweep.py runs it."""

import pytest

from dropout_study.sweep import worker


@pytest.mark.parametrize(
    ("status", "killed"), [("-9", True), ("137", True), ("143", True), ("130", True), ("1", False), ("13", False)]
)
def test_killed_knows_a_signal_below_a_shell_and_without_one(status: str, killed: bool) -> None:
    line = f"ERROR: failed to reproduce 'train@sgd-0.5-0': failed to run: python -m stages.train, exited with {status}"

    assert bool(worker.KILLED.search(line)) == killed
