"""What a sweep gains: trains the study of params.yaml by `dvc repro` and by a sweep, in turns.

    python -m benchmarks.sweep --rounds 3

Prints a row per run, and the ratios of the medians. Needs a commit: what it trains are clones of that.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dropout_study import files
from dropout_study.commands import DVC, environment, output
from dropout_study.console import training_speed
from dropout_study.devices import processor


class Run(NamedTuple):
    """A run of the whole study: its wall seconds, and images per second in training, of all that train at a time."""

    wall: float
    throughput: float


def run_study(command: Sequence[str], at_a_time: int) -> Run:
    """Run the study in a clone of the project without results, by `command`, after `normalize`."""
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "project"
        output("git", "clone", "--quiet", ".", str(clone))
        (clone / "dvc.lock").unlink()
        output(*DVC, "repro", "--quiet", "normalize", cwd=clone)
        begin = time.perf_counter()
        subprocess.run(command, cwd=clone, env=environment(), stdout=subprocess.DEVNULL, check=True)
        wall = time.perf_counter() - begin
        speeds = [training_speed(path) for path in (clone / files.LOGS).glob("*.jsonl")]
    return Run(wall, at_a_time * statistics.median(speed.images_per_second for speed in speeds if speed))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    commands = {
        "dvc repro": ([*DVC, "repro", "--quiet"], 1),
        f"sweep --workers {options.workers}": (
            ["dropout-study", "sweep", "--workers", str(options.workers)],
            options.workers,
        ),
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    print(f"{processor()['processor']}, {os.cpu_count()} cores\n")
    print("| | wall s | images per second |\n| --- | ---: | ---: |")
    for _ in range(options.rounds):
        for name, (command, at_a_time) in commands.items():
            run = run_study(command, at_a_time)
            runs[name].append(run)
            print(f"| {name} | {run.wall:.1f} | {run.throughput:,.0f} |", flush=True)
    alone, swept = (Run(*map(statistics.median, zip(*rounds, strict=True))) for rounds in runs.values())
    print(f"| ratio of medians | {alone.wall / swept.wall:.2f} | {swept.throughput / alone.throughput:.2f} |")


if __name__ == "__main__":
    main()
