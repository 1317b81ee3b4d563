"""The article's convolutional network, and its passes over images: with dropout, and without."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dropout_study.progress import cores, without_start_up_noise

with without_start_up_noise():
    import keras
    import tensorflow as tf

    tf.config.list_physical_devices()  # what looks for accelerators, and says so

    from dropout_study.dropout import activate, activate_and_pool, layer_key

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
    Kernels are Glorot-uniform, drawn by `seed`; `dropout` in [0, 1) is the probability of dropping a value, and 0 adds
    no layer. (The study trains by `training_logits`, whose masks are its own; these layers say what the network is.)

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


MOST_SHARDS = 8


def use_threads(threads: int) -> int:
    """Have TensorFlow compute on `threads` threads (0: one a core); return into how many shards to split a batch.

    Two threads that compute half a batch each are faster than two that share every operation of a whole one, so a
    batch is split into a shard a thread, or into 8 at the most that share the threads evenly. Equal runs give equal
    bytes at equal numbers of threads. To be called before anything is computed.
    """
    threads = threads or cores()
    # The most shards for which the threads divide without a rest, so that no core is idle.
    shards = next(count for count in range(MOST_SHARDS, 0, -1) if threads % count == 0)
    if tf.config.list_physical_devices("GPU"):
        shards = 1
    tf.config.threading.set_inter_op_parallelism_threads(shards)
    tf.config.threading.set_intra_op_parallelism_threads(threads // shards)
    tf.config.experimental.enable_op_determinism()
    return shards


# What is done with a batch of images and labels: a training step, or a measurement.
Batch = Callable[[np.ndarray, np.ndarray], tuple[tf.Tensor, tf.Tensor]]


def shards_at_once(
    network: keras.Model, shards: int
) -> Callable[[Callable[[tf.Tensor, tf.Tensor, list[slice]], tuple[tf.Tensor, tf.Tensor]]], Batch]:
    """Return a decorator that traces a function of a batch of images and labels, and of its parts, as slices.

    There are `shards` parts, as equal as can be and in order, or one if the batch has fewer images. What the function
    computes for each of them depends on no other, so TensorFlow computes them at once. Traced once for any batch size.
    """

    def decorate(function: Callable[[tf.Tensor, tf.Tensor, list[slice]], tuple[tf.Tensor, tf.Tensor]]) -> Batch:
        def traced(shards: int) -> Batch:
            signature = [
                tf.TensorSpec(network.input_shape, network.inputs[0].dtype),
                tf.TensorSpec([None], tf.uint8),
            ]

            @tf.function(input_signature=signature, autograph=False)
            def batch(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                bounds = [i * tf.shape(labels)[0] // shards for i in range(shards + 1)]
                return function(images, labels, [slice(*pair) for pair in pairwise(bounds)])

            return batch

        split, whole = traced(shards), traced(1)
        return lambda images, labels: (split if len(labels) >= shards else whole)(images, labels)

    return decorate


def training_logits(
    network: keras.Model, images: tf.Tensor, numbers: tf.Tensor, *, dropout: float, seed: int, step: tf.Tensor
) -> tf.Tensor:
    """Return what `network` makes of `images` in training, before the softmax: float32 [N, classes].

    The same layers as the network's own, with its weights; but what follows a convolution is one operation (see
    `dropout_study.dropout`), with the masks of `seed` and `step`. `numbers` are those of the images in their batch.
    """
    x = images
    layers = {layer.name: layer for layer in network.layers}
    for i in range(1, 1 + sum(name.startswith("convolution_") for name in layers)):
        convolution = layers[f"convolution_{i}"]
        x = tf.nn.conv2d(x, convolution.kernel.value, 1, "SAME")
        bias, key = convolution.bias.value, layer_key(seed, i, step)
        if f"pool_{i}" in layers:
            x = activate_and_pool(x, bias, numbers, dropout, key)
        else:
            x = activate(x, bias, numbers, dropout, key, relu=f"relu_{i}" in layers)
    x = tf.reshape(x, [-1, int(np.prod(x.shape[1:]))])
    for name, dense in layers.items():
        if name.startswith("dense_"):
            x = tf.nn.relu(tf.matmul(x, dense.kernel.value) + dense.bias.value)
    last = layers["probabilities"]
    return tf.matmul(x, last.kernel.value) + last.bias.value


class Measured(NamedTuple):
    """What a network makes of labelled images."""

    loss: float  # mean categorical cross-entropy, nats
    accuracy: float  # share of the images whose most probable class is theirs
    probabilities: np.ndarray  # float32 [N, classes]


def make_measure(network: keras.Model, shards: int = 1) -> Callable[[np.ndarray, np.ndarray], Measured]:
    """Return a function of images [N, H, W, C] and labels [N] that measures `network` as it then is.

    It is traced once, for batches of any size; dropout is off. The loss is computed from the logits (Keras finds
    them behind the softmax), so that it is exact where a probability rounds to zero.
    """

    @shards_at_once(network, shards)
    def measure_batch(images: tf.Tensor, labels: tf.Tensor, parts: list[slice]) -> tuple[tf.Tensor, tf.Tensor]:
        probabilities = [network(images[part], training=False) for part in parts]
        losses = [
            keras.losses.sparse_categorical_crossentropy(labels[part], one)
            for part, one in zip(parts, probabilities, strict=True)
        ]
        return tf.concat(losses, axis=0), tf.concat(probabilities, axis=0)

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
