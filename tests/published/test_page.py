"""docs/results.md: its sections, and that it says what results/ says."""

import math
import re
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from dropout_study import calibration, files, report, statistics
from dropout_study.published import page
from dropout_study.published.publication import CONTENT, DIRECTORY, PICTURES, SCORES, Published, read_published, renew
from dropout_study.results import by_rate, finished
from dropout_study.settings import BEFORE, load_settings
from dropout_study.verdict import QUANTITIES
from tests.clones import PROJECT
from tests.published.test_claims import CLEAR, NEAR, WORSE, published, runs

AUTHOR = files.read_csv(PROJECT / page.AUTHOR)
STUDIES = sorted(path.parent.name for path in (PROJECT / DIRECTORY).glob("*/params.yaml"))


def test_page_of_all_studies_has_every_section_and_their_figures() -> None:
    both = [
        *runs("adadelta", {0.0: WORSE, 0.2: NEAR, 0.3: NEAR, 0.5: CLEAR, 0.8: [0.1, math.nan]}),
        *runs("sgd", {0.0: WORSE, 0.2: WORSE, 0.3: WORSE, 0.5: WORSE}),
    ]
    thousand = runs("adadelta", {0.0: [0.4, 0.41], 0.3: NEAR, 0.5: NEAR})
    zero = runs("adadelta", {0.0: [0.7111]})
    studies = {
        "cifar10-small": published("cifar10-small", both),
        "cifar10-longer": published("cifar10-longer", both, "cifar10-longer"),
        "cifar10-3000": published("cifar10-3000", thousand, "cifar10-3000"),
        "cifar10-1000": published("cifar10-1000", thousand, "cifar10-1000"),
        "article-notebook": published("article-notebook", runs("adadelta", {0.5: [0.8123]}), "article-notebook"),
        "article-notebook-25": published("article-notebook-25", zero, "article-notebook", epochs=25),
    }

    text = page.page(studies, AUTHOR)

    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert len(headings) == 9
    assert (
        "\n**0.2 to 0.5 may be the best by both accuracy and loss, with both optimizers, after 12 epochs.** With "
        in text
    )
    assert report.answer(studies["cifar10-small"].verdict) in text
    assert (
        "9,000 training images of CIFAR-10 as its authors publish it, 12 epochs, batches of 16, a learning rate of 1 "
        in text
    )
    assert "0.5 has 80.1 % and 0.4, the next, 79.2 %: 0.9 points less. Each is one run. In the main study, " in text
    assert report.table(studies["cifar10-small"].verdict) in text
    assert "| adadelta | 0.0 | 1 | – | 71.1 % | – | 1.289 |" in text
    assert "| adadelta | 0.5 | 1 | 80.1 % | 81.2 % | 0.614 | 1.188 |" in text
    assert "| `cifar10-small`, adadelta | 0.8 | 12 | 2, 1 diverged | 10.0 % | 1.900 | 75.0 % | 0.250 |" in text
    assert "| 900 | 48 | adadelta | 0.0 | 75.0 (75.0–75.0) % | 40.5 (40.0–41.0) % | – | 1.595 (1.590–1.600) | –" in text
    assert "| 80.8 (80.0–81.5) % | +40.3 | 1.192 (1.185–1.200) | −0.403 |" in text
    assert "**By accuracy, a gain is seen only with adadelta, 900 images and 48 epochs, where 0.0 is 40.4 ± " in text
    assert "| 9,000 | 24 | sgd | 0.5 | 75.0 (75.0–75.0) % | 61.0 (60.0–62.0) % | +0.0 |" in text
    assert " and sgd at 0.5 (75.0 %) with 9,000 images and 12 epochs; adadelta at 0.0 (75.0 %), adadelta at " in text
    assert "\n- 900 images and 48 epochs, adadelta: 0.3 and 0.5 may have the highest accuracy; 0.0 is worse." in text
    assert "\n- 9,000 images" not in text
    assert "| adadelta | 0.5 | 81.0 % | 70.0 % | under | 10.0 (10.0–10.0) |" in text
    assert "| adadelta | 0.5 | 45.0 → 60.0 % | 0.222 → 0.167 | 0.167 in epoch 12 |" in text
    assert "| 3 | With Adadelta, dropout 0.5 has the highest test accuracy. | **not decidable** |" in text
    assert text.count("| 3 | With Adadelta, dropout 0.5 has the highest test accuracy. | **not decidable** |") == 2
    assert text.count(" more runs, at 0.0, 0.3 and 0.5 only): with adadelta, 0.2 to 0.5 may have the highest") == 2
    assert "More epochs might change this" not in text
    assert "[adadelta](../results/cifar10-longer/plots/history-adadelta.png)" in text
    assert not re.search(r"\n{3,}|\{[{%]|None|nan", text)


def test_facts_take_speeds_from_runs_that_did_not_diverge() -> None:
    study = published("cifar10-small", runs("adadelta", {0.0: CLEAR, 0.8: [math.nan]}))
    fast = {"epochs": 12, "seconds": 1.0, "images_per_second": 9999.0}
    study.provenance["variants"]["adadelta-0.8-0"]["training"] = fast

    observed = page.facts(study)

    assert "3 min 01 s for 4 trainings, added up; images per second: median 500, 500 to 500" in observed


def test_authors_figures_are_those_in_the_document_about_the_article() -> None:
    document = (PROJECT / "docs/article.md").read_text()

    accuracies = " | ".join(f"{100 * float(row['test_accuracy']):.1f} %" for row in AUTHOR)
    losses = " | ".join(f"{float(row['test_loss']):.2f}" for row in AUTHOR)
    assert f"| Test accuracy | {accuracies} |\n| Test loss | {losses} |" in document


def test_committed_page_says_what_the_published_studies_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)

    expected = page.page(read_published(), AUTHOR)

    assert (PROJECT / page.PAGE).read_text() == expected


def test_committed_readme_shows_the_main_study() -> None:
    readme = (PROJECT / page.README).read_text()
    studies = read_published(PROJECT / DIRECTORY)
    main, longer = studies[page.MAIN], studies[page.LONGER]

    shown = readme.partition(page.BEGIN)[2].partition(page.END)[0]

    assert shown == f"\n{page.headline(main, longer)}\n"
    assert f"results/{page.MAIN}/plots/loss.png" in readme


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), dtype=int)


def test_main_writes_the_page_the_headline_and_the_words_and_pictures_of_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PROJECT / DIRECTORY, tmp_path / DIRECTORY)
    monkeypatch.chdir(tmp_path)
    verdict = DIRECTORY / page.MAIN / files.VERDICT_PAGE.name
    verdict.write_text("old")
    pictures = sorted(path for path in DIRECTORY.glob(f"*/{PICTURES}/*.png") if path.stem != "confusion")
    for path in pictures:
        path.unlink()
    page.README.write_text(f"{page.BEGIN}old{page.END}\n")

    page.main()

    assert verdict.read_text() == (PROJECT / verdict).read_text()
    assert len(pictures) > 30
    # Another kind of processor may round another way, which nobody sees.
    assert [path for path in pictures if np.abs(pixels(path) - pixels(PROJECT / path)).max() > 8] == []
    assert page.PAGE.read_text() == (PROJECT / page.PAGE).read_text()
    assert page.README.read_text().strip() in (PROJECT / page.README).read_text()


def test_headline_is_written_between_its_markers_only() -> None:
    main = published("cifar10-small", runs("adadelta", {0.0: WORSE, 0.5: CLEAR}))
    longer = published("cifar10-longer", runs("adadelta", {0.0: WORSE, 0.5: CLEAR}), "cifar10-longer")
    headline = page.headline(main, longer)

    text = page.with_headline(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", headline)

    assert text.startswith(f"before\n{page.BEGIN}\n**0.5 is the only rate that may be the best by both ")
    assert (
        "worse in none. Is 0.5 the best? Yes, by accuracy: with adadelta, every other rate is worse;"
        in text.replace("\n", " ")
    )
    assert text.endswith(f"{page.END}\nafter\n")
    assert "old" not in text
    assert report.table(main.verdict) in text


def test_pictures_and_tables_of_the_committed_page_exist() -> None:
    text = (PROJECT / page.PAGE).read_text()

    targets = re.findall(r"\]\((\.\./results/[^)]+)\)", text)
    for target in targets:
        assert (PROJECT / "docs" / target).exists(), target
    studies = {Path(target).parts[2] for target in targets}
    assert studies == {*read_published(PROJECT / DIRECTORY)}


@pytest.fixture(scope="module")
def studies() -> dict[str, Published]:
    return read_published(PROJECT / DIRECTORY)


def alike(value: object, of: object) -> bool:
    """Return whether a value equals another one, as far as the six digits of the tables go."""
    return value == (pytest.approx(of, rel=1e-5) if isinstance(of, float) else of)


@pytest.mark.parametrize("name", STUDIES)
def test_published_verdict_is_about_the_published_runs(name: str, studies: dict[str, Published]) -> None:
    verdict, groups = studies[name].verdict, by_rate(studies[name].results)

    rows = {
        (optimizer, row.dropout, quantity): row
        for optimizer, verdicts in verdict.optimizers.items()
        for quantity in QUANTITIES
        for row in verdicts.by(quantity).rates
    }

    assert rows.keys() == {(*rate, quantity) for rate in groups for quantity in QUANTITIES}
    for (optimizer, dropout, quantity), row in rows.items():
        group = groups[optimizer, float(dropout)]
        values = [getattr(run, f"test_{quantity}") for run in finished(group)]
        assert (row.runs, row.diverged) == (len(values), len(group) - len(values))
        figures = (fmean(values), min(values), max(values)) if values else (None, None, None)
        assert all(map(alike, (row.mean, row.lowest, row.highest), figures))


@pytest.mark.parametrize("name", STUDIES)
def test_published_rates_are_those_of_runs_and_verdict(name: str, studies: dict[str, Published]) -> None:
    study = studies[name]

    expected = statistics.rates(study.results, study.verdict, 10)

    assert len(study.rates) == len(expected)
    for observed, row in zip(study.rates, expected, strict=True):
        assert {column for column, value in row.items() if not alike(observed[column], value)} == set()


@pytest.mark.parametrize("name", STUDIES)
def test_published_reliability_has_the_accuracy_and_the_calibration_error_of_each_run(
    name: str, studies: dict[str, Published]
) -> None:
    runs = finished(studies[name].results)

    assert {run.variant for run in runs} == studies[name].reliability.keys()
    for run in runs:
        bins = studies[name].reliability[run.variant]
        assert calibration.merged(bins).images == studies[name].verdict.test_images
        assert alike(calibration.merged(bins).accuracy, run.test_accuracy)
        assert calibration.expected_error(bins) == pytest.approx(run.calibration_error, abs=1e-6)


@pytest.mark.parametrize("name", [path.parent.name for path in sorted((PROJECT / DIRECTORY).glob(f"*/{SCORES}"))])
def test_published_study_judged_again_from_its_scores_is_the_same(name: str, tmp_path: Path) -> None:
    published, copied = PROJECT / DIRECTORY / name, tmp_path / name
    shutil.copytree(published, copied)

    renew(copied)

    for path in sorted(published.rglob("*")):
        if path.is_file() and path.suffix != ".png":  # other versions draw them otherwise
            assert (copied / path.relative_to(published)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize("name", STUDIES)
def test_published_words_are_those_of_the_published_verdict(name: str, studies: dict[str, Published]) -> None:
    study = studies[name]

    words = (PROJECT / DIRECTORY / name / files.VERDICT_PAGE.name).read_text()

    assert words == report.markdown(study.verdict, study.settings.dataset, study.results)


@pytest.mark.parametrize("name", STUDIES)
def test_published_study_is_read_with_the_behaviour_of_its_time(name: str, studies: dict[str, Published]) -> None:
    study, written = studies[name], YAML(typ="safe").load(PROJECT / f"results/{name}/params.yaml")

    for section, before in BEFORE.items():
        for setting, value in before.items():
            assert getattr(getattr(study.settings, section), setting) == written[section].get(setting, value)
    columns = (PROJECT / f"results/{name}/study.csv").read_text().splitlines()[0].split(",")
    assert all(math.isnan(run.best_test_loss) != ("best_test_loss" in columns) for run in study.results)
    assert {path.name for path in (PROJECT / f"results/{name}").iterdir()} - {SCORES} == {*CONTENT}


# What published studies have that their presets do not: the first runs of the article's settings, and fewer of them.
UNLIKE_PRESET: dict[str, dict[str, Any]] = {
    "article-notebook-float32": {"precision": "float32", "test_epochs": 1, "threads": 0},
    "article-notebook-25": {"precision": "float32", "test_epochs": 1, "threads": 0, "epochs": 25},
}


@pytest.mark.parametrize("name", STUDIES)
def test_published_study_has_the_settings_of_its_preset(name: str, studies: dict[str, Published]) -> None:
    """But for the archive. The article's may have some of the variants, or more seeds."""
    article = name.startswith("article")
    preset_file = "article-notebook" if name in UNLIKE_PRESET else name
    preset, study = load_settings(PROJECT / f"presets/{preset_file}.yaml"), studies[name].settings

    train = preset.train.model_copy(update=UNLIKE_PRESET.get(name, {}))
    assert study.model_copy(update={"download": preset.download, "study": preset.study}) == preset.model_copy(
        update={"train": train}
    )
    assert study.download.urls == preset.download.urls  # not a file of the machine that it was run on
    keys = {run.variant for run in studies[name].results}
    assert keys <= {variant.key for variant in study.variants}
    if not article:
        assert study.study == preset.study
        assert len(keys) == len(study.variants)
