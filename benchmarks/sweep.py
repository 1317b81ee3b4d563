"""What a sweep costs beside training: `python -m benchmarks.sweep` sweeps studies of 15 to 1,000 variants.

The trainer is a fake that writes a variant's outputs and sleeps, so all processor time but its own is overhead. CPU
seconds are those of user and system, of every process; wall seconds depend on what else the machine does.

`--speed N` measures what a sweep gains instead: the study of params.yaml is trained N times by `dvc repro` and N times
by a sweep, in turns, with the real trainer.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dropout_study import files
from dropout_study.commands import DVC, environment, output
from dropout_study.console import training_speed
from dropout_study.devices import processor
from dropout_study.sweep.board import STATUS
from tests.clones import FAKE_TRAINER, copy_project, small_project

SIZES = (15, 100, 300, 1000)
SLEEP_SECONDS = 0.2
COLUMNS = (
    "variants",
    "trainer, CPU s",
    "worker, CPU s a variant",
    "driver, CPU s",
    "driver, CPU s a variant",
    "wall s",
    "wall s × workers a variant",
)
RATES = [0.0, 0.1, 0.2, 0.3, 0.5]


class Cost(NamedTuple):
    """What a sweep of `variants` cost: CPU seconds of the fake trainer, of workers without it, of the driver; wall."""

    variants: int
    trainer: float
    workers: float
    driver: float
    wall: float


def study(directory: Path, variants: int) -> None:
    """Make a project in `directory` whose study has `variants` variants, with a fake trainer that sleeps."""
    clone = small_project(directory)
    trainer = FAKE_TRAINER.read_text(encoding="utf-8")
    slow = f"import time\n\ntime.sleep({SLEEP_SECONDS})\n\nif __name__"
    (directory / "stages/train.py").write_text(trainer.replace("if __name__", slow, 1), encoding="utf-8")
    seeds = [*range(variants // len(RATES))]
    clone.change(study__optimizers=["adadelta"], study__dropouts=RATES, study__seeds=seeds)


def children_seconds() -> float:
    """Return the CPU seconds of all children of this process that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def trainer_seconds(directory: Path) -> float:
    """Return the CPU seconds of the fake trainer for one variant, without DVC: the median of three."""
    key = "adadelta-0.0-0"
    seconds = []
    for _ in range(3):
        before = children_seconds()
        variables = {"DVC_STAGE": f"train@{key}"}
        output(sys.executable, "-m", "stages.train", cwd=directory, variables=variables)
        seconds.append(children_seconds() - before)
    return sorted(seconds)[1]


def measure(variants: int, workers: int) -> Cost:
    """Sweep a study of `variants` variants; return what it cost."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "project"
        study(directory, variants)
        output(*DVC, "repro", "--quiet", "normalize", cwd=directory)
        trainer = trainer_seconds(directory)
        shutil.rmtree(directory / "models")
        before, begin = children_seconds(), time.perf_counter()
        command = ["dropout-study", "sweep", "--workers", str(workers)]
        subprocess.run(command, cwd=directory, env=environment(), stdout=subprocess.DEVNULL, check=True)
        wall, total = time.perf_counter() - begin, children_seconds() - before
        rows: dict[str, Any] = json.loads((directory / STATUS).read_text(encoding="utf-8"))["rows"]
    in_workers = sum(row["cpu_seconds"] for row in rows.values())
    return Cost(variants, trainer, in_workers - trainer * variants, total - in_workers, wall)


class Run(NamedTuple):
    """A run of the whole study: its wall seconds, and images per second in training, of all that train at a time."""

    wall: float
    throughput: float


def run_study(command: Sequence[str], at_a_time: int) -> Run:
    """Run the study of params.yaml in a copy of the project without results, by `command`, after `normalize`."""
    with tempfile.TemporaryDirectory() as name:
        clone = copy_project(Path(name) / "project")
        (clone.path / "dvc.lock").unlink()
        output(*DVC, "repro", "--quiet", "normalize", cwd=clone.path)
        begin = time.perf_counter()
        subprocess.run(command, cwd=clone.path, env=environment(), stdout=subprocess.DEVNULL, check=True)
        wall = time.perf_counter() - begin
        speeds = [training_speed(path) for path in (clone.path / files.LOGS).glob("*.jsonl")]
    return Run(wall, at_a_time * statistics.median(speed.images_per_second for speed in speeds if speed))


def compare(rounds: int, workers: int) -> None:
    """Run the study `rounds` times by `dvc repro` and by a sweep, in turns; print each run and ratios of medians."""
    commands = {
        "dvc repro": ([*DVC, "repro", "--quiet"], 1),
        f"sweep --workers {workers}": (["dropout-study", "sweep", "--workers", str(workers)], workers),
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    print("| | wall s | images per second |\n| --- | ---: | ---: |")
    for _ in range(rounds):
        for name, (command, at_a_time) in commands.items():
            run = run_study(command, at_a_time)
            runs[name].append(run)
            print(f"| {name} | {run.wall:.1f} | {run.throughput:,.0f} |", flush=True)
    alone, swept = (Run(*map(statistics.median, zip(*taken, strict=True))) for taken in runs.values())
    print(f"| ratio of medians | {alone.wall / swept.wall:.2f} | {swept.throughput / alone.throughput:.2f} |")


def row(cost: Cost, workers: int) -> str:
    """Return a row of the table."""
    overhead = cost.wall * workers / cost.variants
    return (
        f"| {cost.variants:,} | {cost.trainer:.2f} | {cost.workers / cost.variants:.2f} | "
        f"{cost.driver:.1f} | {cost.driver / cost.variants:.3f} | {cost.wall:.0f} | {overhead:.2f} |"
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of variants, multiples of 5")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--speed", type=int, metavar="N", help="compare with `dvc repro`, N runs of each")
    options = parser.parse_args()
    print(f"{processor()['processor']}, {os.cpu_count()} cores, {options.workers} workers\n")
    if options.speed:
        compare(options.speed, options.workers)
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{' ---: |' * len(COLUMNS)}")
    for size in options.sizes:
        print(row(measure(size, options.workers), options.workers), flush=True)


if __name__ == "__main__":
    main()
