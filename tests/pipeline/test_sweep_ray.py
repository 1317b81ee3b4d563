"""`dropout-study sweep --address`: a real Ray cluster on loopback. tests/stress kills parts of it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clones import Clone, finish
from tests.ray_cluster import Nodes, running_nodes
from tests.sweeps import KEYS, gates, outputs, processes, release, share, started, undisturbed_outputs, wait_until

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with running_nodes(tmp_path_factory.mktemp("ray")) as nodes:
        yield nodes


@pytest.fixture
def options(nodes: Nodes, swept: Clone, tmp_path: Path) -> list[str]:
    """The options of a sweep on the cluster; the project has a DVC remote."""
    repository = str(share(swept, tmp_path))
    return ["--address", nodes.address, "--repository", repository, "--scratch", str(tmp_path / "scratch")]


def refs(clone: Clone, options: list[str]) -> str:
    return clone.run("git", "ls-remote", options[3], "refs/dropout-study/*").stdout


def test_ray_gives_the_bytes_of_a_sequential_run(
    nodes: Nodes, options: list[str], swept: Clone, tmp_path: Path
) -> None:
    expected = undisturbed_outputs(swept, tmp_path / "sequential")
    (gates(swept) / "started").unlink()

    printed = finish(swept.start("dropout-study", "sweep", *options, **nodes.variables))

    assert "4 of 4 variants to train" in printed
    assert outputs(swept) == expected
    assert sorted(started(swept)) == sorted(KEYS)
    assert refs(swept, options) == ""


def test_interrupted_ray_leaves_nothing_running_and_keeps_what_is_trained(
    nodes: Nodes, options: list[str], swept: Clone
) -> None:
    (gates(swept) / "hold-adadelta-0.0-0").touch()
    sweep = swept.start("dropout-study", "sweep", *options, **nodes.variables)
    assert sweep.stdout
    while "; 3 of 4" not in sweep.stdout.readline():
        pass

    sweep.send_signal(signal.SIGINT)
    printed, _ = sweep.communicate(timeout=300)

    assert sweep.returncode == 130, printed
    wait_until(lambda: not processes(Clone(Path(options[5]))), 30)
    assert refs(swept, options) == ""
    assert (swept.path / "metrics/history/sgd-0.0-0.csv").exists()
    release(swept)
    assert "1 of 4 variants to train" in swept.run("dropout-study", "sweep").stdout


def test_variant_that_fails_by_ray_does_not_stop_the_others(nodes: Nodes, options: list[str], swept: Clone) -> None:
    (gates(swept) / f"fail-{KEYS[0]}").touch()

    done = swept.run("dropout-study", "sweep", *options, "--workers", "1", check=False, **nodes.variables)

    assert done.returncode == 1
    assert f"error: {KEYS[0]} cannot be trained" in done.stdout.replace("not trained; ", "error: ")
    assert "1 of 4 variants failed" in done.stderr
    assert started(swept) == [*KEYS]  # one at a time, in order


def test_ray_refuses_trainings_that_no_machine_has_cores_for(nodes: Nodes, options: list[str], swept: Clone) -> None:
    swept.change(train__threads=64)

    done = swept.run("dropout-study", "sweep", *options, check=False, **nodes.variables)

    assert done.returncode == 1
    assert "error: no machine of the cluster has 64 cores, as each training needs; see train.threads" in done.stderr
    assert refs(swept, options) == ""


def test_ray_at_an_address_without_a_cluster_is_refused(nodes: Nodes, options: list[str], swept: Clone) -> None:
    done = swept.run("dropout-study", "sweep", "--address", "127.0.0.1:1", *options[2:], check=False, **nodes.variables)

    assert done.returncode == 1
    assert "error: --address 127.0.0.1:1: no Ray cluster: " in done.stderr


def test_address_without_a_repository_is_refused(swept: Clone) -> None:
    done = swept.run("dropout-study", "sweep", "--address", "auto", check=False)

    assert done.returncode == 2
    assert "--address and --repository go together" in done.stderr
