import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropout_study import calibration, files, results, statistics
from dropout_study.console import StudyError
from dropout_study.results import Result
from dropout_study.settings import Variant
from dropout_study.verdict import Machine, rounded
from tests.studies import rates_of


def result(variant: str, validation_accuracy: float = 0.5, validation_loss: float = 1.0, **changes: Any) -> Result:
    optimizer, dropout, seed = variant.split("-")
    fields: dict[str, Any] = {
        "variant": variant,
        "optimizer": optimizer,
        "dropout": float(dropout),
        "seed": int(seed),
        "epochs": 6,
        "diverged": None,
        "train_loss": 0.25,
        "train_accuracy": 0.75,
        "validation_loss": validation_loss,
        "validation_accuracy": validation_accuracy,
        "test_loss": 0.5,
        "test_accuracy": 0.8,
        "calibration_error": 0.1,
    }
    fields |= changes
    return Result(**fields, accuracy_gap=fields["train_accuracy"] - fields["test_accuracy"])


def history(*rows: tuple[float, ...]) -> results.History:
    columns = ("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    return [dict(zip(columns, row, strict=True)) for row in rows]


VARIANT = Variant("sgd-0.0-7", "sgd", 0.0, 7)
# Three images, of which the first two are predicted right.
PREDICTIONS = np.log(np.array([[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]], np.float32))
LABELS = np.array([0, 1, 2], np.uint8)
SCORES = results.image_scores(PREDICTIONS, LABELS)


def test_make_result_takes_the_last_epoch_and_the_predictions() -> None:
    rows = history((1, 2.0, 0.1, 2.1, 0.2), (2, 1.0, 0.5, 1.1, 0.6))

    made = results.make_result(VARIANT, rows, SCORES, results.image_scores(np.roll(PREDICTIONS, 1, axis=1), LABELS))

    assert made[:10] == ("sgd-0.0-7", "sgd", 0.0, 7, 2, None, 1.0, 0.5, 1.1, 0.6)
    assert made.test_loss == pytest.approx((2 * math.log(2) + math.log(4)) / 3)
    assert made.test_accuracy == pytest.approx(2 / 3)
    assert made.accuracy_gap == pytest.approx(0.5 - 2 / 3)
    assert made.calibration_error == pytest.approx(2 / 3 - 0.5)  # all have a confidence of one half
    assert made.best_epoch == 2
    assert made.best_test_accuracy == pytest.approx(1 / 3)
    assert made.best_test_loss == pytest.approx((math.log(2) + 2 * math.log(4)) / 3)
    assert made.best_calibration_error == pytest.approx(0.5 - 1 / 3)


def test_image_scores_are_hits_logs_of_the_probability_of_the_class_and_confidences() -> None:
    scores = results.image_scores(PREDICTIONS, LABELS)

    assert scores["accuracy"].tolist() == [1, 1, 0]
    assert np.exp(scores["loss"]).tolist() == pytest.approx([0.5, 0.5, 0.25])
    assert scores["confidence"].tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert {values.dtype for values in scores.values()} == {np.dtype(np.float64)}


def test_image_scores_of_several_epochs_are_means_by_image() -> None:
    other = np.log(np.array([[[0.2, 0.8, 0.0], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]], np.float32) + 1e-9)

    scores = results.image_scores(np.concatenate([PREDICTIONS, other]), LABELS)

    assert scores["accuracy"].tolist() == [0.5, 1, 0.5]
    assert np.exp(scores["loss"]).tolist() == pytest.approx([(0.5 * 0.2) ** 0.5, 0.5, (0.25 * 0.8) ** 0.5])
    assert scores["confidence"].tolist() == pytest.approx([0.65, 0.5, 0.65])


def test_read_reliability_returns_the_rows_of_runs_that_did_not_diverge(tmp_path: Path) -> None:
    scores = {variant: results.image_scores(PREDICTIONS, LABELS) for variant in ("sgd-0.1-0", "sgd-0.1-1")}
    rows = [result("sgd-0.1-0"), result("sgd-0.1-1", diverged=3)]
    table = results.reliability_rows(rows, scores)
    files.write_csv(tmp_path / "reliability.csv", results.RELIABILITY_COLUMNS, table)

    read = results.read_reliability(tmp_path / "reliability.csv")

    expected = calibration.reliability(scores["sgd-0.1-0"]["confidence"], scores["sgd-0.1-0"]["accuracy"])
    assert read == {"sgd-0.1-0": expected}


def test_make_result_reads_the_divergence_from_the_history() -> None:
    nan = math.nan
    rows = history((1, 2.0, 0.1, 2.1, 0.2), (2, 1.0, 0.5, nan, nan))

    made = results.make_result(VARIANT, rows, SCORES, SCORES)

    assert (made.diverged, made.best_epoch) == (2, 1)


@pytest.mark.parametrize(("loss", "epoch"), [(2.0, None), (math.nan, 3)])
def test_divergence_epoch_is_that_of_a_last_row_with_a_loss_of_nan(loss: float, epoch: int | None) -> None:
    assert results.divergence_epoch(history((2, 1, 1, 1, 1), (3, 1.0, 0.1, loss, 0.1))) == epoch


def test_read_history_returns_what_was_written_exactly(tmp_path: Path) -> None:
    rows = history((1, 1 / 3, 0.1, 2 / 3, 1e-300), (2, 0.1 + 0.2, 0.1, 1.0, 0.5))
    files.write_csv(tmp_path / "history.csv", [*rows[0]], [[*row.values()] for row in rows])

    read = results.read_history(tmp_path / "history.csv")

    assert read == rows


def test_read_results_returns_what_was_written(tmp_path: Path) -> None:
    rows = [result("sgd-0.1-0"), result("sgd-0.1-1", diverged=3)]
    files.write_csv(tmp_path / "study.csv", Result._fields, rows)

    read = results.read_results(tmp_path / "study.csv")

    assert [repr(row) for row in read] == [repr(row) for row in rows]


def test_read_results_of_an_earlier_study_has_no_best_epoch(tmp_path: Path) -> None:
    columns = Result._fields[: Result._fields.index("best_epoch")]
    files.write_csv(tmp_path / "study.csv", columns, [result("sgd-0.1-0")[: len(columns)]])

    (row,) = results.read_results(tmp_path / "study.csv")

    assert row.best_epoch == 0
    assert math.isnan(row.best_test_accuracy)


def test_metrics_have_no_loss_that_json_cannot_hold(tmp_path: Path) -> None:
    rows = [result("sgd-0.1-7", test_loss=math.inf, diverged=1)]

    files.write_json(tmp_path / "evaluation.json", results.metrics(rows, result("sgd-0.1-8"), []))

    assert files.read_json(tmp_path / "evaluation.json")["variants"]["sgd-0.1-7"]["loss"] is None


def test_read_rates_returns_what_was_written(tmp_path: Path) -> None:
    rates = rates_of([result("sgd-0.1-0"), result("sgd-0.2-0"), result("sgd-0.2-1", test_accuracy=0.9)])
    files.write_csv(tmp_path / "rates.csv", statistics.RATE_COLUMNS, [[*row.values()] for row in rates])

    read = results.read_rates(tmp_path / "rates.csv")

    assert read == rates


def test_read_results_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there are no results yet; `dvc repro` makes them"):
        results.read_results(tmp_path / "study.csv")


def test_choose_best_takes_the_highest_validation_accuracy_not_test_accuracy() -> None:
    best = result("sgd-0.1-0", 0.9, test_accuracy=0.1)

    others = [result("sgd-0.2-0", 0.8, test_accuracy=0.99), result("sgd-0.3-0", 0.7)]

    assert results.choose_best([*others, best]) == best


def test_choose_best_of_equals_takes_the_lower_validation_loss() -> None:
    best = result("sgd-0.2-0", 0.9, 0.4)

    assert results.choose_best([result("sgd-0.1-0", 0.9, 0.5), best, result("sgd-0.3-0", 0.9, 0.6)]) == best


def test_choose_best_never_takes_a_diverged_variant() -> None:
    best = result("sgd-0.2-0", 0.2)

    assert results.choose_best([result("sgd-0.1-0", 0.9, diverged=2), best]) == best
    assert results.choose_best([result("sgd-0.1-0", diverged=1)]) is None


def test_metrics_have_accuracy_and_loss_by_variant_and_means_by_rate() -> None:
    best = result("sgd-0.1-0", test_accuracy=0.81234567)
    other = result("sgd-0.1-1", test_accuracy=0.6, test_loss=0.7)
    rows = [best, other, result("sgd-0.2-0", diverged=4)]

    value = rounded(results.metrics(rows, best, rates_of(rows)))

    assert json.loads(json.dumps(value)) == {
        "best": {
            "variant": "sgd-0.1-0",
            "validation_loss": 1.0,
            "validation_accuracy": 0.5,
            "test_loss": 0.5,
            "test_accuracy": 0.812346,
        },
        "means": {"sgd-0.1": {"accuracy": 0.706173, "loss": 0.6}},  # over the runs that did not diverge
        "variants": {
            "sgd-0.1-0": {"accuracy": 0.812346, "loss": 0.5},
            "sgd-0.1-1": {"accuracy": 0.6, "loss": 0.7},
            "sgd-0.2-0": {"accuracy": 0.8, "loss": 0.5, "diverged": 4},
        },
    }


def test_confusion_counts_every_pair() -> None:
    rows = results.confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), ["a", "b", "c"])

    assert len(rows) == 9
    assert {(actual, taken_for): n for actual, taken_for, n in rows if n} == {
        ("a", "a"): 1,
        ("a", "b"): 1,
        ("b", "b"): 1,
        ("c", "a"): 1,
    }


def test_most_confident_mistakes_come_in_order() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]])

    labels = np.array([0, 0, 0, 1, 1])

    assert results.most_confident_mistakes(labels, probabilities, 12).tolist() == [2, 3, 1]
    assert results.most_confident_mistakes(labels, probabilities, 1).tolist() == [2]


def test_remove_stale_files_removes_only_files_of_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for key in ("sgd-0.1-0", "sgd-0.2-0", "adadelta-1e-05-12"):
        for name_of in (files.variant_file, files.history_file, files.predictions_file, files.provenance_file):
            files.write_bytes(name_of(key), b"")
    own_files = [
        files.VARIANTS / "backup-of-0.5.keras",
        files.VARIANTS / "sgd-0.2-0.copy.keras",
        files.HISTORY / "notes.csv",
        files.PREDICTIONS / "README.txt",
    ]
    for path in own_files:
        files.write_bytes(path, b"mine")

    removed = results.remove_stale_files(["sgd-0.1-0"])

    stale = ("sgd-0.2-0", "adadelta-1e-05-12")
    assert set(removed) == {
        *map(files.variant_file, stale),
        *map(files.history_file, stale),
        *map(files.predictions_file, stale),
        *map(files.provenance_file, stale),
    }
    assert not any(path.exists() for path in removed)
    assert all(path.read_bytes() == b"mine" for path in own_files)
    assert files.variant_file("sgd-0.1-0").exists()


def test_machines_groups_variants_by_provenance() -> None:
    intel, amd = {"processor": "Intel", "threads": 2}, {"processor": "AMD", "threads": 2}

    kinds = results.machines({"a": intel, "b": amd, "c": amd})

    assert kinds == [Machine(amd, ["b", "c"]), Machine(intel, ["a"])]
