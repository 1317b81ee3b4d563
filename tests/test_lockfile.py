"""dvc.lock as text against what YAML makes of it."""

import shutil
from contextlib import chdir
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from dropout_study.console import StudyError
from dropout_study.sweep import lockfile, project
from tests.clones import PROJECT

LOCK = (PROJECT / "dvc.lock").read_text()
VARIANT = "train@adadelta-0.3-1"
TORN = lockfile.only(LOCK, ["download", "normalize", VARIANT])


def parsed(text: str) -> dict[str, object]:
    return dict(YAML(typ="safe").load(text)["stages"])


def test_split_has_the_stages_that_yaml_has() -> None:
    blocks = lockfile.split(LOCK)

    assert list(blocks) == list(parsed(LOCK))
    for name, block in blocks.items():
        assert YAML(typ="safe").load(block) == {name: parsed(LOCK)[name]}


def test_join_of_what_split_returns_is_the_file() -> None:
    assert lockfile.join(lockfile.split(LOCK)) == LOCK


def test_only_keeps_the_stages_that_are_named_and_there() -> None:
    assert parsed(lockfile.only(LOCK, ["normalize", "missing"])) == {"normalize": parsed(LOCK)["normalize"]}


@pytest.mark.parametrize("new", [False, True])
def test_merged_replaces_in_place_and_appends_as_a_yaml_merge_would(new: bool) -> None:
    name = "train@sgd-0.9-7" if new else VARIANT
    entry = lockfile.split(LOCK)["train@adadelta-0.3-0"].replace("adadelta-0.3-0", name.removeprefix("train@"))
    expected = parsed(LOCK) | {name: parsed(lockfile.join({name: entry}))[name]}

    merged = parsed(lockfile.merged(LOCK, {name: entry}, [name]))

    assert merged == expected
    assert list(merged) == list(expected)


def test_merged_in_several_parts_has_the_order_of_one() -> None:
    order = ["train@a-0.0-0", "train@a-0.5-0", "train@a-0.9-0"]
    entries = {name: f"  {name}:\n    cmd: train\n" for name in order}
    data = lockfile.only(LOCK, ["download", "normalize"])

    first = lockfile.merged(data, {name: entries[name] for name in (order[2], order[0])}, order)
    both = lockfile.merged(first, {order[1]: entries[order[1]]}, order)

    assert both == lockfile.join({**lockfile.split(data), **entries})


@given(length=st.integers(0, len(TORN) - 1))
def test_refusals_say_so_if_what_is_left_of_a_torn_lock_file_cannot_be_read(length: int) -> None:
    torn = TORN[:length]
    with TemporaryDirectory() as directory, chdir(directory):
        shutil.copy(PROJECT / "params.yaml", "params.yaml")
        project.LOCK.write_text(torn)
        entries = {name: block for name, block in lockfile.split(torn).items() if name == VARIANT}

        errors = []
        try:
            project.refusals({name.removeprefix("train@"): block for name, block in entries.items()})
        except StudyError as error:
            errors.append(str(error))
    assert errors in ([], ["dvc.lock: damaged; remove it, and `dvc repro` makes it anew without training"])
