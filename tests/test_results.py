import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropout_study import files, results, statistics
from dropout_study.errors import StudyError
from dropout_study.results import Result
from dropout_study.settings import Variant


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
    }
    fields |= changes
    return Result(**fields, accuracy_gap=fields["train_accuracy"] - fields["test_accuracy"])


def history(*rows: tuple[Any, ...]) -> list[dict[str, str]]:
    columns = ("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    return [dict(zip(columns, map(str, row), strict=True)) for row in rows]


def test_a_result_is_the_last_epoch_and_the_test() -> None:
    rows = history((1, 2.0, 0.1, 2.1, 0.2), (2, 1.0, 0.5, 1.1, 0.6))
    made = results.make_result(Variant("sgd-0-7", "sgd", 0.0, 7), rows, 1.2, 0.7)
    assert made == Result("sgd-0-7", "sgd", 0.0, 7, 2, None, 1.0, 0.5, 1.1, 0.6, 1.2, 0.7, 0.5 - 0.7)


def test_a_diverged_result_says_in_which_epoch() -> None:
    rows = history((1, 2.0, 0.1, 2.1, 0.2), (2, "nan", "nan", "nan", "nan"))
    made = results.make_result(Variant("sgd-0-7", "sgd", 0.0, 7), rows, 2.3, 0.1)
    assert made.diverged == 2
    assert math.isnan(made.validation_loss)


def test_results_survive_their_table(tmp_path: Path) -> None:
    rows = [result("sgd-0.1-0"), result("sgd-0.1-1", diverged=3)]
    files.write_csv(tmp_path / "study.csv", Result._fields, rows)
    read = results.read_results(tmp_path / "study.csv")
    assert [row._replace(accuracy_gap=0) for row in read] == [row._replace(accuracy_gap=0) for row in rows]
    assert read[0].accuracy_gap == pytest.approx(rows[0].accuracy_gap)


def test_a_test_loss_that_is_not_finite_is_a_divergence_that_json_can_hold(tmp_path: Path) -> None:
    made = results.make_result(Variant("sgd-0-7", "sgd", 0.0, 7), history((1, 2.0, 0.1, 2.1, 0.2)), math.inf, 0.1)
    assert made.diverged == 1
    files.write_json(tmp_path / "evaluation.json", results.summary([made], result("sgd-0-8"), []))
    assert files.read_json(tmp_path / "evaluation.json")["variants"]["sgd-0-7"]["loss"] is None


def test_no_results_yet_is_said(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there are no results yet; `dvc repro` makes them"):
        results.read_results(tmp_path / "study.csv")


def test_the_best_has_the_highest_validation_accuracy_not_test_accuracy() -> None:
    best = result("sgd-0.1-0", 0.9, test_accuracy=0.1)
    others = [result("sgd-0.2-0", 0.8, test_accuracy=0.99), result("sgd-0.3-0", 0.7)]
    assert results.choose_best([*others, best]) == best


def test_of_equals_the_lower_validation_loss_is_the_best() -> None:
    best = result("sgd-0.2-0", 0.9, 0.4)
    assert results.choose_best([result("sgd-0.1-0", 0.9, 0.5), best, result("sgd-0.3-0", 0.9, 0.6)]) == best


def test_a_diverged_variant_is_never_the_best() -> None:
    best = result("sgd-0.2-0", 0.2)
    assert results.choose_best([result("sgd-0.1-0", 0.9, diverged=2), best]) == best
    with pytest.raises(StudyError, match=r"every variant .* diverged.*lower train.learning_rate"):
        results.choose_best([result("sgd-0.1-0", diverged=1)])


def test_the_evaluation_has_accuracy_and_loss_by_variant_and_means_by_rate() -> None:
    best = result("sgd-0.1-0", test_accuracy=0.81234567)
    other = result("sgd-0.1-1", test_accuracy=0.6, test_loss=0.7)
    rows = [best, other, result("sgd-0.2-0", diverged=4)]
    value = results.summary(rows, best, statistics.rates(rows, 10))
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


def test_the_confusion_counts_every_pair() -> None:
    rows = results.confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), ["a", "b", "c"])
    assert len(rows) == 9
    assert {(actual, taken_for): n for actual, taken_for, n in rows if n} == {
        ("a", "a"): 1,
        ("a", "b"): 1,
        ("b", "b"): 1,
        ("c", "a"): 1,
    }


def test_mistakes_are_the_most_confident_first() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]])
    labels = np.array([0, 0, 0, 1, 1])
    assert results.most_confident_mistakes(labels, probabilities, 12).tolist() == [2, 3, 1]
    assert results.most_confident_mistakes(labels, probabilities, 1).tolist() == [2]


def test_only_files_of_strange_variants_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for key in ("sgd-0.1-0", "sgd-0.2-0"):
        for path in (files.weights_file(key), files.history_file(key), files.timing_file(key)):
            files.write_bytes(path, b"")
    files.write_bytes(files.VARIANTS / "README.txt", b"")
    files.write_bytes(files.VARIANTS / ".1234.sgd-0.1-0.weights.h5", b"half")
    removed = results.remove_strangers([Variant("sgd-0.1-0", "sgd", 0.1, 0)])
    assert sorted(map(str, removed)) == [
        "metrics/history/sgd-0.2-0.csv",
        "metrics/timing/sgd-0.2-0.json",
        "models/variants/.1234.sgd-0.1-0.weights.h5",
        "models/variants/sgd-0.2-0.weights.h5",
    ]
    assert sorted(os.listdir(files.VARIANTS)) == ["README.txt", "sgd-0.1-0.weights.h5"]
