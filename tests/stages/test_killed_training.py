"""The train stage, killed for real: it resumes, and its outputs equal those of an uninterrupted run to the byte."""

import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropout_study import devices, files
from tests.clones import Clone, copied, finish, self_signalling, small_project
from tests.sweeps import trainings, wait_until

pytestmark = pytest.mark.pipeline

KEY = "adadelta-0.5-0"
OUTPUTS = [
    name_of(KEY) for name_of in (files.variant_file, files.history_file, files.predictions_file, files.provenance_file)
]
KILLS = 24


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A small project with normalized data, whose trainings have ten epochs of a few milliseconds."""
    clone = small_project(tmp_path_factory.mktemp("killed") / "project")
    clone.change(study__optimizers=["adadelta"], study__dropouts=[0.5], train__epochs=10, train__batch_size=16)
    clone.change(network__filters=[4, 8], network__units=[16], train__learning_rate_decay=0.9)
    clone.repro("normalize")
    clone.commit("normalized")
    return clone


@pytest.fixture
def project(prepared: Clone, tmp_path: Path) -> Iterator[Clone]:
    with copied(prepared, tmp_path / "project") as copy:
        yield copy


def start(project: Clone, *command: str, **variables: str) -> subprocess.Popen[str]:
    """Start a command, by default the training, in a process group in which it can be killed with all its children."""
    return project.start(*(command or (sys.executable, "-m", "stages.train", KEY)), **variables)


def await_line(process: subprocess.Popen[str], text: str) -> str:
    """Read what a process prints up to a line with `text`, and return that line."""
    assert process.stdout
    for line in process.stdout:
        if text in line:
            return line
    pytest.fail(f"the process ended before it printed {text!r}")


def kill(process: subprocess.Popen[str]) -> str:
    """Kill the process group, and return what it had printed."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate(timeout=300)[0]


def await_first(processes: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    """Wait until one of the processes has ended, and return them with that one first."""
    wait_until(lambda: any(process.poll() is not None for process in processes))
    return sorted(processes, key=lambda process: process.poll() is None)


def train_and_be_killed(project: Clone, code: str) -> None:
    """Train after `code`, which has arranged that the process group is killed by itself on the way."""
    process = start(project, sys.executable, "-c", f"{code}import stages.train\nstages.train.main('{KEY}')\n")
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL


def outputs(project: Clone) -> list[bytes]:
    """Return the bytes of all outputs of the stage: model, history, predictions and provenance."""
    return [(project.path / path).read_bytes() for path in OUTPUTS]


def checkpoints(project: Clone) -> list[Path]:
    return sorted((project.path / ".checkpoints").glob(f"{KEY}-*/*"))


@pytest.fixture(scope="module")
def uninterrupted(prepared: Clone, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, list[bytes]]:
    """How long a run takes that nobody kills, and what it writes."""
    with copied(prepared, tmp_path_factory.mktemp("uninterrupted") / "project") as project:
        begin = time.monotonic()
        assert "epoch 10/10" in finish(start(project))
        assert checkpoints(project) == []
        return time.monotonic() - begin, outputs(project)


@pytest.mark.stress
def test_train_killed_at_random_moments_equals_uninterrupted_run(
    project: Clone, uninterrupted: tuple[float, list[bytes]]
) -> None:
    """Kills at random moments of the whole run: some before the first epoch, some in the middle, some in a write."""
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"KILL_SEED={seed}")
    moments = random.Random(seed)
    duration, expected = uninterrupted
    resumed_after = set()
    finished = 0
    kills = 0
    while kills < KILLS:
        process = start(project)
        # Waiting for a line and then for a moment aims at the training, which is the short part of the run.
        wait_for = moments.choice([0, 0, 1, 1, 2, 3])
        lines: list[str] = []
        assert process.stdout
        while len([line for line in lines if " epoch " in line and "loss" in line]) < wait_for:
            line = process.stdout.readline()
            if not line:
                break
            lines.append(line)
        time.sleep(moments.uniform(0, duration if wait_for == 0 else 0.03))
        if process.poll() is not None:
            finished += 1
            lines.append(finish(process))
            assert outputs(project) == expected
            for path in OUTPUTS:
                (project.path / path).unlink()
            continue
        lines.append(kill(process))
        kills += 1
        resumed_after |= set(re.findall(r"resuming after epoch (\d+)", "".join(lines)))

    finish(start(project))

    assert outputs(project) == expected
    assert checkpoints(project) == []
    assert len(resumed_after) >= 3, (resumed_after, finished)


def test_train_killed_in_each_rename_of_a_save_equals_uninterrupted_run(
    project: Clone, uninterrupted: tuple[float, list[bytes]]
) -> None:
    """Each process kills itself when it is about to give a file its name for the second time; the next one resumes.

    The files are the checkpoint that is kept, the new checkpoint, and the history.
    """
    for name in ("previous", "latest", f"{KEY}.csv"):
        code = (
            "import os, pathlib, signal\n"
            "calls = 0\n"
            "replace = pathlib.Path.replace\n"
            "def replace_or_end(path, target):\n"
            "    global calls\n"
            f"    calls += pathlib.Path(target).name == {name!r}\n"
            "    if calls == 2: os.killpg(0, signal.SIGKILL)\n"
            "    return replace(path, target)\n"
            "pathlib.Path.replace = replace_or_end\n"
        )
        train_and_be_killed(project, code)

        assert checkpoints(project)

    printed = finish(start(project))

    assert re.search(r"resuming after epoch [3-9] ", printed)
    assert outputs(project) == uninterrupted[1]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_train_interrupted_ends_with_a_message_and_a_checkpoint(
    project: Clone, uninterrupted: tuple[float, list[bytes]], number: signal.Signals, status: int
) -> None:
    project.change(train__epochs=10_000)
    process = start(project)
    await_line(process, "epoch     3/10000")
    process.send_signal(number)

    printed = process.communicate(timeout=300)[0]

    assert process.returncode == status

    (message,) = re.findall(r"the next run resumes after epoch (\d+)", printed)

    assert "stopping after this step" in printed  # and not in the middle of TensorFlow
    assert "interrupted" in printed
    assert "Traceback" not in printed
    assert not (project.path / files.variant_file(KEY)).exists()

    again = start(project)
    await_line(again, f"resuming after epoch {message} from its checkpoint")
    kill(again)


def test_train_interrupted_while_loading_ends_with_a_message(project: Clone) -> None:
    process = start(project)
    wait_until((project.path / ".checkpoints/locks").exists)
    process.send_signal(signal.SIGTERM)

    printed = process.communicate(timeout=300)[0]

    assert process.returncode == 143
    assert printed == "interrupted\n"


@pytest.mark.slow
def test_train_with_a_damaged_checkpoint_equals_uninterrupted_run(
    project: Clone, uninterrupted: tuple[float, list[bytes]]
) -> None:
    process = start(project)
    await_line(process, "epoch  4/10")
    kill(process)
    (latest,) = (path for path in checkpoints(project) if path.name == "latest")
    latest.write_bytes(latest.read_bytes()[:-100])

    printed = finish(start(project))

    assert f"{latest.relative_to(project.path)}: damaged and removed" in printed
    assert re.search(r"resuming after epoch [3-9] ", printed)
    assert outputs(project) == uninterrupted[1]


def test_train_refuses_a_second_process(project: Clone, uninterrupted: tuple[float, list[bytes]]) -> None:
    variables = self_signalling(project.path.parent / "signal", "train", signal.SIGSTOP, rename=1)
    first = start(project, "python", "-m", "stages.train", DVC_STAGE=f"train@{KEY}", **variables)
    wait_until((project.path.parent / "signal/reached").exists)
    second = start(project)
    printed = second.communicate(timeout=300)[0]

    assert second.returncode == 1
    assert "another process is training this variant; wait for it, or end it" in printed

    os.kill(first.pid, signal.SIGCONT)
    finish(first)

    assert outputs(project) == uninterrupted[1]


def start_together(project: Clone, expected: list[bytes], times: int) -> None:
    """Train the variant in two processes at the same time, `times` times: one does it, the other says who does."""
    for _ in range(times):
        both = [start(project), start(project)]

        printed = [process.communicate(timeout=300)[0] for process in both]

        refused = [text for process, text in zip(both, printed, strict=True) if process.returncode == 1]
        assert {process.returncode for process in both} <= {0, 1}, printed
        assert len(refused) < 2
        assert all("another process is training this variant; wait for it, or end it" in text for text in refused)
        assert outputs(project) == expected
        for path in OUTPUTS:
            (project.path / path).unlink()


@pytest.mark.stress
def test_two_trainings_started_together_20_times_equal_one(
    project: Clone, uninterrupted: tuple[float, list[bytes]]
) -> None:
    start_together(project, uninterrupted[1], 20)


@pytest.mark.slow
def test_training_that_a_killed_dvc_leaves_behind_excludes_another(
    project: Clone, uninterrupted: tuple[float, list[bytes]]
) -> None:
    """SIGTERM ends DVC alone. What it started trains on."""
    variables = self_signalling(project.path.parent / "signal", "train", signal.SIGSTOP, rename=1)
    repro = start(project, "dvc", "repro", f"train@{KEY}", **variables)
    wait_until((project.path.parent / "signal/reached").exists)
    (training,) = trainings(project)

    repro.terminate()
    repro.wait(timeout=300)
    second = project.run("dvc", "repro", f"train@{KEY}", check=False)
    os.kill(training, signal.SIGCONT)
    repro.communicate(timeout=300)  # the training holds the pipe until it ends
    project.dvc("repro", f"train@{KEY}")

    assert second.returncode != 0
    assert "another process is training this variant; wait for it, or end it" in second.stdout + second.stderr
    assert outputs(project) == uninterrupted[1]
    assert project.repro(f"train@{KEY}") == []


@pytest.mark.slow
def test_train_that_cannot_write_its_outputs_names_the_file(
    project: Clone, uninterrupted: tuple[float, list[bytes]]
) -> None:
    """The kernel refuses to write files as large as the model, as it does on a full disk."""
    size = len(uninterrupted[1][0])
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))\n"
        f"import stages.train\nfrom dropout_study.console import run_stage\nsys.argv[1:] = ['{KEY}']\n"
        "run_stage(stages.train.main, 'train', 'key: the variant')\n"
    )

    process = start(project, sys.executable, "-c", code)
    printed = process.communicate(timeout=300)[0]

    assert process.returncode == 1
    assert f"error: models/variants/{KEY}.keras: File too large; make room for it, then run the same" in printed
    assert "Traceback" not in printed
    assert [path for path in OUTPUTS if (project.path / path).exists()] == [files.history_file(KEY)]
    finish(start(project))
    assert outputs(project) == uninterrupted[1]


@pytest.mark.slow
def test_train_continues_without_checkpoints_on_a_full_disk(
    project: Clone, uninterrupted: tuple[float, list[bytes]]
) -> None:
    """The kernel refuses to write files as large as a checkpoint, as it does on a full disk; weights are smaller."""
    process = start(project)
    await_line(process, "epoch  1/10")
    kill(process)
    # Durations in it make a checkpoint a few bytes shorter in one run than in another.
    limit = min(path.stat().st_size for path in checkpoints(project)) - 200
    shutil.rmtree(project.path / ".checkpoints")
    code = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "import stages.train\n"
        f"stages.train.main('{KEY}')\n"
    )

    printed = finish(start(project, sys.executable, "-c", code))

    assert printed.count("no checkpoint of epoch") == 10
    assert "no checkpoint of epoch 2 (File too large); training continues without checkpoints" in printed
    assert outputs(project) == uninterrupted[1]


def test_repro_resumes_where_it_was_killed(project: Clone, uninterrupted: tuple[float, list[bytes]]) -> None:
    process = start(project, "dvc", "repro", f"train@{KEY}")
    await_line(process, "epoch  3/10")
    kill(process)

    printed = project.dvc("repro", f"train@{KEY}")

    assert re.search(r"resuming after epoch ([3-9]|10) from its checkpoint", printed)
    assert outputs(project) == uninterrupted[1]
    assert project.repro(f"train@{KEY}") == []


@pytest.mark.slow
def test_train_reports_the_learning_rate_of_a_divergence(project: Clone) -> None:
    code = (
        "from dropout_study import training\n"
        "row = training.Epoch(3, 2.0, 0.1, training.NAN, training.NAN)\n"
        "diverged = training.TrainingRecord([row], [1.0], training.Divergence(3, 7))\n"
        "training.fit = lambda *arguments, **settings: diverged\n"
        f"import stages.train\nstages.train.main('{KEY}')\n"
    )

    printed = finish(start(project, sys.executable, "-c", code))

    # 1.0 × 0.9 × 0.9
    assert "in epoch 3, step 7, with adadelta at learning rate 0.81;" in printed


@pytest.mark.slow
def test_train_with_other_settings_does_not_resume(project: Clone) -> None:
    process = start(project)
    await_line(process, "epoch  2/10")

    kill(process)

    assert checkpoints(project)

    project.change(train__learning_rate__adadelta=0.5)
    again = project.run("python", "-m", "stages.train", KEY).stdout

    assert "resuming" not in again
    assert "epoch  1/10" in again


@pytest.mark.slow
def test_train_killed_after_the_last_epoch_only_writes_the_outputs(
    project: Clone, uninterrupted: tuple[float, list[bytes]]
) -> None:
    """Killed between the last epoch and the outputs."""
    code = "import os, signal\nimport keras\nkeras.Model.save = lambda *_: os.killpg(0, signal.SIGKILL)\n"
    train_and_be_killed(project, code)

    printed = project.run("python", "-m", "stages.train", KEY).stdout

    assert "resuming after epoch 10 from its checkpoint" in printed
    assert "loss" not in printed
    assert outputs(project) == uninterrupted[1]


def rows(project: Clone) -> list[list[float]]:
    """Return the rows of the history that is there."""
    with (project.path / files.history_file(KEY)).open() as file:
        header, *lines = csv.reader(file)
    assert header[0] == "epoch"
    return [[float(cell) for cell in line] for line in lines]


@pytest.mark.slow
def test_history_is_written_after_every_epoch_and_drawn_while_dvc_trains(
    project: Clone, uninterrupted: tuple[float, list[bytes]]
) -> None:
    variables = self_signalling(project.path.parent / "signal", "train", signal.SIGSTOP, rename=9)
    repro = start(project, "dvc", "repro", f"train@{KEY}", **variables)
    wait_until((project.path.parent / "signal/reached").exists)
    (training,) = trainings(project)

    observed = rows(project)
    drawn = project.run(
        *("dvc", "plots", "show", str(files.history_file(KEY)), "-x", "epoch", "-y", "validation_accuracy"), "--json"
    )

    os.kill(training, signal.SIGCONT)
    finish(repro)
    assert 2 <= len(observed) < 10
    assert [row[0] for row in observed] == list(range(1, len(observed) + 1))
    assert f'"epoch": "{len(observed)}"' in drawn.stdout.replace("\\", "")
    assert rows(project)[: len(observed)] == observed
    assert outputs(project) == uninterrupted[1]


def change_in_mid_training(project: Clone, change: Callable[[], object]) -> subprocess.CompletedProcess[str]:
    """Run `dvc repro` of the variant, and do something in its third epoch; return how that ended."""
    variables = self_signalling(project.path.parent / "signal", "train", signal.SIGSTOP, rename=9)
    repro = start(project, "dvc", "repro", f"train@{KEY}", **variables)
    wait_until((project.path.parent / "signal/reached").exists)
    (training,) = trainings(project)
    change()
    os.kill(training, signal.SIGCONT)
    printed, _ = repro.communicate(timeout=300)
    shutil.rmtree(project.path.parent / "signal")
    return subprocess.CompletedProcess(repro.args, repro.returncode, printed)


@pytest.mark.slow
def test_train_whose_dependencies_change_meanwhile_fails_and_names_them(
    project: Clone, uninterrupted: tuple[float, list[bytes]]
) -> None:
    paths = ("params.yaml", "dropout_study/network.py", "data/normalized/validation_labels.npy")
    originals = {path: (project.path / path).read_bytes() for path in paths}

    def write(contents: dict[str, bytes]) -> None:  # as an editor does: the file is another one
        for path, content in contents.items():
            (project.path / path).unlink()
            (project.path / path).write_bytes(content)

    changed = {path: content.replace(b"epochs: 10", b"epochs: 20") + b"\n" for path, content in originals.items()}
    done = change_in_mid_training(project, lambda: write(changed))

    assert done.returncode != 0
    (error,) = re.findall(r"^error: .*", done.stdout, re.MULTILINE)
    assert f"{KEY}: changed during the training: " in error
    for name in ("params.yaml: epochs", *paths[1:]):
        assert name in error
    assert "only its checkpoint is kept" in error
    assert not any((project.path / path).exists() for path in OUTPUTS)

    write(originals)
    again = project.dvc("repro", f"train@{KEY}")

    assert "resuming after epoch 10 from its checkpoint" in again
    assert outputs(project) == uninterrupted[1]


@pytest.mark.slow
def test_train_whose_settings_cannot_be_read_at_its_end_fails(project: Clone) -> None:
    done = change_in_mid_training(project, lambda: (project.path / "params.yaml").write_bytes(b"train: ["))

    assert done.returncode != 0
    assert f"{KEY}: changed during the training: params.yaml: not valid YAML" in done.stdout


@pytest.mark.slow
def test_train_does_not_mind_settings_of_other_variants(
    project: Clone, uninterrupted: tuple[float, list[bytes]]
) -> None:
    def remove_the_rate() -> None:
        project.change(study__dropouts=[0.1], study__optimizers=["sgd"], train__checkpoint_every=5)
        project.change(train__learning_rate__sgd=0.3)

    change_in_mid_training(project, remove_the_rate)

    assert outputs(project) == uninterrupted[1]


OTHER_SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {
        "train__loss": "clipped",
        "network__dropout_position": "after_pooling",
        "train__test_epochs": 4,
        "train__checkpoint_every": 3,
    },
    "bfloat16": {"train__precision": "bfloat16", "train__test_epochs": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", OTHER_SETTINGS.values(), ids=OTHER_SETTINGS)
def test_train_killed_with_other_settings_equals_uninterrupted_run(project: Clone, settings: dict[str, Any]) -> None:
    project.change(**settings)
    if "bfloat16" in settings.values() and not devices.BFLOAT16_SETS & {*devices.processor()["instruction_sets"]}:
        process = start(project)
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == 1
        assert "error: params.yaml: train.precision = bfloat16: this processor" in printed
        assert "epoch" not in printed
        return
    finish(start(project))
    expected = outputs(project)
    for path in OUTPUTS:
        (project.path / path).unlink()

    process = start(project)
    await_line(process, "epoch  6/10")
    kill(process)
    printed = finish(start(project))

    assert "resuming after epoch " in printed
    assert outputs(project) == expected
    predictions = np.load(project.path / files.predictions_file(KEY))
    assert len(predictions) == settings.get("train__test_epochs", 1) + 1


@pytest.mark.slow
def test_train_in_other_arithmetic_does_not_resume(project: Clone) -> None:
    process = start(project)
    await_line(process, "epoch  2/10")
    kill(process)

    other_arithmetic = finish(start(project, ONEDNN_DEFAULT_FPMATH_MODE="BF16"))

    assert "resuming" not in other_arithmetic
    assert "epoch  1/10" in other_arithmetic
