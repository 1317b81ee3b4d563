"""What a sweep asks of the project: which variants are missing, a snapshot to train from, and to take results in."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dropout_study import devices, files
from dropout_study.commands import DVC, output
from dropout_study.console import StudyError
from dropout_study.sweep import lockfile

LOCK = Path("dvc.lock")
REF = "refs/dropout-study/sweep"
SWEEP = Path(".dvc/tmp/sweep")  # which neither Git nor DVC looks into
DATA_STAGES = ("download", "normalize")
# Whoever makes the commit of a snapshot is of no interest, and need not have told Git a name.
GIT_IDENTITY = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "dropout-study"), ("EMAIL", "sweep@localhost"))
}


def stage_of(key: str) -> str:
    """Return the DVC stage that trains the variant `key`."""
    return f"train@{key}"


def require_own_repository() -> None:
    """Raise `StudyError` unless this project is the top level of a Git repository, which clones are made of."""
    if inside := output("git", "rev-parse", "--show-prefix"):
        raise StudyError(
            f"this project is {inside} of a larger Git repository; a sweep clones that, and needs the project at its "
            "top level"
        )


def missing(keys: Iterable[str]) -> list[str]:
    """Return those of the variants whose outputs are not there or are out of date, as DVC sees it.

    That is all of them if the data are: DVC does not see beyond what a stage read last.
    """
    stale = json.loads(output(*DVC, "status", "--json"))
    return [key for key in keys if stage_of(key) in stale or not stale.keys().isdisjoint(DATA_STAGES)]


def snapshot(message: str) -> str:
    """Keep the workspace as a commit on a private ref, untracked files included, and return that commit.

    Neither the branch nor the index of the user changes.
    """
    index = {"GIT_INDEX_FILE": output("git", "rev-parse", "--git-path", "dropout-study-index")}
    try:
        with suppress(StudyError):  # nothing is committed yet
            output("git", "read-tree", "HEAD", variables=index)  # else files that are ignored now would be left out
        output("git", "add", "--all", variables=index)
        tree = output("git", "write-tree", variables=index)
    finally:
        Path(index["GIT_INDEX_FILE"]).unlink(missing_ok=True)
    commit = output("git", "commit-tree", tree, "-m", message, variables=GIT_IDENTITY)
    output("git", "update-ref", REF, commit)
    return commit


def remove_snapshot() -> None:
    """Remove the private ref; its objects go with Git's own housekeeping."""
    output("git", "update-ref", "-d", REF)


def data_entries() -> str:
    """Return a dvc.lock that only knows the data: what a worker starts from."""
    return lockfile.only(lock_text(), DATA_STAGES)


def lock_text() -> str:
    """Return what dvc.lock has; raises `StudyError` if it is not there."""
    try:
        return LOCK.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyError(f"{LOCK}: there is no such file; `git checkout {LOCK}`, or `dvc repro normalize`") from None


def refusals(entries: Mapping[str, str]) -> dict[str, str]:
    """Return why lock entries of variants are not what this project's own training would write, for those that differ.

    A worker may have run other code, other settings or other data. Raises `StudyError` if dvc.lock is damaged.
    """
    yaml = YAML(typ="safe")
    settings = yaml.load(files.SETTINGS.read_text(encoding="utf-8"))
    try:
        data = (yaml.load(data_entries())["stages"] or {}).values()
        hashes: dict[str, str | None] = {out["path"]: out["md5"] for stage in data for out in stage["outs"]}
        stages = {key: yaml.load(entry)[stage_of(key)] for key, entry in entries.items()}
        dependencies = {key: {dep["path"]: dep["md5"] for dep in stage["deps"]} for key, stage in stages.items()}
        parameters = {key: {**stage.get("params", {}).get(str(files.SETTINGS), {})} for key, stage in stages.items()}
    except (YAMLError, AttributeError, KeyError, TypeError) as error:
        raise StudyError(f"{LOCK}: damaged; remove it, and `dvc repro` makes it anew without training") from error
    refused: dict[str, str] = {}
    for key in entries:
        for path, md5 in dependencies[key].items():
            if path not in hashes:
                hashes[path] = _md5(Path(path))
            if md5 != hashes[path]:
                refused.setdefault(key, f"it was trained with another {path}")
        for name, value in parameters[key].items():
            if _setting(settings, name) != value:
                refused.setdefault(key, f"it was trained with {name}: {value}")
    return refused


@cache  # `collect` asks for each variant
def versions() -> Mapping[str, str]:
    """Return the versions, by name, of all that computes: Python and the packages that provenance has, too."""
    return {"python": platform.python_version()} | {name: version(name) for name in devices.PACKAGES}


def _md5(path: Path) -> str | None:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if path.exists() else None


def _setting(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


def take_in(entries: Mapping[str, str], study_keys: Sequence[str], *, pull: bool = False) -> None:
    """Put the lock entries of trained variants, by key, into dvc.lock, and their outputs where they belong.

    `study_keys` has the variants of the study. The outputs have to be in DVC's cache, or with `pull` in its remote.
    `dvc repro` would do the same, each variant dearer than the one before.
    """
    if not entries:
        return
    blocks = {stage_of(key): entry for key, entry in entries.items()}
    files.write_bytes(LOCK, lockfile.merged(lock_text(), blocks, [*map(stage_of, study_keys)]).encode())
    # All variants at once, those without an entry passed over: DVC is slow with many targets. What is in the way of an
    # output is stale, and `dvc repro` would remove it, too.
    output(*DVC, "pull" if pull else "checkout", "--force", "--allow-missing", "train")


def cache_directory() -> Path:
    """Return the directory of DVC's cache."""
    return Path(output(*DVC, "cache", "dir"))
