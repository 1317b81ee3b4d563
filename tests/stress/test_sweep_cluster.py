"""A sweep on two Ray nodes that share a Git repository and a DVC remote, of which one part after another is killed."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clones import Clone, finish
from tests.ray_cluster import Nodes, running_nodes
from tests.stress.conftest import Server, share_by_ssh
from tests.sweeps import KEYS, gates, outputs, processes, release, set_hook, share, started, wait_until

pytestmark = pytest.mark.stress


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with running_nodes(tmp_path) as nodes:
        yield nodes


class Swept(NamedTuple):
    """A project with a DVC remote and a Git repository, and where its workers make clones."""

    clone: Clone
    repository: Path
    scratch: Path

    def start(self, nodes: Nodes, *arguments: str) -> subprocess.Popen[str]:
        """Start a sweep on the cluster."""
        options = ["--address", nodes.address, "--repository", str(self.repository), "--scratch", str(self.scratch)]
        return self.clone.start("dropout-study", "sweep", *options, *arguments, **nodes.variables)

    def assert_nothing_left(self) -> None:
        wait_until(lambda: not processes(Clone(self.scratch)), 30)
        assert not list(self.scratch.glob("worker-*"))
        assert self.clone.run("git", "ls-remote", str(self.repository), "refs/dropout-study/*").stdout == ""
        assert self.clone.run("git", "for-each-ref", "refs/dropout-study").stdout == ""
        assert not (self.scratch.parent / "site").exists()


@pytest.fixture
def project(swept: Clone, tmp_path: Path) -> Swept:
    return Swept(swept, share(swept, tmp_path), tmp_path / "scratch")


def workers() -> list[int]:
    """Return the processes of Ray that train."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            if path.read_bytes().startswith(b"ray::train"):
                pids.append(int(path.parent.name))
    return pids


def test_nodes_in_separate_directories_that_share_two_ssh_urls_give_the_bytes_of_a_sequential_run(
    expected: dict[str, bytes], swept: Clone, server: Server, tmp_path: Path
) -> None:
    """A relative path leads to a directory of its own on each node. A worker is killed, too."""
    repository = share_by_ssh(swept, server, tmp_path)
    gate = gates(swept) / f"hold-{KEYS[0]}"
    gate.touch()

    with running_nodes(tmp_path, GIT_SSH_COMMAND=server.git) as nodes:
        options = ["--address", nodes.address, "--repository", repository, "--scratch", "scratch"]
        sweep = swept.start("dropout-study", "sweep", *options, **nodes.variables)
        wait_until(lambda: len(started(swept)) == 4, 240)
        wait_until(lambda: len(workers()) == 1, 60)
        os.kill(workers()[0], signal.SIGKILL)
        gate.unlink()
        printed = finish(sweep, 300)

    assert f"{KEYS[0]} waiting (WorkerCrashedError, will be tried again)" in printed
    assert outputs(swept) == expected
    assert sorted(started(swept)) == sorted([*KEYS, KEYS[0]])
    used = sorted(path.parent.name for path in (tmp_path / "nodes").glob("*/scratch"))
    assert used == ["node-1", "node-2"]
    assert not list((tmp_path / "nodes").glob("*/scratch/worker-*"))
    wait_until(lambda: not processes(Clone(tmp_path / "nodes")), 30)
    refs = swept.run("git", "ls-remote", repository, "refs/dropout-study/*", GIT_SSH_COMMAND=server.git).stdout
    assert refs == ""


def test_worker_killed_between_its_pushes_is_replaced_and_nothing_is_trained_again(
    nodes: Nodes, expected: dict[str, bytes], project: Swept
) -> None:
    """The repository makes the first push of an entry wait until the worker is dead."""
    reached, dead = project.repository / "reached", project.repository / "dead"
    set_hook(
        project.repository,
        f"grep -q /trained/ || exit 0\n[ -e {reached} ] && exit 0\n"
        f"touch {reached}\nwhile [ ! -e {dead} ]; do sleep 0.1; done\nexit 1\n",
    )
    for key in KEYS[1:]:
        (gates(project.clone) / f"hold-{key}").touch()
    sweep = project.start(nodes)
    wait_until(reached.exists, 120)

    for pid in workers():
        os.kill(pid, signal.SIGKILL)
    dead.touch()
    release(project.clone)
    finish(sweep, 240)

    assert outputs(project.clone) == expected
    assert started(project.clone).count(KEYS[0]) == 1
    project.assert_nothing_left()


def test_node_that_dies_is_survived(nodes: Nodes, expected: dict[str, bytes], project: Swept) -> None:
    for key in KEYS[:2]:
        (gates(project.clone) / f"hold-{key}").touch()
    sweep = project.start(nodes)
    wait_until(lambda: len(started(project.clone)) == 2, 120)

    nodes.call("kill")
    release(project.clone)
    printed = finish(sweep, 240)

    assert "will be tried again" in printed
    assert outputs(project.clone) == expected
    assert len(started(project.clone)) == 5
    project.assert_nothing_left()


def test_driver_that_is_killed_is_started_again_and_trains_the_rest(
    nodes: Nodes, expected: dict[str, bytes], project: Swept
) -> None:
    held = gates(project.clone) / f"hold-{KEYS[3]}"
    held.touch()
    sweep = project.start(nodes)
    wait_until(lambda: len(started(project.clone)) == 4, 120)
    refs = ["git", "ls-remote", str(project.repository), "refs/dropout-study/*/trained/*"]
    wait_until(lambda: project.clone.run(*refs).stdout.count("\n") == 3, 60)

    sweep.kill()
    sweep.communicate()
    wait_until(lambda: not processes(Clone(project.scratch)), 30)
    held.unlink()
    printed = finish(project.start(nodes), 240)

    assert "4 of 4 variants to train" in printed
    assert outputs(project.clone) == expected
    assert sorted(started(project.clone)) == sorted([*KEYS, KEYS[3]])  # the others are in the remote
