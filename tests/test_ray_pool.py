"""What Ray is asked for and told before it starts; tests/pipeline/test_sweep_ray.py runs it."""

import importlib.util
from pathlib import Path

import pytest

from dropout_study.errors import StudyError
from dropout_study.sweep import ray_pool
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


def test_ray_of_a_cluster_needs_a_token() -> None:
    with pytest.raises(StudyError, match="RAY_AUTH_TOKEN_PATH is not set"):
        ray_pool.variables("auto", {})


def test_document_sets_on_every_machine_what_the_driver_sets() -> None:
    document = (PROJECT / "docs/cluster.md").read_text()

    for name, value in ray_pool.EVERYWHERE.items():
        assert f"{name}={value}" in document, name


def test_resources_ask_for_gpus_only_if_there_are_some() -> None:
    assert ray_pool.resources(2, 0) == {"num_cpus": 2}
    assert ray_pool.resources(1, 0.5) == {"num_cpus": 1, "num_gpus": 0.5}


def test_require_ray_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(StudyError, match=r"Ray is not installed: pip install .* -e '\.\[cluster\]'"):
        ray_pool.require_ray()


def test_teller_gives_each_line_once() -> None:
    teller = ray_pool.Teller()
    teller.started("sgd-0.5-0", "a machine")
    teller.line("sgd-0.5-0", "epoch 1")

    assert teller.take() == ({"sgd-0.5-0": "a machine"}, [("sgd-0.5-0", "epoch 1")])
    assert teller.take() == ({}, [])
