"""The article's convolutional network, and its pass over images without dropout."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dropout_study.progress import without_start_up_noise

with without_start_up_noise():
    import keras
    import tensorflow as tf

    tf.config.list_physical_devices()  # what looks for accelerators, and says so

INFERENCE_BATCH = 500


def build_network(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    filters: Sequence[int],
    units: Sequence[int],
    first_activation: str,
    dropout: float,
    seed: int,
    scale: Sequence[float] | None = None,
    offset: Sequence[float] | None = None,
) -> keras.Model:
    """Return the network: images [N, H, W, C] to class probabilities float32 [N, classes].

    A 3×3 convolution with "same" padding, its activation and dropout for each of `filters`, pooling by 2 after
    all but the first; then a dense ReLU layer for each of `units` (no dropout there) and a softmax layer.
    Kernels are Glorot-uniform, drawn by `seed`, as are the dropout masks; `dropout` in [0, 1) is the probability
    of dropping a value, and 0 adds no layer.

    Takes normalized float32 images; with `scale` and `offset` (one number a channel) it takes raw uint8 pixels
    and normalizes them itself.
    """
    # One seed a layer, far apart: neighbouring seeds of the study share none.
    seeds = iter(np.random.SeedSequence(seed).generate_state(2 * len(filters) + len(units) + 1).tolist())

    def kernel() -> keras.Initializer:
        return keras.initializers.GlorotUniform(seed=next(seeds))

    raw = scale is not None
    inputs = keras.Input(image_shape, dtype="uint8" if raw else "float32", name="images")
    x = keras.layers.Rescaling(scale, offset, name="normalize")(inputs) if raw else inputs
    for i, count in enumerate(filters, start=1):
        x = keras.layers.Conv2D(count, 3, padding="same", kernel_initializer=kernel(), name=f"convolution_{i}")(x)
        if i > 1 or first_activation == "relu":
            x = keras.layers.ReLU(name=f"relu_{i}")(x)
        mask_seed = next(seeds)
        if dropout > 0:
            x = keras.layers.Dropout(dropout, seed=mask_seed, name=f"dropout_{i}")(x)
        if i > 1:
            x = keras.layers.MaxPooling2D(2, name=f"pool_{i}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for i, count in enumerate(units, start=1):
        x = keras.layers.Dense(count, "relu", kernel_initializer=kernel(), name=f"dense_{i}")(x)
    outputs = keras.layers.Dense(classes, "softmax", kernel_initializer=kernel(), name="probabilities")(x)
    return keras.Model(inputs, outputs, name="article")


def use_threads(threads: int) -> None:
    """Have TensorFlow compute on `threads` threads (0: one a core), and equal runs give equal bytes.

    To be called before anything is computed.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1 if threads == 1 else 0)
    tf.config.experimental.enable_op_determinism()


class Measured(NamedTuple):
    """What a network makes of labelled images."""

    loss: float  # mean categorical cross-entropy, nats
    accuracy: float  # share of the images whose most probable class is theirs
    probabilities: np.ndarray  # float32 [N, classes]


def make_measure(network: keras.Model) -> Callable[[np.ndarray, np.ndarray], Measured]:
    """Return a function of images [N, H, W, C] and labels [N] that measures `network` as it then is.

    It is traced once, for batches of any size; dropout is off. The loss is computed from the logits (Keras finds
    them behind the softmax), so that it is exact where a probability rounds to zero.
    """

    @tf.function(
        input_signature=[
            tf.TensorSpec(network.input_shape, network.inputs[0].dtype),
            tf.TensorSpec([None], tf.uint8),
        ]
    )
    def measure_batch(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        probabilities = network(images, training=False)
        losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
        return losses, probabilities

    def measure(images: np.ndarray, labels: np.ndarray) -> Measured:
        batches = [
            measure_batch(images[i : i + INFERENCE_BATCH], labels[i : i + INFERENCE_BATCH])
            for i in range(0, len(images), INFERENCE_BATCH)
        ]
        losses = np.concatenate([batch[0].numpy() for batch in batches])
        probabilities = np.concatenate([batch[1].numpy() for batch in batches])
        correct = probabilities.argmax(axis=1) == labels
        return Measured(float(losses.mean(dtype=np.float64)), float(correct.mean()), probabilities)

    return measure
