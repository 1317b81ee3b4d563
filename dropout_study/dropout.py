"""Bias, ReLU, dropout and max-pooling in training, fused into one pass over memory.

Stock dropout spends most of its time on random numbers. Here a value is kept or dropped by a hash of its place and a
key, compared with a threshold: the mask is a pure function of seed, layer, step and element. It needs no state, so a
resumed run draws the masks that the uninterrupted one would have drawn, at any number of threads; it is computed
where it is used and stored nowhere. XLA fuses all of it into one loop over memory, which is what it costs.

The gradient needs no mask where there is a ReLU: the values above zero are the ones that were kept.

Feature maps are float32 or bfloat16. Arithmetic is float32 in either case: a pass reads bfloat16, computes in float32
and rounds its output once.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

MASKS = 1_685_221_232  # tells the masks from what else is drawn by a seed: kernels, and the order of images
NO_WINNER = 4  # the position of the winner in a pooling window in which no value was above zero


class Key(NamedTuple):
    """64 bits, as two uint32 scalars, that tell the masks of one layer in one step from all others."""

    first: tf.Tensor
    second: tf.Tensor


def layer_key(seed: int, step: tf.Tensor) -> Key:
    """Return the key of the dropout layer with `seed` (a whole number from 0) in `step` (a scalar integer).

    The seed goes through NumPy's SeedSequence, the step through a hash: keys of neighbours share nothing, so that no
    mask is a shifted copy of another.
    """
    words = np.random.SeedSequence([seed, MASKS]).generate_state(2)
    counter = tf.cast(step, tf.uint32)
    return Key(*(_mix(_mix(counter + np.uint32(i)) ^ word) for i, word in enumerate(words)))


def keep_mask(images: tf.Tensor, shape: tuple[int, int, int], rate: float, key: Key) -> tf.Tensor:
    """Return which values of feature maps are kept: bool [N, H, W, C], each with probability 1 - `rate`.

    `images` are the numbers of the images within their batch, integers [N]; `shape` is (H, W, C).
    """
    size = int(np.prod(shape))
    element = tf.cast(images, tf.uint32)[:, None] * np.uint32(size) + tf.cast(tf.range(size), tf.uint32)
    # 2654435769 is the odd number next to 2³² divided by the golden ratio: it spreads neighbours apart.
    hashed = _mix((element * np.uint32(2_654_435_769)) ^ key.first, key.second)
    threshold = np.uint32(min(round((1 - rate) * 2**32), 2**32 - 1))
    return tf.reshape(hashed < threshold, [-1, *shape])


def activate(
    x: tf.Tensor, bias: tf.Tensor, images: tf.Tensor, rate: float, key: Key, *, relu: bool = True
) -> tf.Tensor:
    """Return dropout of the ReLU of `x` + `bias`, [N, H, W, C] and of the dtype of `x`; no ReLU if `relu` is False.

    `x` is float32 or bfloat16, `bias` float32 [C]; `images` are the numbers of the images within their batch, integers
    [N]. Kept values are multiplied by 1 / (1 - `rate`), so that the expectation stays. At rate 0 there is no mask, and
    `key` is not used.
    """

    @tf.custom_gradient
    def function(x: tf.Tensor, bias: tf.Tensor):  # type: ignore[no-untyped-def]
        y = _activate(x, bias, images, key, rate, relu)
        return y, lambda upstream: _activate_gradient(upstream, y, images, key, rate, relu)

    return function(x, bias)


def activate_and_pool(
    x: tf.Tensor,
    bias: tf.Tensor,
    images: tf.Tensor,
    rate: float,
    key: Key,
    *,
    dropout_first: bool = True,
) -> tf.Tensor:
    """Return ReLU, dropout and 2×2 max-pooling of `x` + `bias`, [N, H/2, W/2, C] and of the dtype of `x`.

    Arguments are as in `activate`; H and W have to be even. If `dropout_first` is False, dropout follows the pooling,
    and its mask is drawn on the pooled map. For the gradient, the position of each window's winner is kept, a byte per
    window, instead of the feature maps.
    """

    @tf.custom_gradient
    def function(x: tf.Tensor, bias: tf.Tensor):  # type: ignore[no-untyped-def]
        y, winner = _pool(x, bias, images, key, rate, dropout_first)
        return y, lambda upstream: _pool_gradient(upstream, winner, rate)

    return function(x, bias)


@tf.function(jit_compile=True, autograph=False)
def _activate(x: tf.Tensor, bias: tf.Tensor, images: tf.Tensor, key: Key, rate: float, relu: bool) -> tf.Tensor:
    y = (tf.cast(x, tf.float32) + bias) * _scale(rate)
    mask = keep_mask(images, tuple(x.shape[1:]), rate, key) if rate else True
    return tf.cast(tf.where(mask & (y > 0) if relu else mask, y, 0), x.dtype)


@tf.function(jit_compile=True, autograph=False)
def _activate_gradient(
    upstream: tf.Tensor, y: tf.Tensor, images: tf.Tensor, key: Key, rate: float, relu: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    passed = y > 0 if relu else keep_mask(images, tuple(y.shape[1:]), rate, key) if rate else True
    gradient = tf.where(passed, tf.cast(upstream, tf.float32) * _scale(rate), 0)
    return tf.cast(gradient, y.dtype), tf.reduce_sum(gradient, [0, 1, 2])


@tf.function(jit_compile=True, autograph=False)
def _pool(
    x: tf.Tensor, bias: tf.Tensor, images: tf.Tensor, key: Key, rate: float, dropout_first: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    height, width, channels = x.shape[1:]
    windows = [-1, height // 2, 2, width // 2, 2 * channels]
    y = tf.reshape((tf.cast(x, tf.float32) + bias) * _scale(rate), windows)
    mask = None
    if rate and dropout_first:
        mask = tf.reshape(keep_mask(images, (height, width, channels), rate, key), windows)
    largest = tf.zeros_like(y[:, :, 0, :, :channels])
    winner = tf.fill(tf.shape(largest), tf.constant(NO_WINNER, tf.int8))
    for position in range(4):
        slice_ = np.s_[:, :, position // 2, :, position % 2 * channels : (position % 2 + 1) * channels]
        wins = y[slice_] > largest
        if mask is not None:
            wins &= mask[slice_]
        largest = tf.where(wins, y[slice_], largest)
        winner = tf.where(wins, tf.constant(position, tf.int8), winner)
    if rate and not dropout_first:
        kept = keep_mask(images, (height // 2, width // 2, channels), rate, key)
        largest, winner = tf.where(kept, largest, 0), tf.where(kept, winner, tf.constant(NO_WINNER, tf.int8))
    return tf.cast(largest, x.dtype), winner


@tf.function(jit_compile=True, autograph=False)
def _pool_gradient(upstream: tf.Tensor, winner: tf.Tensor, rate: float) -> tuple[tf.Tensor, tf.Tensor]:
    _, height, width, channels = upstream.shape
    dtype, upstream = upstream.dtype, tf.cast(upstream, tf.float32) * _scale(rate)
    window = [-1, height, 1, width, 1, channels]
    positions = np.arange(4, dtype=np.int8).reshape(1, 1, 2, 1, 2, 1)
    gradient = tf.where(tf.reshape(winner, window) == positions, tf.reshape(tf.cast(upstream, dtype), window), 0)
    bias_gradient = tf.reduce_sum(tf.where(winner < NO_WINNER, upstream, 0), [0, 1, 2])
    return tf.reshape(gradient, [-1, 2 * height, 2 * width, channels]), bias_gradient


def _scale(rate: float) -> np.float32:
    return np.float32(1 / (1 - rate))


def _mix(x: tf.Tensor, key: tf.Tensor | int = 0) -> tf.Tensor:
    """Return a hash of uint32 `x`: lowbias32 of https://github.com/skeeto/hash-prospector, `key` between its rounds."""
    x = x ^ tf.bitwise.right_shift(x, np.uint32(16))
    x = (x * np.uint32(0x7FEB352D)) ^ tf.cast(key, tf.uint32)
    x = x ^ tf.bitwise.right_shift(x, np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ tf.bitwise.right_shift(x, np.uint32(16))
