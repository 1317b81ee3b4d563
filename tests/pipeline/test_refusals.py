"""Bad settings and bad data, through the real `dvc`: refused, and nothing is lost."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clones import Clone

pytestmark = pytest.mark.pipeline


def outputs(clone: Clone) -> dict[str, bytes]:
    observed = [
        path
        for directory in ("data", "models", "metrics")
        for path in (clone.path / directory).rglob("*")
        if path.is_file()
    ]
    return {str(path.relative_to(clone.path)): path.read_bytes() for path in observed}


def replace(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        changed = re.sub(old, new, text, count=1)
        assert changed != text
        return changed

    return change


DVC_SPEAKS_FIRST: dict[str, tuple[Callable[[str], str], str]] = {
    "not-yaml": (lambda text: f"{text}\nstudy: [", "params.yaml' is invalid|structure is corrupted"),
    "not-even-text": (lambda _: "", "Could not find"),
    "no-study": (replace("study:", "studies:"), "Could not find 'study"),
    "no-rates": (replace(r" +dropouts:.*\n( *- .*\n)+", ""), "Could not find 'study.dropouts'"),
    "rates-no-list": (replace(r"dropouts:.*\n( *- .*\n)+", "dropouts: 0.5\n"), "is not iterable"),
    "a-key-twice": (replace("  epochs: 2", "  epochs: 2\n  epochs: 3"), "structure is corrupted"),
    "missing-key": (replace("epochs: 2", "epoch: 2"), "train.epochs"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", DVC_SPEAKS_FIRST)
def test_repro_with_settings_that_dvc_refuses_loses_nothing(clone: Clone, case: str) -> None:
    change, message = DVC_SPEAKS_FIRST[case]
    before = outputs(clone)
    settings = clone.path / "params.yaml"
    good = settings.read_text()
    settings.write_text(change(good))

    done = clone.run("dvc", "repro", check=False)

    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr

    checked = clone.run("dropout-study", "check", check=False)

    assert checked.returncode == 1
    assert checked.stderr.startswith("error: params.yaml: ")

    # DVC may have removed outputs of a stage before it failed. They are in its cache.
    settings.write_text(good)

    assert clone.repro() == []
    assert outputs(clone) == before


def test_evaluate_refuses_an_empty_list_of_rates(clone: Clone) -> None:
    clone.change(study__dropouts=[])

    done = clone.run("dvc", "repro", check=False)

    assert done.returncode != 0
    assert "study.dropouts = []: name at least one" in done.stderr


@pytest.mark.parametrize("stage", ["download", "normalize", "train@sgd-0.5-0", "evaluate", "plot"])
def test_stage_refuses_bad_settings_before_it_writes(clone: Clone, stage: str) -> None:
    clone.change(train__epochs=0)
    before = outputs(clone)
    name = stage.partition("@")[0]

    done = clone.run("python", "-m", f"stages.{name}", check=False, DVC_STAGE=stage)

    assert done.returncode == 1
    assert done.stderr == "error: params.yaml: train.epochs = 0: must be greater than or equal to 1\n"
    assert outputs(clone) == before


def test_repro_refuses_an_impossible_rate_and_keeps_the_rest(clone: Clone) -> None:
    before = outputs(clone)
    clone.change(study__dropouts=[0.0, 0.5, 1.5])

    done = clone.run("dvc", "repro", check=False)

    assert done.returncode != 0
    assert "study.dropouts[2] = 1.5: a dropout rate is at least 0 and below 1" in done.stderr
    assert outputs(clone) == before


def test_repro_stops_at_a_wrong_archive(clone: Clone, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(b"<html>busy</html>")
    clone.change(dataset="cifar10", download__urls=[])

    done = clone.run("dvc", "repro", check=False, CIFAR10_ARCHIVE=str(archive))

    assert done.returncode != 0
    assert f"{archive}: has content with SHA-256" in done.stderr
    assert "CIFAR10_ARCHIVE=/path/to/cifar-10-binary.tar.gz dvc repro" in done.stderr


@pytest.mark.slow
def test_repro_stops_at_an_archive_without_images(clone: Clone, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(b"\x1f\x8b" + b"x" * 1_000)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    clone.change(dataset="cifar10", download__urls=[archive.as_uri()], download__sha256=sha256)

    done = clone.run("dvc", "repro", check=False)

    assert done.returncode != 0
    assert f"data/downloads/{sha256}: not a gzip file; in params.yaml" in done.stderr
