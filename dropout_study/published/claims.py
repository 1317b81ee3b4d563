"""What a published study says about the article's claims, and which rate it would choose: judgements in words."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dropout_study import report
from dropout_study.published.publication import Published
from dropout_study.results import QUANTITIES

ARTICLE_RATE = 0.5
UNDECIDED = "not decidable"


class Judgement(NamedTuple):
    """What became of a claim: "seen", "not seen" or "not decidable", and why, in a sentence or two."""

    verdict: str
    reason: str


def judge_rate(judged: Mapping[str, Any] | None, quantity: str, dropout: float = ARTICLE_RATE) -> Judgement:
    """Return whether `dropout` is seen to be the best by `quantity`, from the verdict on an optimizer.

    It is seen if every other rate is worse, not seen if it is worse than the leader, and not decidable if it is one of
    several that may be the best, or if there is no verdict on it.
    """
    if judged is None:
        return Judgement(UNDECIDED, "No study with this optimizer is published yet.")
    rows = {row["dropout"]: row for row in judged["rates"]}
    every = [name for name in rows if name not in judged["not_judged"]]
    may, leader = judged["may_be_best"], judged["leader"]
    if dropout not in rows:
        return Judgement(UNDECIDED, f"{dropout} was not trained.")
    if dropout not in every:
        return Judgement(UNDECIDED, f"Runs at {dropout} diverged.")
    if not may:
        return Judgement(UNDECIDED, "One run per rate gives no verdict.")
    if dropout in judged["worse"]:
        return Judgement("not seen", f"{dropout} is {report.apart(rows[dropout], quantity, leader)}.")
    if may == [dropout]:
        closest = min((rows[name] for name in judged["worse"]), key=lambda row: row["below"])
        return Judgement(
            "seen",
            f"Every other rate is worse; the closest, {closest['dropout']}, is "
            f"{report.apart(closest, quantity, dropout)}.",
        )
    second = min((rows[name] for name in may if name != leader), key=lambda row: row["below"])
    distance = report.apart(second if dropout == leader else rows[dropout], quantity, leader)
    reason = f"{report.listed(may, every)} may have {report.HAS[quantity]}: "
    return Judgement(UNDECIDED, f"{reason}{second['dropout'] if dropout == leader else dropout} is {distance}.")


def judge_optimizer(across: Mapping[str, Any] | None, claimed: str) -> Judgement:
    """Return whether the optimizer `claimed` is seen to do better than the others, by test accuracy.

    `across` is the verdict across optimizers. It is seen if all that may have the highest accuracy are of `claimed`,
    not seen if all are of another, and else not decidable. The reason has the loss, too.
    """
    if across is None:
        return Judgement(UNDECIDED, "No study with both optimizers is published yet.")
    reasons = []
    for quantity in report.HAS:
        leader = across[quantity]["leader"]
        if leader is None or not across[quantity]["may_be_best"]:
            return Judgement(UNDECIDED, "One run per rate gives no verdict.")
        optimizer = leader.partition("-")[0]
        others = [
            row
            for row in across[quantity]["rates"]
            if row["margin"] is not None and row["dropout"].partition("-")[0] != optimizer
        ]
        reason = f"By {quantity}, {report.pairs([leader], [leader])} leads"
        if others:
            closest = min(others, key=lambda row: row["below"])
            name = report.pairs([closest["dropout"]], [closest["dropout"]])
            reason += f"; {name}, the best of the other, is {report.apart(closest, quantity, 'it')}"
        reasons.append(f"{reason}.")
    better = across["accuracy"]["better_optimizer"]
    verdict = UNDECIDED if better is None else "seen" if better == claimed else "not seen"
    return Judgement(verdict, " ".join(reasons))


def judgements(study: Published | None) -> list[tuple[str, Judgement]]:
    """Return the article's four claims, each with what a study says of it."""
    optimizers = study.verdict["optimizers"] if study else {}

    def rate(optimizer: str, quantity: str) -> Judgement:
        return judge_rate(optimizers.get(optimizer, {}).get(quantity), quantity)

    return [
        ("With SGD, dropout 0.5 has the highest test accuracy.", rate("sgd", "accuracy")),
        ("With SGD, dropout 0.5 has the lowest test loss.", rate("sgd", "loss")),
        ("With Adadelta, dropout 0.5 has the highest test accuracy.", rate("adadelta", "accuracy")),
        (
            "Adadelta does better than SGD.",
            judge_optimizer(study.verdict["across_optimizers"] if study else None, "adadelta"),
        ),
    ]


def best_by_all(verdict: Mapping[str, Any], epochs: int) -> str:
    """Return which rates may be the best by accuracy and by loss, with every optimizer; of one, how often it leads.

    `epochs` is how many the verdict is about.
    """
    of_all = [judged[quantity] for judged in verdict["optimizers"].values() for quantity in QUANTITIES]
    every = list(dict.fromkeys(row["dropout"] for judged in of_all for row in judged["rates"]))
    common = [rate for rate in every if all(rate in judged["may_be_best"] for judged in of_all)]
    names = [*verdict["optimizers"]]
    with_all = names[0] if len(names) == 1 else "both optimizers" if len(names) == 2 else "every optimizer"
    by = f"by both accuracy and loss, with {with_all}, after {epochs} epochs"
    if not common:
        return f"**No single rate may be the best {by}.**"
    if len(common) > 1:
        return f"**{report.listed(common, every)} may be the best {by}.**"
    leads = sum(judged["leader"] == common[0] for judged in of_all)
    return (
        f"**{common[0]} is the only rate that may be the best {by}.** It leads in {leads or 'none'} of the "
        f"{len(of_all)} comparisons, and is worse in none."
    )


def answer_to_article(verdict: Mapping[str, Any]) -> str:
    """Return in a sentence whether the article's rate is seen to have the highest accuracy, by optimizer."""
    judged = {name: judge_rate(of["accuracy"], "accuracy") for name, of in verdict["optimizers"].items()}
    verdicts = {judgement.verdict for judgement in judged.values()}
    word = "Yes" if verdicts == {"seen"} else "No" if verdicts == {"not seen"} else "It depends, or cannot be decided"
    reasons = "; ".join(f"with {name}, {of.reason[0].lower()}{of.reason[1:-1]}" for name, of in judged.items())
    return f"{word}, by accuracy: {reasons}."


def article_by_loss(verdict: Mapping[str, Any]) -> str:
    """Return in a sentence with which optimizers the article's rate may have the lowest loss; nothing if with none."""
    names = [name for name, of in verdict["optimizers"].items() if ARTICLE_RATE in of["loss"]["may_be_best"]]
    return f"By loss, {ARTICLE_RATE} may be the best with {report.listed(names)}." if names else ""
