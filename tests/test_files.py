import os
from pathlib import Path

import numpy as np
import pytest

from dropout_study import files


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"b": [1.5, "é"]})
    assert files.read_json(path) == {"b": [1.5, "é"]}
    assert os.listdir(path.parent) == ["file.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
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


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_json_without_a_standard_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "file.json", float("nan"))
    assert os.listdir(tmp_path) == []


def test_tables_are_rounded_to_what_is_significant(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    files.write_csv(path, ["name", "value", "missing"], [("a, b", 0.123456789, None), ("c", float("nan"), 3)])
    assert path.read_bytes() == b'name,value,missing\n"a, b",0.123457,\nc,nan,3\n'
    assert files.read_csv(path)[0] == {"name": "a, b", "value": "0.123457", "missing": ""}


def test_an_array_written_in_blocks_is_an_ordinary_npy_file(tmp_path: Path) -> None:
    whole = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    files.write_blocks(tmp_path / "blocks.npy", whole.shape, iter([whole[:2], whole[2:]]))
    files.write_array(tmp_path / "whole.npy", whole)
    assert (tmp_path / "blocks.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    np.testing.assert_array_equal(files.read_array(tmp_path / "blocks.npy"), whole)


def test_blocks_that_do_not_fill_the_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 of 3"):
        files.write_blocks(tmp_path / "blocks.npy", (3, 2), iter([np.zeros((2, 2), np.float32)]))
    assert os.listdir(tmp_path) == []
