"""`dvc repro`, killed at any moment or started twice: the next one ends with the bytes of an undisturbed run."""

import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from dropout_study.files import UNFINISHED
from tests.clones import FAKE_TRAINER, Clone, copied, small_project
from tests.sweeps import outputs, processes, undisturbed_outputs, wait_until

pytestmark = pytest.mark.pipeline

TORN = {"dvc.lock": r"dvc\.lock' (is invalid|validation failed)", ".dvc/tmp/rwlock": "Unable to read RWLock-file"}
LONGEST_SECONDS = 12.0  # until a kill; a run that nobody kills takes about as long on two free cores


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A small project with the fake trainer and two variants, in which nothing has been run."""
    clone = small_project(tmp_path_factory.mktemp("fresh") / "project")
    clone.change(study__optimizers=["sgd"])
    shutil.copy(FAKE_TRAINER, clone.path / "stages" / "train.py")
    clone.commit("nothing is run")
    return clone


@pytest.fixture(scope="module")
def expected(fresh: Clone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    return undisturbed_outputs(fresh, tmp_path_factory.mktemp("undisturbed") / "project")


def survive(fresh: Clone, expected: dict[str, bytes], directory: Path, kills: int) -> None:
    """Kill the process group of `dvc repro` at `kills` random moments; a new one resumes each time.

    When one ends unharmed, another project begins from nothing.
    """
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"KILL_SEED={seed}")
    moments = random.Random(seed)
    killed = projects = 0
    while killed < kills or projects == 0:
        projects += 1
        with copied(fresh, directory / f"project-{projects}") as clone:
            while True:
                process = clone.start("dvc", "repro")
                try:
                    printed, _ = process.communicate(
                        timeout=moments.uniform(0, LONGEST_SECONDS) if killed < kills else None
                    )
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
                    killed += 1
                    continue
                if process.returncode == 0:
                    break
                # DVC was killed while it wrote one of its own files. docs/troubleshooting.md says to remove it.
                (torn,) = [path for path, message in TORN.items() if re.search(message, printed)] or [printed]
                (clone.path / torn).unlink()

            assert outputs(clone) == expected
            assert not [*clone.path.rglob(f"{UNFINISHED}*")]
            assert clone.dvc("status") == "Data and pipelines are up to date.\n"


def test_repro_killed_at_20_random_moments_equals_undisturbed_run(
    fresh: Clone, expected: dict[str, bytes], tmp_path: Path
) -> None:
    survive(fresh, expected, tmp_path, 20)


@pytest.mark.stress
def test_repro_killed_at_100_random_moments_equals_undisturbed_run(
    fresh: Clone, expected: dict[str, bytes], tmp_path: Path
) -> None:
    survive(fresh, expected, tmp_path, 100)


@pytest.mark.parametrize("stage", ["download", "normalize", "train", "evaluate", "plot"])
def test_repro_whose_stage_is_killed_fails_and_the_next_resumes(
    fresh: Clone, expected: dict[str, bytes], tmp_path: Path, stage: str
) -> None:
    """Only the stage's own process is killed, as the system does when memory is short."""
    with copied(fresh, tmp_path / "project") as clone:
        process = clone.start("dvc", "repro")
        assert process.stdout
        for line in process.stdout:
            if line == f"> python -m stages.{stage}\n":
                break
        command = f"python\0-m\0stages.{stage}\0".encode()
        wait_until(lambda: any(_command(pid) == command for pid in processes(clone)))
        (pid,) = (pid for pid in processes(clone) if _command(pid) == command)

        os.kill(pid, signal.SIGKILL)
        printed, _ = process.communicate(timeout=60)

        assert process.returncode != 0
        assert "failed to run: python -m stages." in printed
        clone.repro()
        assert outputs(clone) == expected


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def race(fresh: Clone, expected: dict[str, bytes], directory: Path, times: int) -> None:
    """Start two `dvc repro` together, `times` times: one succeeds, and the other succeeds, too, or says why not."""
    for i in range(times):
        with copied(fresh, directory / f"project-{i}") as clone:
            both = [clone.start("dvc", "repro") for _ in range(2)]
            printed = [process.communicate(timeout=120)[0] for process in both]

            codes = [process.returncode for process in both]
            assert 0 in codes, printed
            for code, text in zip(codes, printed, strict=True):
                assert code == 0 or "Unable to acquire lock" in text or "is busy" in text, text
            clone.repro()
            assert outputs(clone) == expected


def test_two_repros_started_together_equal_one(fresh: Clone, expected: dict[str, bytes], tmp_path: Path) -> None:
    race(fresh, expected, tmp_path, 3)


@pytest.mark.stress
def test_two_repros_started_together_20_times_equal_one(
    fresh: Clone, expected: dict[str, bytes], tmp_path: Path
) -> None:
    race(fresh, expected, tmp_path, 20)
