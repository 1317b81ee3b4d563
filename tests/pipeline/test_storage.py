"""Storage that fails: full, read-only, or with files torn, altered or gone. `dvc repro` recovers or says why."""

import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.clones import Clone, copied
from tests.needs import possible
from tests.sweeps import outputs

pytestmark = pytest.mark.pipeline

# The file that each stage writes first.
STAGES = {
    "download": "data/raw/train_images.npy",
    "normalize": "data/normalized/train_images.npy",
    "train@sgd-0.0-0": "models/variants/sgd-0.0-0.keras",
    "evaluate": "metrics/verdict.json",
    "plot": "data/vega.js",
}
# Everything below runs as root of a user namespace of its own, in which file systems can be mounted.
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-euc")
RUN_STAGE = """
fail() { if "$@"; then exit 9; fi; }
run_stage() { DVC_STAGE="$1" python -m "stages.${1%@*}"; }
"""
# On a file system of 40 MB, each stage is run by itself with nothing left, by DVC with 16 KB left, then with room.
FULL_DISK = f"""
{RUN_STAGE}
mkdir ../small
mount -t tmpfs -o size=40m none ../small
cp -a . ../small
cd ../small
for stage in {" ".join(STAGES)}; do
  cat /dev/zero > filler 2> /dev/null || true
  fail run_stage "$stage" > "$OUTSIDE/$stage" 2>&1
  truncate --size=-16K filler
  fail dvc repro "$stage" > "$OUTSIDE/dvc-$stage" 2>&1
  rm filler
  dvc repro --quiet "${{stage%@*}}"
done
cp -a dvc.lock models metrics data "$OUTSIDE"
"""
READ_ONLY = f"""
{RUN_STAGE}
for directory in data models metrics; do
  mount --bind "$directory" "$directory"
  mount -o remount,bind,ro "$directory"
done
for stage in {" ".join(STAGES)}; do
  fail run_stage "$stage" > "$OUTSIDE/$stage" 2>&1
done
fail dvc repro --single-item --force normalize > "$OUTSIDE/dvc-normalize" 2>&1
mount --bind .dvc .dvc
mount -o remount,bind,ro .dvc
fail dropout-study sweep > "$OUTSIDE/sweep" 2>&1
"""


def without_results(clone: Clone) -> None:
    """Remove all that the pipeline has made, DVC's cache included."""
    (clone.path / "dvc.lock").unlink()
    for name in ("data", "models", "metrics", ".dvc/cache"):
        shutil.rmtree(clone.path / name)


def cached(clone: Clone, output: str) -> Path:
    """Return the file in DVC's cache of an output of a stage."""
    stages = YAML(typ="safe").load(clone.path / "dvc.lock")["stages"].values()
    (md5,) = {out["md5"] for stage in stages for out in stage["outs"] if out["path"] == output}
    return clone.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


@pytest.fixture(scope="module")
def full_disk(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stages and DVC print on a full disk, and the results when there was room again."""
    possible(*NAMESPACE, 'mount -t tmpfs none "$PWD"')
    directory = tmp_path_factory.mktemp("full-disk")
    outside = directory / "outside"
    outside.mkdir()
    with copied(finished, directory / "project") as clone:
        without_results(clone)
        clone.run(*NAMESPACE, FULL_DISK, OUTSIDE=str(outside))
    return outside


@pytest.fixture(scope="module")
def read_only(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stages and DVC print where they cannot write their outputs, and the outputs."""
    possible(*NAMESPACE, 'mount --bind "$PWD" "$PWD"')
    directory = tmp_path_factory.mktemp("read-only")
    with copied(finished, directory / "project") as clone:
        clone.run(*NAMESPACE, READ_ONLY, OUTSIDE=str(directory))
        shutil.copytree(clone.path, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    return directory


def message(path: str, problem: str, remedy: str) -> str:
    return f"error: {path}: {problem}; {remedy}, then run the same command again: what is finished is kept\n"


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_stage_on_a_full_disk_says_what_to_make_room_for(full_disk: Path, stage: str) -> None:
    printed = (full_disk / stage).read_text()

    assert printed == message(STAGES[stage], "No space left on device", "make room for it")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_stage_names_the_file_that_it_cannot_write_in_a_read_only_directory(read_only: Path, stage: str) -> None:
    printed = (read_only / stage).read_text()

    assert printed == message(STAGES[stage], "Read-only file system", "make its directory writable")


@pytest.mark.slow
def test_repro_on_a_full_disk_says_so_and_resumes(finished: Clone, full_disk: Path) -> None:
    for stage in STAGES:
        printed = (full_disk / f"dvc-{stage}").read_text()
        assert "No space left on device" in printed, printed
        assert "Traceback" not in printed

    assert outputs(Clone(full_disk)) == outputs(finished)


@pytest.mark.slow
def test_repro_in_a_read_only_directory_says_so_and_loses_nothing(finished: Clone, read_only: Path) -> None:
    printed = (read_only / "dvc-normalize").read_text()

    assert "Read-only file system" in printed
    assert "Traceback" not in printed
    assert outputs(Clone(read_only)) == outputs(finished)


@pytest.mark.slow
def test_sweep_names_the_directory_that_it_cannot_make_in_a_read_only_one(read_only: Path) -> None:
    printed = (read_only / "sweep").read_text()

    assert printed == message(".dvc/tmp/sweep", "Read-only file system", "make its directory writable")


@pytest.mark.parametrize("command", ["check", "results", "status"])
def test_command_that_only_reads_needs_no_disk(finished: Clone, command: str) -> None:
    """Not even for a file that is only written to see whether that is possible."""
    done = finished.run("sh", "-c", f"ulimit -f 0; dropout-study {command}")

    assert done.stdout


def test_repro_restores_outputs_that_were_changed_by_hand(clone: Clone) -> None:
    expected = outputs(clone)
    labels = clone.path / "data/raw/test_labels.npy"
    before = labels.read_bytes()
    (clone.path / "models/variants/sgd-0.0-0.keras").unlink()
    for path in (labels, clone.path / "metrics/study.csv"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-1])

    ran = clone.repro()

    assert not any(stage.startswith("train") for stage in ran)
    assert labels.read_bytes() == before
    assert outputs(clone) == expected


def test_repro_trains_again_if_workspace_and_cache_have_lost_an_output(clone: Clone) -> None:
    expected = outputs(clone)
    model = "models/variants/sgd-0.0-0.keras"
    (clone.path / model).unlink()
    cached(clone, model).unlink()

    ran = clone.repro()

    assert ran == ["train@sgd-0.0-0"]
    assert outputs(clone) == expected


@pytest.mark.slow
def test_dvc_trusts_a_corrupt_file_in_its_cache_that_is_read_only(clone: Clone) -> None:
    """A limit that SECURITY.md names: DVC makes these files read-only, and hashes none of them again."""
    model = "models/variants/sgd-0.0-0.keras"
    corrupt = cached(clone, model)
    wrong = corrupt.read_bytes()[:-1] + b"x"
    corrupt.chmod(0o644)
    corrupt.write_bytes(wrong)
    corrupt.chmod(0o444)
    (clone.path / model).unlink()

    clone.repro("--single-item", "train@sgd-0.0-0")

    assert (clone.path / model).read_bytes() == wrong
    assert "models/variants/sgd-0.0-0.keras" not in clone.dvc("status")


@pytest.mark.slow
def test_repro_does_not_take_a_corrupt_file_from_the_cache_that_is_writable(clone: Clone) -> None:
    expected = outputs(clone)
    model = "models/variants/sgd-0.0-0.keras"
    corrupt = cached(clone, model)
    corrupt.chmod(0o644)
    corrupt.write_bytes(corrupt.read_bytes()[:-1] + b"x")
    (clone.path / model).unlink()

    ran = clone.repro()

    assert ran == ["train@sgd-0.0-0"]
    assert outputs(clone) == expected
    assert corrupt.read_bytes() == expected[model]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hardlink", "symlink"])
def test_repro_replaces_outputs_that_are_links_into_the_cache(clone: Clone, tmp_path: Path, kind: str) -> None:
    """Such files are read-only, and writing into one would change the cache."""
    clone.dvc("config", "cache.type", kind)
    clone.dvc("checkout", "--relink")
    before = {path: path.read_bytes() for path in (clone.path / ".dvc/cache/files").rglob("*") if path.is_file()}
    with copied(clone, tmp_path / "copies") as expected:
        expected.dvc("config", "cache.type", "copy")
        expected.change(train__epochs=3)
        expected.repro()

        clone.change(train__epochs=3)
        clone.repro()

        assert outputs(clone) == outputs(expected)
    assert {path: path.read_bytes() for path in before} == before


def test_params_with_conflict_markers_are_refused_by_name(clone: Clone) -> None:
    settings = clone.path / "params.yaml"
    text = settings.read_text()
    ours, theirs = "  epochs: 2\n", "  epochs: 3\n"
    settings.write_text(text.replace(ours, f"<<<<<<< HEAD\n{ours}=======\n{theirs}>>>>>>> other\n"))

    check = clone.run("dropout-study", "check", check=False)
    repro = clone.run("dvc", "repro", check=False)

    assert check.returncode == 1
    assert re.match(r"error: params\.yaml: .*<<<<<<< HEAD", check.stderr, re.DOTALL)
    assert repro.returncode != 0
    settings.write_text(text)
    assert clone.repro() == []
