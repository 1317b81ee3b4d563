"""The scripts of experiments in benchmarks/: what they compute, and which runs they take."""

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from scipy import stats

from benchmarks import clipped_loss, inference, long_runs, precision
from dropout_study import files, network
from dropout_study.results import Result
from dropout_study.settings import load_settings
from tests.clones import PROJECT


def made_up(shift: float = 0.0) -> list[precision.Run]:
    """Return runs whose seeds differ by 0.02, and whose precisions by `shift`."""
    return [
        precision.Run(name, rate, seed, 0.6 + 0.02 * seed + (shift if name == "bfloat16" else 0), 1.0 + 0.1 * seed)
        for name in ("float32", "bfloat16")
        for rate in precision.RATES
        for seed in (0, 1, 2)
    ]


def test_differences_have_joint_margins_by_the_spread_of_each_rate() -> None:
    runs = [run._replace(accuracy=0.6 + 0.1 * run.seed) if run.dropout == 0.5 else run for run in made_up(shift=0.01)]

    compared = precision.differences(runs)

    accuracy, loss = compared[:3], compared[3:]
    assert [row.dropout for row in accuracy] == [0.0, 0.3, 0.5]
    assert [row.bfloat16 - row.float32 for row in accuracy] == pytest.approx([0.01, 0.01, 0.0])
    quantile = stats.t.isf(0.025 / 6, 4)
    spreads = [0.02, 0.02, 0.1]
    assert [row.margin for row in accuracy] == pytest.approx([quantile * s * math.sqrt(2 / 3) for s in spreads])
    assert [row.margin for row in loss] == pytest.approx([quantile * 0.1 * math.sqrt(2 / 3)] * 3)


def test_table_marks_what_is_outside_its_margin() -> None:
    inside = precision.table(precision.differences(made_up(shift=0.01)))
    outside = precision.table(precision.differences(made_up(shift=0.2)))

    assert "| 0.0 | test accuracy | 62.0 % | 63.0 % | +1.0 ± 7.9 |" in inside
    assert "outside" not in inside
    assert outside.count("**outside**") == 3


def test_performance_page_shows_the_table_of_the_committed_runs() -> None:
    page = (PROJECT / "docs/performance.md").read_text()

    shown = page.partition("<!-- precision -->")[2].partition("<!-- /precision -->")[0]
    assert shown.strip() == precision.table(precision.differences(precision.read(PROJECT / precision.TABLE)))


def test_clipped_loss_runs_what_its_table_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    every = [*clipped_loss.runs(path, "bfloat16")]
    done = [clipped_loss.Row(*run, 1.0, 0.1, 1.0, 0.1) for run in every[:5]]
    files.write_csv(path, clipped_loss.Row._fields, done)

    left = [*clipped_loss.runs(path, "bfloat16")]

    assert len(every) == 24
    assert left == every[5:]
    assert len([*clipped_loss.runs(path, "float32")]) == 24


def test_long_runs_skip_what_is_published(tmp_path: Path) -> None:
    done = [long_runs.RUNS[0], long_runs.RUNS[2]]
    rows = [(run.key, run.optimizer, run.dropout, run.seed, 50, None, *[0.5] * 8) for run in done]
    files.write_csv(tmp_path / done[0].study / "study.csv", Result._fields[:14], rows)

    left = [*long_runs.missing(tmp_path)]

    assert left == [run for run in long_runs.RUNS if run not in done]
    assert len({*long_runs.RUNS}) == len(long_runs.RUNS)


@pytest.mark.parametrize("study", long_runs.STUDIES)
def test_long_runs_write_valid_settings_of_one_run(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "presets").symlink_to(PROJECT / "presets")
    monkeypatch.chdir(tmp_path)
    run = next(run for run in long_runs.RUNS if run.study == study)

    long_runs.write_settings(run, "0" * 64)

    settings = load_settings(tmp_path / "params.yaml")
    assert [variant.key for variant in settings.variants] == [run.key]
    expected = "bfloat16" if study in ("article-notebook", "cifar10-small-bfloat16") else "float32"
    assert settings.train.precision == expected
    assert settings.download.sha256 == "0" * 64


def test_clipped_loss_of_the_notebooks_network_stops_learning_and_logits_do_not() -> None:
    """The statement of docs/results.md, on the committed runs."""
    rows = files.read_csv(PROJECT / "results/clipped-loss.csv")

    assert len(rows) == 24
    for row in rows:
        stopped = float(row["train_loss"]) > 14.4 and float(row["train_accuracy"]) < 0.101
        if row["loss"] == "logits":
            assert not stopped
            assert row["dropout"] != "0.8" or float(row["train_accuracy"]) > 0.14
        elif row["first_activation"] == "linear":
            assert stopped


def digits_network(rate: float) -> "keras.Model":
    shapes: dict[str, Any] = {"image_shape": (8, 8, 3), "classes": 10, "scale": [1 / 255] * 3, "offset": [0.0] * 3}
    sizes: dict[str, Any] = {"filters": [8, 8], "units": [16], "first_activation": "relu", "dropout": rate, "seed": 0}
    return network.build_network(**shapes, **sizes)


def test_pooling_scale_undoes_what_dropout_before_pooling_adds() -> None:
    model, images = digits_network(0.5), np.random.default_rng(0).integers(0, 256, (500, 8, 8, 3), np.uint8)

    scales = inference.pooling_scales(model, images)

    to_pooling = keras.Model(model.inputs[0], model.get_layer("pool_2").output)
    with_dropout, without = (float(np.mean(to_pooling(images, training=training))) for training in (True, False))
    assert scales == [pytest.approx(with_dropout / without, rel=0.02)]
    assert scales[0] > 1.1


def test_network_without_dropout_is_the_same_in_each_way_of_testing() -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (60, 8, 8, 3), np.uint8), random.integers(0, 10, 60)

    off, on, rescaled = inference.rows("x-0.0-0", digits_network(0.0), images, images, labels)

    assert off.loss == pytest.approx(on.loss) == pytest.approx(rescaled.loss)
    assert off.accuracy == on.accuracy == rescaled.accuracy
    model = digits_network(0.0)
    expected = np.log(np.asarray(model(images))[np.arange(60), labels]).mean()
    assert off.loss == pytest.approx(-expected, rel=1e-5)
