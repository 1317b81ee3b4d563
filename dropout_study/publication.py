"""Published studies: what came of a finished one, kept in results/<name>/ after params.yaml has moved on.

A published study has its settings, tables, verdict and charts, and where, on what and how fast it was computed: all
that docs/results.md is made of, and all that is left if the machine and DVC's cache are lost.
"""

import json
import math
import re
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from dropout_study import console, figures, files, report, results
from dropout_study.calibration import Bin
from dropout_study.commands import DVC, output
from dropout_study.console import StudyError
from dropout_study.results import Result
from dropout_study.settings import Settings, load_settings

DIRECTORY = Path("results")
TABLES = (
    files.SETTINGS, files.DATASET, files.STUDY, files.RATES, files.VERDICT, files.VERDICT_PAGE, files.HISTORIES,
    files.RELIABILITY,
)  # fmt: skip
PROVENANCE = "provenance.json"
PICTURES = "plots"
IMAGES = ("samples", "mistakes")  # pictures of the data set's own images, which are not this project's to publish
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class Published(NamedTuple):
    """A published study, as it was read: settings, a row per run, rows per rate, the verdict, and the rest."""

    name: str
    settings: Settings
    results: list[Result]
    rates: list[dict[str, Any]]
    verdict: dict[str, Any]
    histories: list[dict[str, str]]
    reliability: dict[str, list[Bin]]
    provenance: dict[str, Any]


def publish(name: str) -> Path:
    """Copy the results of the study in params.yaml to results/`name`/, and return that directory.

    Raises `StudyError` if the name is unfit, or if the results are not those of the settings and the code that are
    there. What was published under that name before is replaced.
    """
    if not NAME.fullmatch(name):
        raise StudyError(f"{name!r}: not a name for a study; use lower-case letters, digits and hyphens")
    settings = load_settings()
    _require_up_to_date()
    target = DIRECTORY / name
    verdict = files.read_json(files.VERDICT)
    speeds = {variant.key: console.training_speed(files.progress_file(variant.key)) for variant in settings.variants}
    provenance = {
        "commit": output("git", "rev-parse", "HEAD"),
        "date": time.strftime("%Y-%m-%d"),
        "archive": settings.download.sha256 if settings.dataset == "cifar10" else None,
        "machines": verdict["machines"],
        # None: it was not trained in this clone.
        "trainings": {key: speed and speed._asdict() for key, speed in speeds.items()},
    }
    new = DIRECTORY / f".{name}"  # so that a copy that is cut short replaces nothing
    shutil.rmtree(new, ignore_errors=True)
    for path in TABLES:
        files.copy(path, new / path.name)
    for path in sorted(files.PLOTS.glob("*.png")):
        if path.stem not in IMAGES:
            files.copy(path, new / PICTURES / path.name)
    files.write_json(new / PROVENANCE, provenance)
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)
    return target


def _require_up_to_date() -> None:
    """Raise `StudyError` unless DVC says that every stage's outputs are those of its settings, code and data."""
    stale = json.loads(output(*DVC, "status", "--json"))
    if stale:
        names = ", ".join(list(stale)[:3]) + (f" and {len(stale) - 3} more" if len(stale) > 3 else "")
        raise StudyError(f"the results are not up to date ({names}); run `dvc repro`, then publish")


def read_published(directory: Path = DIRECTORY) -> dict[str, Published]:
    """Return the published studies below `directory` by name."""
    return {path.parent.name: _read(path.parent) for path in sorted(directory.glob(f"*/{PROVENANCE}"))}


def _read(directory: Path) -> Published:
    return Published(
        directory.name,
        load_settings(directory / files.SETTINGS.name, published=True),
        results.read_results(directory / files.STUDY.name),
        results.read_rates(directory / files.RATES.name),
        files.read_json(directory / files.VERDICT.name),
        files.read_csv(directory / files.HISTORIES.name),
        results.read_reliability(directory / files.RELIABILITY.name),
        files.read_json(directory / PROVENANCE),
    )


def renew(study: Published) -> None:
    """Write the words of a published verdict and its pictures again, from its tables.

    So a change of the words or of the pictures needs neither data nor models. The confusion matrix stays as it is: its
    table is not published.
    """
    directory = DIRECTORY / study.name
    words = report.markdown(study.verdict, study.settings.dataset, study.results)
    files.write_bytes(directory / files.VERDICT_PAGE.name, words.encode())
    pictures = figures.of_study(study.rates, study.results, _histories(study), study.reliability)
    for name, figure in pictures.items():
        figures.save(figure, directory / PICTURES / f"{name}.png")


def _histories(study: Published) -> dict[str, list[dict[str, float]]]:
    """Return the history of each run, a row an epoch, as far as it is published."""
    epochs: dict[str, dict[int, dict[str, float]]] = {result.variant: {} for result in study.results}
    for row in study.histories:
        epoch = int(row["epoch"])
        values = epochs[row["variant"]].setdefault(epoch, {"epoch": epoch})
        for quantity in results.QUANTITIES:
            values[f"{row['part']}_{quantity}"] = float(row[quantity]) if row[quantity] else math.nan
    return {variant: [*by_epoch.values()] for variant, by_epoch in epochs.items()}
