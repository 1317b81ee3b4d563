"""What makes a killed training resume: its state after an epoch in one file, written whole or not at all.

A variant has a directory of its own, named by the variant and a hash of all that its result depends on, so that a
checkpoint is only ever found by the run that would have written it. There are two files in it, the latest state and
the one before; each begins with the SHA-256 of what follows.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dropout_study import files
from dropout_study.errors import StudyError
from dropout_study.progress import say

if TYPE_CHECKING:
    import keras

ROOT_VARIABLE = "DROPOUT_STUDY_CHECKPOINTS"
ROOT = Path(".checkpoints")
LOCKS = ROOT / "locks"
DIGEST_BYTES = 64


class State(NamedTuple):
    """All that a training remembers of the epochs so far: arrays, and what JSON can hold."""

    epoch: int
    weights: list[np.ndarray]
    optimizer: list[np.ndarray]
    progress: Any


def fingerprint(values: Any, arrays: Iterable[np.ndarray], modules: Iterable[Path]) -> str:
    """Return a hash, 16 hexadecimal digits, of what a result depends on: settings, data and code.

    `values` is what JSON can hold; of the arrays, type, shape and content count, of the modules the content.
    """
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    for module in modules:
        content = module.read_bytes()
        digest.update(f"{module.as_posix()} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


@contextmanager
def locked(key: str) -> Iterator[None]:
    """Hold the variant `key` of this project for this process; the lock ends with the process, however it ends.

    Raises `StudyError` at once if another process holds it: both would write the same outputs.
    """
    path = LOCKS / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(f"{path}: another process is training this variant; wait for it, or end it") from None
        yield


class Checkpoints:
    """The checkpoints of the variant `key`, every `every` epochs, under the hash `digest` below .checkpoints.

    The environment variable DROPOUT_STUDY_CHECKPOINTS names another directory than .checkpoints.
    """

    def __init__(self, key: str, digest: str, every: int = 1) -> None:
        self.key = key
        self.every = every
        self.epoch = 0  # the latest that there is a checkpoint of
        self.root = Path(os.environ.get(ROOT_VARIABLE, ROOT))
        self.directory = self.root / f"{key}-{digest}"
        self.latest = self.directory / "latest"
        self.previous = self.directory / "previous"

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Say, if the block is interrupted, where the next run goes on."""
        try:
            yield
        except KeyboardInterrupt:
            where = (
                f"goes on after epoch {self.epoch}, from its checkpoint" if self.epoch else "starts at the beginning"
            )
            say(f"{self.key}  the next run {where}")
            raise

    def resume(self, network: "keras.Model", optimizer: "keras.Optimizer") -> Any:
        """Put `network` and the built `optimizer` into the latest state kept, and return its progress; or None."""
        state = self.load()
        if state is None:
            return None
        self.epoch = state.epoch
        network.set_weights(state.weights)
        for variable, value in zip(optimizer.variables, state.optimizer, strict=True):
            variable.assign(value)
        say(f"{self.key}  going on after epoch {self.epoch}, from its checkpoint")
        return state.progress

    def keep(self, network: "keras.Model", optimizer: "keras.Optimizer", progress: Any, epoch: int) -> None:
        """Save the state after `epoch`, if it is one to keep; `progress` is what JSON can hold.

        If it cannot be written, says so; the training goes on, and the checkpoints before stay.
        """
        if epoch % self.every:
            return
        state = State(epoch, network.get_weights(), [variable.numpy() for variable in optimizer.variables], progress)
        try:
            self.save(state)
            self.epoch = epoch
        except OSError as error:
            say(f"warning: {self.latest}: no checkpoint of epoch {epoch} ({error.strerror}); training goes on")

    def save(self, state: State) -> None:
        """Write `state`; what was the latest becomes the previous. Raises `OSError` if it cannot.

        Whatever happens meanwhile, one of the two files is whole, if one was before.
        """
        arrays = {f"weights_{i}": array for i, array in enumerate(state.weights)}
        arrays |= {f"optimizer_{i}": array for i, array in enumerate(state.optimizer)}
        payload = io.BytesIO()
        progress = np.array(json.dumps([state.epoch, state.progress]))
        np.savez(payload, progress=progress, **arrays)  # type: ignore[arg-type]
        content = payload.getvalue()
        with files.replacing(self.latest) as temporary:
            with temporary.open("wb") as file:
                file.write(hashlib.sha256(content).hexdigest().encode())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # before the file that it replaces is moved
            if self.latest.exists():
                # A kill between the two renames leaves the previous one, which is whole.
                self.latest.replace(self.previous)

    def load(self) -> State | None:
        """Return the latest whole state, or None; a damaged one is removed, and that is said."""
        if self.directory.exists():
            for leftover in self.directory.glob(".*"):
                leftover.unlink(missing_ok=True)  # of a write that was killed
        for path in (self.latest, self.previous):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                content = str(error).encode()
            payload = content[DIGEST_BYTES:]
            if hashlib.sha256(payload).hexdigest().encode() == content[:DIGEST_BYTES]:
                return _unpack(payload)
            # Left where it is, it would take the place of a whole one with the next write.
            path.unlink()
            say(f"warning: {path} was damaged; going on from the checkpoint before it, if there is one")
        return None

    def clear(self) -> None:
        """Remove the checkpoints: the result stands. In the project's own directory, those of other settings too.

        They are of runs that were killed before a setting was changed; in a shared directory they may be another's.
        """
        others = self.root.glob(f"{self.key}-{'[0-9a-f]' * 16}") if self.root == ROOT else []
        for directory in [self.directory, *others]:
            shutil.rmtree(directory, ignore_errors=True)


def _unpack(payload: bytes) -> State:
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        names = [name for name in arrays.files if name != "progress"]
        weights = [arrays[name] for name in names if name.startswith("weights_")]
        optimizer = [arrays[name] for name in names if name.startswith("optimizer_")]
        epoch, progress = json.loads(str(arrays["progress"]))
        return State(epoch, weights, optimizer, progress)
