"""The verdict on a study: which dropout rates may be the best. Its form in verdict.json is known here alone."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from dropout_study import files
from dropout_study.console import StudyError

Quantity = Literal["accuracy", "loss"]
QUANTITIES: tuple[Quantity, Quantity] = ("accuracy", "loss")  # that rates are judged by
SIGNIFICANT_DIGITS = 6
Name = float | str  # of a rate: the rate, or across optimizers what `pair_name` returns


def pair_name(optimizer: str, dropout: object) -> str:
    """Return the name of a pair of optimizer and rate, such as `adadelta-0.3`."""
    return f"{optimizer}-{dropout}"


def split_pair(name: object) -> tuple[str, str]:
    """Return the optimizer and the rate of a pair."""
    optimizer, _, dropout = str(name).partition("-")
    return optimizer, dropout


@dataclass(frozen=True)
class RateVerdict:
    """A rate: its runs, and how far it is from the leader. Accuracies are shares, losses are in nats.

    runs, diverged: the numbers of runs that finished and that diverged.
    mean, lowest, highest: over the finished runs; None without any.
    below: how much worse than the leader the mean is: lower accuracy or higher loss; None if it is not compared.
    margin: how much worse an equally good rate may be; None if there is none, and of the leader.
    round: the last round in which the rate was compared, from 1.
    margin_seeds, margin_images: the parts of the margin, the root of the sum of their squares.
    """

    dropout: Name
    runs: int
    diverged: int
    mean: float | None = None
    lowest: float | None = None
    highest: float | None = None
    below: float | None = None
    margin: float | None = None
    round: int | None = None
    margin_seeds: float | None = None
    margin_images: float | None = None


@dataclass(frozen=True)
class Ranking:
    """The verdict on the rates by one quantity.

    status: "best": every rate but the leader is worse; "several": some rates are worse, and several may be the best;
        "any": no rate is worse; "one seed": there is no verdict on rates, only on networks; "none": at most one rate
        can be judged.
    networks_may_be_best: with one seed, the rates whose single networks are not worse than the leader's.
    not_judged: the rates of which a run diverged.
    margin_with: about how large the largest margin would be with more seeds, by their number.
    margin_of_images: what the test images alone leave of it with any number of seeds.
    """

    status: Literal["best", "several", "any", "one seed", "none"] = "none"
    leader: Name | None = None
    may_be_best: list[Name] = field(default_factory=list)
    worse: list[Name] = field(default_factory=list)
    networks_may_be_best: list[Name] = field(default_factory=list)
    not_judged: list[Name] = field(default_factory=list)
    margin_with: dict[str, float] = field(default_factory=dict)
    margin_of_images: float | None = None
    rates: list[RateVerdict] = field(default_factory=list)

    @property
    def judged(self) -> list[Name]:
        """The rates that are judged, in order."""
        return [rate.dropout for rate in self.rates if rate.dropout not in self.not_judged]

    def rate(self, name: Name | None) -> RateVerdict:
        """Return the verdict on the rate `name`; raises `KeyError` if it was not trained."""
        return {rate.dropout: rate for rate in self.rates}[name]  # type: ignore[index]


@dataclass(frozen=True)
class AcrossRanking(Ranking):
    """The verdict on all pairs of optimizer and rate; `better_optimizer` is that of all pairs that may be the best."""

    better_optimizer: str | None = None


@dataclass(frozen=True)
class OptimizerVerdict:
    """The verdict on the rates of one optimizer; `validation_choice` is the rate that validation would choose."""

    validation_choice: float | None
    accuracy: Ranking
    loss: Ranking

    def by(self, quantity: Quantity) -> Ranking:
        """Return the verdict by a quantity."""
        return self.accuracy if quantity == "accuracy" else self.loss


@dataclass(frozen=True)
class AcrossVerdict:
    """The verdict on all pairs of optimizer and rate."""

    accuracy: AcrossRanking
    loss: AcrossRanking

    def by(self, quantity: Quantity) -> AcrossRanking:
        """Return the verdict by a quantity."""
        return self.accuracy if quantity == "accuracy" else self.loss


@dataclass(frozen=True)
class Machine:
    """A kind of machine, as `train` describes it, and the variants that were computed on it."""

    provenance: dict[str, Any]
    variants: list[str]


@dataclass(frozen=True)
class Verdict:
    """The verdict on a study, by optimizer, and across optimizers if there are several.

    confidence: of a study of equally good rates, how likely none is called worse.
    diverged: the epoch in which a variant diverged, by its key.
    test_epochs: the number of last epochs that test figures are means over; None in studies published earlier.
    """

    confidence: float
    test_images: int
    validated_on: Literal["test images", "held-out images"]
    runs: int
    diverged: dict[str, int]
    optimizers: dict[str, OptimizerVerdict]
    across_optimizers: AcrossVerdict | None
    test_epochs: int | None = None
    machines: list[Machine] = field(default_factory=list)


def rounded(value: Any) -> Any:
    """Return `value` with every float in it, however deep, rounded to six significant digits, as people read tables."""
    match value:
        case dict():
            return {key: rounded(content) for key, content in value.items()}
        case list() | tuple():
            return [rounded(content) for content in value]
        case float():
            return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
        case _:
            return value


_ADAPTER = TypeAdapter(Verdict)


def read_verdict(path: Path = files.VERDICT) -> Verdict:
    """Return the verdict in a file; raises `StudyError` if it is not there or not a verdict."""
    try:
        return _ADAPTER.validate_python(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except json.JSONDecodeError as error:
        reason = str(error)
    raise StudyError(
        f"{path}: damaged, or written by another version of the project ({reason}); `dvc repro` makes it again"
    )


def write_verdict(path: Path, verdict: Verdict) -> Verdict:
    """Write a verdict with numbers rounded as in all tables for people, and return it as it is read again."""
    content = rounded(asdict(verdict))
    files.write_json(path, content)
    return _ADAPTER.validate_python(content)
