"""What a published study says about the article's claims, and which rate it would choose: judgements in words."""

from typing import NamedTuple

from dropout_study import report
from dropout_study.published.publication import Published
from dropout_study.verdict import QUANTITIES, AcrossVerdict, Quantity, Ranking, Verdict, split_pair

ARTICLE_RATE = 0.5
UNDECIDED = "not decidable"


class Judgement(NamedTuple):
    """What became of a claim: "seen", "not seen" or "not decidable", and why, in a sentence or two."""

    verdict: str
    reason: str


def judge_rate(ranking: Ranking, quantity: Quantity, dropout: float = ARTICLE_RATE) -> Judgement:
    """Return whether `dropout` is seen to be the best by `quantity`, from the verdict on an optimizer.

    It is seen if every other rate is worse, not seen if it is worse than the leader, and not decidable if it is one of
    several that may be the best, or if there is no verdict on it.
    """
    may, leader = ranking.may_be_best, ranking.leader
    if dropout not in [rate.dropout for rate in ranking.rates]:
        return Judgement(UNDECIDED, f"{dropout} was not trained.")
    if dropout in ranking.not_judged:
        return Judgement(UNDECIDED, f"Runs at {dropout} diverged.")
    if not may:
        return Judgement(UNDECIDED, "One run per rate gives no verdict.")
    rate = ranking.rate(dropout)
    if dropout in ranking.worse:
        return Judgement("not seen", f"{dropout} is {report.distance_text(rate, quantity, leader)}.")
    others = [ranking.rate(name) for name in (ranking.worse if may == [dropout] else may) if name != leader]
    closest = min(others, key=lambda other: other.below or 0.0)
    if may == [dropout]:
        distance = report.distance_text(closest, quantity, dropout)
        return Judgement("seen", f"Every other rate is worse; the closest, {closest.dropout}, is {distance}.")
    rival = closest if dropout == leader else rate
    reason = f"{report.listed(may, ranking.judged)} may have {report.HAS[quantity]}"
    return Judgement(UNDECIDED, f"{reason}: {rival.dropout} is {report.distance_text(rival, quantity, leader)}.")


def judge_optimizer(across: AcrossVerdict, claimed: str) -> Judgement:
    """Return whether the optimizer `claimed` is seen to do better than the others, by test accuracy.

    `across` is the verdict across optimizers. It is seen if all that may have the highest accuracy are of `claimed`,
    not seen if all are of another, and else not decidable. The reason has the loss, too.
    """
    reasons = []
    for quantity in QUANTITIES:
        ranking = across.by(quantity)
        leader = ranking.leader
        if leader is None or not ranking.may_be_best:
            return Judgement(UNDECIDED, "One run per rate gives no verdict.")
        reason = f"By {quantity}, {report.pairs([leader], [leader])} leads"
        compared = [rate for rate in ranking.rates if rate.margin is not None]
        others = [rate for rate in compared if split_pair(rate.dropout)[0] != split_pair(leader)[0]]
        if others:
            closest = min(others, key=lambda rate: rate.below or 0.0)
            name = report.pairs([closest.dropout], [closest.dropout])
            reason += f"; {name}, the best of the other, is {report.distance_text(closest, quantity, 'it')}"
        reasons.append(f"{reason}.")
    better = across.accuracy.better_optimizer
    verdict = UNDECIDED if better is None else "seen" if better == claimed else "not seen"
    return Judgement(verdict, " ".join(reasons))


def judgements(study: Published) -> list[tuple[str, Judgement]]:
    """Return the article's four claims, each with what a study of both optimizers says of it."""
    sgd, adadelta = study.verdict.optimizers["sgd"], study.verdict.optimizers["adadelta"]
    assert study.verdict.across_optimizers
    return [
        ("With SGD, dropout 0.5 has the highest test accuracy.", judge_rate(sgd.accuracy, "accuracy")),
        ("With SGD, dropout 0.5 has the lowest test loss.", judge_rate(sgd.loss, "loss")),
        ("With Adadelta, dropout 0.5 has the highest test accuracy.", judge_rate(adadelta.accuracy, "accuracy")),
        ("Adadelta does better than SGD.", judge_optimizer(study.verdict.across_optimizers, "adadelta")),
    ]


def best_by_all(verdict: Verdict, epochs: int) -> str:
    """Return which rates may be the best by accuracy and by loss, with every optimizer; of one, how often it leads.

    `epochs` is how many the verdict is about.
    """
    rankings = [verdicts.by(quantity) for verdicts in verdict.optimizers.values() for quantity in QUANTITIES]
    every = list(dict.fromkeys(rate.dropout for ranking in rankings for rate in ranking.rates))
    common = [rate for rate in every if all(rate in ranking.may_be_best for ranking in rankings)]
    names = [*verdict.optimizers]
    with_all = names[0] if len(names) == 1 else "both optimizers" if len(names) == 2 else "every optimizer"
    by = f"by both accuracy and loss, with {with_all}, after {epochs} epochs"
    if not common:
        return f"**No single rate may be the best {by}.**"
    if len(common) > 1:
        return f"**{report.listed(common, every)} may be the best {by}.**"
    leads = sum(ranking.leader == common[0] for ranking in rankings)
    return (
        f"**{common[0]} is the only rate that may be the best {by}.** It leads in {leads or 'none'} of the "
        f"{len(rankings)} comparisons, and is worse in none."
    )


def answer_to_article(verdict: Verdict) -> str:
    """Return in a sentence whether the article's rate is seen to have the highest accuracy, by optimizer."""
    judged = {name: judge_rate(verdicts.accuracy, "accuracy") for name, verdicts in verdict.optimizers.items()}
    verdicts = {judgement.verdict for judgement in judged.values()}
    word = "Yes" if verdicts == {"seen"} else "No" if verdicts == {"not seen"} else "It depends, or cannot be decided"
    reasons = "; ".join(
        f"with {name}, {judgement.reason[0].lower()}{judgement.reason[1:-1]}" for name, judgement in judged.items()
    )
    return f"{word}, by accuracy: {reasons}."


def article_by_loss(verdict: Verdict) -> str:
    """Return in a sentence with which optimizers the article's rate may have the lowest loss; nothing if with none."""
    names = [name for name, verdicts in verdict.optimizers.items() if ARTICLE_RATE in verdicts.loss.may_be_best]
    return f"By loss, {ARTICLE_RATE} may be the best with {report.listed(names)}." if names else ""
