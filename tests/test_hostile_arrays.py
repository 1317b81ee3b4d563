"""Arrays that somebody else wrote: pickles, which are code, other shapes, and more than memory holds."""

import hashlib
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropout_study import files
from dropout_study.checkpoint import Checkpoints, State
from dropout_study.console import StudyError
from tests.clones import PROJECT

DIGEST = "0123456789abcdef"
SOURCES = [*(PROJECT / "dropout_study").rglob("*.py"), *(PROJECT / "stages").glob("*.py")]


class Evil:
    """An object whose pickle, when it is read, makes a file."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch PWNED",)


def evil_npy() -> bytes:
    content = io.BytesIO()
    np.save(content, np.array([Evil()], dtype=object), allow_pickle=True)
    return content.getvalue()


def evil_npz(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez(content, weights_0=np.array([Evil()], dtype=object), **arrays)  # type: ignore[arg-type]
    return content.getvalue()


@pytest.fixture(autouse=True)
def _in_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_evil_pickle_is_evil() -> None:
    np.load(io.BytesIO(evil_npy()), allow_pickle=True)

    assert Path("PWNED").exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_source_reads_no_pickle_and_no_unsafe_yaml(path: Path) -> None:
    source = path.read_text()

    assert not re.search(r"^\s*(import|from) (c?pickle|dill|cloudpickle|joblib|shelve|marshal|yaml)\b", source, re.M)
    assert not re.search(
        r"allow_pickle\s*=\s*True|unsafe|safe_mode\s*=\s*False|\beval\(|\bexec\(|shell\s*=\s*True", source
    )
    for call in re.findall(r"np\.(?:load|save)\((?:[^()]|\([^()]*\))*\)", source):
        assert "allow_pickle=False" in call, call
    for call in re.findall(r"\bYAML\(.*?\)", source):
        assert call == 'YAML(typ="safe")'
    for call in re.findall(r"load_model\([^)]*compile[^)]*\)", source):
        assert "safe_mode=True" in call, call


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (evil_npy(), "Array can't be memory-mapped: Python objects in dtype."),
        (evil_npz(), "the magic string is not correct"),
        (pickle.dumps(Evil()), "the magic string is not correct"),
        (b"", "EOF: reading magic string"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9000000000000,), }\n", "EOF"),
        (evil_npy()[:40], "EOF"),
    ],
    ids=["npy", "npz", "pickle", "empty", "giant", "cut off"],
)
def test_read_array_refuses_what_is_no_array_of_numbers(content: bytes, reason: str) -> None:
    Path("array.npy").write_bytes(content)

    with pytest.raises(StudyError) as error:
        files.read_array(Path("array.npy"))

    assert str(error.value).startswith("array.npy: no array of numbers, or cut off (")
    assert reason in str(error.value)
    assert str(error.value).endswith("; remove it; `dvc repro` restores it, or makes it again")
    assert not Path("PWNED").exists()


def test_read_array_refuses_a_giant_that_its_file_does_not_hold() -> None:
    with Path("array.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)})

    with pytest.raises(StudyError, match="mmap length is greater than file size"):
        files.read_array(Path("array.npy"))


def test_read_array_refuses_text() -> None:
    np.save("array.npy", np.array(["1.0"]))

    with pytest.raises(StudyError, match=r"no array of numbers, or cut off \(its values are of type <U3\)"):
        files.read_array(Path("array.npy"))


@pytest.mark.parametrize("needed", [(4, 5), (3,), (3, 5, 1), (None, 6)])
def test_read_array_names_both_shapes_if_they_differ(needed: tuple[int | None, ...]) -> None:
    np.save("array.npy", np.zeros((3, 5)))
    expected = str(needed).replace("None", "any")

    with pytest.raises(StudyError) as error:
        files.read_array(Path("array.npy"), needed)

    assert f"array.npy: has shape (3, 5), needed is {expected};" in str(error.value)
    assert files.read_array(Path("array.npy"), (3, None)).shape == (3, 5)


def test_read_part_refuses_images_of_another_shape_than_those_of_the_training() -> None:
    np.save("train_images.npy", np.zeros((5, 8, 8, 3), np.uint8))
    np.save("test_images.npy", np.zeros((3, 8, 9, 3), np.uint8))

    with pytest.raises(StudyError, match=r"test_images.npy: has shape \(3, 8, 9, 3\), needed is \(any, 8, 8, 3\)"):
        files.read_part(Path(), "test")


def test_read_part_refuses_labels_of_other_images() -> None:
    np.save("train_images.npy", np.zeros((5, 8, 8, 3), np.uint8))
    np.save("test_images.npy", np.zeros((3, 8, 8, 3), np.uint8))
    np.save("test_labels.npy", np.zeros(2, np.uint8))

    with pytest.raises(StudyError, match=r"test_labels.npy: has shape \(2,\), needed is \(3,\)"):
        files.read_part(Path(), "test")


def planted(payload: bytes) -> Checkpoints:
    """Return checkpoints whose latest is `payload` with the right hash, as anybody can write it."""
    checkpoints = Checkpoints("sgd-0.5-0", DIGEST)
    checkpoints.directory.mkdir(parents=True)
    checkpoints.latest.write_bytes(hashlib.sha256(payload).hexdigest().encode() + payload)
    return checkpoints


def compressed_zeros(byte_count: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights_0.npy", bytes(byte_count))
    return content.getvalue()


@pytest.mark.parametrize(
    "payload",
    [
        evil_npz(progress=np.array("[1, {}]")),
        evil_npz()[:-9],
        pickle.dumps(Evil()),
        evil_npy(),
        b"",
        compressed_zeros(10_000_000),
    ],
    ids=["npz", "cut off", "pickle", "npy", "empty", "compressed"],
)
def test_load_removes_a_checkpoint_that_is_no_plain_archive(payload: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = planted(payload)

    assert checkpoints.load() is None
    assert not checkpoints.latest.exists()
    assert "damaged and removed" in capsys.readouterr().out
    assert not Path("PWNED").exists()


def test_load_takes_a_checkpoint_that_somebody_else_wrote_for_ones_own() -> None:
    author = Checkpoints("sgd-0.5-0", DIGEST)
    author.save(State(9, {"weights": [np.full(3, 7.0)]}, {}))

    state = Checkpoints("sgd-0.5-0", DIGEST).load()

    assert state is not None
    assert (state.epoch, state.arrays["weights"][0].tolist()) == (9, [7, 7, 7])


class Model:
    """Stands in for a network and for its optimizer: the part of their interfaces that checkpoints use."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        self.weights = self.variables = [np.zeros(shape, np.float32) for shape in shapes]

    def set_weights(self, _: list[np.ndarray]) -> None:
        raise AssertionError("nothing is to be loaded")


@pytest.mark.parametrize(
    ("weights", "optimizer", "message"),
    [
        ((3, 4), (2,), r"its weights arrays have the shapes \[\(3, 4\)\], needed are \[\(3, 5\)\]"),
        ((3, 5), (7,), r"its optimizer arrays have the shapes \[\(7,\)\], needed are \[\(2,\)\]"),
    ],
)
def test_resume_names_both_shapes_if_they_differ(
    weights: tuple[int, ...], optimizer: tuple[int, ...], message: str
) -> None:
    checkpoints = Checkpoints("sgd-0.5-0", DIGEST)
    checkpoints.save(State(1, {"weights": [np.zeros(weights)], "optimizer": [np.zeros(optimizer)]}, {}))

    with pytest.raises(StudyError, match=f"latest: {message}; remove .checkpoints/sgd-0.5-0-{DIGEST}"):
        checkpoints.resume(Model((3, 5)), Model((2,)))
