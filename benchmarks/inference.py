"""Why do networks that learned at a high dropout rate fail in testing? The same network, tested in three ways.

- "off": as it is, without dropout.
- "on": with dropout, as in training; probabilities are means over 50 masks (N. Srivastava et al. 2014, section 7.5).
- "rescaled": without dropout, the output of each pooling layer multiplied by one number per layer, which gives it the
  mean that it has on training images with dropout.

If "on" and "rescaled" do much better than "off", it is the scale: max-pooling takes the largest of the values that
dropout has scaled up, which on average is larger than the largest of all values (H. Wu and X. Gu 2015). Takes trained
networks and the raw images of their project, and writes a row per network and way:

    python -m benchmarks.inference results/inference.csv models/variants/adadelta-0.8-*.keras
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dropout_study import files
from dropout_study.devices import tensorflow_loading

if TYPE_CHECKING:
    import keras

MASKS = 50
BATCH = 500  # images
CALIBRATION = 1_000  # training images, from which the scales are estimated


class Row(NamedTuple):
    """A network, a way to test it, and what comes out: accuracy a share, loss in nats."""

    variant: str
    dropout_in_testing: str
    accuracy: float
    loss: float


def pooling_scales(network: "keras.Model", images: np.ndarray) -> list[float]:
    """Return for each pooling layer the ratio of its mean output with dropout to that without, after earlier scales.

    `images` are raw pixels, uint8 [N, H, W, C].
    """
    scales = []
    on = off = images
    for layer in network.layers[1:]:
        on, off = layer(on, training=True), layer(off, training=False)
        if is_pooling(layer):
            scales.append(float(np.mean(on) / np.mean(off)))
            off = off * scales[-1]
    return scales


def is_pooling(layer: Any) -> bool:
    """Return whether a layer is max-pooling."""
    return type(layer).__name__ == "MaxPooling2D"


def probabilities(network: "keras.Model", images: np.ndarray, scales: Sequence[float]) -> np.ndarray:
    """Return the class probabilities, float32 [N, classes], without dropout and with scaled outputs of pooling."""
    parts = []
    for start in range(0, len(images), BATCH):
        x, left = images[start : start + BATCH], iter(scales)
        for layer in network.layers[1:]:
            x = layer(x, training=False)
            if is_pooling(layer):
                x = x * next(left)
        parts.append(np.asarray(x))
    return np.concatenate(parts)


def mean_over_masks(network: "keras.Model", images: np.ndarray, masks: int = MASKS) -> np.ndarray:
    """Return the class probabilities, float32 [N, classes], with dropout: means over `masks` masks."""
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    return np.concatenate([np.mean([network(part, training=True) for _ in range(masks)], axis=0) for part in parts])


def rows(variant: str, network: "keras.Model", train: np.ndarray, test: np.ndarray, labels: np.ndarray) -> list[Row]:
    """Return a row for each way to test `network`, with `train` and `test` raw pixels, and the `labels` of `test`."""
    scales = pooling_scales(network, train[:CALIBRATION])
    ways = {
        "off": probabilities(network, test, [1.0] * len(scales)),
        "on": mean_over_masks(network, test),
        "rescaled": probabilities(network, test, scales),
    }
    return [
        Row(
            variant,
            way,
            float(np.mean(values.argmax(axis=1) == labels)),
            -float(np.log(values[np.arange(len(labels)), labels].clip(np.finfo(np.float32).tiny)).mean()),
        )
        for way, values in ways.items()
    ]


def main() -> None:
    """Test each network in each way, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("network", type=Path, nargs="+")
    options = parser.parse_args()
    with tensorflow_loading():
        import keras
    images = files.read_part(files.RAW, "train")[0]
    test, labels = files.read_part(files.RAW, "test")
    table: list[Row] = []
    for path in options.network:
        table += rows(path.stem, keras.models.load_model(path), images, test, labels)
        print(*table[-3:], sep="\n", flush=True)
    figures = [row._replace(accuracy=round(row.accuracy, 4), loss=float(f"{row.loss:.6g}")) for row in table]
    files.write_csv(options.table, Row._fields, figures)


if __name__ == "__main__":
    main()
