"""The symptoms in docs/troubleshooting.md are reproduced, and the commands there fix them."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.clones import PROJECT, Clone, copied, environment
from tests.datasets.test_cifar10 import content, write_archive
from tests.needs import possible
from tests.sweeps import gates, outputs, started, wait_until

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

DOCUMENT = (PROJECT / "docs/troubleshooting.md").read_text()
UP_TO_DATE = "Data and pipelines are up to date."
# A user ID without a name: what `docker run --user 12345` gives, but files stay accessible.
NAMELESS = "env -u USER -u LOGNAME -u LNAME -u USERNAME -u HOME unshare --user --map-user=12345 --map-group=12345"
# What DVC says of a damaged dvc.lock; the last two are all that it says of some.
DAMAGED_LOCK = (
    r"dvc\.lock' is invalid",
    "validation failed",
    "unexpected error|object has no attribute",
    r"failed to reproduce '[^']+': *$",
)


def entries() -> dict[str, list[str]]:
    """Return the commands of each entry of the document, by its heading."""
    sections = re.split(r"^#{2,3} ", DOCUMENT, flags=re.MULTILINE)[1:]
    return {section.partition("\n")[0]: re.findall(r"^\$ (.*)$", section, flags=re.MULTILINE) for section in sections}


def commands(symptom: str) -> list[str]:
    """Return the commands of the entry whose heading has `symptom` in it."""
    (observed,) = [lines for heading, lines in entries().items() if symptom in heading]
    assert observed
    return observed


def call(clone: Clone, *lines: str) -> str:
    """Run shell commands in the clone, one after the other in one shell; return what they print."""
    done = clone.run("sh", "-ec", "\n".join(lines))
    return done.stdout + done.stderr


def failing(clone: Clone, command: str) -> str:
    """Run a shell command that fails; return what it prints."""
    done = clone.run("sh", "-c", command, check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr


def trained(output: str) -> list[str]:
    return re.findall(r"Running stage 'train@([^']+)'", output)


def test_every_command_is_tested() -> None:
    tests = Path(__file__).read_text()
    in_ci = {". .venv/bin/activate"}  # tests/test_documents.py knows the line of .ci/run

    for heading, lines in entries().items():
        symptoms = re.findall(r'commands\(\s*"([^"]+)"', tests)
        assert not set(lines) - in_ci or any(symptom in heading for symptom in symptoms), heading


def test_hiding_the_gpu_leaves_everything_up_to_date(clone: Clone) -> None:
    assert UP_TO_DATE in call(clone, *commands("GPU"))


def test_without_the_environment_python_is_missing(clone: Clone) -> None:
    dvc, sh = (shutil.which(name) for name in ("dvc", "sh"))
    path = clone.path / "bin"
    path.mkdir()
    (path / "sh").symlink_to(str(sh))
    (path / "git").symlink_to(str(shutil.which("git")))

    message = failing(clone, f"SHELL={sh} PATH={path} {dvc} repro --force --single-item download")

    assert re.search("python: (command )?not found", message)


def test_a_directory_without_git_becomes_a_repository(clone: Clone) -> None:
    shutil.rmtree(clone.path / ".git")
    *repository, _ = commands("is not a git repository")

    message = failing(clone, "dvc status")
    call(clone, *repository)

    assert "is not a git repository" in message
    assert UP_TO_DATE in clone.dvc("status")


def test_a_directory_without_git_runs_without_scm(clone: Clone) -> None:
    shutil.rmtree(clone.path / ".git")

    call(clone, commands("is not a git repository")[-1])

    assert UP_TO_DATE in clone.dvc("status")


def test_a_user_without_a_name_needs_one(clone: Clone) -> None:
    possible("sh", "-c", f"{NAMELESS} true")
    (command,) = commands("getpwuid")
    clone.change(study__dropouts=[0.0])

    message = failing(clone, f"HOME=/ {NAMELESS.replace(' -u HOME', '')} dvc status")
    homeless = failing(clone, f"{NAMELESS} dvc status")
    output = call(clone, f"{NAMELESS} env {command}")

    assert "getpwuid(): uid not found: 12345" in message
    assert "could not determine the home directory" in homeless
    assert "Running stage 'evaluate'" in output
    assert not (clone.path / "~").exists()


@pytest.mark.parametrize(
    ("name", "symptom"), [("Übung", "'ascii' codec can't encode character"), ("study #3", "Git failed to push")]
)
def test_experiments_in_an_unusual_path_run_in_the_workspace(
    finished: Clone, tmp_path: Path, name: str, symptom: str
) -> None:
    (command,) = commands("from `dvc exp run --temp`")
    with copied(finished, tmp_path / name) as clone:
        message = failing(clone, command.replace("--name", "--temp --name"))
        output = call(clone, command)

    assert symptom in message
    assert "Ran experiment(s): slower" in output


def test_windows_line_endings_are_removed_by_a_new_checkout(clone: Clone) -> None:
    source = clone.path / "stages/plot.py"
    source.write_bytes(source.read_bytes().replace(b"\n", b"\r\n"))

    dvc, git = clone.dvc("status"), clone.run("git", "diff").stdout
    call(clone, *commands("lists source files as modified"))

    assert "stages/plot.py" in dvc
    assert git == ""
    assert UP_TO_DATE in clone.dvc("status")


def test_check_names_the_setting_where_dvc_names_a_place_in_its_file(clone: Clone) -> None:
    settings = clone.path / "params.yaml"
    settings.write_text(settings.read_text().replace("dropouts:", "dropout:"))
    (command,) = commands("failed to parse 'stages.train.matrix'")

    of_dvc, of_check = failing(clone, "dvc status"), failing(clone, command)

    assert "failed to parse 'stages.train.matrix'" in of_dvc
    assert "params.yaml: study.dropouts: missing" in of_check


def test_an_archive_replaces_the_download(clone: Clone, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "cifar-10-binary.tar.gz", content())
    clone.change(dataset="cifar10", download__sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    clone.change(download__urls=[(tmp_path / "nowhere").as_uri()])
    (command,) = commands("no URL has the file")

    message = failing(clone, "dvc repro download")
    call(clone, f"HOME={tmp_path} && {command} download")

    assert "no URL has the file" in message
    assert (clone.path / "data/raw/train_images.npy").exists()


def test_a_fresh_clone_makes_its_data(clone: Clone, tmp_path: Path) -> None:
    fresh = Clone(tmp_path / "fresh")
    clone.run("git", "clone", "--quiet", str(clone.path), str(fresh.path))
    (command,) = commands("No remote provided")

    message, status = failing(fresh, "dvc pull"), fresh.dvc("status")
    fresh.change(study__optimizers=["sgd"], study__dropouts=[0.0])  # to be quick
    call(fresh, command)

    assert "No remote provided" in message
    assert "deleted:" in status
    assert UP_TO_DATE in fresh.dvc("status")


def test_repro_in_a_subdirectory_needs_all_pipelines(clone: Clone) -> None:
    clone.change(study__dropouts=[0.0])
    (command,) = commands("dvc.yaml' does not exist")

    message = failing(clone, "cd docs && dvc repro")
    output = call(clone, "cd docs", command)

    assert "dvc.yaml' does not exist" in message
    assert re.search("Running stage '.*evaluate'", output)
    assert UP_TO_DATE in clone.dvc("status")


def test_status_shows_the_training_that_blocks_dvc_status(swept: Clone) -> None:
    (gates(swept) / "hold-sgd-0.0-0").touch()
    repro = subprocess.Popen(["dvc", "repro"], cwd=swept.path, env=environment(), stdout=subprocess.DEVNULL)
    wait_until(lambda: started(swept) == ["sgd-0.0-0"])

    blocked = failing(swept, "dvc status")
    shown = call(swept, *commands("is busy"))

    (gates(swept) / "hold-sgd-0.0-0").unlink()
    repro.wait(timeout=300)
    assert "is busy, it is being blocked by" in blocked
    assert shown.startswith("0 of 4 variants are trained")


def test_the_run_cache_has_what_a_lock_file_of_another_machine_does_not(clone: Clone) -> None:
    lock_file = clone.path / "dvc.lock"
    lock = YAML().load(lock_file)
    for name, stage in lock["stages"].items():
        for output in stage["outs"] if name.startswith("train@") else []:
            output["md5"] = hashlib.md5(output["md5"].encode()).hexdigest()
    YAML().dump(lock, lock_file)
    clone.commit("as another machine would have written it")

    message, would_train = failing(clone, "dvc checkout"), trained(clone.dvc("repro", "--dry"))
    output = call(clone, *commands("Is your cache up to date?"))

    assert "Is your cache up to date?" in message
    assert len(would_train) == 4
    assert trained(output) == []
    assert UP_TO_DATE in clone.dvc("status")


def test_an_empty_lock_of_dvc_is_removed(clone: Clone) -> None:
    (clone.path / ".dvc/tmp/rwlock").write_bytes(b"")

    message = failing(clone, "dvc repro")
    output = call(clone, *commands("RWLock-file"))

    assert "Unable to read RWLock-file" in message
    assert "Running stage" not in output
    assert UP_TO_DATE in clone.dvc("status")


def damage_in(message: str) -> str | None:
    """Return which of DAMAGED_LOCK is in a message."""
    return next((symptom for symptom in DAMAGED_LOCK if re.search(symptom, message, re.MULTILINE)), None)


def assert_damage_is_repaired(clone: Clone, damaged: str) -> None:
    """See that `dvc repro` makes a damaged dvc.lock anew without training, or that what is documented then does."""
    lock_file = clone.path / "dvc.lock"
    text = lock_file.read_text()
    lock_file.write_text(damaged)

    done = clone.run("dvc", "repro", check=False)
    if done.returncode:
        assert damage_in(done.stderr), done.stderr
    output = call(clone, *commands("dvc.lock' is invalid")) if done.returncode else done.stdout

    assert trained(output) == [], damaged[-60:]
    assert lock_file.read_text() == text, damaged[-60:]


@pytest.mark.parametrize("end", ["hash: m", "hash: md5\n      md5: 3"])
def test_a_lock_file_torn_where_dvc_does_not_name_it_is_made_anew(clone: Clone, end: str) -> None:
    """In the name of a kind of hash, and in a hash of which a number is left."""
    text = (clone.path / "dvc.lock").read_text()
    torn = text[: text.index("hash: md5", len(text) // 2)] + end

    assert_damage_is_repaired(clone, torn)


def test_a_lock_file_with_conflict_markers_is_made_anew_without_training(clone: Clone) -> None:
    text = (clone.path / "dvc.lock").read_text()
    place = text.index("    - path: ", len(text) // 2)

    assert_damage_is_repaired(clone, f"{text[:place]}<<<<<<< HEAD\n{text[place:]}")


def test_a_merge_conflict_in_generated_files_is_resolved_by_dvc(clone: Clone) -> None:
    clone.run("git", "branch", "other")
    clone.change(study__dropouts=[0.0, 0.25])
    clone.repro("train")
    clone.commit("0.25")
    clone.run("git", "switch", "--quiet", "other")
    clone.change(study__dropouts=[0.0, 0.4])
    clone.repro("train")
    clone.commit("0.4")

    message = failing(clone, "git merge main")
    clone.run("git", "checkout", "--ours", "params.yaml")
    clone.change(study__dropouts=[0.0, 0.25, 0.4])
    output = call(clone, *commands("after `git merge`"))

    assert "conflict in dvc.lock" in message
    assert trained(output) == []
    assert UP_TO_DATE in clone.dvc("status")
    assert clone.run("git", "status", "--porcelain").stdout == ""


def test_an_applied_experiment_is_completed_by_repro(clone: Clone) -> None:
    clone.dvc("exp", "run", "--temp", "--name", "other-rate", "-S", "study.dropouts=[0.25]")
    clone.dvc("exp", "apply", "other-rate")

    status = clone.dvc("status")
    output = call(clone, *commands("after `dvc exp apply`"))

    assert "models/variants" in status
    assert trained(output) == []
    assert UP_TO_DATE in clone.dvc("status")


def test_a_stage_that_has_no_room_is_run_again(clone: Clone) -> None:
    expected = outputs(clone)
    for array in (clone.path / "data/raw").iterdir():
        array.unlink()

    message = failing(clone, "ulimit -f 8; python -m stages.download")
    output = call(clone, *commands("make room for it"))

    assert message == (
        "error: data/raw/train_images.npy: File too large; "
        "make room for it, then run the same command again: what is finished is kept\n"
    )
    assert trained(output) == []
    assert outputs(clone) == expected
    assert UP_TO_DATE in clone.dvc("status")


def test_links_and_gc_leave_everything_up_to_date(clone: Clone) -> None:
    images = clone.path / "data/raw/train_images.npy"
    *link, collect = commands("The disk fills up")
    before = images.stat()

    call(clone, *link)
    linked = images.stat()
    call(clone, f"{collect} --force")  # it asks otherwise

    assert linked.st_ino != before.st_ino
    assert UP_TO_DATE in clone.dvc("status")


def test_the_script_of_the_page_is_written_by_plot(clone: Clone) -> None:
    (clone.path / "data/vega.js").unlink()
    (command,) = commands("data/vega.js")

    call(clone, command)

    assert (clone.path / "data/vega.js").exists()
