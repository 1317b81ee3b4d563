"""The masks as randomness, and the operations around them against plain ones."""

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from dropout_study.dropout import activate, activate_and_pool, keep_mask, layer_key
from tests.clones import PROJECT

RATES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
SHAPE = (16, 16, 64)
SIGMAS = 5.5  # a bound that one in 25 million sound draws misses: a few thousand are drawn here, always the same


def mask(rate: float = 0.5, seed: int = 0, layer: int = 0, step: int = 0, images: int = 32) -> np.ndarray:
    key = layer_key(layer_seed(seed, layer), tf.constant(step))
    return keep_mask(tf.range(images), SHAPE, rate, key).numpy()


def layer_seed(seed: int, layer: int) -> int:
    """Return a seed of a dropout layer as `build_network` draws them: neighbours share nothing."""
    return int(np.random.SeedSequence(seed).generate_state(layer + 1)[layer])


def within(observed: np.ndarray, expected: float, draws: int) -> bool:
    """Say whether means of `draws` bits, each True with probability `expected`, are all within SIGMAS."""
    return bool((np.abs(observed - expected) <= SIGMAS * np.sqrt(expected * (1 - expected) / draws)).all())


def agreement(a: np.ndarray, b: np.ndarray, rate: float) -> bool:
    """Say whether two masks agree as often as independent ones do."""
    return within(np.array((a == b).mean()), (1 - rate) ** 2 + rate**2, a.size)


@pytest.mark.parametrize("rate", RATES)
def test_keep_mask_keeps_the_rate_by_image_channel_and_position(rate: float) -> None:
    masks = np.stack([mask(rate, step=step) for step in range(8)])

    keep = 1 - rate

    assert within(masks.mean(), keep, masks.size)
    for axes in [(0, 2, 3, 4), (0, 1, 2, 3), (0, 1, 3, 4), (0, 1, 2, 4), (1, 2, 3, 4), (0, 1, 4)]:
        means = masks.mean(axis=axes)
        assert within(means, keep, masks.size // means.size)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_keep_mask_counts_by_image_are_binomial(rate: float) -> None:
    """Not only the means: a mask that repeats itself, or is too even, has the wrong spread."""
    counts = np.concatenate([mask(rate, step=step).reshape(32, -1).sum(axis=1) for step in range(64)])
    size = np.prod(SHAPE)

    expected = size * rate * (1 - rate)

    # The variance of a sample variance of n nearly normal numbers is 2 / (n - 1) of its square.
    assert abs(counts.var(ddof=1) / expected - 1) < SIGMAS * np.sqrt(2 / (len(counts) - 1))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_keep_mask_neighbours_are_independent(rate: float) -> None:
    item = mask(rate)

    for axis in range(4):
        for distance in (1, 2, 3):
            length = item.shape[axis]
            near = item.take(range(length - distance), axis=axis)
            far = item.take(range(distance, length), axis=axis)
            assert agreement(near, far, rate), (axis, distance)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_keep_mask_layers_steps_and_seeds_are_independent(rate: float) -> None:
    item = mask(rate)
    others = [mask(rate, layer=i) for i in (1, 2, 3)]
    others += [mask(rate, step=i) for i in (1, 2, 3, 1000, 2**31 - 1)]
    others += [mask(rate, seed=i) for i in (1, 2, 2**31, 2**32 - 1, 2_654_435_769, 2 * 2_654_435_769 % 2**32)]

    # Crossed neighbours: layer and step, seed and step must not stand in for each other.
    others += [mask(rate, layer=1, step=1), mask(rate, seed=1, step=1), mask(rate, seed=1, layer=1)]

    for i, other in enumerate(others):
        assert agreement(item, other, rate), i
    for i, (a, b) in enumerate((a, b) for j, a in enumerate(others) for b in others[:j]):
        assert agreement(a, b, rate), i


@pytest.mark.parametrize("of", ["seed", "layer", "step"])
def test_keep_mask_is_no_shifted_copy_of_another(of: str) -> None:
    """By cross-correlation at every shift at once, through the Fourier transform."""
    item = mask(images=8).ravel() * 2.0 - 1

    for i in (1, 2, 3):
        other = mask(images=8, **{of: i}).ravel() * 2.0 - 1
        product = np.conj(np.fft.rfft(item)) * np.fft.rfft(other)
        correlations = np.fft.irfft(product, n=item.size) / np.sqrt(item.size)
        # The largest of 131,072 nearly normal numbers: 6.5 is passed once in ten thousand times.
        assert np.abs(correlations).max() < 6.5


def test_keep_mask_depends_on_the_number_of_the_image_alone() -> None:
    whole = mask(images=32)

    for part in (slice(0, 1), slice(5, 17), slice(31, 32)):
        numbers = tf.range(32)[part]
        key = layer_key(layer_seed(0, 0), tf.constant(0))
        np.testing.assert_array_equal(keep_mask(numbers, SHAPE, 0.5, key).numpy(), whole[part])


def test_keep_mask_is_equal_at_one_thread_and_two_and_in_every_process() -> None:
    code = (
        "import sys, hashlib, tensorflow as tf\n"
        "tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))\n"
        "from dropout_study.dropout import activate, layer_key\n"
        "x = tf.ones([32, 16, 16, 64])\n"
        "y = activate(x, tf.zeros([64]), tf.range(32), 0.5, layer_key(9, tf.constant(7)))\n"
        "print(hashlib.sha256(y.numpy().tobytes()).hexdigest())\n"
    )
    observed = {
        subprocess.run(
            [sys.executable, "-c", code, threads],
            check=True,
            capture_output=True,
            text=True,
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
        ).stdout
        for threads in ("1", "2")
    }

    here = keep_mask(tf.range(32), SHAPE, 0.5, layer_key(9, tf.constant(7))).numpy() * np.float32(2)

    assert observed == {hashlib.sha256(here.tobytes()).hexdigest() + "\n"}


def reference(
    x: np.ndarray, bias: np.ndarray, rate: float, *, relu: bool, pool: bool, dropout_first: bool = True, seed: int = 1
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Return what stock operations make of the same mask, and their gradients for an upstream of y itself."""
    count, height, width, channels = x.shape
    inputs = [tf.constant(x), tf.constant(bias)]
    shape = (height, width, channels) if dropout_first else (height // 2, width // 2, channels)
    kept = keep_mask(tf.range(count), shape, rate, layer_key(seed, tf.constant(5))).numpy() if rate else True
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = tf.nn.bias_add(*inputs)
        y = tf.nn.relu(y) if relu else y
        y = tf.where(kept, y / (1 - rate), 0.0) if dropout_first else y
        y = tf.nn.max_pool2d(y, 2, 2, "VALID") if pool else y
        y = y if dropout_first else tf.where(kept, y / (1 - rate), 0.0)
        total = tf.reduce_sum(y * y) / 2
    return y, tape.gradient(total, inputs)


def ours(
    x: np.ndarray,
    bias: np.ndarray,
    rate: float,
    *,
    relu: bool,
    pool: bool,
    dropout_first: bool = True,
    seed: int = 1,
    dtype: str = "float32",
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Return the same from our operations, on `x` in `dtype`."""
    inputs = (tf.cast(x, dtype), tf.constant(bias))
    numbers, key = tf.range(len(x)), layer_key(seed, tf.constant(5))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        if pool:
            y = activate_and_pool(*inputs, numbers, rate, key, dropout_first=dropout_first)
        else:
            y = activate(*inputs, numbers, rate, key, relu=relu)
        total = tf.reduce_sum(tf.cast(y, tf.float32) ** 2) / 2
    return y, tape.gradient(total, inputs)


ORDERS: list[dict[str, Any]] = [
    {"relu": True, "pool": False},
    {"relu": False, "pool": False},
    {"relu": True, "pool": True},
    {"relu": True, "pool": True, "dropout_first": False},
]


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_activate_equals_stock_operations_in_values_and_gradients(
    rate: float, order: dict[str, Any], count: int
) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(count, 6, 4, 8)).astype(np.float32)
    bias = random.normal(size=8).astype(np.float32)
    y, gradients = ours(x, bias, rate, **order)

    expected, expected_gradients = reference(x, bias, rate, **order)

    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    for mine, stock in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(mine, stock, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_activate_in_bfloat16_rounds_the_float32_result_once(rate: float, order: dict[str, Any]) -> None:
    """Inputs that bfloat16 holds exactly: only outputs are rounded, to 8 bits, and bias gradients not at all."""
    random = np.random.default_rng(0)
    x = tf.cast(tf.cast(random.normal(size=(5, 6, 4, 8)), tf.bfloat16), tf.float32).numpy()
    bias = random.normal(size=8).astype(np.float32)

    y, (gradient, bias_gradient) = ours(x, bias, rate, **order, dtype="bfloat16")

    expected, (expected_gradient, _) = ours(x, bias, rate, **order)
    assert (y.dtype, gradient.dtype, bias_gradient.dtype) == (tf.bfloat16, tf.bfloat16, tf.float32)
    np.testing.assert_array_equal(y, tf.cast(expected, tf.bfloat16))
    # The upstream gradient is y, which was rounded, too; where y is not zero, dropout multiplies it by 1 / (1 - rate).
    np.testing.assert_allclose(tf.cast(gradient, tf.float32), expected_gradient, rtol=2**-7)
    expected_bias_gradient = tf.cast(y, tf.float64).numpy().sum(axis=(0, 1, 2)) / (1 - rate)
    np.testing.assert_allclose(bias_gradient, expected_bias_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_activate_gradient_equals_the_numerical_one(order: dict[str, Any]) -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(2, 4, 4, 3)).astype(np.float32)
    bias = np.zeros(3, np.float32)

    _, (gradient, _) = ours(x, bias, 0.5, **order)

    for _ in range(20):
        place = tuple(int(random.integers(size)) for size in x.shape)
        totals = []
        for change in (1e-3, -1e-3):
            moved = x.copy()
            moved[place] += change
            y, _ = ours(moved, bias, 0.5, **order)
            totals.append(np.square(y.numpy(), dtype=np.float64).sum() / 2)
        numerical = (totals[0] - totals[1]) / 2e-3
        assert gradient.numpy()[place] == pytest.approx(numerical, rel=1e-2, abs=1e-2)


def test_activate_drops_the_same_values_forward_and_backward() -> None:
    x = np.ones((4, 8, 8, 16), np.float32)

    y, (gradient, _) = ours(x, np.zeros(16, np.float32), 0.3, relu=False, pool=False)

    np.testing.assert_array_equal(y.numpy() != 0, gradient.numpy() != 0)


@pytest.mark.parametrize("rate", [0.0, *RATES])
def test_activate_keeps_the_expectation(rate: float) -> None:
    x = np.ones((32, *SHAPE), np.float32)
    y, _ = ours(x, np.zeros(64, np.float32), rate, relu=True, pool=False)

    deviation = np.sqrt(rate / (1 - rate) / y.numpy().size)

    assert abs(y.numpy().mean(dtype=np.float64) - 1) <= SIGMAS * deviation + 1e-6


def test_activate_at_rate_0_is_exactly_relu() -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 8)).astype(np.float32)

    y, _ = ours(x, np.zeros(8, np.float32), 0.0, relu=True, pool=False)

    np.testing.assert_array_equal(y.numpy(), np.maximum(x, 0))
