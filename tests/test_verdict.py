"""The verdict in verdict.json."""

from dataclasses import replace
from pathlib import Path

import pytest

from dropout_study.console import StudyError
from dropout_study.verdict import Machine, read_verdict, rounded, write_verdict
from tests.clones import PROJECT
from tests.studies import verdict_of
from tests.test_statistics import CLEAR, NEAR, WORSE, other_optimizer, study

PUBLISHED = sorted((PROJECT / "results").glob("*/verdict.json"))


def test_rounded_keeps_six_significant_digits_however_deep() -> None:
    assert rounded({"a": [0.123456789, 3, "x", None], "b": (1234567.8,)}) == {
        "a": [0.123457, 3, "x", None],
        "b": [1234570.0],
    }


def test_verdict_is_read_as_it_was_written(tmp_path: Path) -> None:
    results = study({0.0: WORSE, 0.3: NEAR, 0.5: CLEAR, 0.8: [0.5, None]})
    verdict = verdict_of([*results, *other_optimizer(results, 0.9)])
    verdict = replace(verdict, test_epochs=3, machines=[Machine({"threads": 2}, ["sgd-0.5-0"])])

    written = write_verdict(tmp_path / "verdict.json", verdict)

    assert read_verdict(tmp_path / "verdict.json") == written
    assert written.optimizers["sgd"].accuracy.rate(0.5).mean == pytest.approx(0.815)
    assert written.optimizers["sgd"].accuracy.judged == [0.0, 0.3, 0.5]
    assert write_verdict(tmp_path / "again.json", written) == written


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "results").glob("*/verdict.json")), ids=lambda path: path.parent.name
)
def test_published_verdict_is_read(path: Path) -> None:
    assert read_verdict(path).optimizers


def test_verdict_that_is_damaged_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    path.write_text('{"confidence": 0.95}')

    with pytest.raises(StudyError, match=r"verdict\.json: damaged, .* \(test_images: .*`dvc repro`"):
        read_verdict(path)
