"""What `dvc plots show` and `dvc plots diff` write, in a real browser that has no network."""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from dropout_study import files
from stages.plot import VEGA_LITE
from tests.clones import PROJECT, Clone, copied

pytestmark = pytest.mark.pipeline

TEMPLATES = sorted((PROJECT / ".dvc/plots").glob("*.json"))
CHARTS = (
    "Normalization",
    "Accuracy_by_dropout",
    "Loss_by_dropout",
    "Accuracy_by_epoch",
    "Loss_by_epoch",
    "Overfitting_gap_by_dropout",
    "Confusion_of_the_best_variant",
)
ORDER = ("metrics_plots_samples_png", *CHARTS, "metrics_plots_mistakes_png")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        reason = "no Chromium on the path: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def study(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """Two commits of a study of two optimizers, three rates and two seeds, and their pages; SGD diverges at 0.9."""
    with copied(finished, tmp_path_factory.mktemp("pages") / "project") as clone:
        clone.change(study__dropouts=[0.0, 0.5, 0.9], study__seeds=[0, 1], train__learning_rate__sgd=100.0)
        clone.repro()
        clone.commit("two seeds")
        clone.dvc("plots", "show")
        clone.change(train__learning_rate__adadelta=0.5)
        clone.repro()
        clone.commit("slower")
        clone.dvc("plots", "diff", "HEAD~1", "HEAD", "--out", "diff_plots")
        yield clone


@contextmanager
def opened(
    browser: Browser, path: Path, width: int = 1200, answer: Callable[[str], str | None] = lambda url: None
) -> Iterator[tuple[Page, list[str]]]:
    """Open a page without network; yield it and what went wrong. `answer` gives the text of an address on the web."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.set_default_timeout(30_000)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
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
    """Open a page, wait until all charts are drawn, and see at the end that nothing went wrong."""
    with opened(browser, path, **options) as (page, problems):
        page.wait_for_selector("body[data-drawn]")
        yield page
        assert problems == []


@pytest.fixture
def shown(study: Clone) -> Path:
    return study.path / "dvc_plots/index.html"


@pytest.fixture
def compared(study: Clone) -> Path:
    return study.path / "diff_plots/index.html"


def marks(page: Page, chart: str, kind: str) -> Locator:
    """Return the marks of a kind ("symbol", "line", …) that a chart has drawn; legends and axes have none of these."""
    return page.locator(f"#{chart} g.mark-{kind}.role-mark > path, #{chart} g.mark-{kind}.role-mark > line")


def tooltip(page: Page) -> dict[str, str]:
    """Return what the tooltip that is open says, by name."""
    page.wait_for_selector("#vg-tooltip-element.visible")
    rows = page.locator("#vg-tooltip-element tr")
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    return {name.rstrip(":"): value for name, value in cells}


def texts(page: Page, chart: str) -> list[str]:
    return page.locator(f"#{chart} svg text").all_text_contents()


@pytest.mark.parametrize("width", [800, 1200, 1600])
def test_every_chart_is_drawn_at_any_width_without_network(browser: Browser, shown: Path, width: int) -> None:
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
            "Confusion_of_the_best_variant": {"rect": 100},
        }.items():
            for kind, count in kinds.items():
                found = [one for one in marks(page, chart, kind).all() if one.get_attribute("d")]
                assert len(found) == count, (chart, kind)
            box = page.locator(f"#{chart} svg.marks").bounding_box()
            assert box
            assert min(width, 1100) * 0.4 < box["width"] <= width
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for image in page.locator("img").all():
            assert image.evaluate("image => image.complete && image.naturalWidth") > 100
        sizes = page.locator("svg text").evaluate_all("all => all.map(t => parseFloat(getComputedStyle(t).fontSize))")
        assert min(sizes) >= 10


def test_the_page_reads_like_the_article(browser: Browser, shown: Path, compared: Path) -> None:
    for path in (shown, compared):
        with drawn(browser, path) as page:
            ids = page.locator("main section > div").evaluate_all("all => all.map(one => one.id)")
            assert ids == list(ORDER)
            tops = [page.locator(f"#{name}").bounding_box() for name in ORDER]
            assert [box["y"] for box in tops if box] == sorted(box["y"] for box in tops if box)
            assert page.locator("h2").count() == 6
            assert page.locator("#plots > div").count() == 0


def test_charts_have_titles_and_axes_with_units(browser: Browser, shown: Path) -> None:
    with drawn(browser, shown) as page:
        for chart, expected in {
            "Normalization": ["Normalization", "value", "share of the values (%)", "before: pixels, 0 to 255"],
            "Accuracy_by_dropout": ["Accuracy by dropout", "dropout rate", "test accuracy (%)", "guessing"],
            "Loss_by_dropout": ["Loss by dropout", "test loss (nats)", "sgd", "adadelta"],
            "Accuracy_by_epoch": ["Accuracy by epoch", "epoch", "accuracy (%)", "training", "validation"],
            "Loss_by_epoch": ["Loss by epoch", "loss (nats)", "dropout rate", "0.5", "sgd", "adadelta"],
            "Overfitting_gap_by_dropout": ["training − test accuracy (points)", "no gap"],
            "Confusion_of_the_best_variant": ["predicted class", "actual class"],
        }.items():
            found = texts(page, chart)
            assert set(expected) <= set(found), (chart, found)
        # One revision needs no name: only its tooltips have one.
        assert not any("workspace" in text for chart in CHARTS for text in texts(page, chart))
        # Both runs of SGD at 0.9.
        assert texts(page, "Accuracy_by_dropout").count("✕") == 2


def table(study: Clone, path: Path) -> list[dict[str, str]]:
    """Return a table of the first commit, which the page shows."""
    return list(csv.DictReader(io.StringIO(study.run("git", "show", f"HEAD~1:{path}").stdout)))


def test_pointing_at_a_mean_shows_its_exact_figures(browser: Browser, shown: Path, study: Clone) -> None:
    with drawn(browser, shown) as page:
        page.locator("#Accuracy_by_dropout g.mark-symbol.role-mark").last.locator("path[d]").first.hover()
        said = tooltip(page)
        (row,) = (
            one
            for one in table(study, files.RATES)
            if (one["optimizer"], one["dropout"]) == (said["optimizer"], said["dropout rate"])
        )
        assert said["mean"] == row["test_accuracy"]
        assert float(said["95 % from"]) == float(row["test_accuracy_low"])
        assert float(said["to"]) == float(row["test_accuracy_high"])
        assert (said["seeds"], said["revision"]) == ("2", "workspace")


def test_pointing_at_a_cross_tells_when_it_diverged(browser: Browser, shown: Path) -> None:
    with drawn(browser, shown) as page:
        page.locator("#Accuracy_by_dropout svg text", has_text="✕").first.hover()
        assert tooltip(page) == {"variant": "sgd-0.9-0", "revision": "workspace", "diverged in epoch": "2"}


def test_pointing_at_an_epoch_and_a_cell_shows_them(browser: Browser, shown: Path, study: Clone) -> None:
    with drawn(browser, shown) as page:
        marks(page, "Accuracy_by_epoch", "symbol").last.hover()
        said = tooltip(page)
        (row,) = (
            one
            for one in table(study, files.HISTORIES)
            if (one["variant"], one["epoch"], one["part"]) == (said["variant"], said["epoch"], said["part"])
        )
        assert said["accuracy"] == row["accuracy"]
        page.mouse.move(0, 0)
        page.wait_for_selector("#vg-tooltip-element:not(.visible)", state="attached")
        page.locator("#Confusion_of_the_best_variant g.mark-text.role-mark text").first.hover()
        said = tooltip(page)
        (cell,) = (
            one
            for one in table(study, files.CONFUSION)
            if (one["actual"], one["predicted"]) == (said["actual"], said["predicted class"])
        )
        assert said["images"] == cell["images"] != "0"


def wait_for_lines(page: Page, chart: str, count: int) -> None:
    """Wait until `count` lines of a chart are opaque, and the others are not."""
    page.wait_for_function(
        """([chart, count]) => {
            const lines = [...document.querySelectorAll(`#${chart} g.mark-line.role-mark > path`)];
            return lines.filter((line) => Number(line.getAttribute("opacity")) > 0.5).length === count;
        }""",
        arg=[chart, count],
    )


@pytest.mark.parametrize("chart", ["Accuracy_by_epoch", "Loss_by_epoch"])
def test_a_click_on_the_legend_isolates_a_rate_and_one_beside_the_panels_undoes_it(
    browser: Browser, shown: Path, chart: str
) -> None:
    with drawn(browser, shown) as page:
        wait_for_lines(page, chart, 24)
        page.locator(f"#{chart} g.role-legend-symbol path").nth(1).click()
        wait_for_lines(page, chart, 8)  # 2 optimizers × 2 seeds × 2 parts
        page.locator(f"#{chart} g.role-legend-label text").nth(0).click(modifiers=["Shift"])
        wait_for_lines(page, chart, 16)
        page.locator(f"#{chart} svg.marks").click(position={"x": 3, "y": 3})
        wait_for_lines(page, chart, 24)


def test_the_line_that_is_pointed_at_is_thick_in_all_panels(browser: Browser, shown: Path) -> None:
    with drawn(browser, shown) as page:
        marks(page, "Loss_by_epoch", "symbol").last.hover()
        page.wait_for_selector("#Loss_by_epoch g.mark-line.role-mark > path[stroke-width='5']", state="attached")
        widths = marks(page, "Loss_by_epoch", "line").evaluate_all(
            "all => all.map(one => one.getAttribute('stroke-width'))"
        )
        assert sorted(widths) == ["1.8"] * 22 + ["5"] * 2  # its training and its validation


def test_a_diff_tells_revisions_apart_in_every_chart(browser: Browser, compared: Path) -> None:
    with drawn(browser, compared) as page:
        assert len(marks(page, "Accuracy_by_dropout", "symbol").all()) >= 2 * 15
        for chart in ("Accuracy_by_dropout", "Loss_by_dropout", "Overfitting_gap_by_dropout"):
            series = {f"{optimizer}, {rev}" for optimizer in ("sgd", "adadelta") for rev in ("HEAD~1", "HEAD")}
            assert series <= set(texts(page, chart))
            symbols = page.locator(f"#{chart} g.role-legend-symbol path").evaluate_all(
                "all => all.map(one => [one.getAttribute('fill'), one.getAttribute('d')])"
            )
            assert len({fill for fill, _ in symbols}) == len({shape for _, shape in symbols}) == 4
        for chart in ("Accuracy_by_epoch", "Loss_by_epoch"):
            assert {"adadelta, HEAD~1", "adadelta, HEAD", "sgd, HEAD~1", "sgd, HEAD"} <= set(texts(page, chart))
            assert len(marks(page, chart, "line").all()) == 2 * 24
        assert {"HEAD~1", "HEAD"} <= set(texts(page, "Normalization"))
        assert len([text for text in texts(page, "Confusion_of_the_best_variant") if ", HEAD" in text]) == 2
        for name in ("samples", "mistakes"):
            captions = page.locator(f"#metrics_plots_{name}_png > div > p").all_inner_texts()
            assert captions == ["HEAD~1", "HEAD"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 1200


def test_in_print_nothing_is_cut_off(browser: Browser, shown: Path) -> None:
    with drawn(browser, shown) as page:
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 720, "height": 1000})  # A4 less margins, at 96 dots an inch
        page.wait_for_function("Number(document.body.dataset.drawn) <= 720")
        assert page.evaluate("document.documentElement.scrollWidth") <= 720
        assert page.pdf(format="A4").startswith(b"%PDF")


def test_a_narrower_window_has_its_charts_drawn_again(browser: Browser, shown: Path) -> None:
    with drawn(browser, shown, width=1600) as page:
        wide = page.locator("#Accuracy_by_epoch svg.marks").bounding_box()
        page.set_viewport_size({"width": 800, "height": 900})
        page.wait_for_function("Number(document.body.dataset.drawn) < 800")
        narrow = page.locator("#Accuracy_by_epoch svg.marks").bounding_box()
        assert wide
        assert narrow
        assert narrow["width"] < 800 < wide["width"]


def test_without_the_script_it_is_taken_from_the_web(browser: Browser, shown: Path, tmp_path: Path) -> None:
    """What the web has under the three addresses is stood in for by the script itself and two empty ones."""
    alone = tmp_path / "somewhere/plots"
    shutil.copytree(shown.parent, alone)
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    asked = []

    def answer(url: str) -> str:
        asked.append(url)
        return script if len(asked) == 3 else ""

    with opened(browser, alone / "index.html", answer=answer) as (page, _):
        page.wait_for_selector("body[data-drawn]")
        assert marks(page, "Accuracy_by_dropout", "symbol").count() == 15
    packages = [re.fullmatch(r"https://cdn\.jsdelivr\.net/npm/([a-z-]+)@[0-9.]+", url) for url in asked]
    assert [package and package[1] for package in packages] == ["vega", "vega-lite", "vega-embed"]
    assert f"vega-lite@{VEGA_LITE}." in asked[1]


def test_without_script_and_web_the_page_says_what_to_do(browser: Browser, shown: Path, tmp_path: Path) -> None:
    alone = tmp_path / "somewhere/plots"
    shutil.copytree(shown.parent, alone)
    with opened(browser, alone / "index.html") as (page, _):
        notice = page.locator("#notice")
        notice.wait_for(state="visible")
        assert "data/vega.js" in notice.inner_text()
        assert "dvc repro plot" in notice.inner_text()
        assert page.locator("img").count() == 2


def filled(value: Any, anchors: dict[str, Any]) -> Any:
    """Return a template with the anchors replaced that DVC leaves to the extension of VS Code."""
    match value:
        case dict():
            return {key: filled(one, anchors) for key, one in value.items()}
        case list():
            return [filled(one, anchors) for one in value]
        case str() if value in anchors:
            return anchors[value]
        case _:
            return value


def test_the_templates_are_vega_lite_for_vs_code(study: Clone) -> None:
    """What the extension reads is `--json --split`; what it draws must compile, in the versions that it has had."""
    plots = json.loads(study.dvc("plots", "diff", "HEAD~1", "HEAD", "--json", "--split", "--out", "json_plots"))
    assert "errors" not in plots
    charts = {name: entries[0] for name, entries in plots["data"].items() if entries[0]["type"] == "vega"}
    assert {name.replace(" ", "_") for name in charts} == set(CHARTS)
    for entry in charts.values():
        assert entry["revisions"] == ["HEAD~1", "HEAD"]
        size = {"<DVC_METRIC_PLOT_WIDTH>": 400, "<DVC_METRIC_PLOT_HEIGHT>": 300}
        spec = filled(entry["content"], entry["anchor_definitions"] | size)
        assert "<DVC_METRIC" not in json.dumps(spec)
        for version in ("5.8", VEGA_LITE):
            assert vl_convert.vegalite_to_vega(spec, vl_version=version)["marks"]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_templates_hold_no_scripts_and_are_in_use(template: Path) -> None:
    text = template.read_text()
    assert not re.search(r"script|https?://(?!vega\.github\.io/schema)|href|\burl\b", text, re.IGNORECASE)
    assert f"template: {template.stem}\n" in (PROJECT / "dvc.yaml").read_text()
