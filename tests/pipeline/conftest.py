"""Projects for tests of the sweep."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clones import FAKE_TRAINER, Clone, copied, small_project
from tests.sweeps import add_gates


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A small project with the fake trainer, data and four variants, none of which is trained."""
    clone = small_project(tmp_path_factory.mktemp("untrained") / "project")
    shutil.copy(FAKE_TRAINER, clone.path / "stages" / "train.py")
    clone.repro("normalize")
    clone.commit("no variant is trained")
    return clone


@pytest.fixture
def clone_of(tmp_path: Path) -> Iterator[Callable[[Clone], Clone]]:
    """Return a function that copies a clone, to be changed at will."""
    with ExitStack() as copies:
        yield lambda original: copies.enter_context(copied(original, tmp_path / "project"))


@pytest.fixture
def swept(untrained: Clone, tmp_path: Path) -> Iterator[Clone]:
    """A copy of it, whose trainer waits and fails as files in `gates` beside it say."""
    with copied(untrained, tmp_path / "project") as clone:
        add_gates(clone)
        clone.commit("a trainer with gates")
        yield clone
