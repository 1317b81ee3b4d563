"""The article's convolutional network: as stock layers, its fused training pass, its inference and its loss."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dropout_study.architecture import is_pooled
from dropout_study.devices import tensorflow_loading

with tensorflow_loading():
    import keras
    import tensorflow as tf

    from dropout_study.dropout import activate, activate_and_pool, layer_key

INFERENCE_BATCH = 500  # images


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

    A 3×3 convolution with "same" padding, its activation and dropout for each of `filters`, max-pooling by 2 where
    `is_pooled` says so; then a dense ReLU layer for each of `units` (no dropout there) and a dense layer of logits with
    a softmax. Kernels are Glorot-uniform. `dropout` in [0, 1) is the probability of dropping a value; 0 adds no layer.
    `seed` draws the kernels and gives each dropout layer a seed of its own. Training (`training_logits`) takes rates
    and seeds from the dropout layers, and draws its own masks.

    Takes normalized float32 images; with `scale` and `offset` (a number a channel) it takes raw uint8 pixels and
    normalizes them itself.
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
        if is_pooled(i):
            x = keras.layers.MaxPooling2D(2, name=f"pool_{i}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for i, count in enumerate(units, start=1):
        x = keras.layers.Dense(count, "relu", kernel_initializer=kernel(), name=f"dense_{i}")(x)
    logits = keras.layers.Dense(classes, kernel_initializer=kernel(), name="logits")(x)
    outputs = keras.layers.Softmax(name="probabilities")(logits)
    return keras.Model(inputs, outputs, name="article")


def shards_at_once(
    shards: int, signature: Sequence[tf.TensorSpec]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that traces a function of a batch and of its parts, for batches of any size.

    The function gets the parts as slices, and then the tensors of the batch, which are as `signature` says. There are
    `shards` parts, as equal as can be and in order, or one if the batch has fewer images. What the function computes
    for one part depends on no other, so TensorFlow computes them at once.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def traced(shards: int) -> Callable[..., Any]:
            @tf.function(input_signature=signature, autograph=False)
            def batch(*tensors: tf.Tensor) -> Any:
                bounds = [i * tf.shape(tensors[0])[0] // shards for i in range(shards + 1)]
                return function([slice(*pair) for pair in pairwise(bounds)], *tensors)

            return batch

        split, whole = traced(shards), traced(1)
        return lambda *arrays: (split if len(arrays[0]) >= shards else whole)(*arrays)

    return decorate


def image_signature(network: keras.Model) -> tf.TensorSpec:
    """Return the signature of a batch of any number of images that `network` takes."""
    return tf.TensorSpec(network.input_shape, network.inputs[0].dtype)


def training_logits(network: keras.Model, images: tf.Tensor, numbers: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Return what `network` computes from `images` in training, before the softmax: logits float32 [N, classes].

    The layers and weights are the network's own; but all that follows a convolution is one operation (see
    `dropout_study.dropout`). It replaces the dropout layer, whose rate it takes, and whose seed, with `step`, draws the
    mask. `numbers` are those of the images in their batch, integers [N]: parts of a batch draw what the whole would.
    """
    x = images
    layers = {layer.name: layer for layer in network.layers}
    for i in range(1, 1 + sum(name.startswith("convolution_") for name in layers)):
        convolution, dropout = layers[f"convolution_{i}"], layers.get(f"dropout_{i}")
        x = tf.nn.conv2d(x, convolution.kernel.value, 1, "SAME")
        bias = convolution.bias.value
        rate, seed = (dropout.rate, dropout.seed) if dropout else (0.0, 0)
        key = layer_key(seed, step)
        if f"pool_{i}" in layers:
            x = activate_and_pool(x, bias, numbers, rate, key)
        else:
            x = activate(x, bias, numbers, rate, key, relu=f"relu_{i}" in layers)
    x = tf.reshape(x, [-1, int(np.prod(x.shape[1:]))])
    for name, dense in layers.items():
        if name.startswith("dense_"):
            x = tf.nn.relu(tf.matmul(x, dense.kernel.value) + dense.bias.value)
    last = layers["logits"]
    return tf.matmul(x, last.kernel.value) + last.bias.value


def make_inference(network: keras.Model, shards: int = 1) -> Callable[[np.ndarray], tf.Tensor]:
    """Return a function from images [N, H, W, C] to the logits, float32 [N, classes], of `network` as it then is.

    It is traced once, for batches of any size; dropout is off.
    """
    to_logits = keras.Model(network.inputs, network.get_layer("logits").output)

    @shards_at_once(shards, [image_signature(network)])
    def infer_batch(parts: list[slice], images: tf.Tensor) -> tf.Tensor:
        return tf.concat([to_logits(images[part], training=False) for part in parts], axis=0)

    def infer(images: np.ndarray) -> tf.Tensor:
        starts = range(0, len(images), INFERENCE_BATCH)
        return tf.concat([infer_batch(images[start : start + INFERENCE_BATCH]) for start in starts], axis=0)

    return infer


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the loss of each image in nats, float32 [N]: minus the log of its class's probability.

    `labels` are integers [N], `logits` float32 [N, classes]. This is the loss of training and of validation.
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)


def log_probabilities(logits: tf.Tensor) -> np.ndarray:
    """Return the logs of the class probabilities, float32 [N, classes]: finite where a probability rounds to zero."""
    return tf.nn.log_softmax(logits).numpy()
