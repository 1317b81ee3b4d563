import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import training
from dropout_study import devices
from tests.clones import PROJECT, small_project

SMALL = ["--batch-size", "16", "--image-size", "8", "--steps", "2", "--threads", "2", "--epoch-images", "64"]
ROWS = {*training.NAMES, "epoch_stock", "epoch_ours"}


class Turn:
    """A contestant that takes as many seconds as it had turns, and fails after `last`."""

    def __init__(self, name: str, order: list[str], last: int = 99) -> None:
        self.name, self.order, self.last = name, order, last
        self.number = 0

    def send(self, _: object) -> None:
        self.order.append(self.name)
        self.number += 1

    def recv(self) -> float:
        if self.number > self.last:
            raise EOFError
        return float(self.number)


def take_turns(turns: list[Turn], rounds: int, warm_up: int, at_most: float = 60) -> tuple[dict[str, list[float]], str]:
    """Return the seconds of each, and what was reported."""
    lines: list[str] = []
    by_name = {turn.name: turn for turn in turns}
    seconds = training.take_turns(by_name, rounds, warm_up, at_most, lines.append)  # type: ignore[arg-type]
    return seconds, "\n".join(lines)


@pytest.mark.slow
@pytest.mark.pipeline
def test_main_measures_everything_that_is_installed(tmp_path: Path) -> None:
    """For real, in processes of their own, but few and small images."""
    path = tmp_path / "bench.json"

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", *SMALL, "--json", str(path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )

    result = json.loads(path.read_text())
    speeds, ratios = result["images_per_second"], result["ratios"]
    has_pytorch = importlib.util.find_spec("torch") is not None
    absent = {name for name, speed in speeds.items() if speed is None}
    assert (result["options"]["image_size"], result["rounds"]) == (8, {"steps": 2, "epochs": 3})
    assert result["machine"]["processor"] in done.stdout
    assert set(speeds) == ROWS
    assert set(ratios) == set(training.RATIOS)
    has_bfloat16 = bool(devices.BFLOAT16_SETS & {*devices.processor()["instruction_sets"]})
    assert absent == {
        name for name in ROWS if ("pytorch" in name and not has_pytorch) or ("bfloat16" in name and not has_bfloat16)
    }
    assert ("PyTorch is not installed" in done.stderr) == (not has_pytorch)
    for name, (ours, rival) in training.RATIOS.items():
        if not {ours, rival} & absent:
            assert ratios[name] == pytest.approx(speeds[ours] / speeds[rival], rel=0.01)


@pytest.mark.slow
def test_run_in_which_our_own_training_fails_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "take_turns", lambda *_: {"stock": [1.0]})

    with pytest.raises(SystemExit) as caught:
        training.main(SMALL)

    assert str(caught.value).startswith("error: this project's own training failed")


def test_contestants_train_the_same_network() -> None:
    code = (
        "from benchmarks import training\n"
        "options = training.Options(0.5, 4, 1, 16, 1)\n"
        "stock = training._stock_model(options)\n"
        "print([tuple(weight.shape) for weight in stock.trainable_weights])\n"
        "ours = training._our_network(options)\n"
        "print([tuple(weight.shape) for weight in ours.trainable_weights])\n"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)

    stock, ours = done.stdout.splitlines()
    assert stock == ours


def test_take_turns_alternates_and_does_not_count_the_warm_up() -> None:
    order: list[str] = []

    seconds, _ = take_turns([Turn("a", order), Turn("b", order)], rounds=3, warm_up=2)

    assert order == ["a", "b"] * 5
    assert seconds == {"a": [3, 4, 5], "b": [3, 4, 5]}


def test_take_turns_leaves_a_contestant_that_fails_out() -> None:
    seconds, report = take_turns([Turn("a", []), Turn("b", [], last=1)], rounds=2, warm_up=1)

    assert seconds == {"a": [2, 3]}
    assert "warning: b failed and is left out; its error is above" in report


def test_take_turns_ends_after_three_rounds_if_time_is_up() -> None:
    seconds, _ = take_turns([Turn("a", [])], rounds=8, warm_up=1, at_most=0)

    assert seconds == {"a": [2, 3, 4]}


def test_random_images_are_a_function_of_the_seed() -> None:
    options = training.Options(0.5, 4, 1, 8, 1)

    images, labels = training.random_images(options, 5)

    assert images.shape == (5, 8, 8, 3)
    assert (images.dtype.name, labels.dtype.name) == ("float32", "uint8")
    np.testing.assert_array_equal(images, training.random_images(options, 5)[0])


@pytest.mark.slow
@pytest.mark.pipeline
def test_sweep_benchmark_compares_a_sweep_with_dvc_repro(tmp_path: Path) -> None:
    clone = small_project(tmp_path / "project")
    clone.change(study__optimizers=["sgd"])
    clone.repro("normalize")
    clone.commit("a study of two variants")

    printed = clone.run(sys.executable, "-m", "benchmarks.sweep", "--rounds", "1").stdout

    rows = [row.strip("| ").split(" | ") for row in printed.splitlines()[-3:]]
    assert [name for name, *_ in rows] == ["dvc repro", "sweep --workers 2", "ratio of medians"]
    assert all(float(figure.replace(",", "")) > 0 for _, *figures in rows for figure in figures)
