"""What `dvc plots show` and `dvc plots diff` write, in a real browser that has no network."""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from ruamel.yaml import YAML

from dropout_study import figures, files
from dropout_study.page_tables import shown_rates
from stages.plot import VEGA_LITE
from tests.clones import PROJECT, Clone, copied
from tests.needs import missing
from tests.studies import make_up, page_project

pytestmark = pytest.mark.pipeline

TEMPLATES = sorted((PROJECT / ".dvc/plots").glob("*.json"))
BY_DROPOUT = ("Accuracy_by_dropout", "Loss_by_dropout", "Overfitting_gap_by_dropout", "Calibration_error_by_dropout")
HISTORIES = ("Accuracy_by_epoch", "Loss_by_epoch")
CHARTS = ("Normalization", *BY_DROPOUT[:2], *HISTORIES, *BY_DROPOUT[2:], "Confusion_of_the_best_variant")
PICTURES = ("metrics_plots_samples_png", "metrics_plots_mistakes_png")
# Those of the pictures, as a browser writes them.
COLORS = {name: "rgb({}, {}, {})".format(*bytes.fromhex(color[1:])) for name, color in figures.COLORS.items()}
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEN_RATES = (0.0, 0.1, 0.2, 0.25, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    observed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if observed is None:
        missing("no Chromium on the path: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=observed, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def study(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A study of two optimizers, three rates and two seeds, and its page; SGD diverges at 0.9."""
    with copied(finished, tmp_path_factory.mktemp("pages") / "project") as clone:
        shutil.copy(PROJECT / "stages/plot.py", clone.path / "stages/plot.py")
        clone.change(study__dropouts=[0.0, 0.5, 0.9], study__seeds=[0, 1], train__learning_rate__sgd=100.0)
        clone.repro()
        clone.commit("two seeds")
        clone.run("git", "tag", "first")
        clone.dvc("plots", "show")
        yield clone


@pytest.fixture(scope="module")
def two_commits(study: Clone) -> Clone:
    """The same with a second commit, and the page of both."""
    study.change(train__learning_rate__adadelta=0.5)
    study.repro()
    study.commit("slower")
    study.dvc("plots", "diff", "HEAD", "HEAD~1", "--out", "diff_plots")
    return study


@pytest.fixture
def made_up(study: Clone, tmp_path: Path) -> Clone:
    """A project for tables that nobody ran; no stages, but the page's script."""
    clone = page_project(tmp_path / "made_up")
    shutil.copy(study.path / files.VEGA, clone.path / files.VEGA)
    return clone


@contextmanager
def opened(
    browser: Browser, path: Path, width: int = 1200, answer: Callable[[str], str | None] = lambda url: None
) -> Iterator[tuple[Page, list[str]]]:
    """Open a page without network; yield it and what went wrong. `answer` gives the text of an address on the web."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.set_default_timeout(30_000)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(str(error)))

    def web(route: Any) -> None:
        body = answer(route.request.url)
        problems.append(f"asked the web for {route.request.url}")
        if body is None:
            route.abort("internetdisconnected")
        else:
            route.fulfill(body=body, content_type="text/javascript")

    page.route(re.compile("^https?://"), web)
    page.goto(path.as_uri())
    yield page, problems
    context.close()


@contextmanager
def drawn(browser: Browser, path: Path, **options: Any) -> Iterator[Page]:
    """Open a page, wait until all charts are drawn, and see at the end that the browser had nothing to say about it."""
    with opened(browser, path, **options) as (page, problems):
        page.wait_for_selector("body[data-drawn]")
        assert page.get_by_text("cannot be drawn").all_inner_texts() == []
        yield page
        assert problems == []


@pytest.fixture
def shown(study: Clone) -> Path:
    return study.path / "dvc_plots/index.html"


@pytest.fixture
def compared(two_commits: Clone) -> Path:
    return two_commits.path / "diff_plots/index.html"


@pytest.fixture(params=["shown", "compared"])
def either(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def marks(page: Page, chart: str, kind: str) -> Locator:
    """Return the marks of a kind ("symbol", "line", …) that a chart has drawn; legends and axes have none of these."""
    return page.locator(f"#{chart} g.mark-{kind}.role-mark > path, #{chart} g.mark-{kind}.role-mark > line")


def tooltip(page: Page) -> dict[str, str]:
    """Return what the tooltip that is open says, by name."""
    page.wait_for_selector("#vg-tooltip-element.visible")
    rows = page.locator("#vg-tooltip-element tr")
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    return {name.rstrip(":"): value for name, value in cells}


def no_tooltip(page: Page) -> None:
    page.mouse.move(0, 0)
    page.wait_for_selector("#vg-tooltip-element:not(.visible)", state="attached")


def texts(page: Page, chart: str) -> list[str]:
    """Return the texts of a chart, a line each."""
    observed: list[str] = page.locator(f"#{chart} svg text").evaluate_all(
        """all => all.flatMap((text) => {
            const lines = [...text.querySelectorAll("tspan")];
            return (lines.length ? lines : [text]).map((line) => line.textContent);
        })"""
    )
    return observed


def sizes(page: Page) -> dict[str, tuple[float, float, float]]:
    """Return the width of each chart and of the room it has, and the smallest text in it, in pixels of the screen."""
    return {
        chart: tuple(
            page.locator(f"#{chart} svg.marks").evaluate(
                """svg => {
                    const shown = svg.getBoundingClientRect().width;
                    const around = getComputedStyle(svg.parentElement);
                    const room = svg.parentElement.clientWidth - parseFloat(around.paddingRight);
                    const texts = [...svg.querySelectorAll("text")];
                    const smallest = Math.min(...texts.map((text) => parseFloat(getComputedStyle(text).fontSize)));
                    return [shown, room, smallest * shown / svg.getAttribute("width")];
                }"""
            )
        )
        for chart in CHARTS
    }


@pytest.mark.parametrize("width", [400, 1600])
def test_page_draws_every_chart_at_any_width_without_network(browser: Browser, shown: Path, width: int) -> None:
    with drawn(browser, shown, width=width) as page:
        for chart, kinds in {
            # 2 × (16 steps × 1 channel) points
            "Normalization": {"symbol": 32, "line": 2},
            # runs: 2 optimizers × 3 rates × 2 seeds, two of them diverged; means: 5
            "Accuracy_by_dropout": {"symbol": 10 + 5, "line": 2},
            "Loss_by_dropout": {"symbol": 10 + 5, "line": 2},
            # 12 variants × 2 epochs × 2 parts, less the diverged epoch of 2 variants; a line a variant and part
            "Accuracy_by_epoch": {"symbol": 12 * 2 * 2 - 4, "line": 24},
            "Loss_by_epoch": {"symbol": 12 * 2 * 2 - 4, "line": 24},
            "Overfitting_gap_by_dropout": {"symbol": 10 + 5, "line": 2},
            "Calibration_error_by_dropout": {"symbol": 10 + 5, "line": 2},
            "Confusion_of_the_best_variant": {"rect": 100},
        }.items():
            for kind, count in kinds.items():
                observed = [item for item in marks(page, chart, kind).all() if item.get_attribute("d")]
                assert len(observed) == count, (chart, kind)
        for image in page.locator("img").all():
            assert image.evaluate("image => image.complete && image.naturalWidth") > 100


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 800, 1600])
def test_page_is_filled_by_charts_that_can_be_read(browser: Browser, either: Path, width: int) -> None:
    with drawn(browser, either, width=width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for chart, (shown, room, text) in sizes(page).items():
            assert shown <= room + 0.5, chart
            assert text >= (10 if width >= 800 else 8), chart
            # Cells stay square, and on a narrow page a panel is below the other.
            if chart != "Confusion_of_the_best_variant" and (chart, width) != ("Normalization", 400):
                assert shown >= 0.95 * room, chart


def test_page_keeps_the_order_of_dvc_yaml(browser: Browser, shown: Path) -> None:
    plots = YAML(typ="safe").load(PROJECT / "dvc.yaml")["plots"]
    names = [re.sub(r"\W", "_", plot if isinstance(plot, str) else next(iter(plot))) for plot in plots]

    with drawn(browser, shown) as page:
        ids = page.locator("main section > div").evaluate_all("all => all.map(one => one.id)")
        tops = page.locator("main section > div").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
        headings = page.locator("h2").all_inner_texts()

        assert [name for name in ids if name not in PICTURES] == [name for name in names if name not in PICTURES]
        assert sorted(ids) == sorted(names)
        assert tops == sorted(tops)
        # A picture is in the section of its charts.
        assert ids[1:3] == ["Normalization", "metrics_plots_samples_png"]
        assert ids[-2:] == ["Confusion_of_the_best_variant", "metrics_plots_mistakes_png"]
        assert len(headings) == 7
        assert "Other plots" not in headings
        assert page.locator("#plots > div").count() == 0


def touching(boxes: Sequence[tuple[float, float]]) -> bool:
    """Return whether two of `boxes`, left and right edges from left to right, touch."""
    return any(left[1] >= right[0] for left, right in pairwise(boxes))


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("count", [30, 300])
def test_page_of_many_rates_has_legible_charts(browser: Browser, made_up: Clone, count: int, width: int) -> None:
    rates = [round(0.95 * i / (count - 1), 3) for i in range(count)]
    make_up(made_up, rates=rates, seeds=1)

    made_up.dvc("plots", "show")

    with drawn(browser, made_up.path / "dvc_plots/index.html", width=width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert f"Dropout rates: {count} from 0.0 to 0.95." in page.locator("#Summary").inner_text()
        for chart in BY_DROPOUT:
            assert marks(page, chart, "symbol").count() == count
            # Labels that would touch are transparent.
            labels = page.locator(f"#{chart} g.role-axis-label").first.locator("text")
            boxes = labels.evaluate_all(
                """all => all.filter((text) => text.textContent && Number(text.getAttribute("opacity") ?? 1))
                    .map((text) => text.getBoundingClientRect()).map((box) => [box.left, box.right])"""
            )
            assert len(boxes) > 3
            assert not touching(boxes)
        shown = list(map(str, shown_rates(rates)))
        for chart in HISTORIES:
            assert marks(page, chart, "line").count() == 2 * len(shown)
            assert page.locator(f"#{chart} g.role-legend-label text").all_text_contents() == shown
            assert f"{len(shown)} of {count} rates" in texts(page, chart)


def test_charts_have_titles_and_axes_with_units(browser: Browser, shown: Path) -> None:
    with drawn(browser, shown) as page:
        for chart, expected in {
            "Normalization": [
                "Normalization",
                "pixel value (0 to 255)",
                "normalized value (standard deviations)",
                "share of the values (%)",
                "all channels",
            ],
            "Accuracy_by_dropout": [
                "Accuracy by dropout",
                "dropout rate",
                "test accuracy (%)",
                "guessing",
                "0.0",
                "0.9",
            ],
            "Loss_by_dropout": ["Loss by dropout", "test loss (nats)", "sgd", "adadelta"],
            "Accuracy_by_epoch": ["Accuracy by epoch", "epoch", "accuracy (%)", "training", "validation"],
            "Loss_by_epoch": [
                "Loss by epoch",
                "dropout rate",
                "0.0",
                "0.5",
                "sgd",
                "adadelta",
                "loss (nats; ▲: above 5)",
            ],
            "Overfitting_gap_by_dropout": ["training − test accuracy (points)", "no gap"],
            "Calibration_error_by_dropout": ["expected calibration error (points)", "calibrated"],
            "Confusion_of_the_best_variant": ["predicted class", "actual class"],
        }.items():
            observed = texts(page, chart)
            assert set(expected) <= set(observed), (chart, observed)
            assert page.locator(f"#{chart} > p").inner_text()
        # One revision needs no name: only its tooltips have one.
        assert not any("workspace" in text for chart in CHARTS for text in texts(page, chart))
        assert page.get_by_text("workspace").locator("visible=true").count() == 0
        # The channel that there is has the legend to itself, as has the optimizer that there is.
        assert not {"red", "adam"} & {text for chart in CHARTS for text in texts(page, chart)}
        assert "above 5" not in page.locator("#Accuracy_by_epoch").inner_text()
        # One cross for both runs of SGD at 0.9.
        assert (texts(page, "Accuracy_by_dropout").count("✕"), texts(page, "Accuracy_by_dropout").count("2")) == (1, 1)


@pytest.mark.slow
def test_page_says_what_was_studied_and_the_verdict_of_each_revision(
    browser: Browser, shown: Path, compared: Path, study: Clone
) -> None:
    first, second = (
        [row["text"] for row in table(study, files.SUMMARY, rev) if row["text"]] for rev in ("HEAD", "HEAD~1")
    )

    assert first != second

    with drawn(browser, compared) as page:
        assert page.locator("#Summary > *").all_inner_texts() == ["HEAD", *first, "HEAD~1", *second]
    with drawn(browser, shown) as page:
        assert page.locator("#Summary > *").all_inner_texts() == second
        assert page.locator("#Summary > .note").first.inner_text().startswith("sgd: By accuracy, the margin")
        assert "Data set: digits. Epochs: 2. Optimizers: sgd, adadelta." in second[0]


def table(study: Clone, path: Path, revision: str = "first") -> list[dict[str, str]]:
    """Return a table of a commit: without a name, of the first, which the page shows."""
    return list(csv.DictReader(io.StringIO(study.run("git", "show", f"{revision}:{path}").stdout)))


def revision(tip: dict[str, str]) -> str:
    return tip["revision"].replace("workspace", "first")


@pytest.mark.slow
def test_tooltip_of_a_mean_has_its_exact_figures(browser: Browser, shown: Path, study: Clone) -> None:
    with drawn(browser, shown) as page:
        for chart, column, unit in (
            ("Accuracy_by_dropout", "test_accuracy", " %"),
            ("Loss_by_dropout", "test_loss", " nats"),
            ("Overfitting_gap_by_dropout", "accuracy_gap", " points"),
            ("Calibration_error_by_dropout", "calibration_error", " points"),
        ):
            marks(page, chart, "symbol").last.hover()
            tip = tooltip(page)
            (row,) = (
                item
                for item in table(study, files.RATES, revision(tip))
                if (item["optimizer"], item["dropout"]) == (tip["optimizer"], tip["dropout rate"])
            )
            factor = 1 if unit == " nats" else 100
            mean, low, high = (factor * float(row[f"{column}{what}"]) for what in ("", "_lowest", "_highest"))
            assert float(tip["mean"].removesuffix(unit).replace("−", "-")) == pytest.approx(mean, rel=1e-5)
            ends = tip["lowest to highest"].removesuffix(unit).replace("−", "-").split(" to ")
            assert [float(end) for end in ends] == pytest.approx([low, high], rel=1e-5)
            assert tip["seeds"] == "2"
            assert tip["verdict"] == row.get(f"{column}_verdict", "none")
            no_tooltip(page)


@pytest.mark.slow
def test_tooltip_of_a_cross_names_diverged_runs(browser: Browser, shown: Path) -> None:
    with drawn(browser, shown) as page:
        page.locator("#Accuracy_by_dropout svg text", has_text="✕").first.hover()
        tip = tooltip(page)
        assert tip.pop("revision") in ("workspace", "HEAD")
        assert tip == {"diverged": "sgd-0.9-0 in epoch 2, sgd-0.9-1 in epoch 2"}
        no_tooltip(page)
        page.locator("#Loss_by_epoch svg text", has_text="✕").last.hover()
        tip = tooltip(page)
        assert tip["variant"] in ("sgd-0.9-0", "sgd-0.9-1")
        assert tip["diverged in epoch"] == "2"


@pytest.mark.slow
def test_tooltip_of_an_epoch_and_of_a_cell_show_them(browser: Browser, shown: Path, study: Clone) -> None:
    with drawn(browser, shown) as page:
        marks(page, "Accuracy_by_epoch", "symbol").last.hover()
        tip = tooltip(page)
        (row,) = (
            item
            for item in table(study, files.HISTORIES, revision(tip))
            if (item["variant"], item["epoch"], item["part"].replace("train", "training"))
            == (tip["variant"], tip["epoch"], tip["part"])
        )
        assert tip["accuracy"] == f"{100 * float(row['accuracy']):.6g} %"
        no_tooltip(page)
        page.locator(
            "#Confusion_of_the_best_variant g.mark-text.role-mark text", has_text=re.compile(".")
        ).first.hover()
        tip = tooltip(page)
        cells = [
            item
            for rev in ("HEAD", "HEAD~1")
            for item in table(study, files.CONFUSION, rev)
            if (item["actual"], item["predicted"]) == (tip["actual class"], tip["predicted class"])
        ]
        assert tip["images"] in {cell["images"] for cell in cells} - {"0"}
        of_class = sum(
            int(row["images"]) for row in table(study, files.CONFUSION) if row["actual"] == tip["actual class"]
        )
        assert tip["share of the actual class"] == f"{100 * int(tip['images']) / of_class:.3g} %"


def legend(page: Page, chart: str) -> dict[str, tuple[str, str]]:
    """Return colour and outline of each symbol in the legend of a chart, by its label."""
    symbols = page.locator(f"#{chart} g.role-legend-symbol path").evaluate_all(
        "all => all.map(one => [getComputedStyle(one).fill, one.getAttribute('d')])"
    )
    labels = page.locator(f"#{chart} g.role-legend-label text").all_text_contents()
    return {label: (fill, shape) for label, (fill, shape) in zip(labels, symbols, strict=True)}


@pytest.mark.slow
def test_diff_tells_revisions_apart_in_every_chart(browser: Browser, compared: Path) -> None:
    with drawn(browser, compared) as page:
        for chart in BY_DROPOUT:
            assert marks(page, chart, "symbol").count() == 2 * 15
            observed = legend(page, chart)
            assert set(observed) == {
                f"{optimizer}, {rev}" for optimizer in ("sgd", "adadelta") for rev in ("HEAD~1", "HEAD")
            }
            assert {optimizer: observed[f"{optimizer}, HEAD"][0] for optimizer in ("sgd", "adadelta")} == {
                optimizer: COLORS[optimizer] for optimizer in ("sgd", "adadelta")
            }
            assert len({fill for fill, _ in observed.values()}) == len({shape for _, shape in observed.values()}) == 4
        for chart in HISTORIES:
            assert {"adadelta, HEAD~1", "adadelta, HEAD", "sgd, HEAD~1", "sgd, HEAD"} <= set(texts(page, chart))
            assert marks(page, chart, "line").count() == 2 * 24
        assert {"HEAD~1", "HEAD"} <= set(texts(page, "Normalization"))
        assert len([text for text in texts(page, "Confusion_of_the_best_variant") if ", HEAD" in text]) == 2
        for name in ("samples", "mistakes"):
            captions = page.locator(f"#metrics_plots_{name}_png > div > p").all_inner_texts()
            assert captions == ["HEAD", "HEAD~1"]


def places(page: Page, chart: str) -> dict[str, dict[str, list[tuple[bool, float, float]]]]:
    """Return for each rate and series where its points are, from left to right: whether it is a mean, left, right."""
    observed: dict[str, dict[str, list[tuple[bool, float, float]]]] = {}
    for rate, series, *point in marks(page, chart, "symbol").evaluate_all(
        """all => all.map((one) => {
            const { rate, series, mean } = one.__data__.datum;
            const { left, right } = one.getBoundingClientRect();
            return [rate.toFixed(2), series, mean, left, right];
        })"""
    ):
        observed.setdefault(rate, {}).setdefault(series, []).append((point[0], point[1], point[2]))
    return {
        rate: {name: sorted(points, key=lambda point: point[1]) for name, points in sorted(series.items())}
        for rate, series in sorted(observed.items())
    }


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3, 10])
def test_by_dropout_chart_gives_every_optimizer_its_own_room(browser: Browser, made_up: Clone, seeds: int) -> None:
    diverged = [f"adam-0.95-{seed}" for seed in range(seeds)] + (["sgd-0.9-0"] if seeds > 1 else [])
    make_up(made_up, ("adam", "adadelta", "sgd"), TEN_RATES, seeds, diverged=diverged)
    made_up.dvc("plots", "show")
    with drawn(browser, made_up.path / "dvc_plots/index.html", width=800) as page:
        for chart in BY_DROPOUT:
            observed = places(page, chart)
            assert list(observed) == [f"{rate:.2f}" for rate in TEN_RATES]
            edge = 0.0
            for rate, series in observed.items():
                assert list(series) == ["adadelta", "sgd"] if rate == "0.95" else ["adadelta", "adam", "sgd"]
                for name, points in series.items():
                    finished = seeds - 1 if (rate, name) == ("0.90", "sgd") and seeds > 1 else seeds
                    # Runs are there if they are not the mean, and left of it; all are right of the series before.
                    assert [mean for mean, _, _ in points] == [False] * (finished if finished > 1 else 0) + [True]
                    assert points[0][1] >= edge - 1, (chart, rate, name)  # a pixel of two edges
                    edge = points[-1][2]
            ticks = page.locator(f"#{chart} g.role-axis-label").first.locator("text", has_text=re.compile("."))
            assert ticks.all_text_contents() == [str(rate) for rate in TEN_RATES]
            boxes = ticks.evaluate_all("all => all.map(one => one.getBoundingClientRect()).map(r => [r.left, r.right])")
            assert not touching(boxes)
            assert {name: fill for name, (fill, _) in legend(page, chart).items()} == COLORS
            crosses = page.locator(f"#{chart} svg text", has_text="✕").all_text_contents()
            assert sorted(crosses) == sorted({1: ["✕"], 3: ["✕3", "✕"], 10: ["✕10", "✕"]}[seeds])


@pytest.mark.parametrize("seeds", [1, 3])
def test_by_dropout_chart_agrees_with_the_verdict(browser: Browser, made_up: Clone, seeds: int) -> None:
    """A mean is filled if the verdict says that its rate may be the best; then it is in the band, else outside."""
    make_up(made_up, ("adadelta", "sgd"), (0.0, 0.2, 0.5, 0.8, 0.95), seeds, diverged=["sgd-0.5-0"])
    rows = {(row["optimizer"], float(row["dropout"])): row for row in files.read_csv(made_up.path / files.RATES)}

    made_up.dvc("plots", "show")

    with drawn(browser, made_up.path / "dvc_plots/index.html") as page:
        for chart, column in (("Accuracy_by_dropout", "test_accuracy"), ("Loss_by_dropout", "test_loss")):
            means = marks(page, chart, "symbol").evaluate_all(
                """all => all.map((one) => [one.__data__, one.__data__.datum]).filter(([_, datum]) => datum.mean)
                    .map(([mark, { optimizer, rate }]) => [optimizer, rate, mark.fill, mark.stroke, mark.y ?? 0])"""
            )
            bands = page.locator(f"#{chart} g.mark-rule.role-mark line").evaluate_all(
                """all => all.map((one) => [one.__data__, one.__data__.datum])
                    .filter(([mark, datum]) => datum.optimizer && mark.opacity < 0.2 && mark.y !== mark.y2)
                    .map(([mark, { optimizer, rate }]) => [optimizer, rate, mark.y ?? 0, mark.y2 ?? 0])"""
            )
            ends = {(optimizer, rate): sorted(band) for optimizer, rate, *band in bands}
            assert len(means) == len(rows)
            assert {key for key, row in rows.items() if row[f"{column}_limit"]} == set(ends)
            for optimizer, rate, fill, stroke, y in means:
                tip = rows[optimizer, rate][f"{column}_verdict"]
                assert (fill == "#fff") == (tip in ("worse", "not judged"))
                assert (stroke == "#666") == (tip == "worse")
                if (optimizer, rate) in ends:
                    top, bottom = ends[optimizer, rate]
                    assert (top - 0.1 <= y <= bottom + 0.1) == (tip == "may be the best"), (optimizer, rate, tip)
    verdicts = {row["test_loss_verdict"] for row in rows.values()}
    assert verdicts == ({""} if seeds == 1 else {"may be the best", "worse", "not judged"})


@pytest.mark.slow
def test_history_chart_marks_losses_beyond_the_axis(browser: Browser, made_up: Clone) -> None:
    make_up(made_up, rates=(0.0, 0.95), seeds=1)
    made_up.dvc("plots", "show")
    with drawn(browser, made_up.path / "dvc_plots/index.html") as page:
        shapes = marks(page, "Loss_by_epoch", "symbol").evaluate_all(
            "all => all.map(one => [one.__data__.datum.exact > 5, one.__data__.shape])"
        )
        assert set(map(tuple, shapes)) == {(True, "triangle-up"), (False, "circle")}
        labels = page.locator("#Loss_by_epoch g.role-axis-label text").all_text_contents()
        assert max(map(float, labels)) == 5


@pytest.mark.slow
def test_diff_of_two_data_sets_has_the_classes_and_channels_of_each(browser: Browser, made_up: Clone) -> None:
    make_up(made_up)
    made_up.commit("digits")
    make_up(made_up, classes=CIFAR10)
    made_up.commit("cifar10")
    made_up.dvc("plots", "diff", "HEAD", "HEAD~1")
    with drawn(browser, made_up.path / "dvc_plots/index.html", width=800) as page:
        axes = page.locator("#Confusion_of_the_best_variant g.role-axis")
        labels = [axis.locator("g.role-axis-label text").all_text_contents() for axis in axes.all()]
        labels = [axis for axis in labels if axis]
        assert sorted(labels) == sorted([[*CIFAR10], [*CIFAR10], [*"0123456789"], [*"0123456789"]])
        colors = {"red": "#D55E00", "green": "#009E73", "blue": "#0072B2", "all channels": "#555555"}
        symbols = page.locator("#Normalization g.role-legend-symbol path")
        names = page.locator("#Normalization g.role-legend-label text").all_text_contents()
        observed = symbols.evaluate_all("all => all.map(one => one.getAttribute('stroke'))")
        assert dict(zip(names, observed, strict=True)) == colors
        for channel, color in marks(page, "Normalization", "line").evaluate_all(
            "all => all.map(one => [one.__data__.datum.channel, one.getAttribute('stroke')])"
        ):
            assert color == colors[channel]


@pytest.mark.slow
def test_diff_with_a_commit_without_plots_names_the_revision_that_has_them(browser: Browser, made_up: Clone) -> None:
    plots = (made_up.path / "dvc.yaml").read_text()
    (made_up.path / "dvc.yaml").write_text("{}\n")
    (made_up.path / ".dvc/plots").rename(made_up.path / "later")
    made_up.commit("before there were plots")
    (made_up.path / "later").rename(made_up.path / ".dvc/plots")
    (made_up.path / "dvc.yaml").write_text(plots)
    make_up(made_up)
    made_up.commit("with plots")
    made_up.dvc("plots", "diff", "HEAD", "HEAD~1")
    with drawn(browser, made_up.path / "dvc_plots/index.html") as page:
        assert page.locator("#Summary h3").all_inner_texts() == ["HEAD"]
        for chart in BY_DROPOUT:
            assert list(legend(page, chart)) == ["adadelta, HEAD"]
        for chart in (*HISTORIES, "Confusion_of_the_best_variant"):
            assert any(text.endswith(", HEAD") for text in texts(page, chart))
        assert "HEAD" in texts(page, "Normalization")
        assert page.locator(".picture > div > p").all_inner_texts() == ["HEAD", "HEAD"]
        assert page.locator("img").first.get_attribute("alt") == "metrics/plots/samples.png, HEAD"


@pytest.mark.slow
def test_page_in_print_is_not_cut_off(browser: Browser, either: Path, tmp_path: Path) -> None:
    with drawn(browser, either) as page:
        content = page.pdf(
            format="A4",
            margin={"top": "15mm", "right": "15mm", "bottom": "15mm", "left": "15mm"},
            tagged=True,
            outline=True,
        )
        assert len(re.findall(rb"/Type\s*/Page\b", content)) > 2
        for title in page.locator("h2").all_inner_texts():
            assert f"({title})".encode() in content
        # What the printer sees: 180 mm × 267 mm, at 96 dots an inch.
        page.set_viewport_size({"width": 680, "height": 1009})
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.wait_for_function("Number(document.body.dataset.drawn) <= 680")
        assert page.evaluate("document.documentElement.scrollWidth") <= 680
        for chart in CHARTS:
            box = page.locator(f"#{chart} svg.marks").bounding_box()
            assert box
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 680
            assert box["height"] <= 1009
            # Drawn for that width, not scaled down to it by more than a little.
            assert float(page.locator(f"#{chart} svg.marks").get_attribute("width") or "inf") <= 700
            outside = page.locator(f"#{chart} svg.marks").evaluate(
                """svg => {
                    const all = svg.getBoundingClientRect();
                    return [...svg.querySelectorAll("text")].filter((text) => {
                        const one = text.getBoundingClientRect();
                        return one.left < all.left - 1 || one.right > all.right + 1 || one.bottom > all.bottom + 1;
                    }).map((text) => text.textContent);
                }"""
            )
            assert outside == [], chart


@pytest.mark.slow
def test_page_without_the_script_takes_it_from_the_web(browser: Browser, shown: Path, tmp_path: Path) -> None:
    """What the web has under the three addresses is stood in for by the script itself and two empty ones."""
    alone = tmp_path / "somewhere/plots"
    shutil.copytree(shown.parent, alone)
    script = (shown.parents[1] / files.VEGA).read_text()
    asked = []

    def answer(url: str) -> str:
        asked.append(url)
        return script if len(asked) == 3 else ""

    with opened(browser, alone / "index.html", answer=answer) as (page, _):
        page.wait_for_selector("body[data-drawn]")
        assert marks(page, "Accuracy_by_dropout", "symbol").count() == 15
    # The versions that the script has, so that the charts are the same: vl_convert tells all but the last digit of one.
    observed = [re.fullmatch(r"https://cdn\.jsdelivr\.net/npm/([a-z-]+)@([0-9.]+)", url) for url in asked]
    (vega, vega_lite, embed) = [match.groups() for match in observed if match]
    assert vega == ("vega", vl_convert.get_vega_version())
    assert vega_lite[0] == "vega-lite"
    assert vega_lite[1].startswith(f"{VEGA_LITE}.")
    assert f'"{vega_lite[1]}"' in script
    assert embed == ("vega-embed", vl_convert.get_vega_embed_version())


def test_page_without_script_and_web_says_what_to_do(browser: Browser, shown: Path, tmp_path: Path) -> None:
    alone = tmp_path / "somewhere/plots"
    shutil.copytree(shown.parent, alone)
    with opened(browser, alone / "index.html") as (page, _):
        notice = page.locator("#notice")
        notice.wait_for(state="visible")
        assert "data/vega.js" in notice.inner_text()
        assert "dvc repro plot" in notice.inner_text()
        assert page.locator("img").count() == 2


@pytest.mark.slow
def test_templates_are_vega_lite_for_vs_code(two_commits: Clone, capfd: pytest.CaptureFixture[str]) -> None:
    """What the extension reads is `--json --split`; what it draws must compile, in the versions that it has had."""
    plots = json.loads(two_commits.dvc("plots", "diff", "HEAD", "HEAD~1", "--json", "--split", "--out", "json_plots"))

    assert "errors" not in plots

    charts = {name: entries[0] for name, entries in plots["data"].items() if entries[0]["type"] == "vega"}

    assert {name.replace(" ", "_") for name in charts} == {"Summary", *CHARTS}
    for entry in charts.values():
        assert entry["revisions"] == ["HEAD", "HEAD~1"]
        spec = filled(entry["content"], entry["anchor_definitions"])
        # Nor a size: the extension fills in "container", which charts of several panels cannot have.
        assert "<DVC_METRIC" not in json.dumps(spec)
        for version in ("5.8", "5.21", VEGA_LITE):
            assert vl_convert.vegalite_to_vega(spec, vl_version=version, show_warnings=True)["marks"]
    assert capfd.readouterr() == ("", "")


def filled(value: Any, anchors: dict[str, Any]) -> Any:
    """Return a template with the anchors replaced that DVC leaves to the extension of VS Code."""
    match value:
        case dict():
            return {key: filled(item, anchors) for key, item in value.items()}
        case list():
            return [filled(item, anchors) for item in value]
        case str():
            for anchor, content in anchors.items():
                if value == anchor:
                    return content
                if isinstance(content, str):
                    value = value.replace(anchor, content)
    return value


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_templates_hold_no_scripts_and_are_in_use(template: Path) -> None:
    text = template.read_text()

    assert not re.search(r"script|https?://(?!vega\.github\.io/schema)|href|\burl\b", text, re.IGNORECASE)
    assert f"template: {template.stem}\n" in (PROJECT / "dvc.yaml").read_text()
