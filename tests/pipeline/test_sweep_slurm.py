"""docs/sweep.sbatch on a real SLURM: arrays, a time limit, requeue, scancel and failures."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clones import PROJECT, Clone, small_project
from tests.slurm import running_slurm, slurm
from tests.sweeps import KEYS, Sweep, gates, outputs, processes, release, send, started, undisturbed_outputs, wait_until

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

BUSY = "another process is training this variant"
RUNS_NO_MORE = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with running_slurm(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


@pytest.fixture
def sent(swept: Clone, tmp_path: Path) -> Sweep:
    return send(swept, tmp_path)


def submit(sweep: Sweep, cluster: dict[str, str], *options: str) -> str:
    """Submit the script of the document with other options in front, as a user does; return the job's ID."""
    shutil.copy(PROJECT / "docs/sweep.sbatch", sweep.elsewhere.path)
    home = sweep.elsewhere.path.parent
    command = ["sbatch", "--parsable", *options, "sweep.sbatch", sweep.repository, sweep.name]
    return sweep.elsewhere.run(*command, check=True, HOME=str(home), TMPDIR=str(home), **cluster).stdout.strip()


def states(job: str, cluster: dict[str, str]) -> list[str]:
    """Return the states of the tasks of an array, in order."""
    shown = slurm("scontrol", "--oneliner", "show", "job", job, **cluster)
    tasks = re.findall(r"ArrayTaskId=(\S+) .*?JobState=(\S+)", shown)
    return [state for _, state in sorted(tasks)]


def wait_for_end(job: str, cluster: dict[str, str]) -> list[str]:
    """Wait until no task of an array runs or waits; return their states."""
    wait_until(lambda: {*states(job, cluster)} <= RUNS_NO_MORE)
    return states(job, cluster)


def trainings_ended(sweep: Sweep) -> bool:
    """Return whether nothing runs in the directories of the workers."""
    return not any(processes(Clone(path)) for path in sweep.elsewhere.path.parent.glob("dropout-study-*"))


def test_array_gives_the_bytes_of_a_sequential_run(sent: Sweep, cluster: dict[str, str], tmp_path: Path) -> None:
    expected = undisturbed_outputs(sent.clone, tmp_path / "sequential")

    job = submit(sent, cluster, "--array=0-3%20")

    assert wait_for_end(job, cluster) == ["COMPLETED"] * 4
    assert "4 variants taken in" in sent.collect()
    assert outputs(sent.clone) == expected
    assert trainings_ended(sent)


def test_variant_that_fails_leaves_the_others_alone(sent: Sweep, cluster: dict[str, str]) -> None:
    (gates(sent.clone) / f"fail-{KEYS[1]}").touch()

    job = submit(sent, cluster, "--array=0-3%20")

    assert wait_for_end(job, cluster) == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED"]
    printed = (sent.elsewhere.path / f"slurm-{job}_1.out").read_text()
    assert f"error: {KEYS[1]}: not trained; {KEYS[1]} cannot be trained" in printed
    assert len(sent.refs()) == 1 + 3


def test_two_arrays_of_one_sweep_train_each_variant_once(sent: Sweep, cluster: dict[str, str]) -> None:
    (gates(sent.clone) / f"hold-{KEYS[0]}").touch()
    jobs = [submit(sent, cluster, "--array=0-3%1") for _ in range(2)]
    logs = [sent.elsewhere.path / f"slurm-{job}_0.out" for job in jobs]

    wait_until(lambda: any(BUSY in log.read_text() for log in logs if log.exists()))
    release(sent.clone)
    ends = [wait_for_end(job, cluster) for job in jobs]

    assert sorted(end[0] for end in ends) == ["COMPLETED", "FAILED"]
    assert [end[1:] for end in ends] == [["COMPLETED"] * 3] * 2
    assert sorted(set(started(sent.clone))) == sorted(KEYS)
    assert "4 variants taken in" in sent.collect()


def test_scancel_leaves_nothing_running_and_the_next_array_trains_the_rest(
    sent: Sweep, cluster: dict[str, str]
) -> None:
    (gates(sent.clone) / f"hold-{KEYS[0]}").touch()
    job = submit(sent, cluster, "--array=0-1")
    wait_until(lambda: states(job, cluster) == ["RUNNING", "COMPLETED"])

    slurm("scancel", job, **cluster)

    assert wait_for_end(job, cluster) == ["CANCELLED", "COMPLETED"]
    wait_until(lambda: trainings_ended(sent), 30)
    release(sent.clone)
    assert wait_for_end(submit(sent, cluster, "--array=0-3"), cluster) == ["COMPLETED"] * 4
    assert started(sent.clone).count(KEYS[1]) == 1


def test_training_that_reaches_the_time_limit_leaves_nothing_running(sent: Sweep, cluster: dict[str, str]) -> None:
    """SLURM counts in minutes; the signal comes as long before the end as is asked for."""
    (gates(sent.clone) / f"hold-{KEYS[0]}").touch()

    job = submit(sent, cluster, "--array=0", "--time=1", "--signal=TERM@50")
    (state,) = wait_for_end(job, cluster)

    assert state in ("FAILED", "TIMEOUT")
    wait_until(lambda: trainings_ended(sent), 30)
    assert "interrupted; the next call resumes" in (sent.elsewhere.path / f"slurm-{job}_0.out").read_text()


def test_training_that_is_requeued_resumes_with_the_bytes_of_an_uninterrupted_run(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    """With the real trainer."""
    clone = small_project(tmp_path / "project")
    clone.change(study__optimizers=["adadelta"], study__dropouts=[0.5], train__epochs=20, train__batch_size=10)
    clone.change(network__filters=[16, 16, 32, 32], network__units=[64, 64])
    clone.commit("a study of one variant")
    expected = undisturbed_outputs(clone, tmp_path / "uninterrupted")
    sweep = send(clone, tmp_path)
    job = submit(sweep, cluster, "--array=0")

    def log() -> str:
        return "".join(path.read_text() for path in tmp_path.glob("dropout-study-*/logs/*/adadelta-0.5-0.log"))

    wait_until(lambda: "epoch  3/20" in log())
    slurm("scontrol", "requeue", f"{job}_0", **cluster)
    wait_until(lambda: "resuming after epoch" in log())

    assert wait_for_end(job, cluster) == ["COMPLETED"]
    assert "1 variant taken in" in sweep.collect()
    assert outputs(clone) == expected
