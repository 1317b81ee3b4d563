"""Settings through the real `dvc` and the real sweep: no shell ever sees them, whatever their encoding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dropout_study.settings import load_settings
from tests.clones import Clone, stages_run

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

RATES = {"sgd": 0.01, "adadelta": 1.0, "adam": 0.001}
NASTY: dict[str, dict[str, Any]] = {
    # With a learning rate of that name, DVC finds every parameter of the stage, and runs its command.
    "optimizer": {
        "study__optimizers": ["$(touch PWNED)"],
        "train__learning_rate": {**RATES, "$(touch PWNED)": 0.01},
    },
    "rate": {"study__dropouts": ["`touch PWNED`"]},
}


def pwned(clone: Clone) -> list[Path]:
    return [*clone.path.parent.rglob("PWNED*")]


@pytest.mark.parametrize("case", NASTY)
def test_no_command_runs_what_settings_say(untrained: Clone, clone_of: Callable[[Clone], Clone], case: str) -> None:
    clone = clone_of(untrained)
    clone.change(**NASTY[case])

    checked = clone.run("dropout-study", "check", check=False)
    swept = clone.run("dropout-study", "sweep", check=False)
    reproduced = clone.run("dvc", "repro", check=False)

    assert (checked.returncode, swept.returncode) == (1, 1)
    assert checked.stderr.startswith("error: params.yaml: ")
    assert swept.stderr == checked.stderr
    assert swept.stdout == ""
    assert reproduced.returncode != 0
    assert [name.partition("@")[0] for name in stages_run(reproduced.stdout)] == ["train"]  # whose command refused them
    assert "Traceback" not in checked.stderr + reproduced.stderr
    assert pwned(clone) == []


def test_exp_run_runs_no_command_of_an_override(untrained: Clone, clone_of: Callable[[Clone], Clone]) -> None:
    clone = clone_of(untrained)

    done = clone.run("dvc", "exp", "run", "-S", "study.optimizers=['$(touch PWNED)']", check=False)

    assert done.returncode != 0
    assert "touch PWNED" in done.stdout + done.stderr
    assert pwned(clone) == []


def test_check_refuses_settings_by_which_dvc_would_remove_a_file(
    untrained: Clone, clone_of: Callable[[Clone], Clone]
) -> None:
    clone = clone_of(untrained)
    victim = clone.path / "victim-0.0-0.keras"
    victim.touch()
    clone.change(
        study__optimizers=["../../victim"],
        study__dropouts=[0.0],
        train__learning_rate={**RATES, "../../victim": 1},
    )

    checked = clone.run("dropout-study", "check", check=False)

    assert "study.optimizers[0] = '../../victim': must be 'sgd'" in checked.stderr
    assert victim.exists()

    # What SECURITY.md says of whoever does not check: outputs are removed before a stage runs.
    clone.run("dvc", "repro", check=False)

    assert not victim.exists()


def test_settings_with_a_byte_order_mark_and_windows_line_ends_are_the_same_settings(clone: Clone) -> None:
    path = clone.path / "params.yaml"
    before = load_settings(path)
    path.write_bytes(("\ufeff" + path.read_text(encoding="utf-8").replace("\n", "\r\n")).encode())

    assert clone.run("dropout-study", "check").stdout.startswith("params.yaml: valid. ")
    assert load_settings(path) == before
    assert clone.repro() == []


def test_settings_that_dvc_cannot_read_are_refused(clone: Clone) -> None:
    path = clone.path / "params.yaml"
    path.write_text(path.read_text().replace("  ", "\t"))

    checked = clone.run("dropout-study", "check", check=False)
    reproduced = clone.run("dvc", "repro", check=False)

    assert checked.returncode == 1
    assert checked.stderr.startswith("error: params.yaml: not valid YAML: ")
    assert reproduced.returncode != 0
    assert stages_run(reproduced.stdout) == []
