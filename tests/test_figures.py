from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dropout_study import evaluation, figures, verdict
from tests.test_evaluation import result

RATES = {0.0: [0.9, 0.8], 0.5: [0.7, 0.6]}
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
CLASSES = ["frog", "truck", "deer", "bird"]
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 3])
PROBABILITIES = np.array([[0.9, 0.1, 0, 0], [0.7, 0.1, 0.1, 0.1], [0, 0, 1, 0], [0, 0.2, 0.8, 0]])


def all_figures() -> dict[str, Figure]:
    return {
        "samples": figures.samples(IMAGES, CLASSES, "cifar10"),
        "bars": figures.bars(RATES, "sgd", "test accuracy"),
        "by_dropout": figures.by_dropout(verdict.rates(RESULTS, 10), RESULTS, "test_accuracy"),
        "small_multiples": figures.small_multiples({0.0: [HISTORY], 0.5: [HISTORY, HISTORY]}, "sgd"),
        "confusion": figures.confusion(
            evaluation.confusion(LABELS, PROBABILITIES.argmax(axis=1), CLASSES), "sgd-0.0-0"
        ),
        "mistakes": figures.mistakes_of("sgd-0.0-0", CLASSES, IMAGES, LABELS, PROBABILITIES),
    }


@pytest.mark.parametrize("name", all_figures())
def test_the_same_figure_is_the_same_bytes_without_a_date(tmp_path: Path, name: str) -> None:
    for file in ("first.png", "again.png"):
        figures.save(all_figures()[name], tmp_path / file)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    with Image.open(tmp_path / "first.png") as image:
        assert set(image.info) <= {"dpi"}
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_samples_are_smoothed_and_named_as_in_the_article() -> None:
    figure = all_figures()["samples"]
    assert [a.get_title(loc="center") for a in figure.axes] == CLASSES
    assert {a.images[0].get_interpolation() for a in figure.axes} == {"bicubic"}
    assert figures.SAMPLES == (0, 4, 8, 12)
    assert "cifar10" in figure.get_suptitle()


def test_bars_are_means() -> None:
    axes = all_figures()["bars"].axes[0]
    heights: list[Any] = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
    assert heights == pytest.approx([0.85, 0.65])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0", "0.5"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("dropout rate", "test accuracy (%)")


def test_a_rate_whose_runs_all_diverged_is_marked() -> None:
    axes = figures.bars({0.0: [0.5], 0.5: []}, "sgd", "test accuracy").axes[0]
    assert len(axes.patches) == 1
    assert "diverged" in {text.get_text() for text in axes.texts}


def test_the_figure_by_dropout_has_runs_means_intervals_guessing_and_diverged_runs() -> None:
    figure = all_figures()["by_dropout"]
    axes = figure.axes[0]
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}  # type: ignore[arg-type]
    assert drawn["sgd"] == pytest.approx([0.85, 0.7])
    assert drawn["adam"] == [0.6]
    assert drawn["guessing"] == [0.1, 0.1]
    assert len(drawn["sgd: diverged"]) == 1
    runs = [line for line in axes.lines if line.get_alpha()]
    assert [list(line.get_ydata()) for line in runs] == [[0.9, 0.8, 0.7], [0.6]]  # type: ignore[arg-type]
    ((bar,),) = (container.lines[2] for container in axes.containers)  # type: ignore[attr-defined]
    # One rate has two seeds: 0.85 ± 12.706 × 0.0707 / √2.
    assert bar.get_segments()[0][:, 1] == pytest.approx([0.85 - 0.6353, 0.85 + 0.6353], abs=1e-4)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "sgd",
        "sgd: diverged",
        "adam",
        "guessing",
    }


def test_the_confusion_has_a_count_in_every_cell_that_is_not_empty() -> None:
    axes = all_figures()["confusion"].axes[0]
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [
        ((0, 0), "1"),
        ((0, 1), "1"),
        ((2, 2), "1"),
        ((2, 3), "1"),
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == CLASSES


def test_mistakes_are_the_wrong_images_with_both_classes_and_the_probability() -> None:
    figure = all_figures()["mistakes"]
    shown = [a for a in figure.axes if a.images]
    assert [a.get_title(loc="center") for a in shown] == [
        "bird taken for deer\n(80.0%)",
        "truck taken for frog\n(70.0%)",
    ]
    np.testing.assert_array_equal(shown[0].images[0].get_array(), IMAGES[3])
    none = figures.mistakes_of("sgd-0.0-0", CLASSES, IMAGES, PROBABILITIES.argmax(axis=1), PROBABILITIES)
    assert none.get_suptitle() == "sgd-0.0-0 made no mistake"


def test_small_multiples_have_a_column_a_rate_and_a_line_a_seed_and_part() -> None:
    axes = all_figures()["small_multiples"].axes
    assert [a.get_title(loc="left") for a in axes[:2]] == ["dropout 0.0", "dropout 0.5"]
    assert [len(a.lines) for a in axes] == [2, 4, 2, 4]


def test_a_loss_off_the_scale_is_marked_at_its_end() -> None:
    high = [HISTORY[0] | {"train_loss": 50.0}, *HISTORY[1:]]
    axes = figures.small_multiples({0.5: [high]}, "sgd").axes[0]
    assert axes.get_ylim() == pytest.approx((0, 5.25))
    (mark,) = (line for line in axes.lines if line.get_marker() == "^")
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([1.0], [5.25])  # type: ignore[arg-type]


def test_a_diverged_history_does_not_spoil_the_axis() -> None:
    diverged = [*HISTORY, dict.fromkeys(HISTORY[0], float("nan")) | {"epoch": 4.0}]
    figure = figures.small_multiples({0.5: [diverged]}, "sgd")
    assert figure.axes[0].get_ylim() == pytest.approx((0, 2.1))


def test_every_optimizer_has_the_articles_charts_and_its_histories() -> None:
    found = figures.of_optimizers(RESULTS, {r.variant: HISTORY for r in RESULTS})
    assert sorted(found) == [
        f"{chart}-{optimizer}" for chart in ("accuracy", "history", "loss") for optimizer in ("adam", "sgd")
    ]


def test_pixels_are_shares_by_channel_before_and_after() -> None:
    counts = np.zeros((256, 3), np.int64)
    counts[0], counts[255] = [3, 0, 1], [1, 4, 3]
    rows = figures.pixel_rows(counts, scale=[0.1, 0.2, 1], offset=[-1, 0, 0])
    assert len(rows) == 2 * 3 * 16
    assert {row[:3]: row[3] for row in rows if row[3]} == {
        ("before", "red", 7.5): 0.75,
        ("before", "red", 247.5): 0.25,
        ("before", "green", 247.5): 1,
        ("before", "blue", 7.5): 0.25,
        ("before", "blue", 247.5): 0.75,
        ("after", "red", -0.25): 0.75,
        ("after", "red", 23.75): 0.25,
        ("after", "green", 49.5): 1,
        ("after", "blue", 7.5): 0.25,
        ("after", "blue", 247.5): 0.75,
    }
    grey = figures.pixel_rows(np.ones((256, 3), np.int64), scale=[1, 1, 1], offset=[0, 0, 0])
    assert {row[1] for row in grey} == {"all channels"}
    assert sum(float(str(row[3])) for row in grey if row[0] == "after") == pytest.approx(1)


def test_the_table_of_histories_is_tidy_and_leaves_out_what_is_not_finite() -> None:
    diverged = [*HISTORY, dict.fromkeys(HISTORY[0], float("nan")) | {"epoch": 4.0}]
    rows = figures.history_rows([result("sgd-0.1-0")], {"sgd-0.1-0": diverged})
    assert len(rows) == 6
    assert rows[0] == ("sgd-0.1-0", "sgd", 0.1, 0, 1, "train", 2.0, 0.1)
    assert len(figures.HISTORY_COLUMNS) == len(rows[0])
