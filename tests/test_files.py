import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dropout_study import files
from dropout_study.console import StudyError
from tests.clones import PROJECT


def test_write_json_replaces_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"

    files.write_json(path, {"a": 1})
    files.write_json(path, {"b": [1.5, "é"]})

    assert files.read_json(path) == {"b": [1.5, "é"]}
    assert os.listdir(path.parent) == ["file.json"]


def test_write_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "file.json", float("nan"))
    assert os.listdir(tmp_path) == []


def test_replacing_keeps_old_file_after_failure(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail_half_way() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()

    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_replacing_shows_old_file_until_new_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"

    assert path.read_text() == "new"


def write_in_another_process(path: Path, then: str) -> subprocess.Popen[str]:
    """Start a process that writes half of `path`, and runs `then` before it is done."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from dropout_study.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('other')\n"
        f"    {then}\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_replacing_replaces_what_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "file.keras"
    with write_in_another_process(path, "os.kill(os.getpid(), 9)") as process:
        assert process.wait(60) == -signal.SIGKILL
    left = os.listdir(tmp_path)

    files.write_bytes(path, b"new")

    assert left == [".unfinished-file.keras"]
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == b"new"


def test_replacing_passes_on_errors_of_its_block_where_it_cannot_clean_up(tmp_path: Path) -> None:
    def fail() -> None:
        with files.replacing(tmp_path / "file.txt") as temporary:
            temporary.mkdir()  # which `unlink` does not remove, for any user
            raise RuntimeError("the error")

    with pytest.raises(RuntimeError, match="the error"):
        fail()


def test_write_csv_keeps_floats_exactly(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"

    files.write_csv(path, ["name", "value", "missing"], [("a, b", 0.1 + 0.2, None), ("c", float("nan"), 3)])

    assert path.read_bytes() == b'name,value,missing\n"a, b",0.30000000000000004,\nc,nan,3\n'
    assert files.read_csv(path)[0] == {"name": "a, b", "value": "0.30000000000000004", "missing": ""}


def test_write_blocks_equals_write_array(tmp_path: Path) -> None:
    whole = np.arange(60, dtype=np.float32).reshape(5, 3, 4)

    files.write_blocks(tmp_path / "blocks.npy", whole.shape, iter([whole[:2], whole[2:]]))
    files.write_array(tmp_path / "whole.npy", whole)

    assert (tmp_path / "blocks.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    np.testing.assert_array_equal(files.read_array(tmp_path / "blocks.npy"), whole)


def test_write_blocks_refuses_blocks_that_do_not_fill_shape(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 of 3"):
        files.write_blocks(tmp_path / "blocks.npy", (3, 2), iter([np.zeros((2, 2), np.float32)]))
    assert os.listdir(tmp_path) == []


def lock_in_another_process(path: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dropout_study.files import locked\n"
        "with locked(Path(sys.argv[1]), 'in use'): print('locked')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_locked_refuses_second_process_until_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.lock"

    with files.locked(path, "in use"):
        during = lock_in_another_process(path)
        elsewhere = lock_in_another_process(tmp_path / "b.lock")
    after = lock_in_another_process(path)

    assert during.returncode == 1
    assert f"StudyError: {path}: in use\n" in during.stderr
    assert elsewhere.stdout == after.stdout == "locked\n"


def test_locked_passes_on_errors_of_its_block(tmp_path: Path) -> None:
    """Also those by which it recognizes a lock and a file system without locks."""
    for error in (BlockingIOError(), OSError(errno.ENOLCK, "No locks available")):
        with pytest.raises(type(error)) as raised, files.locked(tmp_path / "a.lock", "in use"):
            raise error
        assert raised.value is error


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS], ids=os.strerror)
def test_locked_warns_once_on_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    entered = False

    with files.locked(tmp_path / "a.lock", "in use"):
        entered = True

    assert entered
    assert capsys.readouterr().out == (
        f"warning: {tmp_path / 'a.lock'}: this file system has no locks ({os.strerror(number)}), "
        "so a second run at the same time is not detected\n"
    )


def test_locked_raises_other_errors_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)

    with pytest.raises(OSError, match="Input/output error"), files.locked(tmp_path / "a.lock", "in use"):
        pytest.fail("the block ran")


def test_lock_file_is_as_old_as_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.touch()
    os.utime(path, (0, 0))

    with files.locked(path, "in use"):
        begin = path.stat().st_mtime

    assert time.time() - begin < 3600


def test_read_array_refuses_pickles_and_files_that_are_cut_off(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "cut.npy", np.zeros(1_000))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])

    for name in ("objects.npy", "cut.npy"):
        with pytest.raises(StudyError, match=rf"{name}: no array of numbers, or cut off .*; `dvc repro` restores it"):
            files.read_array(tmp_path / name)


@pytest.mark.parametrize("needed", [(4, 5), (3,), (3, 5, 1), (None, 6)])
def test_read_array_names_both_shapes_if_they_differ(tmp_path: Path, needed: tuple[int | None, ...]) -> None:
    np.save(tmp_path / "array.npy", np.zeros((3, 5)))
    expected = str(needed).replace("None", "any")

    with pytest.raises(StudyError) as error:
        files.read_array(tmp_path / "array.npy", needed)

    assert f"array.npy: has shape (3, 5), needed is {expected};" in str(error.value)
    assert files.read_array(tmp_path / "array.npy", (3, None)).shape == (3, 5)
