import io
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from dropout_study import figures, report
from dropout_study.calibration import Bin
from dropout_study.results import confusion
from tests.clones import PROJECT
from tests.studies import rates_of
from tests.test_results import result

HISTORY = [
    {
        "epoch": e,
        "train_loss": 2 / e,
        "train_accuracy": 0.1 * e,
        "validation_loss": 1 / e,
        "validation_accuracy": 0.2 * e,
    }
    for e in (1.0, 2.0, 3.0)
]


RESULTS = [
    result("sgd-0.0-0", test_accuracy=0.9),
    result("sgd-0.0-1", test_accuracy=0.8),
    result("sgd-0.5-0", test_accuracy=0.7),
    result("sgd-0.5-1", test_accuracy=0.1, diverged=2),
    result("adam-0.0-0", test_accuracy=0.6),
]
BINS = [Bin(0.2, 0.4, figures.FEW_IMAGES, 0.3, 0.2), Bin(0.6, 0.8, 100, 0.7, 0.5), Bin(0.8, 1.0, 5, 0.9, 0.0)]
CLASSES = ["frog", "truck", "deer", "bird"]
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 3])
PROBABILITIES = np.array([[0.9, 0.1, 0, 0], [0.7, 0.1, 0.1, 0.1], [0, 0, 1, 0], [0, 0.2, 0.8, 0]])


def small_multiples(histories: dict[float, list[Any]], diverged: dict[float, int] | None = None) -> Figure:
    return figures.small_multiples(histories, dict.fromkeys(histories, 0) | (diverged or {}), "sgd")


def all_figures() -> dict[str, Figure]:
    return {
        "samples": figures.samples(IMAGES, CLASSES, "cifar10"),
        "bars": figures.bars(rates_of(RESULTS), [0.0, 0.5], "sgd", "test_accuracy"),
        "by_dropout": figures.by_dropout(rates_of(RESULTS), RESULTS, "test_accuracy"),
        "reliability": figures.reliability({0.0: BINS, 0.5: BINS[:1]}, "sgd", [0.0, 0.5]),
        "small_multiples": small_multiples({0.0: [HISTORY], 0.5: [HISTORY, HISTORY]}),
        "confusion": figures.confusion(confusion(LABELS, PROBABILITIES.argmax(axis=1), CLASSES), "sgd-0.0-0"),
        "mistakes": figures.mistakes_of("sgd-0.0-0", CLASSES, IMAGES, LABELS, PROBABILITIES),
    }


@pytest.mark.parametrize("name", all_figures())
def test_save_writes_the_same_bytes_without_a_date(tmp_path: Path, name: str) -> None:
    for file in ("first.png", "again.png"):
        figures.save(all_figures()[name], tmp_path / file)

    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "again.png").read_bytes()

    with Image.open(tmp_path / "first.png") as image:
        assert set(image.info) <= {"dpi"}
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_save_ignores_a_users_own_style(tmp_path: Path) -> None:
    """In processes of their own: matplotlib reads matplotlibrc when it is imported."""
    (tmp_path / "matplotlibrc").write_text("savefig.dpi: 37\nfont.size: 23\nlines.linewidth: 9\naxes.facecolor: red\n")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import matplotlib\n"
        "from dropout_study import figures\n"
        "from tests.test_figures import all_figures\n"
        "assert (matplotlib.rcParams['font.size'] == 23) == (sys.argv[1] == 'hostile')\n"
        "for name, figure in all_figures().items():\n"
        "    figures.save(figure, Path(sys.argv[2]) / sys.argv[1] / f'{name}.png')\n"
    )
    for name, config in (("hostile", tmp_path), ("usual", tmp_path / "none")):
        subprocess.run(
            [sys.executable, "-c", code, name, str(tmp_path)],
            cwd=PROJECT,
            env=os.environ | {"MPLCONFIGDIR": str(config), "MATPLOTLIBRC": str(config)},
            check=True,
        )

    pictures = sorted(path.name for path in (tmp_path / "usual").iterdir())

    assert len(pictures) == len(all_figures())
    for picture in pictures:
        assert (tmp_path / "usual" / picture).read_bytes() == (tmp_path / "hostile" / picture).read_bytes()


def test_samples_are_smoothed_and_named_as_in_the_article() -> None:
    figure = all_figures()["samples"]

    assert [a.get_title(loc="center") for a in figure.axes] == CLASSES
    assert {a.images[0].get_interpolation() for a in figure.axes} == {"bicubic"}
    assert figures.SAMPLES == (0, 4, 8, 12)
    assert "cifar10" in figure.get_suptitle()


def test_bars_are_means() -> None:
    axes = all_figures()["bars"].axes[0]

    heights: list[Any] = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]

    assert heights == pytest.approx([0.85, 0.7])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0", "0.5"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("dropout rate", "test accuracy (%)")


def test_bars_mark_a_rate_at_which_all_runs_diverged() -> None:
    rates = rates_of([result("sgd-0.0-0")])

    axes = figures.bars(rates, [0.0, 0.5], "sgd", "test_accuracy").axes[0]

    (cross,) = axes.lines
    assert len(axes.patches) == 1
    assert (cross.get_marker(), list(cross.get_xdata()), cross.get_label()) == ("x", [1], "all runs diverged")  # type: ignore[arg-type]


def drawn_boxes(labels: Any) -> list[Any]:
    return [label.get_window_extent() for label in labels if label.get_text()]


@pytest.mark.parametrize("count", [1, 5, 10, 20, 30, 100, 300])
def test_tick_labels_do_not_touch_at_any_number_of_rates(count: int) -> None:
    study = [result(f"sgd-{round(i / count, 4)}-0") for i in range(count)]
    rates = rates_of(study)
    dropouts = [row["dropout"] for row in rates]

    pictures = [
        figures.bars(rates, dropouts, "sgd", "test_accuracy"),
        figures.by_dropout(rates, study, "test_accuracy"),
    ]

    for figure in pictures:
        FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
        boxes = drawn_boxes(figure.axes[0].get_xticklabels())
        assert boxes
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_small_multiples_of_many_rates_are_a_named_selection_with_both_ends() -> None:
    rates = [i / 300 for i in range(300)]

    figure = small_multiples({rate: [HISTORY] for rate in rates})

    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    assert titles[0] == f"dropout {rates[0]}"
    assert titles[-1] == f"dropout {rates[-1]}"
    assert len(titles) == 10
    assert figure.get_suptitle().endswith("; 10 of 300 dropout rates")


def test_by_dropout_has_runs_means_ranges_and_diverged_runs() -> None:
    figure = all_figures()["by_dropout"]

    axes = figure.axes[0]
    labelled = {line.get_label(): list(line.get_ydata()) for line in axes.lines}  # type: ignore[arg-type]
    runs = [list(line.get_ydata()) for line in axes.lines if line.get_alpha()]  # type: ignore[arg-type]
    (line,) = (segment for lines in axes.collections for segment in lines.get_segments())  # type: ignore[attr-defined]
    assert labelled["sgd"] == pytest.approx([0.85])
    assert labelled["not judged"] == [0.7]  # one of its runs diverged
    assert labelled["adam"] == [0.6]
    assert len(labelled["sgd: diverged"]) == 1
    assert runs == [[0.9, 0.8, 0.7], [0.6]]
    assert line[:, 1] == pytest.approx([0.8, 0.9])  # of the one rate with two runs
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "sgd", "sgd: diverged", "not judged", "adam"
    }  # fmt: skip


@pytest.mark.parametrize(("worst", "drawn"), [(0.1, True), (0.5, False)])
def test_by_dropout_draws_guessing_if_a_run_is_that_bad(worst: float, drawn: bool) -> None:
    study = [result("sgd-0.0-0", test_accuracy=0.9), result("sgd-0.5-0", test_accuracy=worst)]

    axes = figures.by_dropout(rates_of(study), study, "test_accuracy").axes[0]

    assert [list(line.get_ydata()) for line in axes.lines if line.get_label() == "guessing"] == [[0.1, 0.1]] * drawn  # type: ignore[arg-type]
    assert (axes.get_ylim()[0] < 0.1) == drawn


def test_by_dropout_has_brackets_under_the_rates_that_may_be_best() -> None:
    accuracies = {0.0: (0.8, 0.81), 0.2: (0.805, 0.8), 0.4: (0.3, 0.31), 0.6: (0.81, 0.8)}
    study = [
        result(f"sgd-{rate}-{seed}", test_accuracy=accuracy)
        for rate, runs in accuracies.items()
        for seed, accuracy in enumerate(runs)
    ]

    axes = figures.by_dropout(rates_of(study), study, "test_accuracy").axes[0]

    brackets: list[Any] = [line.get_xdata() for line in axes.lines if not line.get_clip_on()]
    covered = [rate for rate in accuracies if any(left < rate < right for left, right in brackets)]
    between = [any(left < place < right for left, right in brackets) for place in (0.1, 0.3, 0.5)]
    assert covered == [0.0, 0.2, 0.6]
    assert between == [True, False, False]  # neighbours share one


def test_by_dropout_puts_optimizers_side_by_side_and_counts_diverged_runs() -> None:
    """With three optimizers and rates 0.05 apart, no mark of one lies in the place of another or of another rate."""
    study = [
        result(f"{optimizer}-{rate}-{seed}", test_accuracy=0.7 + seed / 50, diverged=2 if rate == 0.95 else None)
        for optimizer in figures.COLORS
        for rate in (0.2, 0.25, 0.95)
        for seed in (0, 1, 2)
    ]
    axes = figures.by_dropout(rates_of(study), study, "test_accuracy").axes[0]
    places: dict[str, set[float]] = {}

    for line in axes.lines:
        if line.get_color() in figures.COLORS.values() and line.get_clip_on():  # the brackets are below the axis
            places.setdefault(str(line.get_color()), set()).update(map(float, line.get_xdata()))  # type: ignore[arg-type]

    for rate in (0.2, 0.25, 0.95):
        spans = [sorted(x for x in observed if abs(x - rate) < 0.025) for observed in places.values()]
        assert len(spans) == 3
        assert all(left[-1] < right[0] for left, right in itertools.pairwise(spans))

    crosses = [line for line in axes.lines if line.get_marker() == "x"]

    assert [len(line.get_xdata()) for line in crosses] == [1, 1, 1]  # type: ignore[arg-type]
    assert [text.get_text() for text in axes.texts if text.get_text().isdigit()] == ["3", "3", "3"]


def test_by_dropout_draws_means_and_ranges_at_their_rates() -> None:
    study = [
        result(f"sgd-{rate}-{seed}", test_accuracy=rate + seed / 100) for rate in (0.0, 0.5, 0.9) for seed in (0, 2)
    ]

    axes = figures.by_dropout(rates_of(study), study, "test_accuracy").axes[0]

    means = next(line for line in axes.lines if line.get_linewidth() == 1 and len(line.get_xdata()) == 3)  # type: ignore[arg-type]
    ranges = axes.collections[-1].get_segments()  # type: ignore[attr-defined]
    assert axes.get_xticks().tolist() == [0.0, 0.5, 0.9]
    assert means.get_xdata() == pytest.approx([0, 0.5, 0.9])
    assert means.get_ydata() == pytest.approx([0.01, 0.51, 0.91])
    assert [line[:, 1].tolist() for line in ranges] == [pytest.approx([rate, rate + 0.02]) for rate in (0.0, 0.5, 0.9)]
    assert "mean over 2 seeds, lowest and highest run; pale: single runs" in {text.get_text() for text in axes.texts}


def test_by_dropout_draws_one_seed_once_and_one_rate_in_the_middle() -> None:
    study = [result("sgd-0.5-0", test_accuracy=0.7)]

    axes = figures.by_dropout(rates_of(study), study, "test_accuracy").axes[0]

    marks = [
        (list(line.get_xdata()), list(line.get_ydata()))  # type: ignore[arg-type]
        for line in axes.lines
        if line.get_marker() not in ("", "None") and len(line.get_xdata())  # type: ignore[arg-type]
    ]
    assert marks == [([0.5], [0.7])]
    assert axes.get_xlim() == pytest.approx((0.45, 0.55))
    assert "one run per rate" in {text.get_text() for text in axes.texts}


def test_by_dropout_draws_runs_near_their_rate() -> None:
    study = [result(f"sgd-{rate}-{seed}") for rate in (0.0, 0.9) for seed in (0, 1)]
    axes = figures.by_dropout(rates_of(study), study, "test_accuracy").axes[0]

    (runs,) = (line for line in axes.lines if line.get_alpha())

    assert list(runs.get_xdata()) == pytest.approx([0, 0, 0.9, 0.9], abs=0.02)  # type: ignore[arg-type]


def test_by_dropout_axes_end_where_accuracies_and_losses_do() -> None:
    study = [
        result(f"sgd-{rate}-{seed}", test_accuracy=value, test_loss=value)
        for rate in (0.0, 0.5)
        for seed, value in enumerate((0.1, 1.0))
    ]
    rates = rates_of(study)

    accuracy, loss = (figures.by_dropout(rates, study, f"test_{quantity}").axes[0] for quantity in ("accuracy", "loss"))

    assert rates[1]["test_accuracy_limit"] < 0
    assert -0.2 < accuracy.get_ylim()[0] < 0
    assert accuracy.get_ylim()[1] == 1.02
    assert -0.2 < loss.get_ylim()[0] < 0
    assert loss.get_ylim()[1] > rates[1]["test_loss_limit"]


def test_bars_say_over_how_many_seeds_means_are() -> None:
    assert report.seeds([3, 3]) == "3 seeds"
    assert report.seeds([3, 0, 2]) == "2 to 3 seeds"
    assert report.seeds([1, 1]) == report.seeds([]) == ""

    study = [result(f"sgd-0.0-{seed}") for seed in (0, 1)] + [result(f"sgd-0.5-{seed}") for seed in (0, 1, 2)]
    axes = figures.bars(rates_of(study), [0.0, 0.5], "sgd", "test_accuracy").axes[0]

    assert axes.get_title(loc="left") == "sgd: test accuracy by dropout, mean of 2 to 3 seeds"


def test_mistakes_with_long_class_names_do_not_overlap() -> None:
    names = ["automobile", "airplane"]
    labels, probabilities = np.zeros(12, np.uint8), np.tile([0.1, 0.9], (12, 1))
    figure = figures.mistakes_of("adadelta-0.5-0", names, np.repeat(IMAGES, 3, axis=0), labels, probabilities)
    FigureCanvasAgg(figure).print_png(io.BytesIO())  # type: ignore[no-untyped-call]

    titles = [axes.get_title(loc="center") for axes in figure.axes]

    assert titles == ["automobile\npredicted airplane\n(90.0%)"] * 12

    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    boxes.append(figure._suptitle.get_window_extent())  # type: ignore[attr-defined]

    assert not any(item.overlaps(other) for item, other in itertools.combinations(boxes, 2))


def test_confusion_has_a_count_in_every_cell_that_is_not_empty() -> None:
    axes = all_figures()["confusion"].axes[0]

    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [
        ((0, 0), "1"),
        ((0, 1), "1"),
        ((2, 2), "1"),
        ((2, 3), "1"),
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == CLASSES


def test_confusion_is_shaded_by_the_share_of_the_actual_class() -> None:
    """Of four frogs three are predicted trucks; of one truck, one for a frog."""
    axes = figures.confusion(
        [("frog", "frog", 1), ("frog", "truck", 3), ("truck", "frog", 1), ("truck", "truck", 0)], "v"
    ).axes[0]

    (picture,) = axes.images

    assert np.asarray(picture.get_array()).tolist() == [[0.25, 0.75], [1, 0]]

    dark, light = picture.cmap(1.0)[:3], picture.cmap(0.0)[:3]

    assert sum(dark) < 1 < 2.5 < sum(light)
    assert [(text.get_text(), text.get_color()) for text in axes.texts] == [
        ("1", "black"),
        ("3", "white"),
        ("1", "white"),
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "actual class")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["frog", "truck"]


def test_mistakes_are_the_wrong_images_with_both_classes_and_the_probability() -> None:
    figure = all_figures()["mistakes"]

    shown = [a for a in figure.axes if a.images]

    assert [a.get_title(loc="center") for a in shown] == [
        "bird\npredicted deer\n(80.0%)",
        "truck\npredicted frog\n(70.0%)",
    ]
    np.testing.assert_array_equal(shown[0].images[0].get_array(), IMAGES[3])

    none = figures.mistakes_of("sgd-0.0-0", CLASSES, IMAGES, PROBABILITIES.argmax(axis=1), PROBABILITIES)

    assert none.get_suptitle() == "sgd-0.0-0 makes no mistake"


def test_small_multiples_have_a_column_a_rate_and_a_line_a_seed_and_part() -> None:
    axes = all_figures()["small_multiples"].axes

    assert [a.get_title(loc="left") for a in axes[:2]] == ["dropout 0.0", "dropout 0.5"]
    assert [len(a.lines) for a in axes] == [2, 4, 2, 4]


def test_small_multiples_draw_the_runs_of_their_rate_on_common_axes() -> None:
    histories = [[row | {"train_loss": row["train_loss"] / seed} for row in HISTORY] for seed in (1, 2)]
    axes = small_multiples({0.0: histories, 0.5: [HISTORY]}).axes

    drawn = [list(line.get_ydata()) for line in axes[0].lines]  # type: ignore[arg-type]

    assert drawn == [[2, 1, 2 / 3], [1, 1 / 2, 1 / 3], [1, 1 / 2, 1 / 3], [1, 1 / 2, 1 / 3]]
    assert axes[0].get_ylim() == axes[1].get_ylim() == pytest.approx((0, 2.1))
    assert axes[2].get_ylim() == axes[3].get_ylim() == (0, 1)


def test_small_multiples_draw_a_single_epoch_as_a_point_and_count_diverged_runs() -> None:
    nan = dict.fromkeys(HISTORY[0], float("nan")) | {"epoch": 2.0}

    axes = small_multiples({0.5: [[HISTORY[0], nan], HISTORY]}, {0.5: 1}).axes

    assert [line.get_marker() for line in axes[0].lines] == [".", ".", "", ""]
    assert [text.get_text() for text in axes[0].texts] == ["1 of 2 diverged"]


def test_small_multiples_mark_a_loss_off_the_scale() -> None:
    high = [HISTORY[0] | {"train_loss": 50.0}, *HISTORY[1:]]

    figure = small_multiples({0.5: [high]})

    axes = figure.axes[0]
    assert axes.get_ylim() == pytest.approx((0, 5.25))
    (mark,) = (line for line in axes.lines if line.get_marker() == "^" and len(line.get_xdata()))  # type: ignore[arg-type]
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([1.0], [5.25])  # type: ignore[arg-type]
    assert "loss above the axis" in [text.get_text() for text in figure.legends[0].texts]


def test_small_multiples_keep_the_axis_of_finite_losses() -> None:
    diverged = [*HISTORY, dict.fromkeys(HISTORY[0], float("nan")) | {"epoch": 4.0}]

    figure = small_multiples({0.5: [diverged]})

    assert figure.axes[0].get_ylim() == pytest.approx((0, 2.1))
    assert [text.get_text() for text in figure.legends[0].texts] == ["training", "validation"]


def test_reliability_draws_accuracy_by_confidence_of_bins_with_enough_images() -> None:
    axes = figures.reliability({0.5: BINS[1:2], 0.0: BINS}, "sgd", [0.0, 0.5]).axes[0]

    diagonal, *lines = axes.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]  # type: ignore[arg-type]
    assert [line.get_label() for line in lines] == ["0.0", "0.5"]
    assert [list(line.get_xdata()) for line in lines] == [[0.3, 0.7], [0.7]]  # type: ignore[arg-type]
    assert [list(line.get_ydata()) for line in lines] == [[0.2, 0.5], [0.5]]  # type: ignore[arg-type]


def test_reliability_draws_a_rate_in_one_colour_whatever_other_rates_have_a_line() -> None:
    whole = figures.reliability({0.0: BINS, 0.5: BINS, 0.9: BINS}, "adadelta", [0.9, 0.0, 0.5]).axes[0]
    part = figures.reliability({0.0: BINS, 0.5: BINS}, "sgd", [0.9, 0.0, 0.5]).axes[0]

    colors, colors_of_part = (
        {line.get_label(): to_hex(line.get_color()) for line in axes.lines} for axes in (whole, part)
    )
    assert colors_of_part == {label: colors[label] for label in ("calibrated", "0.0", "0.5")}
    assert len({*colors.values()}) == len(colors)


def test_by_dropout_labels_a_single_rate_as_the_settings_do() -> None:
    study = [item for item in RESULTS if item.dropout == 0.0]

    axes = figures.by_dropout(rates_of(study), study, "test_accuracy").axes[0]

    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0"]


def test_of_optimizers_draws_the_articles_charts_and_histories_of_each() -> None:
    rows = [item._replace(test_loss=item.test_accuracy + 1) for item in RESULTS]

    bins = {row.variant: [Bin(0.6, 0.8, 500, 0.7, row.test_accuracy)] for row in rows}

    observed = figures.of_optimizers(rates_of(rows), rows, {row.variant: HISTORY for row in rows}, bins)

    for optimizer, accuracies in (("sgd", [0.85, 0.7]), ("adam", [0.6])):
        for quantity, add in (("accuracy", 0), ("loss", 1)):
            axes = observed[f"{quantity}-{optimizer}"].axes[0]
            heights: list[Any] = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
            assert heights == pytest.approx([item + add for item in accuracies])
            assert {to_hex(patch.get_facecolor()) for patch in axes.patches} == {figures.COLORS[optimizer].lower()}
            assert axes.get_title(loc="left").startswith(f"{optimizer}: test {quantity} by dropout")
            assert axes.yaxis.get_major_formatter()(0.5) == ("50" if quantity == "accuracy" else "0.5")
    charts = ("accuracy", "history", "loss", "reliability")
    assert sorted(observed) == [f"{chart}-{optimizer}" for chart in charts for optimizer in ("adam", "sgd")]
