"""The runs of the published studies, in the order of results/README.md: trains and publishes those that are missing.

Run it in a clone of its own, with an environment of its own, so that work on the project neither stops nor changes the
trainings. A run that is published is skipped and one that was killed resumes, so any machine goes on where the last
one stopped. Afterwards, commit results/:

    nice python -m benchmarks.long_runs --sha256 $(sha256sum < cifar-10-binary.tar.gz | cut -c -64)
"""

import argparse
import subprocess
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from dropout_study import files
from dropout_study.commands import DVC, environment
from dropout_study.published.publication import DIRECTORY
from dropout_study.results import read_results

HALF: dict[str, Any] = {"precision": "bfloat16"}
SLOWER: dict[str, Any] = {"learning_rate": {"sgd": 0.01, "adadelta": 1.0, "adam": 0.001}}
# Each study with its preset, and the settings in which it differs from that. What is compared with cifar10-small is
# computed in float32, as that is.
STUDIES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "article-notebook": ("article-notebook", {}),
    "after-pooling": ("cifar10-small", {"network": {"dropout_position": "after_pooling"}}),
    "cifar10-small-bfloat16": ("cifar10-small", {"train": HALF}),
    "sgd-0.01": ("cifar10-small", {"train": SLOWER}),
}


class Run(NamedTuple):
    """A run: the study that it belongs to, and its variant."""

    study: str
    optimizer: str
    dropout: float
    seed: int

    @property
    def key(self) -> str:
        """The name of the variant."""
        return f"{self.optimizer}-{self.dropout}-{self.seed}"


def grid(study: str, optimizer: str, dropouts: Iterable[float], seeds: Iterable[int]) -> list[Run]:
    """Return a run for each seed and rate, seeds in the outer loop."""
    return [Run(study, optimizer, dropout, seed) for seed, dropout in product(seeds, dropouts)]


ARTICLE, SMALL = "article-notebook", "cifar10-small-bfloat16"
RUNS = [
    *grid(ARTICLE, "sgd", [0.0, 0.3, 0.5, 0.7], [0]),
    *grid(ARTICLE, "adadelta", [0.0, 0.4, 0.5], [0]),
    *grid(ARTICLE, "adadelta", [0.5], [1, 2]),
    *grid(ARTICLE, "sgd", [0.0, 0.3, 0.5], [1, 2]),
    *grid(ARTICLE, "adadelta", [0.0, 0.4], [1, 2]),
    *grid("after-pooling", "adadelta", [0.3, 0.5, 0.7, 0.8], [0, 1, 2]),
    *grid(SMALL, "adadelta", [0.8], [0, 1, 2]),
    *grid("sgd-0.01", "sgd", [0.7, 0.8], [0]),
    *grid(SMALL, "adadelta", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0, 1, 2]),
    *grid(SMALL, "sgd", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0, 1, 2]),
    *grid(ARTICLE, "sgd", [0.1, 0.2, 0.4, 0.6], [0]),
    *grid(ARTICLE, "adadelta", [0.1, 0.2, 0.3, 0.6], [0]),
    *grid(ARTICLE, "adadelta", [0.7, 0.8, 0.9], [0]),
    *grid(ARTICLE, "sgd", [0.8, 0.9], [0]),
    *grid(SMALL, "adadelta", [0.7, 0.9], [0, 1, 2]),
    *grid(SMALL, "sgd", [0.7, 0.8, 0.9], [0, 1, 2]),
    *grid(ARTICLE, "sgd", [0.0, 0.3, 0.5], [3, 4]),
    *grid(ARTICLE, "adadelta", [0.0, 0.4, 0.5], [3, 4]),
]


def missing(directory: Path = DIRECTORY) -> Iterator[Run]:
    """Yield the runs that are not published, as they are when it is their turn."""
    for run in RUNS:
        table = directory / run.study / files.STUDY.name
        if not table.exists() or run.key not in {result.variant for result in read_results(table)}:
            yield run


def write_settings(run: Run, sha256: str | None) -> None:
    """Write params.yaml for one run, of the images in the archive with this SHA-256, or in the official one."""
    preset, changes = STUDIES[run.study]
    content = YAML(typ="safe").load(Path(f"presets/{preset}.yaml"))
    for section, values in changes.items():
        content[section] |= values
    content["study"] = {"optimizers": [run.optimizer], "dropouts": [run.dropout], "seeds": [run.seed]}
    content["download"]["sha256"] = sha256 or content["download"]["sha256"]
    with files.replacing(files.SETTINGS) as temporary:
        YAML().dump(content, temporary)


def main() -> None:
    """Train and publish the missing runs, one after another."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_runs", description=__doc__)
    parser.add_argument("--sha256", help="of the archive in CIFAR10_ARCHIVE, if it is not the official one")
    parser.add_argument("--study", choices=STUDIES, help="train the runs of this study only")
    parser.add_argument("--list", action="store_true", help="print the missing runs, and train none")
    options = parser.parse_args()
    for run in missing():
        if options.study not in (None, run.study):
            continue
        print(run.study, run.key, flush=True)
        if not options.list:
            write_settings(run, options.sha256)
            for command in ([*DVC, "repro"], ["dropout-study", "publish", run.study]):
                subprocess.run(command, check=True, env=environment())


if __name__ == "__main__":
    main()
