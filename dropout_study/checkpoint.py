"""Checkpoints, from which a killed training resumes: its state after an epoch in one file, written atomically.

Each variant has its own directory, named by the variant and a hash of everything its result depends on, so a
checkpoint is only loaded by a run that would have written the same one. The directory holds two files, the latest
state and the previous one; each begins with the SHA-256 of what follows.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dropout_study import files
from dropout_study.console import say

if TYPE_CHECKING:
    import keras

ROOT_VARIABLE = "DROPOUT_STUDY_CHECKPOINTS"
ROOT = Path(".checkpoints")
DIGEST_BYTES = 64


class State(NamedTuple):
    """The state of a training after `epoch`: lists of arrays by name, and a JSON value.

    The names are "weights" (the network's), "optimizer" (its variables), and those that the training adds.
    """

    epoch: int
    arrays: dict[str, list[np.ndarray]]
    progress: Any


def dependencies(values: Mapping[str, Mapping[str, Any]], paths: Iterable[Path]) -> dict[str, Any]:
    """Return by name what a training depends on: settings, which are JSON values by group, and digests of files."""
    settings = {f"{files.SETTINGS}: {name}": value for group in values.values() for name, value in group.items()}
    return settings | {path.as_posix(): files.digest(path) for path in paths}


def fingerprint(value: Any) -> str:
    """Return a hash, 16 hexadecimal digits, of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def root() -> Path:
    """Return the directory of all checkpoints: the one that DROPOUT_STUDY_CHECKPOINTS names, else .checkpoints."""
    return Path(os.environ.get(ROOT_VARIABLE, ROOT))


def lock_file(key: str) -> Path:
    """Return the file that is locked while the variant `key` trains; clones that share checkpoints share it."""
    return root() / "locks" / f"{key}.lock"


def locked(key: str) -> AbstractContextManager[None]:
    """Hold the variant `key` for this process, so that no other process writes the same checkpoints and outputs.

    Raises `StudyError` at once if another process holds it. See `files.locked`.
    """
    return files.locked(lock_file(key), "another process is training this variant; wait for it, or end it")


class Checkpoints:
    """Checkpoints of variant `key`, saved every `every` epochs in `.checkpoints/<key>-<digest>`.

    The environment variable DROPOUT_STUDY_CHECKPOINTS names a directory to use instead of .checkpoints.
    """

    def __init__(self, key: str, digest: str, every: int = 1) -> None:
        self.key = key
        self.every = every
        self.epoch = 0  # of the latest checkpoint; 0 if there is none
        self.root = root()
        self.directory = self.root / f"{key}-{digest}"
        self.latest = self.directory / "latest"
        self.previous = self.directory / "previous"

    @contextmanager
    def reporting_interrupts(self) -> Iterator[None]:
        """If the block is interrupted, print where the next run resumes."""
        try:
            yield
        except KeyboardInterrupt:
            next_step = f"resumes after epoch {self.epoch}" if self.epoch else "starts from the beginning"
            say(f"{self.key}  the next run {next_step}")
            raise

    def resume(self, network: "keras.Model", optimizer: "keras.Optimizer") -> State | None:
        """Load the latest state into `network` and the built `optimizer`, and return it.

        Returns None, and changes nothing, if there is no checkpoint.
        """
        state = self.load()
        if state is None:
            return None
        self.epoch = state.epoch
        network.set_weights(state.arrays["weights"])
        for variable, value in zip(optimizer.variables, state.arrays["optimizer"], strict=True):
            variable.assign(value)
        say(f"{self.key}  resuming after epoch {self.epoch} from its checkpoint")
        return state

    def save_if_due(
        self,
        network: "keras.Model",
        optimizer: "keras.Optimizer",
        progress: Any,
        epoch: int,
        arrays: Mapping[str, list[np.ndarray]] = MappingProxyType({}),
        *,
        last: bool = False,
    ) -> None:
        """Save the state after `epoch` if `epoch` is a multiple of `every`, or the `last` one.

        `progress` is a JSON value, `arrays` what the training needs besides weights and optimizer variables. If the
        state cannot be written, prints a warning; the training continues, and older checkpoints stay.
        """
        if epoch % self.every and not last:
            return
        own = {"weights": network.get_weights(), "optimizer": [variable.numpy() for variable in optimizer.variables]}
        state = State(epoch, {**own, **arrays}, progress)
        try:
            self.save(state)
            self.epoch = epoch
        except OSError as error:
            reason = f"no checkpoint of epoch {epoch} ({error.strerror})"
            say(f"warning: {self.latest}: {reason}; training continues without checkpoints")

    def save(self, state: State) -> None:
        """Write `state` as the latest; the latest so far becomes the previous. Raises `OSError` if that fails.

        At every moment, one of the two files is whole if one was before.
        """
        arrays = {f"{name}:{i}": array for name, group in state.arrays.items() for i, array in enumerate(group)}
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
        """Return the latest whole state, or None. Removes a damaged one and prints a warning."""
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
            # The next save would replace the previous state, which is whole, with this one.
            path.unlink()
            say(f"warning: {path}: damaged and removed; resuming from the previous checkpoint, if there is one")
        return None

    def clear(self) -> None:
        """Remove the checkpoints of a finished variant; in a project's .checkpoints, also those under other hashes.

        Those come from runs that were killed before a setting was changed. A directory of another name may be shared,
        and they may belong to another project.
        """
        outdated = self.root.glob(f"{self.key}-{'[0-9a-f]' * 16}") if self.root.name == ROOT.name else []
        for directory in [self.directory, *outdated]:
            shutil.rmtree(directory, ignore_errors=True)


def _unpack(payload: bytes) -> State:
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        groups: dict[str, list[np.ndarray]] = {}
        for name in arrays.files:
            if name != "progress":
                groups.setdefault(name.partition(":")[0], []).append(arrays[name])
        epoch, progress = json.loads(str(arrays["progress"]))
        return State(epoch, groups, progress)
