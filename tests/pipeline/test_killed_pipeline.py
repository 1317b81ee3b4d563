"""`dvc repro`, killed at any moment or started twice: the next one ends with the bytes of an undisturbed run."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from dropout_study.files import UNFINISHED
from tests.clones import PROJECT, Clone, copied, finish, self_signalling, small_project
from tests.sweeps import outputs

pytestmark = pytest.mark.pipeline

# What DVC says of a file of its own that it was writing when it was killed. docs/troubleshooting.md says to remove it.
TORN = {
    "dvc.lock": r"dvc\.lock' is invalid|validation failed|object has no attribute|(?m:failed to reproduce '[^']+': *$)",
    ".dvc/tmp/rwlock": "Unable to read RWLock-file",
}
START_UP = "start-up"
# What DVC says of a stage that SIGKILL ended: the shell is replaced by the stage (bash), or reports its end (dash).
KILLED = (["-9"], ["137"])
STAGES = ("download", "normalize", "train", "evaluate", "plot")


class Run(NamedTuple):
    """What a `dvc repro` that nobody disturbs writes, and how many seconds each stage takes, DVC's start-up first."""

    outputs: dict[str, bytes]
    seconds: dict[str, float]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A small project with the fake trainer and two variants, in which nothing has been run."""
    clone = small_project(tmp_path_factory.mktemp("fresh") / "project")
    clone.change(study__optimizers=["sgd"])
    shutil.copy(PROJECT / "tests/fake_train.py", clone.path / "stages/train.py")
    clone.commit("nothing is run")
    return clone


@pytest.fixture(scope="module")
def undisturbed(fresh: Clone, tmp_path_factory: pytest.TempPathFactory) -> Run:
    with copied(fresh, tmp_path_factory.mktemp("undisturbed") / "project") as clone:
        process = clone.start("dvc", "repro")
        begun = {START_UP: time.monotonic()}
        assert process.stdout
        for line in process.stdout:
            begun.setdefault(begun_in(line)[-1], time.monotonic())
        finish(process)
        moments = [*begun.values(), time.monotonic()]
        seconds = [end - begin for begin, end in pairwise(moments)]
        return Run(outputs(clone), dict(zip(begun, seconds, strict=True)))


@pytest.fixture(scope="module")
def expected(undisturbed: Run) -> dict[str, bytes]:
    return undisturbed.outputs


def begun_in(printed: str) -> list[str]:
    """Return the stages, without their variants, that have begun by what DVC has printed, in order."""
    return [START_UP, *re.findall(r"^Running stage '(\w+)", printed, re.MULTILINE)]


def repro(clone: Clone, stage: str | None = None, seconds: float | None = None) -> tuple[int, str]:
    """Run `dvc repro`; `seconds` after `stage` has begun, if it does, kill its process group.

    Return its exit code and what it printed.
    """
    process = clone.start("dvc", "repro")
    assert process.stdout
    printed = ""
    while begun_in(printed)[-1] != stage and (line := process.stdout.readline()):
        printed += line
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    rest, _ = process.communicate()
    return process.returncode, printed + rest


def survive(fresh: Clone, undisturbed: Run, directory: Path, kills: int) -> None:
    """Kill `dvc repro` at `kills` random moments of all its stages; a new one resumes each time.

    Each kill is aimed at the stage that has been hit least. When a run ends unharmed, another project begins from
    nothing.
    """
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"KILL_SEED={seed}")
    moments = random.Random(seed)
    hits = dict.fromkeys([START_UP, *STAGES], 0)
    longest = dict(undisturbed.seconds)
    projects = 0
    while sum(hits.values()) < kills:
        projects += 1
        with copied(fresh, directory / f"project-{projects}") as clone:
            code = None
            while code != 0:
                aim = min(hits, key=hits.__getitem__)
                seconds = moments.uniform(0, longest[aim])
                code, printed = repro(clone, aim, seconds) if sum(hits.values()) < kills else repro(clone)
                *before, stage = begun_in(printed)
                if code == -signal.SIGKILL:
                    hits[stage] += 1
                    saving = "lock file 'dvc.lock'" in printed.rpartition("Running stage")[2]
                    place = f"{stage}, while or after its entry in dvc.lock is written" if saving else stage
                    print(f"project {projects}: {seconds:.2f} s after the begin of {aim}: killed in {place}")
                elif code:
                    (torn,) = [path for path, message in TORN.items() if re.search(message, printed)] or [printed]
                    print(f"project {projects}: {torn} is torn")
                    (clone.path / torn).unlink()
                if aim in before or (code == 0 and aim == stage):
                    longest[aim] /= 2  # missed: the machine is less busy than it was

            assert outputs(clone) == undisturbed.outputs
            assert not [*clone.path.rglob(f"{UNFINISHED}*")]
            assert clone.dvc("status") == "Data and pipelines are up to date.\n"
    print(f"kills: {hits}")
    assert min(hits.values()) >= kills // 10, hits


@pytest.mark.stress
def test_repro_killed_at_100_random_moments_of_all_stages_equals_undisturbed_run(
    fresh: Clone, undisturbed: Run, tmp_path: Path
) -> None:
    survive(fresh, undisturbed, tmp_path, 100)


def test_repro_whose_stages_are_killed_one_by_one_equals_undisturbed_run(
    fresh: Clone, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Only the stage's own process is killed, as the system does when memory is short: between two of its outputs."""
    with copied(fresh, tmp_path / "project") as clone:
        for stage in STAGES:
            variables = self_signalling(tmp_path / stage, stage, signal.SIGKILL, rename=2)
            killed = clone.run("dvc", "repro", check=False, **variables)

            assert killed.returncode != 0
            statuses = re.findall(rf"failed to run: python -m stages\.{stage}, exited with (\S+)", killed.stderr)
            assert statuses in KILLED

        clone.repro()

        assert outputs(clone) == expected


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


@pytest.mark.slow
def test_two_repros_started_together_equal_one(fresh: Clone, expected: dict[str, bytes], tmp_path: Path) -> None:
    race(fresh, expected, tmp_path, 1)


@pytest.mark.stress
def test_two_repros_started_together_20_times_equal_one(
    fresh: Clone, expected: dict[str, bytes], tmp_path: Path
) -> None:
    race(fresh, expected, tmp_path, 20)
