"""Sweeps over machines that share only a Git repository and a DVC remote: send, train anywhere, collect.

`send` pushes a snapshot of the workspace to a ref of its own, and the data to the DVC remote. A worker trains one
variant of it, pushes the results, and then the variant's entry in dvc.lock, to a ref below the snapshot's. That last
push is what makes the variant done: a worker that dies before it is simply called again, and finds what was pushed.
`collect` takes all entries in.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from configparser import ConfigParser
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from dropout_study import files
from dropout_study.commands import DVC, output, without_credentials
from dropout_study.console import StudyError, duration, say
from dropout_study.sweep import lockfile, project
from dropout_study.sweep.board import TRAINED
from dropout_study.sweep.project import GIT_IDENTITY, LOCK
from dropout_study.sweep.worker import DATA, SHARED_CACHE, OnLine, Worker, remove_leftovers

PREFIX = "refs/dropout-study/sweeps"
ENTRY = "dvc.lock"
PROVENANCE = "provenance.json"
LOGS = {"training.log": files.log_file, "training.jsonl": files.progress_file}
CACHE = "cache"  # below the checkpoints: DVC's, with the data, and with results until they are pushed
PAUSES = (2, 4, 8, 16, 32, 60, 60, 60, 60)  # seconds before a pull or push is tried again
FULL_MEBIBYTES = 16  # a scratch directory with less left has no room for a clone


Value = TypeVar("Value")


def snapshot_ref(sweep: str) -> str:
    """Return the ref of the snapshot of a sweep."""
    return f"{PREFIX}/{sweep}/snapshot"


def entry_ref(sweep: str, key: str) -> str:
    """Return the ref of the lock entry of a variant that is trained."""
    return f"{PREFIX}/{sweep}/trained/{key}"


def url(repository: str) -> str:
    """Return the URL or absolute path of a Git repository, given by that, a relative path or the name of a remote here.

    Only that means the same on every machine, and in every clone. Raises `StudyError` if it is none of them: else Git
    would be asked again for minutes, as if a server did not answer.
    """
    address = output("git", "ls-remote", "--get-url", repository)
    if os.path.exists(address):
        return str(Path(address).resolve())
    if ":" not in address:  # neither a URL nor host:path
        raise StudyError(f"{repository}: no such directory or Git remote here; a repository elsewhere needs its URL")
    return address


def require_remote() -> None:
    """Raise `StudyError` unless .dvc/config names a default DVC remote that means the same in every clone."""
    config = ConfigParser(interpolation=None)
    config.read(".dvc/config", encoding="utf-8")
    name = config.get("core", "remote", fallback="")
    location = config.get(f"'remote \"{name}\"'", "url", fallback="").strip("'\"")
    if not location:
        raise StudyError(
            ".dvc/config: has no default DVC remote, through which workers get data and give results; "
            "`dvc remote add --default NAME URL`, without --local or --global"
        )
    if "://" not in location and not location.startswith("/"):
        raise StudyError(
            f".dvc/config: the remote {name} is at {location}, a relative path, which leads elsewhere in the "
            "clone of a worker; write an absolute path or a URL there"
        )


def send(repository: str, keys: Sequence[str]) -> str:
    """Push a snapshot that names `keys`, and the data, for workers to train; return the name of the sweep."""
    require_remote()
    sweep = f"{time.strftime('%Y%m%d')}-{secrets.token_hex(3)}"
    commit = project.snapshot("\n".join(keys))
    try:
        output(*DVC, "push", "normalize", "download")
        output("git", "push", "--quiet", repository, f"{commit}:{snapshot_ref(sweep)}")
    finally:
        project.remove_snapshot()
    return sweep


class NoSuchSweepError(StudyError):
    """The repository has no snapshot of a sweep: it was never sent, or is over."""


def pushed_variants(repository: str, sweep: str) -> set[str]:
    """Return the variants of a sweep that are trained and pushed. Raises `NoSuchSweepError` if it is not there."""
    lines = output("git", "ls-remote", repository, f"{PREFIX}/{sweep}/*").splitlines()
    refs = {line.partition("\t")[2] for line in lines}
    if snapshot_ref(sweep) not in refs:
        place = without_credentials(repository)
        raise NoSuchSweepError(f"{sweep}: {place} has no such sweep; `dropout-study sweep send` makes one")
    return {ref.rpartition("/")[2] for ref in refs} - {"snapshot"}


class RemoteWorker(Worker):
    """A worker whose clone comes from a Git repository, and whose data and results are in a DVC remote."""

    def __init__(self, directory: Path, repository: str, sweep: str) -> None:
        super().__init__(directory)
        self.repository = repository
        self.sweep = sweep

    def fetch(self, on_line: OnLine) -> list[str]:
        """Make the clone from the snapshot of the sweep, without its data; return the variants to train."""
        self.hold()
        self.directory.mkdir()
        self._git("init", "--quiet")
        command = ("git", "fetch", "--quiet", "--depth", "1", self.repository, snapshot_ref(self.sweep))
        retry(lambda: self.run(*command, variables=GIT_IDENTITY), "git fetch", self.directory, on_line)
        self._git("checkout", "--quiet", "--detach", "FETCH_HEAD")
        return self._git("log", "-1", "--format=%B").split()

    def _git(self, *arguments: str) -> str:
        return output("git", *arguments, cwd=self.directory, variables=GIT_IDENTITY)

    def train_and_push(self, key: str, checkpoints: Path, logs: Path, on_line: OnLine) -> None:
        """Pull the data, train a variant, and push the result. Raises `StudyError` if any of it fails.

        DVC's cache is below `checkpoints`, so that the next call there finds what was not pushed.
        """
        lock = lockfile.only((self.directory / LOCK).read_text(encoding="utf-8"), project.DATA_STAGES)
        self.configure(lock, checkpoints, logs, SHARED_CACHE.format(cache=checkpoints / CACHE))

        def persist(name: str, action: Callable[[], object]) -> None:
            retry(action, f"{key}: {name}", self.directory, on_line)

        persist("dvc pull", lambda: self.dvc("pull", *DATA))
        entry = self._train_or_restore(key, on_line, "--pull")
        if _other_versions(self._provenance(key)):  # DVC's cache has a result that was trained elsewhere
            entry = self._train_or_restore(key, on_line, "--force")
        try:
            persist("dvc push", lambda: self.dvc("push", "--run-cache", project.stage_of(key)))
            persist("git push", lambda: self._push_entry(key, entry))
        except StudyError as error:
            raise StudyError(f"{key}: trained, but not pushed, which the next call does: {error}") from None

    def _train_or_restore(self, key: str, on_line: OnLine, option: str) -> str:
        """Train a variant, or take it from DVC's cache; return its entry in dvc.lock."""
        outcome = self.train(key, on_line, option)
        if outcome.entry is None:
            # What the training says for itself; DVC's last line only has its exit status.
            errors = [line for line in outcome.last_lines if line.startswith("error: ")]
            reason = (errors or outcome.last_lines or ["no output"])[-1].removeprefix("error: ")
            raise StudyError(f"{key}: not trained; {reason}")
        return outcome.entry

    def _provenance(self, key: str) -> str:
        return (self.directory / files.provenance_file(key)).read_text(encoding="utf-8")

    def _push_entry(self, key: str, entry: str) -> None:
        """Push the lock entry of a variant, its provenance and its logs as a commit; the first of two wins."""
        index = {**GIT_IDENTITY, "GIT_INDEX_FILE": ".git/entry-index"}
        contents = {ENTRY: lockfile.join({project.stage_of(key): entry}), PROVENANCE: self._provenance(key)}
        for name, path_of in LOGS.items():
            with suppress(FileNotFoundError):  # this machine did not train it
                contents[name] = (self.directory / path_of(key)).read_text(encoding="utf-8", errors="replace")
        for name, content in contents.items():
            file = self.directory / ".git/entry"
            file.write_text(content, encoding="utf-8")
            added = f"100644,{self._git('hash-object', '-w', str(file))},{name}"
            output("git", "update-index", "--add", "--cacheinfo", added, cwd=self.directory, variables=index)
        tree = output("git", "write-tree", cwd=self.directory, variables=index)
        (self.directory / ".git/entry-index").unlink()
        commit = self._git("commit-tree", tree, "-m", key)
        if key not in pushed_variants(self.repository, self.sweep):
            entry = f"{commit}:{entry_ref(self.sweep, key)}"
            self.run("git", "push", "--quiet", self.repository, entry, variables=GIT_IDENTITY)


def print_line(text: str, _: object = None) -> None:
    """Print a line of a training; its progress is for programs."""
    say(text)


def retry(action: Callable[[], Value], name: str, directory: Path, on_line: OnLine = print_line) -> Value:
    """Return the result of `action`, which uses the network, after up to ten attempts in five minutes.

    Raises its `StudyError` after the last attempt, or at once if the sweep is over or the disk of `directory` is full.
    `on_line` gets a line per failure.
    """
    for pause in PAUSES:
        try:
            return action()
        except StudyError as error:
            if free_mebibytes(directory) < FULL_MEBIBYTES or isinstance(error, NoSuchSweepError):
                raise
            on_line(f"{name} failed, again in {duration(pause)}: {error}")
            time.sleep(pause)
    return action()


def free_mebibytes(directory: Path) -> int:
    """Return how much room is left on the disk of `directory`."""
    return shutil.disk_usage(directory).free >> 20


def logs(scratch: Path, sweep: str) -> Path:
    """Return where a machine keeps the logs of a sweep."""
    return scratch / "logs" / sweep


def work(
    repository: str,
    sweep: str,
    key: str | int,
    scratch: Path,
    checkpoints: Path | None = None,
    on_line: OnLine = print_line,
) -> None:
    """Train one variant of a sweep in a clone below `scratch`, push it, and remove the clone.

    `key` is the variant, or its place, from 0, among those of the sweep. `checkpoints` is where a variant that is
    killed leaves its state: a directory that the machines share, so that another can resume; by default one in
    `scratch`. `on_line` gets what is printed. Raises `StudyError` if the training or a push fails.
    """
    scratch = scratch.resolve()
    try:
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{scratch}: cannot be made: {error.strerror}; name another directory by --scratch") from None
    if scratch.stat().st_uid not in (0, os.getuid()) or not os.access(scratch, os.W_OK | os.X_OK):
        raise StudyError(f"{scratch}: is another user's, or cannot be written; name another directory by --scratch")
    pushed = retry(lambda: pushed_variants(repository, sweep), "git ls-remote", scratch, on_line)
    remove_leftovers(scratch)
    worker = RemoteWorker(scratch / f"worker-{sweep}-{secrets.token_hex(4)}", repository, sweep)
    try:
        keys = worker.fetch(on_line)
        if isinstance(key, int):
            if key >= len(keys):
                raise StudyError(f"--index {key}: the sweep {sweep} has {len(keys)} variants, counted from 0")
            key = keys[key]
        elif key not in keys:
            raise StudyError(f"{key}: not a variant of the sweep {sweep}; it has {', '.join(keys[:3])} …")
        if key in pushed:
            on_line(f"{key}  is trained and pushed already")
            return
        worker.train_and_push(key, (checkpoints or scratch / "checkpoints").resolve(), logs(scratch, sweep), on_line)
        on_line(f"{key}  {TRAINED} and pushed")
    except StudyError as error:
        left = free_mebibytes(scratch)
        if left < FULL_MEBIBYTES:  # Git and DVC put that in many words, and do not say which disk they mean
            raise StudyError(f"{error}; {scratch} has {left} MiB left") from None
        raise
    finally:
        worker.remove()


class Collected(NamedTuple):
    """What was pushed of a sweep: the variants taken in, why others were refused, and those whose entries are left."""

    accepted: Sequence[str]
    refused: Mapping[str, str]
    left: Iterable[str]


def collect(repository: str, sweep: str, study_keys: Sequence[str]) -> Collected:
    """Take in what workers pushed of a sweep, their logs too.

    `study_keys` has the variants of the study, in DVC's order; others are not taken in.
    """
    pushed = pushed_variants(repository, sweep)
    keys = [key for key in study_keys if key in pushed]
    local = f"{project.REF}-entries"
    output("git", "fetch", "--quiet", repository, f"+{PREFIX}/{sweep}/trained/*:{local}/*")
    entries: dict[str, str] = {}
    refused: dict[str, str] = {}
    logs: dict[Path, str] = {}
    try:
        for key in keys:
            entries[key] = lockfile.split(_pushed_file(f"{local}/{key}", ENTRY))[project.stage_of(key)]
            if why := _other_versions(_pushed_file(f"{local}/{key}", PROVENANCE)):
                refused[key] = why
            for name, path_of in LOGS.items():
                with suppress(StudyError):  # there is none
                    logs[path_of(key)] = _pushed_file(f"{local}/{key}", name)
    finally:
        for key in pushed:
            output("git", "update-ref", "-d", f"{local}/{key}")
    refused = project.refusals(entries) | refused
    if refused:  # so that a worker trains them again
        output("git", "push", "--quiet", repository, *(f":{entry_ref(sweep, key)}" for key in refused))
    accepted = {key: entry for key, entry in entries.items() if key not in refused}
    project.take_in(accepted, study_keys, pull=True)
    for path, log in logs.items():
        if path.stem in accepted:
            _keep_log(path, log)
    return Collected([*accepted], refused, pushed - refused.keys())


def _pushed_file(ref: str, name: str) -> str:
    return output("git", "show", f"{ref}:{name}") + "\n"


def _keep_log(path: Path, log: str) -> None:
    """Append a log to the one that is here, unless that has it."""
    here = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if log not in here:
        files.write_bytes(path, f"{here}{log}".encode())


def _other_versions(provenance: str) -> str | None:
    """Return why results with this provenance, a JSON text, are not comparable with this machine's, or None."""
    versions = json.loads(provenance)["versions"]
    texts = [
        f"{name} {versions.get(name)} (here: {version})"
        for name, version in project.versions().items()
        if versions.get(name) != version
    ]
    return f"it was trained with {', '.join(texts)}" if texts else None


def forget(repository: str, sweep: str, keys: Iterable[str]) -> None:
    """Remove the snapshot of a sweep from the repository, so that no worker pushes more, and the entries of `keys`."""
    refs = [snapshot_ref(sweep), *(entry_ref(sweep, key) for key in keys)]
    output("git", "push", "--quiet", repository, *(f":{ref}" for ref in refs))
