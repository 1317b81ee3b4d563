"""`dropout-study status`: how far the trainings are, as another terminal can see."""

import fcntl
import hashlib
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dropout_study import checkpoint, files
from dropout_study.console import StudyError, duration, last_progress, say
from dropout_study.settings import load_settings
from dropout_study.sweep import lockfile
from dropout_study.sweep.driver import known_seconds
from dropout_study.sweep.project import lock_text, refusals, stage_of


def show_status() -> None:
    """Print which variants are trained, which train on this machine, and about how long the rest takes.

    By outputs, locks and logs, so it is the same for `dvc repro` and for a sweep.
    """
    settings = load_settings()
    keys = [variant.key for variant in settings.variants]
    running = [key for key in keys if is_locked(checkpoint.lock_file(key))]
    trained = [key for key in up_to_date(keys) if key not in running]
    say(f"{len(trained)} of {len(keys)} variants are trained" + ("" if running else "; nothing runs"))
    for key in running:
        say(f"{key}  {progress_text(key)}")
    seconds = known_seconds(settings)
    if running and seconds:
        each = statistics.median(seconds)
        spent = sum(min(each, time.time() - checkpoint.lock_file(key).stat().st_mtime) for key in running)
        left = ((len(keys) - len(trained)) * each - spent) / len(running)
        say(f"about {duration(left)} left, at {duration(each)} each")


def up_to_date(keys: Sequence[str]) -> list[str]:
    """Return the variants whose entry in dvc.lock has today's settings, data and code, and whose history is there."""
    try:
        blocks = lockfile.split(lock_text())
    except StudyError:
        return []
    entries = {key: blocks[stage_of(key)] for key in keys if stage_of(key) in blocks}
    refused = refusals(entries)
    return [key for key, entry in entries.items() if key not in refused and _has_history(key, entry)]


def _has_history(key: str, entry: str) -> bool:
    """Return whether the history of a variant is the one that its entry names: a run that was killed left another."""
    try:
        content = files.history_file(key).read_bytes()
    except OSError:
        return False
    return hashlib.md5(content, usedforsecurity=False).hexdigest() in entry


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock file `path`."""
    with suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def progress_text(key: str) -> str:
    """Return how far the training of a variant is, by the last line that it wrote for programs."""
    last = last_progress(files.progress_file(key))
    if last is None or last["state"] != "training" or not last["epoch"]:
        return "no epoch finished yet"
    diverged = last["validation_accuracy"] is None
    accuracy = "diverged" if diverged else f"validation accuracy {last['validation_accuracy']:.2%}"
    return f"epoch {last['epoch']}/{last['epochs']}  {accuracy}  {last['images_per_second']:,.0f} images/s"
