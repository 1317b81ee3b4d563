"""A trainer that learns nothing: the real one's outputs, a function of the same settings, in a second.

It stands in for stages/train.py in tests of the pipeline. Its weights are real ones for `evaluate` to load: those
of the network in params.yaml, filled with numbers drawn from what the variant depends on. At dropout rates above 0.5
and learning rates above 10 it diverges.
"""

import hashlib
import json
import os

import h5py
import numpy as np

from dropout_study import files
from dropout_study.errors import run_stage
from dropout_study.settings import Settings, load_settings


def shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Return the arrays in a weights file of the network in the settings."""
    network = settings.network
    image = files.read_array(files.images_file(files.NORMALIZED, "train"))
    side, channels = image.shape[1], image.shape[3]
    found: dict[str, tuple[int, ...]] = {}
    for i, count in enumerate(network.filters):
        name = "conv2d" + (f"_{i}" if i else "")
        found[f"layers/{name}/vars/0"] = (3, 3, channels, count)
        found[f"layers/{name}/vars/1"] = (count,)
        channels = count
        side //= 2 if i else 1
    inputs = side * side * channels
    for i, count in enumerate([*network.units, settings.classes]):
        name = "dense" + (f"_{i}" if i else "")
        found[f"layers/{name}/vars/0"] = (inputs, count)
        found[f"layers/{name}/vars/1"] = (count,)
        inputs = count
    return found


def main() -> None:
    settings = load_settings()
    variant = settings.variant(os.environ["DVC_STAGE"].partition("@")[2])
    train = settings.train
    depends_on = [
        variant,
        settings.network.model_dump(),
        train.model_dump(exclude={"learning_rate"}),
        getattr(train.learning_rate, variant.optimizer),
        files.read_array(files.images_file(files.NORMALIZED, "train")).tobytes().hex(),
    ]
    seed = int.from_bytes(hashlib.sha256(json.dumps(depends_on).encode()).digest()[:8])
    random = np.random.default_rng(seed)
    with (
        files.replacing(files.weights_file(variant.key)) as path,
        h5py.File(path, "w") as file,
    ):
        for name, shape in shapes(settings).items():
            file[name] = random.normal(size=shape, scale=0.1).astype(np.float32)
    history = [(epoch, *random.uniform(0, 1, 4).tolist()) for epoch in range(1, train.epochs + 1)]
    if variant.dropout > 0.5 and getattr(train.learning_rate, variant.optimizer) > 10:
        history[-1] = (train.epochs, *[float("nan")] * 4)
    columns = ("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    files.write_csv(files.history_file(variant.key), columns, history)
    files.write_json(files.timing_file(variant.key), {"variant": variant.key, "status": "finished"})


if __name__ == "__main__":
    run_stage(main, "Pretend to train one variant.")
