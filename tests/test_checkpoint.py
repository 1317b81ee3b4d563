import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropout_study import checkpoint
from dropout_study.checkpoint import Checkpoints, State, fingerprint, locked
from dropout_study.errors import StudyError
from tests.clones import PROJECT

DIGEST = "0123456789abcdef"
ARRAYS: list[np.ndarray] = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, np.uint8)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DROPOUT_STUDY_CHECKPOINTS", str(tmp_path / "checkpoints"))


def state(epoch: int) -> State:
    random = np.random.default_rng(epoch)
    weights = [random.normal(size=(3, 4)).astype(np.float32) for _ in range(12)]
    return State(epoch, weights, [np.array(epoch), random.normal(size=5)], {"history": [epoch, 0.1, float("nan")]})


def same(one: State | None, other: State) -> bool:
    assert one is not None
    pairs = [*zip(one.weights, other.weights, strict=True), *zip(one.optimizer, other.optimizer, strict=True)]
    return (
        one.epoch == other.epoch
        and repr(one.progress) == repr(other.progress)
        and all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
    )


def test_a_state_comes_back_to_the_bit() -> None:
    checkpoints = Checkpoints("sgd-0.5-0", DIGEST)
    assert checkpoints.load() is None
    for epoch in (1, 2, 3):
        checkpoints.save(state(epoch))
        assert same(checkpoints.load(), state(epoch))
    assert sorted(os.listdir(checkpoints.directory)) == ["latest", "previous"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "gone"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(
    damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints("sgd-0.5-0", DIGEST)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    content = bytearray(checkpoints.latest.read_bytes())
    match damage:
        case "truncated":
            checkpoints.latest.write_bytes(content[:-1])
        case "flipped":
            content[len(content) // 2] ^= 1
            checkpoints.latest.write_bytes(content)
        case "empty":
            checkpoints.latest.write_bytes(b"")
        case "gone":
            checkpoints.latest.unlink()
    assert same(checkpoints.load(), state(1))
    assert ("latest was damaged; going on from the checkpoint before it" in capsys.readouterr().out) == (
        damage != "gone"
    )


def test_two_damaged_checkpoints_are_none() -> None:
    checkpoints = Checkpoints("sgd-0.5-0", DIGEST)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    for path in (checkpoints.latest, checkpoints.previous):
        path.write_bytes(path.read_bytes()[:100])
    assert checkpoints.load() is None


class Model:
    """Stands in for a network and for its optimizer, whose interface is all that counts here."""

    def __init__(self) -> None:
        self.weights = [np.zeros(3, np.float32)]
        self.variables: list[Any] = []

    def get_weights(self) -> list[np.ndarray]:
        return self.weights

    def set_weights(self, weights: list[np.ndarray]) -> None:
        self.weights = weights


def test_every_nth_epoch_is_kept_and_gone_on_from(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints, model = Checkpoints("sgd-0.5-0", DIGEST, every=2), Model()
    for epoch in range(1, 6):
        model.weights = [np.full(3, epoch, np.float32)]
        checkpoints.keep(model, model, {"epoch": epoch}, epoch)
    fresh = Model()
    again = Checkpoints("sgd-0.5-0", DIGEST, every=2)
    assert again.resume(fresh, fresh) == {"epoch": 4}
    assert again.epoch == 4
    np.testing.assert_array_equal(fresh.weights[0], 4)
    assert "sgd-0.5-0  going on after epoch 4, from its checkpoint" in capsys.readouterr().out


def test_a_full_disk_warns_and_keeps_what_there_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints, model = Checkpoints("sgd-0.5-0", DIGEST), Model()
    checkpoints.keep(model, model, "first", 1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        checkpoints.keep(model, model, "second", 2)
    assert "no checkpoint of epoch 2 (No space left on device); training goes on" in capsys.readouterr().out
    assert os.listdir(checkpoints.directory) == ["latest"]
    assert Checkpoints("sgd-0.5-0", DIGEST).resume(model, model) == "first"
    checkpoints.keep(model, model, "third", 3)
    assert Checkpoints("sgd-0.5-0", DIGEST).resume(model, model) == "third"


def test_a_damaged_checkpoint_never_takes_the_place_of_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged, resumed from the one before, and killed in the next write."""
    checkpoints = Checkpoints("sgd-0.5-0", DIGEST)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    checkpoints.latest.write_bytes(checkpoints.latest.read_bytes()[:-1])
    assert same(checkpoints.load(), state(1))

    def killed(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(RuntimeError):
            checkpoints.save(state(2))
    assert same(checkpoints.load(), state(1))
    checkpoints.save(state(2))
    assert same(checkpoints.load(), state(2))


def test_a_checkpoint_that_cannot_be_read_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints("sgd-0.5-0", DIGEST)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    read = Path.read_bytes

    def bad_sector(path: Path) -> bytes:
        if path == checkpoints.latest:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", bad_sector)
    assert same(checkpoints.load(), state(1))


def test_a_second_process_on_the_same_variant_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from dropout_study.checkpoint import locked\nwith locked('sgd-0.5-0'): print('mine')\n"

    def other() -> subprocess.CompletedProcess[str]:
        variables = os.environ | {"PYTHONPATH": str(PROJECT)}
        return subprocess.run(
            [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=30, check=False
        )

    with locked("sgd-0.5-0"):
        refused = other()
        with locked("sgd-0.5-1"):
            pass
    assert refused.returncode == 1
    assert "another process is training this variant" in refused.stderr
    assert other().stdout == "mine\n"


def test_an_error_in_a_training_is_not_taken_for_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BlockingIOError), locked("sgd-0.5-0"):
        raise BlockingIOError
    with locked("sgd-0.5-0"), pytest.raises(StudyError, match="another process"), locked("sgd-0.5-0"):
        pass


def test_leftovers_of_a_killed_write_are_removed() -> None:
    checkpoints = Checkpoints("sgd-0.5-0", DIGEST)
    checkpoints.save(state(1))
    (checkpoints.directory / ".4711.latest").write_bytes(b"half")
    assert same(checkpoints.load(), state(1))
    assert os.listdir(checkpoints.directory) == ["latest"]


@pytest.mark.parametrize("own", [True, False])
def test_clear_leaves_nothing_of_the_variant_but_what_may_be_anothers(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("DROPOUT_STUDY_CHECKPOINTS")
    names = [("sgd-0.5-0", DIGEST), ("sgd-0.5-0", DIGEST[::-1]), ("sgd-0.5-01", DIGEST)]
    all_of_them = [Checkpoints(*name) for name in names]
    for checkpoints in all_of_them:
        checkpoints.save(state(1))
    all_of_them[0].clear()
    assert [checkpoints.directory.exists() for checkpoints in all_of_them] == [False, not own, True]
    assert Path(".checkpoints") == checkpoint.ROOT


def test_an_interrupt_says_where_the_next_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints, model = Checkpoints("sgd-0.5-0", DIGEST), Model()
    for kept, text in [(0, "starts at the beginning"), (3, "goes on after epoch 3, from its checkpoint")]:
        if kept:
            checkpoints.keep(model, model, None, kept)
        with pytest.raises(KeyboardInterrupt), checkpoints.telling():
            raise KeyboardInterrupt
        assert f"sgd-0.5-0  the next run {text}" in capsys.readouterr().out


def changed_array() -> list[np.ndarray]:
    arrays = [array.copy() for array in ARRAYS]
    arrays[0][1, 2] += 1
    return arrays


@pytest.mark.parametrize(
    "change",
    [
        lambda values, arrays, modules: ({**values, "epochs": 7}, arrays, modules),
        lambda values, arrays, modules: (values, changed_array(), modules),
        lambda values, arrays, modules: (values, [arrays[0].reshape(3, 2), arrays[1]], modules),
        lambda values, arrays, modules: (values, [arrays[0], arrays[1].astype(bool)], modules),
        lambda values, arrays, modules: (values, arrays, modules[:1]),
    ],
    ids=["value", "content", "shape", "type", "module"],
)
def test_a_fingerprint_changes_with_all_that_counts(
    change: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    modules = [Path("dropout_study/training.py"), Path("dropout_study/dropout.py")]
    values = {"epochs": 6, "dropout": 0.5}
    first = fingerprint(values, ARRAYS, modules)
    assert fingerprint(dict(reversed(values.items())), ARRAYS, modules) == first
    assert fingerprint(*change(values, ARRAYS, modules)) != first
