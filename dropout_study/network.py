"""The article's convolutional network: as stock layers, its fused training pass, its inference and its loss."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

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
    dropout_position: Literal["before_pooling", "after_pooling"] = "before_pooling",
    seed: int,
    scale: Sequence[float] | None = None,
    offset: Sequence[float] | None = None,
) -> keras.Model:
    """Return the network: images [N, H, W, C] to class probabilities float32 [N, classes].

    For each of `filters`, a 3×3 convolution with "same" padding, its activation, dropout, and max-pooling by 2 where
    `is_pooled` says so; `dropout_position` swaps the last two. Then a dense ReLU layer for each of `units` (no dropout
    there) and a dense layer of logits with a softmax. Kernels are Glorot-uniform. `dropout` in [0, 1) is the
    probability of dropping a value; 0 adds no layer. `seed` draws the kernels and gives each dropout layer a seed of
    its own. Training (`training_logits`) takes rates and seeds from the dropout layers, and draws its own masks.

    Takes normalized float32 images; with `scale` and `offset` (one number per channel) it takes raw uint8 pixels and
    normalizes them itself.
    """
    # One seed per layer, far apart: neighbouring seeds of the study share none.
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
        stack = [keras.layers.Dropout(dropout, seed=mask_seed, name=f"dropout_{i}")] if dropout > 0 else []
        if is_pooled(i):
            pool = keras.layers.MaxPooling2D(2, name=f"pool_{i}")
            stack = [*stack, pool] if dropout_position == "before_pooling" else [pool, *stack]
        for layer in stack:
            x = layer(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for i, count in enumerate(units, start=1):
        x = keras.layers.Dense(count, "relu", kernel_initializer=kernel(), name=f"dense_{i}")(x)
    logits = keras.layers.Dense(classes, kernel_initializer=kernel(), name="logits")(x)
    outputs = keras.layers.Softmax(name="probabilities")(logits)
    return keras.Model(inputs, outputs, name="article")


def shards_at_once(
    shards: int, signature: Sequence[tf.TensorSpec]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that compiles `function(parts, *batch)` for batches of any size.

    `signature` describes the tensors of the batch. `parts` are `shards` contiguous slices of it, of nearly equal size,
    or one slice if the batch has fewer images. TensorFlow runs what does not depend on another part in parallel.
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


def training_parameters(network: keras.Model, precision: str) -> list[tf.Tensor]:
    """Return the trainable variables of `network` as tensors: kernels in `precision`, biases in float32.

    `precision` is "float32" or "bfloat16". With bfloat16, the gradients of kernels are bfloat16, too.
    """
    return [
        tf.cast(variable.value, precision if variable.name == "kernel" else "float32")
        for variable in network.trainable_variables
    ]


def training_logits(
    network: keras.Model, parameters: Sequence[tf.Tensor], images: tf.Tensor, numbers: tf.Tensor, step: tf.Tensor
) -> tf.Tensor:
    """Return the logits of `network` in training, float32 [N, classes].

    `parameters` come from `training_parameters`; the dtype of the kernels is that of convolutions, matrix products and
    the feature maps between them. All that follows a convolution is one operation (see `dropout_study.dropout`). It
    replaces the dropout layer and takes its rate; its seed and `step` draw the mask. `numbers` are those of the images
    in their batch, integers [N]: parts of a batch draw the masks of the whole.
    """
    layers = {layer.name: layer for layer in network.layers}
    order = list(layers)
    precision = parameters[0].dtype
    pairs = iter(zip(parameters[::2], parameters[1::2], strict=True))  # the kernel and bias of each layer, in order
    x = tf.cast(images, precision)
    for i in range(1, 1 + sum(name.startswith("convolution_") for name in layers)):
        kernel, bias = next(pairs)
        x = tf.nn.conv2d(x, kernel, 1, "SAME")
        dropout = layers.get(f"dropout_{i}")
        rate, seed = (dropout.rate, dropout.seed) if dropout else (0.0, 0)
        key = layer_key(seed, step)
        if f"pool_{i}" in layers:
            before = not dropout or order.index(f"dropout_{i}") < order.index(f"pool_{i}")
            x = activate_and_pool(x, bias, numbers, rate, key, dropout_first=before)
        else:
            x = activate(x, bias, numbers, rate, key, relu=f"relu_{i}" in layers)
    x = tf.reshape(x, [-1, int(np.prod(x.shape[1:]))])
    *dense, logits = pairs
    for kernel, bias in dense:
        x = tf.nn.relu(_product(x, kernel) + bias)
    kernel, bias = logits
    return _product(x, kernel) + bias


def _product(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Return the matrix product, computed in the dtype of `kernel`, as float32."""
    return tf.cast(tf.matmul(tf.cast(x, kernel.dtype), kernel), tf.float32)


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

    `labels` are integers [N], `logits` float32 [N, classes]. This is the loss of validation and, by default, training.
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)


def clipped_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the loss of each image as Keras 2 computed it in training, in nats, float32 [N].

    Probabilities are clipped to 1e-7 and 1 - 1e-7 before the log, and clipping passes no gradient: an image whose class
    is less probable than 1e-7 has a loss of 16.1 and teaches nothing. Arguments are as in `cross_entropy`.
    """
    probabilities = tf.reduce_sum(tf.nn.softmax(logits) * tf.one_hot(labels, logits.shape[1]), axis=1)
    return -tf.math.log(tf.clip_by_value(probabilities, 1e-7, 1 - 1e-7))


def log_probabilities(logits: tf.Tensor) -> np.ndarray:
    """Return the logs of the class probabilities, float32 [N, classes]: finite where a probability rounds to zero."""
    return tf.nn.log_softmax(logits).numpy()
