"""How often verdicts on dropout rates are false, and how often they tell a difference, by simulation.

    python -m benchmarks.verdict [--studies 5000] [--seeds 3] [--truths A1 B1]

Studies are drawn from known truths, and judged by the study's method (`dropout_study.statistics.judge`) and by those
that one would think of first. "False" is the percentage of studies in which any rate that equals the best is called
worse; "told" that in which a rate that is worse by so many points is called worse. docs/statistics.md has the table.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dropout_study import statistics
from dropout_study.statistics import Rate

ALPHA = 1 - statistics.CONFIDENCE
INDEPENDENT = 0.35  # errors by image that runs make independently, as a share of the binomial variance
RESAMPLES = 200
LOOKS = (3, 5, 10)


@dataclass(frozen=True)
class Truth:
    """What accuracies are drawn from.

    means: the accuracy of each rate. spread: its standard deviation over seeds, one for all or one for each.
    images: the number of test images. omega: the standard deviation over images by which two rates differ.
    failures: the share of runs that end worse, by 8 points on average.
    """

    what: str
    means: Sequence[float]
    spread: float | Sequence[float]
    images: int = 500
    omega: float = 0.08
    failures: float = 0.0

    def accuracies(self, seeds: int, random: np.random.Generator) -> np.ndarray:
        """Draw the accuracies of a study, [rates, seeds]: those of the test images, in whole images."""
        means, least = np.array(self.means), self.least()
        shape = (len(means), seeds)
        by_images = random.normal(0, self.omega / math.sqrt(2 * self.images), (len(means), 1))
        by_run = np.sqrt(self.spreads() ** 2 - least)[:, None] * random.normal(size=shape)
        by_run -= (random.random(shape) < self.failures) * random.exponential(0.08, shape) - self.failures * 0.08
        errors = np.sqrt(least)[:, None] * random.normal(size=shape)
        accuracy = means[:, None] + by_images + by_run + errors
        return np.clip(np.round(accuracy * self.images) / self.images, 0, 1)

    def spreads(self) -> np.ndarray:
        """Return the standard deviation over seeds of each rate."""
        return np.broadcast_to(np.array(self.spread, float), len(self.means))

    def least(self) -> np.ndarray:
        """Return the part of the variance over seeds that independent errors by image make, for each rate."""
        means = np.array(self.means)
        return np.minimum(INDEPENDENT * means * (1 - means) / self.images, self.spreads() ** 2)


TRUTHS = {
    "A1": Truth("five equal", [0.965] * 5, 0.02),
    "A2": Truth("five equal, spreads from 0.5 to 5.8 points", [0.965] * 5, [0.005, 0.01, 0.02, 0.03, 0.058]),
    "A3": Truth("five equal, one run in ten fails", [0.965] * 5, 0.01, failures=0.1),
    "A4": Truth("five equal, one scatters seven times as much", [0.965] * 5, [0.007] * 4 + [0.05]),
    "B1": Truth(
        "digits, 22 points between 0.5 and 0.7",
        [0.984, 0.963, 0.944, 0.761, 0.101],
        [0.0045, 0.022, 0.023, 0.055, 0.002],
    ),
    "B3": Truth("digits, two equal best", [0.984, 0.984, 0.964, 0.934, 0.784], [0.005, 0.007, 0.015, 0.022, 0.045]),
    "C1": Truth(
        "CIFAR-10, six of ten equal, then cliffs",
        [0.61] * 6 + [0.59, 0.56, 0.41, 0.10],
        [0.007] * 6 + [0.009, 0.012, 0.03, 0.001],
        images=10_000,
        omega=0.1,
    ),
    "C3": Truth(
        "CIFAR-10, one better than five by 1.5 points",
        [0.595] * 5 + [0.61] + [0.59, 0.56, 0.41, 0.10],
        [0.007] * 6 + [0.009, 0.012, 0.03, 0.001],
        images=10_000,
        omega=0.1,
    ),
    "C4": Truth("CIFAR-10, ten equal", [0.61] * 10, 0.007, images=10_000, omega=0.1),
    "D1": Truth("two equal best, cliffs of 2, 5 and 20 points", [0.97, 0.97, 0.95, 0.92, 0.77], 0.01),
}

# A method gets a study, the truth about images that the predictions of a real study tell, and says which rates are
# worse: accuracies [rates, seeds], variance of independent errors [rates], variance of a difference by images.
Method = Callable[[np.ndarray, Truth], set[int]]


def rates_of(accuracies: np.ndarray, truth: Truth, *, with_images: bool = True) -> dict[int, Rate]:
    """Return what the study's method knows of each rate.

    The scores by image are made up such that the differences between rates have the variance by images that the truth
    says: each rate has two images of its own, one better and one worse by as much.
    """
    count, seeds = accuracies.shape
    least = truth.least() if with_images else np.zeros(count)
    of_images = truth.omega**2 / truth.images if with_images else 0.0
    rates = {}
    for i, runs in enumerate(accuracies):
        by_image = np.zeros(2 * count)
        deviation = math.sqrt((2 * count - 1) / 2 * truth.images * (of_images / 2 + least[i] / seeds))
        by_image[2 * i : 2 * i + 2] = deviation, -deviation
        rates[i] = Rate(
            seeds, truth.images, float(runs.mean()), runs.min(), runs.max(), by_image, float(runs.var(ddof=1)), least[i]
        )
    return rates


def this_method(accuracies: np.ndarray, truth: Truth) -> set[int]:
    """The study's method."""
    _, may_be_best, _ = statistics.judge(rates_of(accuracies, truth))
    return set(range(len(accuracies))) - set(may_be_best)


def without_images(accuracies: np.ndarray, truth: Truth) -> set[int]:
    """The study's method without the choice of the test images."""
    _, may_be_best, _ = statistics.judge(rates_of(accuracies, truth, with_images=False))
    return set(range(len(accuracies))) - set(may_be_best)


def one_round(accuracies: np.ndarray, truth: Truth) -> set[int]:
    """The study's method without setting rates aside."""
    rates = rates_of(accuracies, truth)
    leader = max(rates, key=lambda i: rates[i].mean)
    contenders = [*rates.values()]
    return {i for i in rates if i != leader and statistics.compare(rates[leader], rates[i], contenders, 1).worse}


def paired_holm(accuracies: np.ndarray, truth: Truth) -> set[int]:
    """Paired t-tests of all pairs of rates, corrected by Holm's method."""
    first, second = np.triu_indices(len(accuracies), 1)
    differences = accuracies[first] - accuracies[second]
    spread = np.maximum(differences.std(axis=1, ddof=1), 1 / truth.images)
    t = differences.mean(axis=1) / spread * math.sqrt(accuracies.shape[1])
    return holm(first, second, t, accuracies.shape[1] - 1)


def welch_holm(accuracies: np.ndarray, truth: Truth) -> set[int]:
    """Welch's t-tests of all pairs of rates, corrected by Holm's method."""
    first, second, t, df = welch(accuracies, truth)
    return holm(first, second, t, df)


def games_howell(accuracies: np.ndarray, truth: Truth) -> set[int]:
    """Games and Howell's test: Welch's standard errors, Tukey's range."""
    first, second, t, df = welch(accuracies, truth)
    limits = [statistics.factor(len(accuracies), max(1, math.floor(of))) for of in df]
    different = abs(t) > limits
    return {int(b if of > 0 else a) for a, b, of in zip(first[different], second[different], t[different], strict=True)}


def welch(accuracies: np.ndarray, truth: Truth) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return all pairs of rates, their t and its degrees of freedom, each with its own spread."""
    first, second = np.triu_indices(len(accuracies), 1)
    seeds = accuracies.shape[1]
    variance = np.maximum(accuracies.var(axis=1, ddof=1), truth.images**-2) / seeds
    total = variance[first] + variance[second]
    df = total**2 / (variance[first] ** 2 + variance[second] ** 2) * (seeds - 1)
    return first, second, (accuracies.mean(axis=1)[first] - accuracies.mean(axis=1)[second]) / np.sqrt(total), df


def holm(first: np.ndarray, second: np.ndarray, t: np.ndarray, df: np.ndarray | int) -> set[int]:
    """Return the worse rates of the pairs whose difference is significant after S. Holm's correction (1979)."""
    p = 2 * stats.t.sf(abs(t), df)
    order = np.argsort(p)
    passed = np.logical_and.accumulate(p[order] * np.arange(len(p), 0, -1) < ALPHA)
    return {int(second[i] if t[i] > 0 else first[i]) for i in order[passed]}


def tukey(accuracies: np.ndarray, truth: Truth) -> set[int]:
    """Tukey's test of all pairs, with one spread for all rates."""
    count, seeds = accuracies.shape
    variance = max(float(accuracies.var(axis=1, ddof=1).mean()), truth.images**-2.0)
    margin = statistics.factor(count, count * (seeds - 1)) * math.sqrt(2 * variance / seeds)
    means = accuracies.mean(axis=1)
    return set(np.flatnonzero(means.max() - means > margin).tolist())


def bootstrap(accuracies: np.ndarray, truth: Truth) -> set[int]:
    """Seeds and images resampled: worse is a rate whose 95 % percentile interval of the difference excludes 0."""
    random = np.random.default_rng(1)
    count, seeds = accuracies.shape
    draws = random.integers(0, seeds, (RESAMPLES, count, seeds))
    means = np.take_along_axis(accuracies[None], draws, 2).mean(axis=2)
    means += random.normal(size=means.shape) * np.sqrt(truth.omega**2 / truth.images / 2 + truth.least() / seeds)
    leader = int(accuracies.mean(axis=1).argmax())
    lowest = np.quantile(means[:, [leader]] - means, ALPHA / 2, axis=0)
    return {i for i in range(count) if i != leader and lowest[i] > 0}


METHODS: dict[str, Method] = {
    "paired t, Holm": paired_holm,
    "Welch's t, Holm": welch_holm,
    "Games–Howell": games_howell,
    "Tukey": tukey,
    "bootstrap": bootstrap,
    "one round": one_round,
    "without images": without_images,
    "this method": this_method,
}


def frequencies(
    truth: str, method: str, *, seeds: int, studies: int, random_seed: int = 0
) -> tuple[float, dict[float, float]]:
    """Return in how many of 100 studies a rate that equals the best is called worse, and each worse rate.

    `truth` and `method` are keys of `TRUTHS` and `METHODS`. The second value is by the accuracy of a rate.
    """
    drawn, judge = TRUTHS[truth], METHODS[method]
    best = max(drawn.means)
    equal = {i for i, mean in enumerate(drawn.means) if mean == best}
    random = np.random.default_rng([random_seed, seeds])
    false, told = 0, dict.fromkeys((mean for mean in drawn.means if mean < best), 0.0)
    for _ in range(studies):
        worse = judge(drawn.accuracies(seeds, random), drawn)
        false += bool(worse & equal)
        for mean in told:
            rates = [i for i, of in enumerate(drawn.means) if of == mean]
            told[mean] += len(worse & set(rates)) / len(rates)
    return 100 * false / studies, {mean: 100 * count / studies for mean, count in told.items()}


def looking_again(truth: str, looks: Sequence[int], *, studies: int, random_seed: int = 0) -> float:
    """Return in how many of 100 studies an equal rate is called worse after any of `looks` seeds."""
    drawn = TRUTHS[truth]
    equal = {i for i, mean in enumerate(drawn.means) if mean == max(drawn.means)}
    random = np.random.default_rng(random_seed)
    false = 0
    for _ in range(studies):
        accuracies = drawn.accuracies(max(looks), random)
        false += any(this_method(accuracies[:, :seeds], drawn) & equal for seeds in looks)
    return 100 * false / studies


def main() -> None:
    """Print the tables of docs/statistics.md."""
    parser = argparse.ArgumentParser(description="How often verdicts on dropout rates are false, by simulation.")
    parser.add_argument("--studies", type=int, default=5_000, help="studies a cell (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds a rate (default: %(default)s)")
    parser.add_argument("--truths", nargs="+", choices=TRUTHS, default=[*TRUTHS], help="of these (default: all)")
    arguments = parser.parse_args()
    truths = {name: TRUTHS[name] for name in arguments.truths}
    results = {
        (truth, method): frequencies(truth, method, seeds=arguments.seeds, studies=arguments.studies)
        for truth in truths
        for method in METHODS
    }
    head = f"| {arguments.seeds} seeds | {' | '.join(METHODS)} |\n| --- |{' ---: |' * len(METHODS)}"
    print(f"False, in 100 studies:\n\n{head}")
    for name, truth in truths.items():
        if sum(mean == max(truth.means) for mean in truth.means) > 1:
            cells = " | ".join(f"{results[name, method][0]:.1f}" for method in METHODS)
            print(f"| {name}: {truth.what} | {cells} |")
    print(f"\nTold, in 100 studies:\n\n{head}")
    for name, truth in truths.items():
        for mean in results[name, "this method"][1]:
            cells = " | ".join(f"{results[name, method][1][mean]:.0f}" for method in METHODS)
            print(f"| {name}: {100 * (max(truth.means) - mean):.1f} points below | {cells} |")
    if "A1" in truths:
        again = looking_again("A1", LOOKS, studies=arguments.studies)
        print(f"\nFalse in A1 if one looks after {', '.join(map(str, LOOKS))} seeds: {again:.1f} in 100 studies")


if __name__ == "__main__":
    main()
