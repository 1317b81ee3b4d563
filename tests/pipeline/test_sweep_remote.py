"""Sweeps over machines that share a Git repository and a DVC remote: send, worker, collect."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from dropout_study.console import StudyError
from dropout_study.sweep import project, remote
from tests.clones import Clone, environment
from tests.sweeps import (
    KEYS,
    Sweep,
    gates,
    outputs,
    processes,
    send,
    set_hook,
    started,
    undisturbed_outputs,
    wait_until,
)

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]


@pytest.fixture
def sent(swept: Clone, tmp_path: Path) -> Sweep:
    return send(swept, tmp_path)


def other_h5py(directory: Path) -> str:
    """Return a path for Python on which there is another version of h5py, or of what says so."""
    metadata = directory / "packages/h5py-0.0.1.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: h5py\nVersion: 0.0.1\n")
    return str(directory / "packages")


def test_workers_and_collect_give_the_bytes_of_a_sequential_run(sent: Sweep, tmp_path: Path) -> None:
    expected = undisturbed_outputs(sent.clone, tmp_path / "sequential")
    shutil.rmtree(sent.clone.path / ".dvc/cache/runs", ignore_errors=True)

    for index in range(4):
        sent.elsewhere.run(*sent.command("--index", str(index)))
    printed = sent.clone.run("dropout-study", "sweep", "collect", sent.repository, sent.name).stdout

    assert "4 variants taken in" in printed
    assert outputs(sent.clone) == expected
    assert sent.clone.dvc("status") == "Data and pipelines are up to date.\n"
    assert sent.refs() == []
    assert sent.clone.run("git", "for-each-ref", "refs/dropout-study").stdout == ""
    assert not list(sent.scratch.glob("worker-*"))


def test_worker_trains_nothing_that_is_pushed(sent: Sweep) -> None:
    sent.elsewhere.run(*sent.command(KEYS[1]))

    printed = sent.elsewhere.run(*sent.command(KEYS[1])).stdout

    assert printed.endswith(f"{KEYS[1]}  is trained and pushed already\n")
    assert started(sent.clone) == [KEYS[1]]


def test_worker_that_died_between_its_pushes_is_not_trained_again(sent: Sweep) -> None:
    sent.elsewhere.run(*sent.command(KEYS[0]))
    ref = f"refs/dropout-study/sweeps/{sent.name}/trained/{KEYS[0]}"
    sent.clone.run("git", "push", "--quiet", sent.repository, f":{ref}")

    printed = sent.elsewhere.run(*sent.command(KEYS[0])).stdout

    assert printed.endswith(f"{KEYS[0]}  trained and pushed\n")
    assert started(sent.clone) == [KEYS[0]]
    assert ref in sent.refs()


def test_worker_that_is_killed_leaves_nothing_running_and_is_called_again(sent: Sweep) -> None:
    gate = gates(sent.clone) / f"hold-{KEYS[0]}"
    gate.touch()
    worker = subprocess.Popen(sent.command(KEYS[0]), cwd=sent.elsewhere.path, env=environment())
    wait_until(lambda: started(sent.clone) == [KEYS[0]])

    worker.kill()
    worker.wait()

    wait_until(lambda: not processes(Clone(sent.scratch)), 20)
    gate.unlink()
    sent.elsewhere.run(*sent.command(KEYS[0]))
    assert not list(sent.scratch.glob("worker-*"))
    assert any(ref.endswith(KEYS[0]) for ref in sent.refs())


def test_worker_ends_its_training_at_sigterm(sent: Sweep) -> None:
    (gates(sent.clone) / f"hold-{KEYS[0]}").touch()
    worker = subprocess.Popen(
        sent.command(KEYS[0]), cwd=sent.elsewhere.path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: started(sent.clone) == [KEYS[0]])

    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=300)

    assert worker.returncode == 130
    assert "interrupted; the next call resumes from the checkpoint" in errors
    assert not list(sent.scratch.glob("worker-*"))
    assert processes(Clone(sent.scratch)) == []


def test_push_that_is_refused_for_a_while_is_tried_again(sent: Sweep) -> None:
    """A hook of the repository refuses the first push, as a busy server may."""
    refused = Path(sent.repository) / "refused"
    set_hook(Path(sent.repository), f"[ -e {refused} ] || {{ touch {refused}; echo 'not now' >&2; exit 1; }}\n")

    printed = sent.elsewhere.run(*sent.command(KEYS[0])).stdout

    assert f"{KEYS[0]}: git push failed, again in 2 s: `git push " in printed
    assert "not now" in printed
    assert any(ref.endswith(KEYS[0]) for ref in sent.refs())


def test_collect_takes_in_what_is_there_and_says_what_is_missing(sent: Sweep) -> None:
    sent.elsewhere.run(*sent.command(KEYS[2]))

    done = sent.clone.run("dropout-study", "sweep", "collect", sent.repository, sent.name, check=False)

    assert done.returncode == 1
    assert "1 variant taken in" in done.stdout
    assert "3 of 4 variants are missing (sgd-0.0-0, sgd-0.5-0, adadelta-0.5-0); collect again later" in done.stderr
    assert (sent.clone.path / f"models/variants/{KEYS[2]}.keras").exists()
    assert len(sent.refs()) == 2


def test_collect_refuses_what_was_trained_by_other_code(sent: Sweep) -> None:
    sent.elsewhere.run(*sent.command(KEYS[0]))
    sent.clone.append("dropout_study/dropout.py")

    done = sent.clone.run("dropout-study", "sweep", "collect", sent.repository, sent.name, check=False)

    assert done.returncode == 1
    assert f"{KEYS[0]}: not taken in, it was trained with another dropout_study/dropout.py" in done.stderr
    assert f"train@{KEYS[0]}" not in (sent.clone.path / "dvc.lock").read_text()


def test_collect_refuses_what_was_trained_with_other_packages(sent: Sweep, tmp_path: Path) -> None:
    sent.elsewhere.run(*sent.command(KEYS[0]), PYTHONPATH=other_h5py(tmp_path))

    done = sent.clone.run("dropout-study", "sweep", "collect", sent.repository, sent.name, check=False)

    assert done.returncode == 1
    assert f"{KEYS[0]}: not taken in, it was trained with h5py 0.0.1 (here: " in done.stderr
    assert f"train@{KEYS[0]}" not in (sent.clone.path / "dvc.lock").read_text()


def test_result_of_other_packages_in_the_remote_is_trained_again(sent: Sweep, tmp_path: Path) -> None:
    """Its entry was refused; DVC's run cache still has it."""
    sent.elsewhere.run(*sent.command(KEYS[0]), PYTHONPATH=other_h5py(tmp_path))
    sent.clone.run("dropout-study", "sweep", "collect", sent.repository, sent.name, check=False)

    sent.elsewhere.run(*sent.command(KEYS[0]))
    done = sent.clone.run("dropout-study", "sweep", "collect", sent.repository, sent.name, check=False)

    assert started(sent.clone) == [KEYS[0]] * 2
    assert "1 variant taken in" in done.stdout
    provenance = (sent.clone.path / f"metrics/provenance/{KEYS[0]}.json").read_text()
    assert json.loads(provenance)["versions"] == project.versions()


def test_result_that_cannot_be_pushed_is_kept_until_it_is_pushed(sent: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository refuses the entry; then the DVC remote has nothing but the data."""
    monkeypatch.chdir(sent.elsewhere.path)
    monkeypatch.setattr(remote, "PAUSES", ())
    hook = set_hook(Path(sent.repository), "exit 1\n")
    dvc_remote, data = sent.clone.path.parent / "remote", sent.clone.path.parent / "data"
    shutil.copytree(dvc_remote, data)

    with pytest.raises(StudyError, match=f"{KEYS[0]}: trained, but not pushed, which the next call does: "):
        remote.work(sent.repository, sent.name, KEYS[0], sent.scratch)
    hook.unlink()
    shutil.rmtree(dvc_remote)
    data.rename(dvc_remote)
    remote.work(sent.repository, sent.name, KEYS[0], sent.scratch)

    assert started(sent.clone) == [KEYS[0]]
    assert any(ref.endswith(KEYS[0]) for ref in sent.refs())
    assert not list(sent.scratch.glob("worker-*"))


def test_worker_that_is_interrupted_before_its_push_keeps_the_result(sent: Sweep) -> None:
    hook = set_hook(Path(sent.repository), "exit 1\n")
    worker = sent.elsewhere.start(*sent.command(KEYS[0]))
    assert worker.stdout
    for line in worker.stdout:
        if "git push failed, again in" in line:
            break

    worker.send_signal(signal.SIGTERM)
    printed, _ = worker.communicate(timeout=300)
    hook.unlink()
    sent.elsewhere.run(*sent.command(KEYS[0]))

    assert worker.returncode == 130, printed
    assert started(sent.clone) == [KEYS[0]]
    assert any(ref.endswith(KEYS[0]) for ref in sent.refs())
    assert not list(sent.scratch.glob("worker-*"))


def test_forget_leaves_entries_that_came_after_the_last_collect(sent: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in KEYS[:2]:
        sent.elsewhere.run(*sent.command(key))
    monkeypatch.chdir(sent.clone.path)

    remote.forget(sent.repository, sent.name, [KEYS[0]])

    assert [ref.rpartition("/")[2] for ref in sent.refs()] == [KEYS[1]]
    late = sent.elsewhere.run(*sent.command(KEYS[2]), check=False)
    assert "has no such sweep" in late.stderr


def test_forget_command_leaves_no_ref_and_another_sweep_finds_what_was_trained(sent: Sweep) -> None:
    sent.elsewhere.run(*sent.command(KEYS[0]))

    printed = sent.clone.run("dropout-study", "sweep", "forget", sent.repository, sent.name).stdout

    assert printed == f"{sent.name}: given up; the outputs of 1 trained variant stay in the DVC remote\n"
    assert sent.refs() == []
    late = sent.elsewhere.run(*sent.command(KEYS[1]), check=False)
    assert "has no such sweep" in late.stderr
    again = sent.clone.run("dropout-study", "sweep", "send", "shared").stdout
    (name,) = re.findall(r"sweep collect \S+ (\S+)$", again, re.MULTILINE)
    sent.elsewhere.run(*sent._replace(name=name).command(KEYS[0]))
    assert started(sent.clone) == [KEYS[0]]


def test_collect_brings_the_logs(sent: Sweep) -> None:
    logs = remote.logs(sent.scratch, sent.name)
    logs.mkdir(parents=True)
    (logs / f"{KEYS[0]}.log").write_text(f"{KEYS[0]}  epoch 1/1\n")
    (logs / f"{KEYS[0]}.jsonl").write_text('{"epoch": 1}\n')
    here = sent.clone.path / f"logs/{KEYS[0]}.log"
    here.parent.mkdir(exist_ok=True)
    here.write_text("of an earlier run\n")
    sent.elsewhere.run(*sent.command(KEYS[0]))

    for _ in range(2):
        sent.clone.run("dropout-study", "sweep", "collect", sent.repository, sent.name, check=False)

    assert here.read_text() == f"of an earlier run\n{KEYS[0]}  epoch 1/1\n"
    assert here.with_suffix(".jsonl").read_text().count('{"epoch": 1}\n') == 1


def test_collect_without_a_lock_file_says_so(sent: Sweep) -> None:
    sent.elsewhere.run(*sent.command(KEYS[0]))
    (sent.clone.path / "dvc.lock").unlink()

    done = sent.clone.run("dropout-study", "sweep", "collect", sent.repository, sent.name, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("error: dvc.lock: there is no such file; ")
    assert len(sent.refs()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--index", "4"], "has 4 variants, counted from 0"),
        (["sgd-0.9-9"], "sgd-0.9-9: not a variant of the sweep"),
        ([], "name the variant either by KEY or by --index"),
        (["sgd-0.0-0", "--index", "0"], "name the variant either by KEY or by --index"),
    ],
)
def test_worker_refuses_variants_that_the_sweep_does_not_have(sent: Sweep, arguments: list[str], message: str) -> None:
    done = sent.elsewhere.run(*sent.command(*arguments), check=False)

    assert done.returncode != 0
    assert message in done.stderr
    assert started(sent.clone) == []


def test_unknown_sweep_is_refused(sent: Sweep) -> None:
    done = sent.clone.run("dropout-study", "sweep", "collect", sent.repository, "20260101-abcdef", check=False)

    assert done.returncode == 1
    assert "20260101-abcdef: " in done.stderr
    assert "has no such sweep" in done.stderr


def test_options_of_the_local_sweep_are_refused_by_the_others(swept: Clone) -> None:
    done = swept.run("dropout-study", "sweep", "--workers", "3", "send", "somewhere", check=False)

    assert done.returncode == 2
    assert "--workers is not for send" in done.stderr
