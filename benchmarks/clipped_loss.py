"""Does the loss of Keras 2 explain the 10 % rows of the article's table? One epoch at 0.8 and 0.9, by each loss.

Every run starts the article's training (all of CIFAR-10, batches of 512, Adadelta at 1.0) and lasts one epoch. The
table, one row per run, is written after each, and a run that is in it already is not repeated, so the script can be
interrupted. It needs the data that `dvc repro normalize` makes of `presets/article-notebook.yaml`:

    python -m benchmarks.clipped_loss results/clipped-loss.csv --precision bfloat16
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from dropout_study import devices, files, settings

RATES, ACTIVATIONS, SEEDS, LOSSES = (0.8, 0.9), ("linear", "relu"), (0, 1, 2), ("clipped", "logits")


class Row(NamedTuple):
    """A run: its settings, and the figures of its epoch (validation on the test images, from logits)."""

    dropout: float
    first_activation: str
    seed: int
    loss: str
    precision: str
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


def runs(path: Path, precision: str) -> Iterator[tuple[float, str, int, str, str]]:
    """Yield the runs that `path` does not have: rate, activation, seed, loss and precision."""
    present = {tuple(row.values())[:5] for row in files.read_csv(path)} if path.exists() else set()
    for run in product(RATES, ACTIVATIONS, SEEDS, LOSSES, [precision]):
        if tuple(map(str, run)) not in present:
            yield run


def train(values: dict[str, Any], activation: str, loss: str, shards: int) -> tuple[float, ...]:
    """Train one epoch, and return the figures of its row of the history."""
    from dropout_study import network, training

    data, test = (training.LabelledImages(*files.read_part(files.NORMALIZED, part)) for part in ("train", "test"))
    shapes: dict[str, Any] = {"image_shape": test.images.shape[1:], "classes": len(files.read_json(files.CLASSES))}
    model = network.build_network(**shapes, **values["network"] | {"first_activation": activation})
    optimizer = training.make_optimizer(**values["optimizer"])
    optimizer.build(model.trainable_variables)
    fit = values["fit"] | {"epochs": 1, "test_epochs": 1, "loss": loss}
    record = training.fit(model, optimizer, data, test, test.images, **fit, shards=shards)
    return record.history[-1][1:]


def main() -> None:
    """Run what the table does not have."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clipped_loss", description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    study = settings.load_settings()
    shards = devices.configure(study.train.threads, options.precision).shards
    for rate, activation, seed, loss, precision in runs(options.table, options.precision):
        values = study.training_values(settings.Variant("", "adadelta", rate, seed))
        values["fit"]["precision"] = precision
        figures = train(values, activation, loss, shards)
        rows = [tuple(row.values()) for row in files.read_csv(options.table)] if options.table.exists() else []
        row = Row(rate, activation, seed, loss, precision, *(float(f"{figure:.6g}") for figure in figures))
        files.write_csv(options.table, Row._fields, [*rows, row])
        print(*row, flush=True)


if __name__ == "__main__":
    main()
