import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropout_study import checkpoint
from dropout_study.checkpoint import Checkpoints, State, dependencies, fingerprint, locked
from dropout_study.console import StudyError

DIGEST = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _checkpoints_in_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DROPOUT_STUDY_CHECKPOINTS", str(tmp_path / "checkpoints"))


def state(epoch: int) -> State:
    random = np.random.default_rng(epoch)
    weights = [random.normal(size=(3, 4)).astype(np.float32) for _ in range(12)]
    arrays = {"weights": weights, "optimizer": [np.array(epoch), random.normal(size=5)], "predictions": []}
    return State(epoch, arrays, {"history": [epoch, 0.1, float("nan")]})


def same(actual: State | None, expected: State) -> bool:
    assert actual is not None
    pairs = [
        pair
        for name, arrays in expected.arrays.items()
        for pair in zip(actual.arrays.get(name, []), arrays, strict=True)
    ]
    return (
        actual.epoch == expected.epoch
        and repr(actual.progress) == repr(expected.progress)
        and all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
    )


def test_load_returns_what_save_was_given_to_the_bit() -> None:
    checkpoints = Checkpoints("sgd-0.5-0", DIGEST)
    assert checkpoints.load() is None

    for epoch in (1, 2, 3):
        checkpoints.save(state(epoch))

        assert same(checkpoints.load(), state(epoch))

    assert sorted(os.listdir(checkpoints.directory)) == ["latest", "previous"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "gone"])
def test_load_returns_previous_state_if_latest_is_damaged(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
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

    loaded = checkpoints.load()

    assert same(loaded, state(1))
    warning = "latest: damaged and removed; resuming from the previous checkpoint"
    assert (warning in capsys.readouterr().out) == (damage != "gone")


def test_load_returns_none_if_both_states_are_damaged() -> None:
    checkpoints = Checkpoints("sgd-0.5-0", DIGEST)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    for path in (checkpoints.latest, checkpoints.previous):
        path.write_bytes(path.read_bytes()[:100])

    assert checkpoints.load() is None


def test_load_returns_previous_state_if_latest_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints("sgd-0.5-0", DIGEST)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    read = Path.read_bytes

    def fail_for_latest(path: Path) -> bytes:
        if path == checkpoints.latest:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail_for_latest)

    assert same(checkpoints.load(), state(1))


def test_save_never_replaces_whole_state_by_damaged_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest is damaged, the run resumes from the previous one, and is killed in the next write."""
    checkpoints = Checkpoints("sgd-0.5-0", DIGEST)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    checkpoints.latest.write_bytes(checkpoints.latest.read_bytes()[:-1])
    assert same(checkpoints.load(), state(1))

    def die(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(RuntimeError):
            checkpoints.save(state(2))

    assert same(checkpoints.load(), state(1))
    checkpoints.save(state(2))
    assert same(checkpoints.load(), state(2))


class Variable:
    """Stands in for a variable of an optimizer."""

    def __init__(self, value: float) -> None:
        self.value = np.full(2, value)
        self.shape = self.value.shape

    def numpy(self) -> np.ndarray:
        return self.value

    def assign(self, value: np.ndarray) -> None:
        self.value = value


class Model:
    """Stands in for a network and for its optimizer: the part of their interfaces that checkpoints use."""

    def __init__(self) -> None:
        self.weights = [np.zeros(3, np.float32)]
        self.variables = [Variable(0), Variable(0)]

    def get_weights(self) -> list[np.ndarray]:
        return self.weights

    def set_weights(self, weights: list[np.ndarray]) -> None:
        self.weights = weights


def test_resume_restores_last_epoch_that_was_due(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints, model = Checkpoints("sgd-0.5-0", DIGEST, every=2), Model()
    for epoch in range(1, 6):
        model.weights = [np.full(3, epoch, np.float32)]
        model.variables = [Variable(epoch), Variable(10 * epoch)]
        checkpoints.save_if_due(model, model, {"epoch": epoch}, epoch, {"best": [np.full(2, epoch)]})
    fresh = Model()
    resumed = Checkpoints("sgd-0.5-0", DIGEST, every=2)

    state = resumed.resume(fresh, fresh)

    assert state is not None
    assert state.progress == {"epoch": 4}
    np.testing.assert_array_equal(state.arrays["best"], [[4, 4]])
    assert resumed.epoch == 4
    np.testing.assert_array_equal(fresh.weights[0], 4)
    np.testing.assert_array_equal([variable.value for variable in fresh.variables], [[4, 4], [40, 40]])
    assert capsys.readouterr().out == "sgd-0.5-0  resuming after epoch 4 from its checkpoint\n"


def test_save_if_due_saves_the_last_epoch_in_any_case() -> None:
    checkpoints, model = Checkpoints("sgd-0.5-0", DIGEST, every=10), Model()

    checkpoints.save_if_due(model, model, "not due", 3)
    checkpoints.save_if_due(model, model, "the end", 4, last=True)

    state = checkpoints.load()
    assert state is not None
    assert state.progress == "the end"


def progress_after_resume(model: Model) -> Any:
    state = Checkpoints("sgd-0.5-0", DIGEST).resume(model, model)
    assert state is not None
    return state.progress


def test_save_if_due_warns_on_full_disk_and_keeps_previous_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints, model = Checkpoints("sgd-0.5-0", DIGEST), Model()
    checkpoints.save_if_due(model, model, "first", 1)

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        checkpoints.save_if_due(model, model, "second", 2)

    warning = "no checkpoint of epoch 2 (No space left on device); training continues without checkpoints"
    assert warning in capsys.readouterr().out
    assert os.listdir(checkpoints.directory) == ["latest"]
    assert progress_after_resume(model) == "first"

    checkpoints.save_if_due(model, model, "third", 3)

    assert progress_after_resume(model) == "third"


@pytest.mark.parametrize(("epoch", "text"), [(0, "starts from the beginning"), (3, "resumes after epoch 3")])
def test_reporting_interrupts_says_where_next_run_resumes(
    epoch: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints, model = Checkpoints("sgd-0.5-0", DIGEST), Model()
    if epoch:
        checkpoints.save_if_due(model, model, None, epoch)

    with pytest.raises(KeyboardInterrupt), checkpoints.reporting_interrupts():
        raise KeyboardInterrupt

    assert capsys.readouterr().out == f"sgd-0.5-0  the next run {text}\n"


@pytest.mark.parametrize(("directory", "own"), [(None, True), (".checkpoints", True), ("shared", False)])
def test_clear_removes_other_hashes_only_in_the_directory_of_a_project(
    directory: str | None, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DROPOUT_STUDY_CHECKPOINTS")
    if directory:  # as the workers of a sweep get it
        monkeypatch.setenv("DROPOUT_STUDY_CHECKPOINTS", str(tmp_path / directory))
    names = [("sgd-0.5-0", DIGEST), ("sgd-0.5-0", DIGEST[::-1]), ("sgd-0.5-01", DIGEST)]
    finished, same_variant, different_variant = (Checkpoints(*name) for name in names)
    for checkpoints in (finished, same_variant, different_variant):
        checkpoints.save(state(1))

    finished.clear()

    assert not finished.directory.exists()
    assert same_variant.directory.exists() == (not own)
    assert different_variant.directory.exists()
    assert Path(".checkpoints") == checkpoint.ROOT


def test_locked_holds_one_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DROPOUT_STUDY_CHECKPOINTS")

    with locked("sgd-0.5-0"), locked("sgd-0.5-1"), pytest.raises(StudyError) as error, locked("sgd-0.5-0"):
        pytest.fail("both hold it")

    assert str(error.value) == (
        ".checkpoints/locks/sgd-0.5-0.lock: another process is training this variant; wait for it, or end it"
    )
    with locked("sgd-0.5-0"):
        pass


def test_locked_warns_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fcntl, "flock", fail)

    with locked("sgd-0.5-0"), locked("sgd-0.5-0"):
        pass

    assert capsys.readouterr().out.count("this file system has no locks (No locks available)") == 2


def test_dependencies_name_what_changed(tmp_path: Path) -> None:
    module, array = tmp_path / "training.py", tmp_path / "images.npy"
    module.write_text("one")
    array.write_bytes(b"two")
    values: dict[str, dict[str, Any]] = {"fit": {"epochs": 6}, "network": {"filters": [4]}}
    before = dependencies(values, [module, array])
    array.write_bytes(b"other")

    after = dependencies({**values, "fit": {"epochs": 7}}, [module, array])

    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["params.yaml: epochs", array.as_posix()]


def test_fingerprint_depends_on_content_and_not_on_order() -> None:
    values = {"epochs": 6, "dropout": 0.5}

    first = fingerprint(values)

    assert len(first) == 16
    assert fingerprint(dict(reversed(values.items()))) == first
    assert fingerprint({**values, "epochs": 7}) != first


def test_locked_holds_a_variant_in_every_clone_that_shares_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")

    with locked("sgd-0.5-0"):
        monkeypatch.chdir(tmp_path / "other")
        with pytest.raises(StudyError, match="another process is training this variant"), locked("sgd-0.5-0"):
            pytest.fail("both hold it")
