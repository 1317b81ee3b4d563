import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dropout_study import bench
from dropout_study.cli import main

NAMES = {
    "stock",
    "ours",
    "ours_rate_0",
    "pytorch",
    "pytorch_compiled",
    "pytorch_rate_0",
    "ceiling",
    "epoch_stock",
    "epoch_ours",
}
RATIOS = {"stock", "rate_0", "pytorch", "pytorch_compiled", "pytorch_rate_0", "ceiling", "epoch"}


def test_an_image_costs_474_million_operations() -> None:
    assert round(bench.flops_per_image(32) / 1e6) == 474


@pytest.mark.pipeline
def test_the_command_measures_everything_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For real, in processes of their own, but few and small images."""
    run = bench.run
    monkeypatch.setattr(bench, "run", lambda options, say: run(options._replace(epoch_images=64), say))
    arguments = ["bench", "--batch-size", "16", "--image-size", "8", "--steps", "2", "--threads", "2"]
    path = tmp_path / "bench.json"
    outcome = CliRunner().invoke(main, [*arguments, "--json", str(path)])
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(path.read_text())
    assert result["options"] == {
        "rate": 0.5,
        "batch_size": 16,
        "threads": 2,
        "image_size": 8,
        "steps": 2,
        "epoch_images": 64,
    }
    speeds, ratios = result["images_per_second"], result["ratios"]
    assert set(speeds) == NAMES
    assert set(ratios) == RATIOS
    absent = {name for name, speed in speeds.items() if speed is None}
    assert absent == (set() if importlib.util.find_spec("torch") else {name for name in NAMES if "pytorch" in name})
    assert all(speed > 0 for speed in speeds.values() if speed is not None)
    assert ratios["stock"] == pytest.approx(speeds["ours"] / speeds["stock"], rel=0.01)
    assert ratios["rate_0"] == pytest.approx(speeds["ours"] / speeds["ours_rate_0"], rel=0.01)
    assert ratios["ceiling"] == pytest.approx(speeds["ours"] / speeds["ceiling"], rel=0.01)
    assert ratios["epoch"] == pytest.approx(speeds["epoch_ours"] / speeds["epoch_stock"], rel=0.01)
    for text in ("stock Keras layers, a step", "not there" if absent else "PyTorch", "medians of 2 steps"):
        assert text in outcome.stdout


def test_ours_and_stock_train_the_same_network() -> None:
    code = (
        "from dropout_study import bench\n"
        "options = bench.Options(0.5, 4, 1, 16, 1)\n"
        "stock = bench._stock_model(options)\n"
        "print([tuple(weight.shape) for weight in stock.trainable_weights])\n"
        "from dropout_study.network import build_network\n"
        "ours = build_network((16, 16, 3), 10, filters=bench.FILTERS, units=bench.UNITS,\n"
        "    first_activation='relu', dropout=0.5, seed=0)\n"
        "print([tuple(weight.shape) for weight in ours.trainable_weights])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    stock, ours = done.stdout.splitlines()
    assert stock == ours


def test_turns_alternate_and_warm_up_does_not_count() -> None:
    order: list[str] = []

    class Turn:
        def __init__(self, name: str) -> None:
            self.name = name
            self.number = 0.0

        def send(self, _: object) -> None:
            order.append(self.name)
            self.number += 1

        def recv(self) -> float:
            return self.number

    turns = {name: Turn(name) for name in ("a", "b")}
    seconds = bench.take_turns(turns, 3, 2, lambda _: None)  # type: ignore[arg-type]
    assert order == ["a", "b"] * 5
    assert seconds == {"a": [3, 4, 5], "b": [3, 4, 5]}


def test_who_fails_is_left_out_and_the_others_go_on() -> None:
    class Turn:
        def __init__(self, last: float) -> None:
            self.number, self.last = 0.0, last

        def send(self, _: object) -> None:
            self.number += 1

        def recv(self) -> float:
            if self.number > self.last:
                raise EOFError
            return self.number

    said: list[str] = []
    seconds = bench.take_turns({"a": Turn(9), "b": Turn(1)}, 2, 1, said.append)  # type: ignore[dict-item]
    assert seconds == {"a": [2, 3]}
    assert "warning: b failed, and is left out; what it said is above" in said


@pytest.mark.parametrize(
    "arguments", [["--rate", "1"], ["--batch-size", "0"], ["--image-size", "24"], ["--steps", "0"], ["--threads", "-1"]]
)
def test_bad_options_are_refused(arguments: list[str]) -> None:
    outcome = CliRunner().invoke(main, ["bench", *arguments])
    assert outcome.exit_code == 2
    assert arguments[0] in outcome.stderr


def test_images_are_a_function_of_the_seed() -> None:
    options = bench.Options(0.5, 4, 1, 8, 1)
    images, labels = bench.random_images(options, 5)
    assert images.shape == (5, 8, 8, 3)
    assert images.dtype == np.float32
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(images, bench.random_images(options, 5)[0])
