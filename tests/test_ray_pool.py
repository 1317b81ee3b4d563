"""What Ray is asked for and told before it starts; tests/pipeline/test_sweep_ray.py runs it."""

import importlib.util
import os
import socket
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from dropout_study.cli import main
from dropout_study.console import StudyError
from dropout_study.sweep import ray_pool
from dropout_study.sweep.project import SWEEP
from tests.clones import PROJECT


def test_ray_of_this_machine_listens_on_loopback_only_and_asks_for_a_token() -> None:
    observed = ray_pool.variables(None, {})

    assert observed["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert observed["RAY_AUTH_MODE"] == "token"
    assert observed["RAY_USAGE_STATS_ENABLED"] == "0"


def test_ray_of_a_cluster_takes_its_token_from_a_private_file(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)

    observed = ray_pool.variables("auto", {"RAY_AUTH_TOKEN_PATH": str(token)})

    assert observed["RAY_AUTH_TOKEN_PATH"] == str(token)
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in observed


@pytest.mark.parametrize(
    ("mode", "message"),
    [(None, "the token of the cluster cannot be read: No such file"), (0o644, "others can read the token")],
)
def test_ray_of_a_cluster_refuses_a_token_that_is_not_private(tmp_path: Path, mode: int | None, message: str) -> None:
    token = tmp_path / "token"
    if mode is not None:
        token.touch()
        token.chmod(mode)

    with pytest.raises(StudyError, match=message):
        ray_pool.variables("auto", {"RAY_AUTH_TOKEN_PATH": str(token)})


def test_ray_that_does_not_start_is_an_error_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []

    def time_out(**_: object) -> None:
        modes.append(stat.S_IMODE(Path(os.environ["RAY_AUTH_TOKEN_PATH"]).stat().st_mode))
        raise Exception("The current node timed out during startup.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", dict(os.environ))
    monkeypatch.setattr("ray.init", time_out)
    SWEEP.mkdir(parents=True)

    with (
        pytest.raises(
            StudyError, match=r"^Ray did not start on this machine: The current node .*; run the same command"
        ),
        ray_pool.connected(None, 1),
    ):
        pass

    assert modes == [0o600]
    assert not (SWEEP / "ray-token").exists()


def test_ray_of_a_cluster_needs_a_token() -> None:
    with pytest.raises(StudyError, match="RAY_AUTH_TOKEN_PATH is not set"):
        ray_pool.variables("auto", {})


def test_document_sets_on_every_machine_what_the_driver_sets() -> None:
    document = (PROJECT / "docs/cluster.md").read_text()

    for name, value in ray_pool.RAY_VARIABLES.items():
        assert f"{name}={value}" in document, name


def test_resources_ask_for_gpus_only_if_there_are_some() -> None:
    assert ray_pool.resources(2, 0) == {"num_cpus": 2}
    assert ray_pool.resources(1, 0.5) == {"num_cpus": 1, "num_gpus": 0.5}


def test_require_ray_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(StudyError, match=r"Ray is not installed: pip install .* -e '\.\[cluster\]'"):
        ray_pool.require_ray(None)


def test_inbox_gives_each_line_once() -> None:
    inbox = ray_pool.Inbox()
    inbox.started("sgd-0.5-0", "a machine")
    inbox.line("sgd-0.5-0", "epoch 1", {"epoch": 1})

    assert inbox.take() == ({"sgd-0.5-0": "a machine"}, [("sgd-0.5-0", "epoch 1", {"epoch": 1})])
    assert inbox.take() == ({}, [])


def test_address_at_which_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as reserved:  # bound, and not listening
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"

        with pytest.raises(StudyError, match=rf"--address {address}: nothing answers there \(.*refused"):
            ray_pool.require_answer(address)


def test_address_that_is_no_name_of_a_machine_is_refused() -> None:
    with pytest.raises(StudyError, match=r"--address a\.\.b:6379: nothing answers there"):
        ray_pool.require_answer("a..b:6379")


def test_address_local_is_refused_for_it_would_listen_everywhere() -> None:
    with pytest.raises(StudyError, match=r"--address local: .* --ray starts, on 127\.0\.0\.1 only"):
        ray_pool.require_ray("local")


@pytest.mark.parametrize(
    ("threads", "gpus", "expected"), [(1, 0.0, 6), (2, 0.0, 3), (4, 0.0, 1), (1, 0.5, 2), (1, 1.0, 1)]
)
def test_room_counts_trainings_that_fit_on_a_node_each(threads: int, gpus: float, expected: int) -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0, "memory": 1e9}, {"CPU": 2.0}]

    assert ray_pool.room(nodes, threads, gpus) == expected


@pytest.mark.parametrize(("threads", "gpus", "wanted"), [(8, 0.0, "8 cores"), (1, 1.0, "1 core and 1 GPU")])
def test_room_refuses_what_no_node_has(threads: int, gpus: float, wanted: str) -> None:
    with pytest.raises(StudyError, match=f"no machine of the cluster has {wanted}"):
        ray_pool.room([{"CPU": 4.0}, {"CPU": 4.0}], threads, gpus)


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ("1.5", "1.5 is neither a whole number nor at most 1"),
        ("nan", "nan is neither a whole number nor at most 1"),
        ("2", "--gpus-per-worker needs --ray or --address"),
        ("0.25", "--gpus-per-worker needs --ray or --address"),
    ],
)
def test_gpus_per_worker_is_a_whole_number_or_a_share_of_one(gpus: str, message: str) -> None:
    refused = CliRunner().invoke(main, ["sweep", "--gpus-per-worker", gpus])

    assert refused.exit_code == 2
    assert message in refused.stderr


@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:1"])
def test_address_that_ray_has_to_resolve_is_left_to_it(address: str) -> None:
    assert ray_pool.require_answer(address) is None  # type: ignore[func-returns-value]
