"""Sweeps over machines that share only a Git repository and a DVC remote: send, train anywhere, collect.

`send` pushes a snapshot of the workspace to a ref of its own, and the data to the DVC remote. A worker trains one
variant of it, pushes the results, and then the variant's entry in dvc.lock, to a ref below the snapshot's. That last
push is what makes the variant done: a worker that dies before it is simply called again, and finds what was pushed.
`collect` takes all entries in.
"""

import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dropout_study.commands import DVC, output
from dropout_study.errors import StudyError
from dropout_study.progress import duration, say
from dropout_study.sweep import lockfile, project
from dropout_study.sweep.board import TRAINED
from dropout_study.sweep.project import LOCK, NOBODY
from dropout_study.sweep.worker import DATA, Worker, remove_leftovers

PREFIX = "refs/dropout-study/sweeps"
ENTRY = "dvc.lock"
VERSIONS = "versions.json"
PUSH_ATTEMPTS = 10
FIRST_PAUSE_SECONDS = 2.0  # before a push is tried again; doubled each time, up to
LONGEST_PAUSE_SECONDS = 60.0
FULL_MEBIBYTES = 16  # a scratch directory with less left has no room for a clone


def snapshot_ref(sweep: str) -> str:
    """Return the ref of the snapshot of a sweep."""
    return f"{PREFIX}/{sweep}/snapshot"


def entry_ref(sweep: str, key: str) -> str:
    """Return the ref of the lock entry of a variant that is trained."""
    return f"{PREFIX}/{sweep}/trained/{key}"


def send(repository: str, keys: Sequence[str]) -> str:
    """Push a snapshot that names `keys`, and the data, for workers to train; return the name of the sweep."""
    sweep = f"{time.strftime('%Y%m%d')}-{secrets.token_hex(3)}"
    commit = project.snapshot("\n".join(keys))
    try:
        output(*DVC, "push", "normalize", "download")
        output("git", "push", "--quiet", repository, f"{commit}:{snapshot_ref(sweep)}")
    finally:
        project.remove_snapshot()
    return sweep


def trained(repository: str, sweep: str) -> set[str]:
    """Return the variants of a sweep that are trained and pushed. Raises `StudyError` if there is no such sweep."""
    lines = output("git", "ls-remote", repository, f"{PREFIX}/{sweep}/*").splitlines()
    refs = {line.partition("\t")[2] for line in lines}
    if snapshot_ref(sweep) not in refs:
        raise StudyError(f"{sweep}: {repository} has no such sweep; `dropout-study sweep send` makes one")
    return {ref.rpartition("/")[2] for ref in refs} - {"snapshot"}


class RemoteWorker(Worker):
    """A worker whose clone comes from a Git repository, and whose data and results are in a DVC remote."""

    def __init__(self, directory: Path, repository: str, sweep: str) -> None:
        super().__init__(directory)
        self.repository = repository
        self.sweep = sweep

    def fetch(self) -> list[str]:
        """Make the clone from the snapshot of the sweep, without its data; return the variants to train."""
        self.hold()
        self.directory.mkdir()
        self._git("init", "--quiet")
        snapshot = snapshot_ref(self.sweep)
        self.run("git", "fetch", "--quiet", "--depth", "1", self.repository, snapshot, variables=NOBODY)
        self._git("checkout", "--quiet", "--detach", "FETCH_HEAD")
        return self._git("log", "-1", "--format=%B").split()

    def _git(self, *arguments: str) -> str:
        return output("git", *arguments, cwd=self.directory, variables=NOBODY)

    def deliver(self, key: str, checkpoints: Path, logs: Path, on_line: Callable[[str], None]) -> None:
        """Pull the data, train a variant, and push what came of it. Raises `StudyError` if any of it fails."""
        lock = lockfile.only((self.directory / LOCK).read_text(encoding="utf-8"), project.DATA_STAGES)
        self.configure(lock, checkpoints, logs)
        self.dvc("pull", *DATA)
        outcome = self.train(key, on_line, "--pull")
        if outcome.entry is None:
            # What the training says for itself; DVC's last line only has its exit status.
            errors = [line for line in outcome.last_lines if line.startswith("error: ")]
            reason = (errors or outcome.last_lines or ["no output"])[-1].removeprefix("error: ")
            raise StudyError(f"{key}: not trained; {reason}")
        entry = outcome.entry
        persistently(lambda: self.dvc("push", "--run-cache", project.stage_of(key)), f"{key}: dvc push")
        persistently(lambda: self._push_entry(key, entry), f"{key}: git push")

    def _push_entry(self, key: str, entry: str) -> None:
        """Push the lock entry of a variant, and this machine's versions, as a commit; the first of two wins."""
        index = {**NOBODY, "GIT_INDEX_FILE": ".git/entry-index"}
        contents = {ENTRY: lockfile.join({project.stage_of(key): entry}), VERSIONS: json.dumps(project.versions())}
        for name, content in contents.items():
            file = self.directory / ".git/entry"
            file.write_text(content, encoding="utf-8")
            added = f"100644,{self._git('hash-object', '-w', str(file))},{name}"
            output("git", "update-index", "--add", "--cacheinfo", added, cwd=self.directory, variables=index)
        tree = output("git", "write-tree", cwd=self.directory, variables=index)
        (self.directory / ".git/entry-index").unlink()
        commit = self._git("commit-tree", tree, "-m", key)
        if key not in trained(self.repository, self.sweep):
            entry = f"{commit}:{entry_ref(self.sweep, key)}"
            self.run("git", "push", "--quiet", self.repository, entry, variables=NOBODY)


def persistently(action: Callable[[], object], what: str) -> None:
    """Do something that a network may refuse for a while, again and again for five minutes; then raise its error."""
    for attempt in range(PUSH_ATTEMPTS):
        try:
            action()
            return
        except StudyError as error:
            if attempt + 1 == PUSH_ATTEMPTS:
                raise
            pause = min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)
            say(f"{what} failed, again in {duration(pause)}: {error}")
            time.sleep(pause)


def work(
    repository: str,
    sweep: str,
    key: str | int,
    scratch: Path,
    checkpoints: Path | None = None,
    on_line: Callable[[str], None] = say,
) -> None:
    """Train one variant of a sweep in a clone below `scratch`, push it, and remove the clone.

    `key` is the variant, or its place, from 0, among those of the sweep. `checkpoints` is where a variant that is
    killed leaves its state: a directory that the machines share, so that another can resume; by default one in
    `scratch`. `on_line` gets what is printed. Raises `StudyError` if the training or a push fails.
    """
    pushed = trained(repository, sweep)
    scratch = scratch.resolve()
    remove_leftovers(scratch)
    worker = RemoteWorker(scratch / f"worker-{sweep}-{secrets.token_hex(4)}", repository, sweep)
    try:
        keys = worker.fetch()
        if isinstance(key, int):
            if key >= len(keys):
                raise StudyError(f"--index {key}: the sweep {sweep} has {len(keys)} variants, counted from 0")
            key = keys[key]
        elif key not in keys:
            raise StudyError(f"{key}: not a variant of the sweep {sweep}; it has {', '.join(keys[:3])} …")
        if key in pushed:
            on_line(f"{key}  is trained and pushed already")
            return
        worker.deliver(key, (checkpoints or scratch / "checkpoints").resolve(), scratch / "logs", on_line)
        on_line(f"{key}  {TRAINED} and pushed")
    except StudyError as error:
        left = shutil.disk_usage(scratch).free >> 20
        if left < FULL_MEBIBYTES:  # Git and DVC put that in many words, and do not say which disk they mean
            raise StudyError(f"{error}; {scratch} has {left} MiB left") from None
        raise
    finally:
        worker.remove()


def collect(repository: str, sweep: str, order: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Take in what workers pushed; return the entries taken in, and why others were refused, by variant.

    `order` has the variants of the study, in DVC's order; others are not taken in.
    """
    pushed = trained(repository, sweep)
    keys = [key for key in order if key in pushed]
    local = f"{project.REF}-entries"
    output("git", "fetch", "--quiet", repository, f"+{PREFIX}/{sweep}/trained/*:{local}/*")
    entries: dict[str, str] = {}
    refused: dict[str, str] = {}
    try:
        for key in keys:
            entries[key] = lockfile.split(_shown(f"{local}/{key}", ENTRY) + "\n")[project.stage_of(key)]
            versions = json.loads(_shown(f"{local}/{key}", VERSIONS))
            if why := _other_versions(versions):
                refused[key] = why
    finally:
        for key in pushed:
            output("git", "update-ref", "-d", f"{local}/{key}")
    refused = project.refusals(entries) | refused
    if refused:  # so that a worker trains them again
        output("git", "push", "--quiet", repository, *(f":{entry_ref(sweep, key)}" for key in refused))
    accepted = {key: entry for key, entry in entries.items() if key not in refused}
    project.take_in(accepted, pull=True)
    return accepted, refused


def _shown(ref: str, file: str) -> str:
    return output("git", "show", f"{ref}:{file}")


def _other_versions(versions: Mapping[str, str]) -> str | None:
    """Return why results computed with `versions` are not comparable with this machine's; None if they are."""
    own = project.versions()
    texts = [
        f"{name} {version} (here: {own.get(name)})" for name, version in versions.items() if version != own.get(name)
    ]
    return f"it was trained with {', '.join(texts)}" if texts else None


def forget(repository: str, sweep: str) -> None:
    """Remove the refs of a sweep from the repository."""
    refs = [snapshot_ref(sweep), *(entry_ref(sweep, key) for key in trained(repository, sweep))]
    output("git", "push", "--quiet", repository, *(f":{ref}" for ref in refs))
