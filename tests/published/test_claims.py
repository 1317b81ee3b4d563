"""What is judged of the article's claims."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from dropout_study import calibration
from dropout_study.published import claims, page
from dropout_study.published.publication import Published
from dropout_study.results import History, Result, finished
from dropout_study.settings import load_settings
from dropout_study.verdict import Machine, Ranking
from tests.clones import PROJECT
from tests.studies import rates_of, verdict_of
from tests.test_results import result

CLEAR, NEAR, WORSE = [0.80, 0.81, 0.82], [0.81, 0.80, 0.815], [0.60, 0.61, 0.62]
MACHINE: dict[str, Any] = {
    "device": "CPU",
    "processor": "Some CPU",
    "instruction_sets": ["avx2"],
    "system": "Linux x86_64",
    "threads": 2,
    "shards": 2,
    "versions": {"python": "3.11.7", "keras": "3.15.1"},
    "variables": {},
}


def runs(optimizer: str, accuracies: dict[float, list[float]]) -> list[Result]:
    """Return runs with these test accuracies, and losses that rank them alike; a run of NaN diverged."""
    return [
        result(
            f"{optimizer}-{rate}-{seed}",
            test_accuracy=accuracy if math.isfinite(accuracy) else 0.1,
            test_loss=2 - accuracy if math.isfinite(accuracy) else 2.3,
            diverged=None if math.isfinite(accuracy) else 2,
        )
        for rate, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]


def published(name: str, rows: list[Result], preset: str = "cifar10-small", epochs: int | None = None) -> Published:
    verdict = replace(verdict_of(rows), machines=[Machine(MACHINE, [row.variant for row in rows])])
    settings = load_settings(PROJECT / f"presets/{preset}.yaml")
    train = settings.train.model_copy(update={"epochs": epochs or settings.train.epochs})
    study = settings.study.model_copy(update={"optimizers": [*dict.fromkeys(row.optimizer for row in rows)]})
    provenance: dict[str, Any] = {
        "archive": next(iter(page.ARCHIVES)),
        "variants": {
            row.variant: {
                "commit": "0123456789abcdef",
                "date": "2026-11-25",
                "modules": "0123456789abcdef",
                "training": {"epochs": 12, "seconds": 60.0, "images_per_second": 500.0},
                "provenance": MACHINE,
            }
            for row in rows
        },
    }
    bins = {row.variant: [calibration.Bin(0.6, 0.8, 500, 0.7, row.test_accuracy)] for row in finished(rows)}
    histories: dict[str, History] = {
        row.variant: [
            {"epoch": epoch, "validation_loss": 2 / epoch, "validation_accuracy": epoch / 20}
            for epoch in range(1, train.epochs + 1)
        ]
        for row in finished(rows)
    }
    settings = settings.model_copy(update={"study": study, "train": train})
    return Published(name, settings, rows, rates_of(rows), verdict, histories, bins, provenance)


def judged(accuracies: dict[float, list[float]], optimizer: str = "sgd") -> Ranking:
    return verdict_of(runs(optimizer, accuracies)).optimizers[optimizer].accuracy


def test_judge_rate_is_seen_if_every_other_rate_is_worse() -> None:
    verdict, reason = claims.judge_rate(judged({0.0: WORSE, 0.5: CLEAR}), "accuracy")

    assert verdict == "seen"
    assert re.fullmatch(r"Every other rate is worse; the closest, 0\.0, is 20\.0 ± .* points below 0\.5\.", reason)


def test_judge_rate_is_not_seen_if_the_rate_is_worse() -> None:
    verdict, reason = claims.judge_rate(judged({0.0: CLEAR, 0.5: WORSE}), "accuracy")

    assert verdict == "not seen"
    assert re.fullmatch(r"0\.5 is 20\.0 ± .* points below 0\.0\.", reason)


@pytest.mark.parametrize(("at_half", "leader"), [(NEAR, 0.3), (CLEAR, 0.5)])
def test_judge_rate_is_not_decidable_among_several(at_half: list[float], leader: float) -> None:
    other = CLEAR if at_half is NEAR else NEAR

    verdict, reason = claims.judge_rate(judged({0.0: WORSE, 0.3: other, 0.5: at_half}), "accuracy")

    second = 0.5 if leader == 0.3 else 0.3
    assert verdict == "not decidable"
    assert re.fullmatch(rf"0\.3 and 0\.5 may have the highest accuracy: {second} is .* points below {leader}\.", reason)


@pytest.mark.parametrize(
    ("accuracies", "reason"),
    [
        ({0.0: CLEAR, 0.3: WORSE}, "0.5 was not trained."),
        ({0.0: CLEAR, 0.3: NEAR, 0.5: [0.8, math.nan]}, "Runs at 0.5 diverged."),
        ({0.0: [0.5], 0.5: [0.9]}, "One run per rate gives no verdict."),
    ],
)
def test_judge_rate_is_not_decidable_without_a_verdict_on_it(accuracies: dict[float, list[float]], reason: str) -> None:
    assert claims.judge_rate(judged(accuracies), "accuracy") == ("not decidable", reason)


@pytest.mark.parametrize(
    ("adadelta", "sgd", "verdict"),
    [(CLEAR, WORSE, "seen"), (WORSE, CLEAR, "not seen"), (CLEAR, NEAR, "not decidable")],
)
def test_judge_optimizer_asks_to_whom_all_belong_that_may_be_best(
    adadelta: list[float], sgd: list[float], verdict: str
) -> None:
    rows = [*runs("adadelta", {0.0: adadelta, 0.5: adadelta}), *runs("sgd", {0.0: sgd, 0.5: sgd})]

    across = verdict_of(rows).across_optimizers
    assert across
    judgement = claims.judge_optimizer(across, "adadelta")

    assert judgement.verdict == verdict
    assert re.match(r"By accuracy, \w+ at 0\.\d leads; \w+ at 0\.\d, the best of the other, is ", judgement.reason)
    assert "By loss, " in judgement.reason


@pytest.mark.parametrize(
    ("adadelta", "sgd", "answer"),
    [
        (CLEAR, CLEAR, r"Yes, by accuracy: with adadelta, every other rate is worse; .*; with sgd, every other "),
        (WORSE, WORSE, r"No, by accuracy: with adadelta, 0\.5 is .* below 0\.0; with sgd, 0\.5 is .* below 0\.0\."),
        (CLEAR, WORSE, r"It depends, or cannot be decided, by accuracy: with adadelta, every .*; with sgd, 0\.5 is "),
    ],
)
def test_answer_to_article_speaks_of_every_optimizer(adadelta: list[float], sgd: list[float], answer: str) -> None:
    rows = [
        *runs("adadelta", {0.0: [0.7, 0.71, 0.72], 0.5: adadelta}),
        *runs("sgd", {0.0: [0.7, 0.71, 0.72], 0.5: sgd}),
    ]

    observed = claims.answer_to_article(verdict_of(rows))

    assert re.match(answer, observed)


@pytest.mark.parametrize(
    ("adadelta", "sgd", "answer"),
    [
        ({0.0: NEAR, 0.3: CLEAR}, {0.0: NEAR, 0.3: CLEAR}, "0.0 and 0.3 may be the best by"),
        ({0.0: WORSE, 0.3: CLEAR}, {0.0: CLEAR, 0.3: WORSE}, "No single rate may be the best by"),
    ],
)
def test_best_by_all_takes_the_rates_that_no_verdict_calls_worse(
    adadelta: dict[float, list[float]], sgd: dict[float, list[float]], answer: str
) -> None:
    verdict = verdict_of([*runs("adadelta", adadelta), *runs("sgd", sgd)])

    assert claims.best_by_all(verdict, 12) == (
        f"**{answer} both accuracy and loss, with both optimizers, after 12 epochs.**"
    )


@pytest.mark.parametrize(
    ("adadelta", "sgd", "leads"),
    [
        ({0.0: WORSE, 0.3: CLEAR}, {0.0: NEAR, 0.3: CLEAR}, "4"),
        ({0.0: WORSE, 0.3: NEAR, 0.5: CLEAR}, {0.0: CLEAR, 0.3: NEAR, 0.5: WORSE}, "none"),
    ],
)
def test_best_by_all_says_how_often_the_only_rate_leads(
    adadelta: dict[float, list[float]], sgd: dict[float, list[float]], leads: str
) -> None:
    verdict = verdict_of([*runs("adadelta", adadelta), *runs("sgd", sgd)])

    assert claims.best_by_all(verdict, 12) == (
        "**0.3 is the only rate that may be the best by both accuracy and loss, with both optimizers, after 12 "
        f"epochs.** It leads in {leads} of the 4 comparisons, and is worse in none."
    )


@pytest.mark.parametrize(("at_half", "sentence"), [(NEAR, "By loss, 0.5 may be the best with adadelta."), (WORSE, "")])
def test_article_by_loss_names_the_optimizers_with_which_it_may_be_best(at_half: list[float], sentence: str) -> None:
    verdict = verdict_of([*runs("adadelta", {0.0: CLEAR, 0.5: at_half}), *runs("sgd", {0.0: CLEAR, 0.5: WORSE})])

    assert claims.article_by_loss(verdict) == sentence
