from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dropout_study import figures
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


def all_figures() -> dict[str, Figure]:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    return {
        "samples": figures.samples(images, ["frog", "truck", "deer", "bird"]),
        "accuracy": figures.bars(RATES, "sgd", "test accuracy", 0.1),
        "loss": figures.bars(RATES, "sgd", "test loss (nats)", None),
        "histories": figures.histories({0.0: [HISTORY], 0.5: [HISTORY, HISTORY]}, "sgd"),
    }


@pytest.mark.parametrize("name", all_figures())
def test_the_same_figure_is_the_same_bytes_without_a_date(tmp_path: Path, name: str) -> None:
    for file in ("first.png", "again.png"):
        figures.save(all_figures()[name], tmp_path / file)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    with Image.open(tmp_path / "first.png") as image:
        assert set(image.info) <= {"dpi"}
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_samples_are_smoothed_and_named() -> None:
    axes = all_figures()["samples"].axes
    assert [a.get_title() for a in axes] == ["frog", "truck", "deer", "bird"]
    assert {a.images[0].get_interpolation() for a in axes} == {"bicubic"}
    assert figures.SAMPLES == (0, 4, 8, 12)


def test_bars_are_means_and_points_are_seeds() -> None:
    axes = all_figures()["accuracy"].axes[0]
    heights: list[Any] = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
    assert heights == pytest.approx([0.85, 0.65])
    assert [list(line.get_ydata()) for line in axes.lines[:2]] == [[0.9, 0.8], [0.7, 0.6]]  # type: ignore[arg-type]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.5"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("dropout rate", "test accuracy")


def test_a_rate_whose_runs_all_diverged_is_marked() -> None:
    axes = figures.bars({0.0: [0.5], 0.5: []}, "sgd", "test accuracy", 0.1).axes[0]
    assert len(axes.patches) == 1
    assert "diverged" in {text.get_text() for text in axes.texts}


def test_histories_have_a_column_a_rate_and_a_line_a_seed_and_part() -> None:
    axes = all_figures()["histories"].axes
    assert [a.get_title() for a in axes[:2]] == ["dropout 0", "dropout 0.5"]
    assert [len(a.lines) for a in axes] == [2, 4, 2, 4]


def test_a_diverged_history_does_not_spoil_the_axis() -> None:
    diverged = [*HISTORY, dict.fromkeys(HISTORY[0], float("nan")) | {"epoch": 4.0}]
    figure = figures.histories({0.5: [diverged]}, "sgd")
    assert figure.axes[0].get_ylim() == pytest.approx((0, 2.1))


def test_the_table_of_histories_is_tidy_and_leaves_out_what_is_not_finite() -> None:
    diverged = [*HISTORY, dict.fromkeys(HISTORY[0], float("nan")) | {"epoch": 4.0}]
    rows = figures.history_rows([result("sgd-0.1-0")], {"sgd-0.1-0": diverged})
    assert len(rows) == 6
    assert rows[0] == ("sgd-0.1-0", "sgd", 0.1, 0, 1, "train", 2.0, 0.1)
    assert len(figures.HISTORY_COLUMNS) == len(rows[0])
