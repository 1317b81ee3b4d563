"""Published studies: the results of finished runs, kept in results/<name>/ after params.yaml has moved on.

A published study has its settings, its runs, where and from what each was computed, and each run's scores of the test
images: all that is left if the machine and DVC's cache are lost. Tables, verdict and pictures are made of these, so a
study can be judged again, and runs from another day or another machine join those that are published.
"""

import io
import json
import lzma
import math
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ruamel.yaml import YAML

from dropout_study import console, figures, files, page_tables, report, results, statistics
from dropout_study.calibration import Bin
from dropout_study.checkpoint import fingerprint
from dropout_study.commands import DVC, output
from dropout_study.console import StudyError
from dropout_study.results import History, Result
from dropout_study.settings import Settings, load_settings
from dropout_study.verdict import QUANTITIES, Verdict, read_verdict, rounded

DIRECTORY = Path("results")
SCORES = "scores"
PICTURES = "plots"
PROVENANCE = "provenance.json"
TABLES = (files.STUDY, files.RATES, files.VERDICT, files.VERDICT_PAGE, files.HISTORIES, files.RELIABILITY)
CONTENT = (*(path.name for path in (files.SETTINGS, files.DATASET, *TABLES)), PROVENANCE, PICTURES)
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
# Settings in which the runs of a published study may differ.
MAY_DIFFER: dict[str, Any] = {"study": True, "download": {"urls"}, "train": {"checkpoint_every"}}
COLUMNS = ("accuracy", "loss", "confidence", "scaled_loss")  # of the last epochs, and of the best one
DECIMALS = 3  # of a score; the means of 10,000 have two more


class Published(NamedTuple):
    """A published study, as it was read: settings, a row per run, rows per rate, the verdict, and the rest.

    `provenance` has by variant the commit, the date, a digest of `train`'s modules, the speed of the training, and what
    `train` wrote of the machine; and the SHA-256 of the archive.
    """

    name: str
    settings: Settings
    results: list[Result]
    rates: list[dict[str, Any]]
    verdict: Verdict
    histories: dict[str, History]
    reliability: dict[str, list[Bin]]
    provenance: dict[str, Any]


def publish(name: str) -> Path:
    """Add the runs of the study in params.yaml to results/`name`/, and return that directory.

    A run that is published there already is replaced. Raises `StudyError` if the name is unfit, if the results are not
    those of the current settings and code, or if the published runs have other settings.
    """
    if not NAME.fullmatch(name):
        raise StudyError(f"{name!r}: not a name for a study; use lower-case letters, digits and hyphens")
    settings = load_settings()
    _require_up_to_date()
    target = DIRECTORY / name
    before = _read(target) if target.exists() else None
    new = DIRECTORY / f".{name}"  # so that a publication that is cut short replaces nothing
    shutil.rmtree(new, ignore_errors=True)
    if before:
        _require_same_settings(before, settings)
        shutil.copytree(target, new)
    else:
        files.copy(files.SETTINGS, new / files.SETTINGS.name)
        files.copy(files.DATASET, new / files.DATASET.name)
    _add_to_grid(new / files.SETTINGS.name, settings)
    _add_runs(new, settings, before)
    renew(new)
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)
    return target


def _add_runs(directory: Path, settings: Settings, before: Published | None) -> None:
    """Write scores, rows, histories and origins of the runs of `settings`, with those published `before`."""
    keys = [variant.key for variant in settings.variants]
    labels = files.read_array(files.labels_file(files.NORMALIZED, "test"), (None,))
    for key in keys:
        write_scores(_scores_file(directory, key), *results.variant_scores(key, labels, settings.classes))
    rows, origins = {row.variant: row for row in results.read_results()}, _origins(keys)
    histories = {key: results.read_history(files.history_file(key)) for key in keys}
    if before:
        rows = {row.variant: row for row in before.results} | rows
        origins = before.provenance["variants"] | origins
        histories = before.histories | histories
    grid = load_settings(directory / files.SETTINGS.name, published=True).variants
    runs = [rows[variant.key] for variant in grid if variant.key in rows]
    files.write_csv(directory / files.STUDY.name, Result._fields, runs)
    table = rounded(page_tables.history_rows(runs, histories))
    files.write_csv(directory / files.HISTORIES.name, page_tables.HISTORY_COLUMNS, table)
    provenance = {
        "archive": settings.download.sha256 if settings.dataset == "cifar10" else None,
        "variants": {run.variant: origins[run.variant] for run in runs},
    }
    files.write_json(directory / PROVENANCE, provenance)
    best = results.choose_best(runs)
    if best and best.variant in keys:  # else the best is a run that was published before, and so is its picture
        files.copy(files.PLOTS / "confusion.png", directory / PICTURES / "confusion.png")


def _require_up_to_date() -> None:
    """Raise `StudyError` unless DVC says that every stage's outputs are those of its settings, code and data."""
    stale = json.loads(output(*DVC, "status", "--json"))
    if stale:
        names = ", ".join(list(stale)[:3]) + (f" and {len(stale) - 3} more" if len(stale) > 3 else "")
        raise StudyError(f"the results are not up to date ({names}); run `dvc repro`, then publish")


def _require_same_settings(before: Published, settings: Settings) -> None:
    """Raise `StudyError` if the published runs differ from those of `settings` in more than `MAY_DIFFER`."""
    old, new = (_flat(each.model_dump(exclude=MAY_DIFFER)) for each in (before.settings, settings))
    different = [f"{name} = {old[name]} there, {new[name]} here" for name in old if old[name] != new[name]]
    if different:
        raise StudyError(
            f"{DIRECTORY / before.name / files.SETTINGS.name}: its runs have other settings than {files.SETTINGS} "
            f"({'; '.join(different)}); publish under another name"
        )


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their whole names, as in `train.epochs`."""
    flat: dict[str, Any] = {}
    for name, value in section.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _add_to_grid(path: Path, settings: Settings) -> None:
    """Add the rates, seeds and optimizers of `settings` to those in the file `path`."""
    yaml = YAML()
    yaml.width = 10_000
    yaml.indent(sequence=4, offset=2)
    content = yaml.load(path.read_text(encoding="utf-8"))
    for name, values in settings.study:
        every = content["study"][name]
        every.extend(value for value in values if str(value) not in map(str, every))  # 0 and 0.0 are two keys
        if name != "optimizers":
            every.sort()
    text = io.StringIO()
    yaml.dump(content, text)
    files.write_bytes(path, text.getvalue().encode())


def _origins(keys: list[str]) -> dict[str, dict[str, Any]]:
    """Return by variant where, when and from what it was computed."""
    lock = YAML(typ="safe").load(Path("dvc.lock"))["stages"]
    commit, date = output("git", "rev-parse", "HEAD"), time.strftime("%Y-%m-%d")
    origins = {}
    for key in keys:
        modules = {each["path"]: each["md5"] for each in lock[f"train@{key}"]["deps"] if each["path"].endswith(".py")}
        speed = console.training_speed(files.progress_file(key))
        origins[key] = {
            "commit": commit,
            "date": date,
            "modules": fingerprint(modules),
            "training": speed and speed._asdict(),  # None: it was not trained in this clone
            "provenance": files.read_json(files.provenance_file(key)),
        }
    return origins


def _scores_file(directory: Path, key: str) -> Path:
    return directory / SCORES / f"{key}.npy.xz"


def write_scores(path: Path, last: Mapping[str, np.ndarray], best: Mapping[str, np.ndarray]) -> None:
    """Write the `results.image_scores` of a run's last epochs and of its best one, float16 [images, 8], compressed."""
    columns = [scores[name] for scores in (last, best) for name in COLUMNS]
    content = io.BytesIO()
    np.save(content, np.round(np.stack(columns, axis=1), DECIMALS).astype(np.float16))
    files.write_bytes(path, lzma.compress(content.getvalue()))


def read_scores(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return what `write_scores` wrote, float64: the scores of the last epochs, and of the best one."""
    columns = np.load(io.BytesIO(lzma.decompress(path.read_bytes()))).T.astype(np.float64)
    last, best = columns[: len(COLUMNS)], columns[len(COLUMNS) :]
    return dict(zip(COLUMNS, last, strict=True)), dict(zip(COLUMNS, best, strict=True))


def read_published(directory: Path = DIRECTORY) -> dict[str, Published]:
    """Return the published studies below `directory` by name."""
    return {path.parent.name: _read(path.parent) for path in sorted(directory.glob(f"[!.]*/{PROVENANCE}"))}


def _read(directory: Path) -> Published:
    return Published(
        directory.name,
        load_settings(directory / files.SETTINGS.name, published=True),
        results.read_results(directory / files.STUDY.name),
        results.read_rates(directory / files.RATES.name),
        read_verdict(directory / files.VERDICT.name),
        _histories(directory / files.HISTORIES.name),
        results.read_reliability(directory / files.RELIABILITY.name),
        files.read_json(directory / PROVENANCE),
    )


def _histories(path: Path) -> dict[str, History]:
    """Return the history of each run, a row an epoch, as far as it is published."""
    epochs: dict[str, dict[int, dict[str, float]]] = {}
    for row in files.read_csv(path):
        epoch = int(row["epoch"])
        values = epochs.setdefault(row["variant"], {}).setdefault(epoch, {"epoch": epoch})
        for quantity in QUANTITIES:
            values[f"{row['part']}_{quantity}"] = float(row[quantity]) if row[quantity] else math.nan
    return {variant: [*by_epoch.values()] for variant, by_epoch in epochs.items()}


def renew(directory: Path) -> Published:
    """Judge a published study again, write its words and pictures again, and return it.

    So a change of the method, the words or the pictures needs neither data nor models. A study that was published
    without scores keeps its verdict, and any study its confusion matrix, whose table is not published.
    """
    if (directory / SCORES).exists():
        settings = load_settings(directory / files.SETTINGS.name, published=True)
        rows, scores = [], {}
        for row in results.read_results(directory / files.STUDY.name):
            scores[row.variant], best = read_scores(_scores_file(directory, row.variant))
            rows.append(row._replace(**results.measured(row.train_accuracy, scores[row.variant], best)))
        origins = files.read_json(directory / PROVENANCE)["variants"]
        provenances = {key: origin["provenance"] for key, origin in origins.items()}
        statistics.write_tables(directory, rows, scores, provenances, settings)
    study = _read(directory)
    words = report.markdown(study.verdict, study.settings.dataset, study.results)
    files.write_bytes(directory / files.VERDICT_PAGE.name, words.encode())
    pictures = figures.of_study(study.rates, study.results, study.histories, study.reliability)
    for name, figure in pictures.items():
        figures.save(figure, directory / PICTURES / f"{name}.png")
    return study
