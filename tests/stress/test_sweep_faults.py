"""Workers of a sweep on machines that share a Git repository and a DVC remote over SSH, and what befalls them."""

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clones import Clone, finish, small_project
from tests.stress.conftest import Server, share_by_ssh
from tests.sweeps import KEYS, command_lines, gates, outputs, processes, share, started, undisturbed_outputs, wait_until

pytestmark = pytest.mark.stress


class Sweep(NamedTuple):
    """A sweep that was sent from `clone`; each worker has a directory of its own below `machines`."""

    clone: Clone
    repository: str
    name: str
    machines: Path
    variables: dict[str, str]

    def worker(self, machine: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a worker in the directory of a machine."""
        scratch = self.machines / machine
        scratch.mkdir(parents=True, exist_ok=True)
        command = ["dropout-study", "sweep", "worker", self.repository, self.name, "--scratch", str(scratch)]
        # A clone has a site cache of its own; this one is for a worker that forgets it.
        site = {"DVC_SITE_CACHE_DIR": str(self.machines / "site")}
        return Clone(scratch).start(*command, *arguments, **self.variables, **site)

    def collect(self) -> str:
        done = self.clone.run(
            "dropout-study", "sweep", "collect", self.repository, self.name, check=True, **self.variables
        )
        return done.stdout

    def refs(self) -> list[str]:
        command = ["git", "ls-remote", self.repository, "refs/dropout-study/*"]
        return re.findall(r"refs/\S+", self.clone.run(*command, check=True, **self.variables).stdout)

    def assert_nothing_left(self) -> None:
        wait_until(lambda: not processes(Clone(self.machines)), 30)
        assert not list(self.machines.glob("*/worker-*"))
        assert not (self.machines / "site").exists()
        assert self.refs() == []
        assert self.clone.run("git", "for-each-ref", "refs/dropout-study").stdout == ""


def send(clone: Clone, repository: str, machines: Path, **variables: str) -> Sweep:
    printed = clone.run("dropout-study", "sweep", "send", repository, check=True, **variables).stdout
    (name,) = re.findall(r"^(\S+): \d variants? sent to ", printed, re.MULTILINE)
    return Sweep(clone, repository, name, machines, variables)


@pytest.fixture
def by_ssh(swept: Clone, server: Server, tmp_path: Path) -> Sweep:
    repository = share_by_ssh(swept, server, tmp_path)
    return send(swept, repository, tmp_path / "machines", GIT_SSH_COMMAND=server.git)


@pytest.fixture
def by_path(swept: Clone, tmp_path: Path) -> Sweep:
    return send(swept, str(share(swept, tmp_path)), tmp_path / "machines")


def running(directory: Path, *words: str) -> bool:
    """Return whether a process below `directory` has these words, one after another, in its command line."""
    pattern = f" {' '.join(words)} "
    return any(pattern in f" {' '.join(line)} " for line in command_lines(directory).values())


def test_two_machines_over_ssh_give_the_bytes_of_a_sequential_run(expected: dict[str, bytes], by_ssh: Sweep) -> None:
    for pair in ((0, 1), (2, 3)):
        both = [by_ssh.worker(f"machine-{index}", "--index", str(index)) for index in pair]
        for worker in both:
            finish(worker, 240)

    assert "4 variants taken in" in by_ssh.collect()
    assert outputs(by_ssh.clone) == expected
    by_ssh.assert_nothing_left()


def test_server_that_is_away_for_a_while_delays_a_worker(by_ssh: Sweep, server: Server) -> None:
    gate = gates(by_ssh.clone) / f"hold-{KEYS[0]}"
    gate.touch()
    worker = by_ssh.worker("machine", KEYS[0])
    wait_until(lambda: started(by_ssh.clone) == [KEYS[0]], 120)

    server.stop()
    gate.unlink()
    assert worker.stdout
    for line in worker.stdout:
        if "dvc push failed, again in" in line:
            break
    server.start()
    printed = finish(worker, 240)

    assert f"{KEYS[0]}  trained and pushed" in printed
    assert started(by_ssh.clone) == [KEYS[0]]
    assert any(ref.endswith(KEYS[0]) for ref in by_ssh.refs())


def test_worker_killed_during_its_push_leaves_nothing_running(
    expected: dict[str, bytes], by_ssh: Sweep, server: Server
) -> None:
    """The server takes the connection of `dvc push` and then says nothing, as a machine that hangs does."""
    gate = gates(by_ssh.clone) / f"hold-{KEYS[0]}"
    gate.touch()
    worker = by_ssh.worker("machine", KEYS[0])
    wait_until(lambda: started(by_ssh.clone) == [KEYS[0]], 120)
    server.pause()
    gate.unlink()
    wait_until(lambda: running(by_ssh.machines, "dvc", "push"), 60)

    worker.kill()
    worker.communicate()

    wait_until(lambda: not processes(Clone(by_ssh.machines)), 30)
    server.resume()
    for key in KEYS:
        finish(by_ssh.worker("machine", key), 240)
    by_ssh.collect()
    assert outputs(by_ssh.clone) == expected
    by_ssh.assert_nothing_left()


def test_variant_given_to_two_workers_is_taken_in_once(by_path: Sweep) -> None:
    gate = gates(by_path.clone) / f"hold-{KEYS[0]}"
    gate.touch()
    both = [by_path.worker(machine, KEYS[0]) for machine in ("one", "other")]
    wait_until(lambda: started(by_path.clone) == [KEYS[0]] * 2, 120)

    gate.unlink()
    printed = "".join(finish(worker, 240) for worker in both)
    for key in KEYS[1:]:
        finish(by_path.worker("one", key), 240)

    assert printed.count("trained and pushed") == 2
    assert "4 variants taken in" in by_path.collect()
    assert by_path.clone.dvc("status") == "Data and pipelines are up to date.\n"
    by_path.assert_nothing_left()


@pytest.mark.parametrize("mebibytes", [1, 4, 5, 6])  # where it fails differs, and what Git or DVC says of it
def test_full_disk_of_a_worker_is_named_and_the_next_call_succeeds(by_path: Sweep, mebibytes: int) -> None:
    scratch = by_path.machines / "small"
    scratch.mkdir(parents=True)
    script = (
        f"mount -t tmpfs -o size={mebibytes}m none {scratch}; "
        f"dropout-study sweep worker {by_path.repository} {by_path.name} {KEYS[0]} --scratch {scratch}"
    )
    namespace = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec")

    full = Clone(by_path.machines).run(*namespace, script, check=False)
    refs = by_path.refs()
    again = finish(by_path.worker("small", KEYS[0]), 240)

    assert full.returncode == 1
    assert re.match(f"error: .*; {scratch} has [0-6] MiB left$", full.stderr, re.DOTALL), full.stderr
    assert "Traceback" not in full.stderr
    assert [ref for ref in refs if not ref.endswith("/snapshot")] == []
    assert f"{KEYS[0]}  trained and pushed" in again
    assert not list(scratch.glob("worker-*"))


def test_disk_that_fills_up_in_mid_training_is_named_and_the_next_call_there_succeeds(by_path: Sweep) -> None:
    scratch = by_path.machines / "small"
    scratch.mkdir(parents=True)
    waits = gates(by_path.clone)
    hold, full, freed = waits / f"hold-{KEYS[0]}", waits / "full", waits / "freed"
    hold.touch()
    worker = (
        f"dropout-study sweep worker {by_path.repository} {by_path.name} {KEYS[0]} --scratch {scratch} "
        f"--checkpoints {by_path.machines}/checkpoints"
    )
    script = (
        f"mount -t tmpfs -o size=64m none {scratch}; {worker} & "
        f"until [ -e {waits}/started ]; do sleep 0.1; done; cat /dev/zero > {scratch}/ballast || touch {full}; "
        f"rm {hold}; wait $! && exit 9; rm {scratch}/ballast; ls {scratch} > {freed}; {worker}; ls {scratch}"
    )

    done = Clone(by_path.machines).run("unshare", "--mount", "sh", "-ec", script, check=False)

    assert done.returncode == 0, done.stderr
    assert full.exists()
    message = f"^error: {KEYS[0]}: not trained; models/.*: No space left on device.*; {scratch} has 0 MiB left"
    assert re.search(message, done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr
    assert f"{KEYS[0]}  trained and pushed" in done.stdout
    assert "worker-" not in freed.read_text() + done.stdout.rpartition("pushed")[2]
    assert started(by_path.clone) == [KEYS[0]] * 2


def test_result_survives_a_server_that_stays_away(by_ssh: Sweep, server: Server) -> None:
    gate = gates(by_ssh.clone) / f"hold-{KEYS[0]}"
    gate.touch()
    worker = by_ssh.worker("machine", KEYS[0])
    wait_until(lambda: started(by_ssh.clone) == [KEYS[0]], 120)
    server.stop()
    gate.unlink()

    printed, _ = worker.communicate(timeout=600)

    assert worker.returncode == 1
    kept = f"^error: {KEYS[0]}: trained, but not pushed; kept in .*: `dvc push .*` failed: .*[Cc]onnect"
    assert re.search(kept, printed, re.MULTILINE), printed
    assert "Traceback" not in printed
    assert not list(by_ssh.machines.glob("*/worker-*"))
    server.start()
    assert f"{KEYS[0]}  trained and pushed" in finish(by_ssh.worker("machine", KEYS[0]), 240)
    assert started(by_ssh.clone) == [KEYS[0]]


def test_killed_training_resumes_on_another_machine_with_the_bytes_of_an_uninterrupted_run(tmp_path: Path) -> None:
    """With the real trainer. The machines share nothing but the directory of the checkpoints."""
    clone = small_project(tmp_path / "project")
    clone.change(study__optimizers=["adadelta"], study__dropouts=[0.5], train__epochs=6, train__batch_size=10)
    clone.change(network__filters=[16, 16, 32, 32], network__units=[64, 64])
    clone.dvc("remote", "add", "--default", "shared", str(tmp_path / "remote"))
    clone.repro("normalize")
    clone.commit("a study of one variant")
    expected = undisturbed_outputs(clone, tmp_path / "uninterrupted")
    clone.run("git", "init", "--quiet", "--bare", str(tmp_path / "repository.git"))
    sweep = send(clone, str(tmp_path / "repository.git"), tmp_path / "machines")
    shared = ["--checkpoints", str(tmp_path / "checkpoints")]
    first = sweep.worker("one", "adadelta-0.5-0", *shared)
    assert first.stdout
    for line in first.stdout:
        if "epoch 2/6" in line:
            break

    first.send_signal(signal.SIGKILL)
    first.communicate()
    wait_until(lambda: not processes(Clone(sweep.machines)), 30)
    time.sleep(0.1)
    shutil.rmtree(sweep.machines / "one")
    printed = finish(sweep.worker("other", "adadelta-0.5-0", *shared), 240)
    sweep.collect()

    assert "resuming after epoch" in printed
    assert outputs(clone) == expected
    sweep.assert_nothing_left()
