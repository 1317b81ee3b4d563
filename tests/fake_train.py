"""A trainer that learns nothing: the real one's outputs, a function of the same settings, in a second.

It stands in for stages/train.py in tests of the pipeline. Its model is a real file that Keras loads: one dense layer on
raw pixels, with numbers drawn from what the variant depends on. At dropout rates above 0.5 and learning rates above 10
it diverges.
"""

import hashlib
import io
import json
import os
import zipfile
from typing import Any

import h5py
import numpy as np

from dropout_study import files
from dropout_study.console import run_stage
from dropout_study.settings import load_settings
from dropout_study.sweep.project import versions


def model(image_shape: tuple[int, ...], classes: list[str], random: np.random.Generator) -> bytes:
    """Return a `.keras` file that takes pixels of `image_shape` and gives random probabilities."""

    def layer(kind: str, **config: Any) -> dict[str, Any]:
        return {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None}

    layers = [
        layer("InputLayer", batch_shape=[None, *image_shape], dtype="uint8", name="images"),
        layer("Flatten", name="flatten"),
        layer("Dense", name="probabilities", units=len(classes), activation="softmax"),
    ]
    config = {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "fake", "layers": layers},
        "registered_name": None,
        "build_config": {"input_shape": [None, *image_shape]},
    }
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        inputs = int(np.prod(image_shape))
        file["layers/dense/vars/0"] = random.normal(size=(inputs, len(classes)), scale=1e-4).astype(np.float32)
        file["layers/dense/vars/1"] = np.zeros(len(classes), np.float32)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, member in {
            "metadata.json": json.dumps({"keras_version": "3.15.1", "classes": classes}).encode(),
            "config.json": json.dumps(config).encode(),
            "model.weights.h5": weights.getvalue(),
        }.items():
            archive.writestr(zipfile.ZipInfo(name), member)
    return content.getvalue()


def main(key: str | None = None) -> None:
    settings = load_settings()
    variant = settings.variant(key or os.environ["DVC_STAGE"].partition("@")[2])
    images = files.read_array(files.images_file(files.NORMALIZED, "train"))
    test_images = files.read_array(files.images_file(files.NORMALIZED, "test"))
    classes = files.read_json(files.CLASSES)
    values = settings.training_values(variant)
    digest = hashlib.sha256(json.dumps(values).encode() + images.tobytes() + test_images.tobytes()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8]))
    files.write_bytes(files.variant_file(variant.key), model(images.shape[1:], classes, random))
    epochs = settings.train.epochs
    history = [(epoch, *random.uniform(0, 1, 4).tolist()) for epoch in range(1, epochs + 1)]
    if variant.dropout > 0.5 and values["optimizer"]["learning_rate"] > 10:
        history[-1] = (epochs, *[float("nan")] * 4)
    columns = ("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    files.write_csv(files.history_file(variant.key), columns, history)
    logits = random.normal(size=(settings.train.test_epochs + 1, len(test_images), len(classes)))
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    files.write_array(files.predictions_file(variant.key), log_probabilities.astype(np.float32))
    provenance = {"device": "CPU", "processor": "fake", "threads": 1, "shards": 1, "versions": versions()}
    files.write_json(files.provenance_file(variant.key), provenance)


if __name__ == "__main__":
    run_stage(main, "Pretend to train one variant.", "key: the variant")
