"""Storage that fails: full, read-only, or with files torn, altered or gone. `dvc repro` recovers or says why."""

import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.clones import Clone, copied
from tests.sweeps import outputs

pytestmark = pytest.mark.pipeline

STAGES = ("download", "normalize", "train@sgd-0.0-0", "evaluate", "plot")
# Everything below runs as root of a user namespace of its own, in which file systems can be mounted.
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-euc")
# On a file system of 40 MB, each stage is run with 16 KB left, then with room.
FULL_DISK = f"""
mkdir ../small
mount -t tmpfs -o size=40m none ../small
cp -a . ../small
cd ../small
for stage in {" ".join(STAGES)}; do
  available=$(df -k --output=avail . | tail -n 1)
  head -c $(((available - 16) * 1024)) /dev/zero > filler
  if dvc repro "$stage" > "$OUTSIDE/$stage" 2>&1; then exit 9; fi
  rm filler
  dvc repro --quiet "$stage"
done
dvc repro --quiet
cp -a dvc.lock models metrics data "$OUTSIDE"
"""
READ_ONLY = """
mkdir -p data/normalized
mount --bind data data
mount -o remount,bind,ro data
dvc repro --single-item --force normalize
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


def test_repro_on_a_full_disk_says_what_has_no_room_and_resumes(clone: Clone, tmp_path: Path) -> None:
    expected = outputs(clone)
    without_results(clone)
    outside = tmp_path / "outside"
    outside.mkdir()

    clone.run(*NAMESPACE, FULL_DISK, OUTSIDE=str(outside))

    for stage in STAGES:
        printed = (outside / stage).read_text()
        assert "No space left on device" in printed, printed
        assert "Traceback" not in printed
    assert "error: data/raw/" in (outside / "download").read_text()
    assert "; make room for it, then run the same command again" in (outside / "download").read_text()
    assert outputs(Clone(outside)) == expected


def test_repro_names_a_directory_that_is_read_only(clone: Clone) -> None:
    done = clone.run(*NAMESPACE, READ_ONLY, check=False)

    assert done.returncode != 0
    assert "Read-only file system" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("output", ["models/variants/sgd-0.0-0.keras", "metrics/study.csv", "data/raw/test_labels.npy"])
@pytest.mark.parametrize("fault", ["deleted", "altered"])
def test_repro_restores_an_output_that_was_changed_by_hand(clone: Clone, output: str, fault: str) -> None:
    expected = outputs(clone)
    path = clone.path / output
    content = path.read_bytes()
    path.unlink()
    if fault == "altered":
        path.write_bytes(content[:-1])

    ran = clone.repro()

    assert not any(stage.startswith("train") for stage in ran)
    assert path.read_bytes() == content
    assert outputs(clone) == expected


def test_repro_trains_again_if_workspace_and_cache_have_lost_an_output(clone: Clone) -> None:
    expected = outputs(clone)
    model = "models/variants/sgd-0.0-0.keras"
    (clone.path / model).unlink()
    cached(clone, model).unlink()

    ran = clone.repro()

    assert ran == ["train@sgd-0.0-0"]
    assert outputs(clone) == expected


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
