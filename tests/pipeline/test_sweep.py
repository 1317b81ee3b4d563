"""`dropout-study sweep` on this machine: the real dvc and git, real processes and signals."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from dropout_study import files
from dropout_study.console import TrainingReport
from dropout_study.sweep import project
from tests.clones import Clone, copied, small_project
from tests.sweeps import (
    KEYS,
    command_lines,
    gates,
    outputs,
    processes,
    release,
    started,
    trainings,
    undisturbed_outputs,
    wait_until,
)

pytestmark = pytest.mark.pipeline


# Put before the work of a stage: it waits until it is interrupted.
MAIN = "\ndef main() -> None:\n"
WAIT = """    import pathlib, threading
    pathlib.Path("waiting").touch()
    threading.Event().wait()
"""


def sweeping(clone: Clone, *options: str) -> subprocess.Popen[str]:
    """Start a sweep and return its process, which has a group of its own."""
    return clone.start("dropout-study", "sweep", *options)


def assert_nothing_left(clone: Clone) -> None:
    wait_until(lambda: not processes(clone), 20)
    assert not list((clone.path / ".dvc/tmp/sweep").glob("worker-*"))
    assert clone.run("git", "for-each-ref", "refs/dropout-study").stdout == ""
    assert clone.run("git", "status", "--porcelain", "--", ":!metrics", ":!dvc.lock").stdout == ""


def test_sweep_gives_the_bytes_of_a_sequential_run(untrained: Clone, tmp_path: Path) -> None:
    with copied(untrained, tmp_path / "sequential") as sequential, copied(untrained, tmp_path / "swept") as swept:
        shutil.rmtree(sequential.path / ".dvc/cache/runs")
        sequential.repro()

        printed = swept.run("dropout-study", "sweep").stdout

        assert outputs(swept) == outputs(sequential)
        assert "4 of 4 variants to train with 2 workers, 1 thread each" in printed
        assert [re.search(rf"^{key} +trained +worker-[12] ", printed, re.MULTILINE) is not None for key in KEYS] == [
            True
        ] * 4
        assert "Running stage 'evaluate'" in printed
        assert not re.search("Running stage 'train", printed)
        assert swept.dvc("status") == "Data and pipelines are up to date.\n"
        assert_nothing_left(swept)


@pytest.mark.slow
def test_sweep_trains_only_what_is_missing(clone: Clone) -> None:
    clone.change(study__dropouts=[0.0, 0.3, 0.5])

    printed = clone.run("dropout-study", "sweep").stdout

    assert "2 of 6 variants to train" in printed
    assert re.findall(r": (\S+) started", printed) == ["sgd-0.3-0", "adadelta-0.3-0"]
    assert clone.dvc("status") == "Data and pipelines are up to date.\n"


@pytest.mark.slow
def test_sweep_of_a_complete_study_trains_nothing(clone: Clone) -> None:
    printed = clone.run("dropout-study", "sweep").stdout

    assert "0 of 4 variants to train" in printed
    assert "started" not in printed


@pytest.mark.slow
def test_dry_run_without_data_names_every_variant_and_makes_none(swept: Clone) -> None:
    shutil.rmtree(swept.path / "data/normalized")
    (swept.path / "dvc.lock").unlink()

    printed = swept.run("dropout-study", "sweep", "--dry-run").stdout

    assert re.findall(r"^would train (\S+)$", printed, re.MULTILINE) == [*KEYS]
    assert not (swept.path / "data/normalized").exists()


@pytest.mark.slow
def test_dry_run_names_what_would_be_trained_and_trains_nothing(swept: Clone) -> None:
    report = TrainingReport("sgd-0.0-0", images=180, epochs=2, path=swept.path / "logs/sgd-0.0-0.jsonl")
    report.finished({"epoch": 2}, [60.0, 60.0], diverged=False)

    printed = swept.run("dropout-study", "sweep", "--dry-run", "--workers", "3").stdout

    assert re.findall(r"^would train (\S+)$", printed, re.MULTILINE) == [*KEYS]
    assert "about 4 min 00 s if workers do not slow each other" in printed  # one of three trains two of the four
    assert started(swept) == []


@pytest.mark.slow
def test_failed_variant_stops_new_ones_and_keeps_what_is_trained(swept: Clone) -> None:
    (gates(swept) / "hold-sgd-0.5-0").touch()
    (gates(swept) / "fail-sgd-0.0-0").touch()
    sweep = sweeping(swept)
    wait_until(lambda: len(started(swept)) == 2)
    assert sweep.stdout
    before = ""
    while "sgd-0.0-0 failed" not in before:
        before += sweep.stdout.readline()
    (gates(swept) / "hold-sgd-0.5-0").unlink()

    after, _ = sweep.communicate(timeout=300)
    printed = before + after

    assert sweep.returncode == 1
    assert started(swept) == ["sgd-0.0-0", "sgd-0.5-0"] or started(swept) == ["sgd-0.5-0", "sgd-0.0-0"]
    assert re.search("sgd-0.0-0 failed on worker-[12]; the last lines, of logs/sgd-0.0-0.log:", printed)
    assert "error: sgd-0.0-0 cannot be trained" in printed
    assert "2 of 4 variants were not trained; 1 are trained and kept" in printed.replace("\n", " ")
    assert (swept.path / "metrics/history/sgd-0.5-0.csv").exists()
    assert_nothing_left(swept)


@pytest.mark.slow
def test_keep_going_trains_the_others(swept: Clone) -> None:
    (gates(swept) / "fail-sgd-0.0-0").touch()

    done = swept.run("dropout-study", "sweep", "--keep-going", check=False)

    assert done.returncode == 1
    assert "1 of 4 variants failed; `dropout-study sweep` tries them again; 3 are trained and kept" in done.stderr
    (gates(swept) / "fail-sgd-0.0-0").unlink()
    assert "1 of 4 variants to train" in swept.run("dropout-study", "sweep").stdout
    assert sorted(started(swept)) == sorted([*KEYS, "sgd-0.0-0"])


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupt_keeps_what_is_trained_and_the_next_sweep_trains_the_rest(swept: Clone, number: int) -> None:
    (gates(swept) / "hold-sgd-0.5-0").touch()
    (gates(swept) / "hold-adadelta-0.0-0").touch()
    sweep = sweeping(swept)
    wait_until(lambda: len(started(swept)) == 3)

    sweep.send_signal(number)
    printed, _ = sweep.communicate(timeout=300)

    assert sweep.returncode == 130
    assert "interrupted; what is trained is kept, run the same command to resume" in printed
    assert (swept.path / "metrics/history/sgd-0.0-0.csv").exists()
    assert_nothing_left(swept)
    release(swept)
    assert "3 of 4 variants to train" in swept.run("dropout-study", "sweep").stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_of_evaluate_ends_when_dvc_and_its_stage_have_ended(clone: Clone, number: int) -> None:
    evaluate = clone.path / "stages/evaluate.py"
    evaluate.write_text(evaluate.read_text().replace(MAIN, MAIN + WAIT))
    sweep = sweeping(clone)
    wait_until(lambda: (clone.path / "waiting").exists())

    sweep.send_signal(number)
    sweep.wait(timeout=300)

    assert processes(clone) == []
    printed, _ = sweep.communicate()
    assert sweep.returncode == 130, printed
    assert "failed to reproduce 'evaluate'" in printed
    assert "interrupted; what is trained is kept" in printed


def test_killed_driver_leaves_nothing_running_and_nothing_is_lost(swept: Clone) -> None:
    (gates(swept) / "hold-sgd-0.5-0").touch()
    (gates(swept) / "hold-adadelta-0.0-0").touch()
    sweep = sweeping(swept)
    wait_until(lambda: len(started(swept)) == 3)

    sweep.kill()
    sweep.communicate()

    wait_until(lambda: not processes(swept), 20)
    release(swept)
    printed = swept.run("dropout-study", "sweep").stdout
    assert "removed the clone of a sweep that was killed: .dvc/tmp/sweep/worker-1" in printed
    assert started(swept).count("sgd-0.0-0") == 1
    assert swept.dvc("status") == "Data and pipelines are up to date.\n"
    assert_nothing_left(swept)


@pytest.mark.slow
def test_sweep_started_again_at_once_after_its_driver_was_killed_trains_the_rest(swept: Clone) -> None:
    """While the keepers of the first still end its trainings."""
    (gates(swept) / "hold-sgd-0.0-0").touch()
    (gates(swept) / "hold-sgd-0.5-0").touch()
    sweep = sweeping(swept)
    wait_until(lambda: len(started(swept)) == 2)

    sweep.kill()
    release(swept)
    done = swept.run("dropout-study", "sweep", check=False)
    sweep.communicate()

    assert done.returncode == 0, done.stderr
    assert swept.dvc("status") == "Data and pipelines are up to date.\n"
    assert_nothing_left(swept)


@pytest.mark.slow
def test_sweep_replaces_a_stale_output_that_is_in_the_way(swept: Clone) -> None:
    stale = swept.path / "metrics/history/sgd-0.0-0.csv"
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.write_text("of a run that was killed\n")

    swept.run("dropout-study", "sweep")

    assert stale.read_text().startswith("epoch,")
    assert swept.dvc("status") == "Data and pipelines are up to date.\n"


@pytest.mark.slow
def test_training_whose_dvc_is_killed_ends_and_is_tried_again(swept: Clone) -> None:
    (gates(swept) / "hold-sgd-0.0-0").touch()
    sweep = sweeping(swept, "--workers", "1")
    wait_until(lambda: started(swept) == ["sgd-0.0-0"])
    (dvc,) = (pid for pid, line in command_lines(swept.path).items() if line[1:4] == ["-m", "dvc", "repro"])
    (training,) = trainings(swept)

    os.kill(dvc, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{training}").exists(), 30)
    (gates(swept) / "hold-sgd-0.0-0").unlink()
    printed, _ = sweep.communicate(timeout=300)

    assert sweep.returncode == 0, printed
    assert "sgd-0.0-0 waiting (killed, will be tried again)" in printed
    assert started(swept).count("sgd-0.0-0") == 2
    assert_nothing_left(swept)


def test_killed_training_is_tried_again(swept: Clone) -> None:
    (gates(swept) / "hold-sgd-0.0-0").touch()
    sweep = sweeping(swept, "--workers", "1")
    wait_until(lambda: started(swept) == ["sgd-0.0-0"])
    (training,) = trainings(swept)

    os.kill(training, signal.SIGKILL)
    (gates(swept) / "hold-sgd-0.0-0").unlink()
    printed, _ = sweep.communicate(timeout=300)

    assert sweep.returncode == 0
    assert "sgd-0.0-0 waiting (killed, will be tried again)" in printed
    assert started(swept).count("sgd-0.0-0") == 2


@pytest.mark.slow
def test_second_sweep_in_a_project_is_refused_and_status_shows_the_first(swept: Clone) -> None:
    for key in KEYS:
        (gates(swept) / f"hold-{key}").touch()
    sweep = sweeping(swept)
    wait_until(lambda: len(started(swept)) == 2)

    second = swept.run("dropout-study", "sweep", check=False)
    send = swept.run("dropout-study", "sweep", "send", ".", check=False)
    wait_until(lambda: swept.run("dropout-study", "status").stdout.count("epoch 1/2") == 2)
    status = swept.run("dropout-study", "status").stdout

    release(swept)
    sweep.communicate(timeout=300)
    assert second.returncode == 1
    assert "another sweep runs in this project" in second.stderr
    assert "another sweep runs in this project" in send.stderr
    assert "0 of 4 variants are trained\n" in status
    assert "sgd-0.0-0  epoch 1/2  validation accuracy 12.00%  1,234 images/s\n" in status
    after = swept.run("dropout-study", "status").stdout
    assert after == "4 of 4 variants are trained; nothing runs\n"


@pytest.mark.slow
def test_status_of_dvc_repro_names_the_variant_that_runs(swept: Clone) -> None:
    key = "sgd-0.5-0"
    swept.repro("--single-item", "train@sgd-0.0-0", "train@adadelta-0.0-0")
    stale = swept.path / "dvc.lock"
    stale.write_text(re.sub(r"(train@adadelta-0.0-0:(?s:.*?)train.epochs:) 2", r"\1 3", stale.read_text()))
    report = TrainingReport(key, images=180, epochs=9, path=swept.path / f"logs/{key}.jsonl")
    figures = {"train_loss": 1.0, "train_accuracy": 0.5, "validation_loss": 2.0, "validation_accuracy": 0.625}
    report.epoch({"epoch": 3, **figures}, [0.5, 0.5, 0.5])
    lock = swept.path / f".checkpoints/locks/{key}.lock"

    with files.locked(lock, "busy"):
        printed = swept.run("dropout-study", "status").stdout

    assert printed == f"1 of 4 variants are trained\n{key}  epoch 3/9  validation accuracy 62.50%  360 images/s\n"


@pytest.mark.slow
def test_status_of_a_training_that_has_just_been_started_again_names_it(swept: Clone) -> None:
    key = "sgd-0.5-0"
    report = TrainingReport(key, images=180, epochs=9, path=swept.path / f"logs/{key}.jsonl")
    figures = {"train_loss": 1.0, "train_accuracy": 0.5, "validation_loss": 2.0, "validation_accuracy": 0.625}
    report.epoch({"epoch": 3, **figures}, [0.5, 0.5, 0.5])
    report.started("a processor", 1, 1, "float32", "logits")

    with files.locked(swept.path / f".checkpoints/locks/{key}.lock", "busy"):
        printed = swept.run("dropout-study", "status").stdout

    assert printed == f"0 of 4 variants are trained\n{key}  no epoch finished yet\n"


@pytest.mark.slow
def test_status_does_not_count_a_variant_whose_outputs_are_those_of_another_run(swept: Clone) -> None:
    swept.repro("--single-item", "train@sgd-0.0-0", "train@sgd-0.5-0")
    history = swept.path / "metrics/history/sgd-0.0-0.csv"
    content = history.read_text()
    history.unlink()
    history.write_text(f"{content}\n")

    printed = swept.run("dropout-study", "status").stdout

    assert printed == "1 of 4 variants are trained; nothing runs\n"


@pytest.mark.slow
def test_settings_that_change_during_a_sweep_keep_results_out_of_the_lock(swept: Clone) -> None:
    (gates(swept) / "hold-sgd-0.0-0").touch()
    sweep = sweeping(swept)
    wait_until(lambda: "sgd-0.0-0" in started(swept))
    swept.change(train__epochs=3)
    (gates(swept) / "hold-sgd-0.0-0").unlink()

    printed, _ = sweep.communicate(timeout=300)

    assert sweep.returncode == 1
    assert "sgd-0.0-0: not taken in, it was trained with train.epochs: 2" in printed
    assert "train@sgd" not in (swept.path / "dvc.lock").read_text()


def test_sweep_refuses_trainings_that_take_all_cores(swept: Clone) -> None:
    swept.change(train__threads=0)

    done = swept.run("dropout-study", "sweep", check=False)

    assert done.returncode == 1
    assert "params.yaml: train.threads = 0, all cores of a machine" in done.stderr
    assert started(swept) == []


@pytest.mark.slow
def test_killed_training_resumes_in_another_clone_with_the_bytes_of_an_uninterrupted_run(tmp_path: Path) -> None:
    """With the real trainer. The driver is killed, its clone is gone, and the next sweep trains in a new one."""
    clone = small_project(tmp_path / "project")
    clone.change(study__optimizers=["adadelta"], study__dropouts=[0.5], train__epochs=6, train__batch_size=10)
    clone.change(network__filters=[16, 16, 32, 32], network__units=[64, 64])
    clone.repro("normalize")
    clone.commit("a study of one variant")
    log = clone.path / "logs/adadelta-0.5-0.log"
    expected = undisturbed_outputs(clone, tmp_path / "uninterrupted")
    sweep = sweeping(clone, "--workers", "1")
    wait_until(lambda: log.exists() and "epoch 2/6" in log.read_text())

    sweep.kill()
    sweep.communicate()
    wait_until(lambda: not processes(clone), 20)
    clone.run("dropout-study", "sweep")

    assert "resuming after epoch" in log.read_text()
    assert "epoch 6/6" in log.read_text()
    assert outputs(clone) == expected
    assert not list((clone.path / ".checkpoints").glob("adadelta-*"))


@pytest.mark.slow
def test_sweep_in_a_shallow_clone_trains(swept: Clone, tmp_path: Path) -> None:
    shallow = Clone(tmp_path / "shallow")
    swept.run("git", "clone", "--quiet", "--depth", "1", f"file://{swept.path}", str(shallow.path))

    shallow.run("dropout-study", "sweep")

    assert (shallow.path / ".git/shallow").exists()
    assert sorted(started(swept)) == sorted(KEYS)
    assert_nothing_left(shallow)


@pytest.mark.slow
def test_snapshot_has_files_that_are_tracked_and_ignored(swept: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    (swept.path / "kept.log").touch()
    swept.append(".gitignore", "*.log\n")
    swept.run("git", "add", "--force", "kept.log")
    swept.commit("a file that Git has, and ignores")
    monkeypatch.chdir(swept.path)

    commit = project.snapshot("a test")

    assert "kept.log" in swept.run("git", "ls-tree", "--name-only", commit).stdout.split()
