from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from dropout_study import training
from dropout_study.dropout import keep_mask, layer_key
from dropout_study.network import (
    build_network,
    clipped_cross_entropy,
    cross_entropy,
    log_probabilities,
    make_inference,
    training_logits,
    training_parameters,
)

ARTICLE: dict[str, Any] = {
    "filters": [64, 64, 128, 256],
    "units": [512, 512],
    "first_activation": "relu",
    "seed": 0,
}
TINY: dict[str, Any] = {"filters": [3, 4], "units": [5], "first_activation": "relu", "seed": 0}

# The article's layer table for CIFAR-10: what each layer puts out, and its number of parameters.
LAYERS = [
    ("images", (32, 32, 3), 0),
    ("convolution_1", (32, 32, 64), 1_792),
    ("relu_1", (32, 32, 64), 0),
    ("dropout_1", (32, 32, 64), 0),
    ("convolution_2", (32, 32, 64), 36_928),
    ("relu_2", (32, 32, 64), 0),
    ("dropout_2", (32, 32, 64), 0),
    ("pool_2", (16, 16, 64), 0),
    ("convolution_3", (16, 16, 128), 73_856),
    ("relu_3", (16, 16, 128), 0),
    ("dropout_3", (16, 16, 128), 0),
    ("pool_3", (8, 8, 128), 0),
    ("convolution_4", (8, 8, 256), 295_168),
    ("relu_4", (8, 8, 256), 0),
    ("dropout_4", (8, 8, 256), 0),
    ("pool_4", (4, 4, 256), 0),
    ("flatten", (4_096,), 0),
    ("dense_1", (512,), 2_097_664),
    ("dense_2", (512,), 262_656),
    ("logits", (10,), 5_130),
    ("probabilities", (10,), 0),
]


def test_build_network_is_the_articles() -> None:
    network = build_network((32, 32, 3), 10, **ARTICLE, dropout=0.5)
    observed = [(layer.name, tuple(layer.output.shape[1:]), layer.count_params()) for layer in network.layers]

    # A Dropout layer's counter of random numbers is no parameter of the network.
    observed = [(name, shape, 0 if name.startswith("dropout") else count) for name, shape, count in observed]

    assert observed == LAYERS
    assert sum(int(np.prod(weight.shape)) for weight in network.trainable_weights) == 2_773_194
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            assert (layer.kernel_size, layer.padding) == ((3, 3), "same")
        if isinstance(layer, keras.layers.Dropout):
            assert layer.rate == 0.5
        if isinstance(layer, keras.layers.Dense):
            expected = "linear" if layer.name == "logits" else "relu"
            assert layer.activation.__name__ == expected


def test_build_network_has_no_first_activation_as_in_the_notebook() -> None:
    network = build_network((32, 32, 3), 10, **ARTICLE | {"first_activation": "linear"}, dropout=0.5)

    expected = [name for name, *_ in LAYERS if name != "relu_1"]

    assert [layer.name for layer in network.layers] == expected


def test_build_network_at_rate_0_has_no_dropout_layer() -> None:
    network = build_network((32, 32, 3), 10, **ARTICLE, dropout=0)

    assert not any(isinstance(layer, keras.layers.Dropout) for layer in network.layers)


def test_build_network_draws_weights_by_the_seed() -> None:
    first, again, other = (
        build_network((4, 4, 3), 10, **TINY | {"seed": seed}, dropout=0.5).get_weights() for seed in (0, 0, 1)
    )

    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()


def test_build_network_kernels_are_glorot_uniform() -> None:
    network = build_network((32, 32, 3), 10, **ARTICLE, dropout=0)
    kernel = network.get_layer("convolution_2").kernel.numpy()

    limit = np.sqrt(6 / (9 * 64 + 9 * 64))

    assert np.abs(kernel).max() <= limit
    assert np.abs(kernel).max() > 0.99 * limit
    assert np.abs(kernel).mean() == pytest.approx(limit / 2, rel=0.02)


@pytest.mark.parametrize("count", [1, 7, 501])
@pytest.mark.parametrize("shards", [1, 2])
def test_inference_and_loss_agree_with_keras_whatever_the_batch_size(count: int, shards: int) -> None:
    network = build_network((4, 4, 3), 10, **TINY, dropout=0.5)
    network.compile(loss="sparse_categorical_crossentropy")
    random = np.random.default_rng(0)
    images = random.normal(size=(count, 4, 4, 3)).astype(np.float32)
    labels = random.integers(0, 10, count).astype(np.uint8)

    logits = make_inference(network, shards)(images)

    np.testing.assert_allclose(np.exp(log_probabilities(logits)), network.predict(images, verbose=0), rtol=1e-5)
    loss = network.evaluate(images, labels, verbose=0)
    assert cross_entropy(labels, logits).numpy().mean() == pytest.approx(loss, rel=1e-5)


def test_log_probabilities_are_exact_where_a_probability_rounds_to_zero() -> None:
    logits = tf.constant([[0.0, 500.0], [3.0, 3.0]])

    logs = log_probabilities(logits)

    np.testing.assert_allclose(logs, [[-500, 0], [-np.log(2)] * 2], rtol=1e-6)


def test_cross_entropy_is_minus_the_log_probability_of_the_label() -> None:
    logits = tf.constant(np.random.default_rng(0).normal(size=(6, 10), scale=5).astype(np.float32))
    labels = np.array([0, 3, 9, 1, 1, 5], np.uint8)

    losses = cross_entropy(labels, logits)

    np.testing.assert_allclose(losses, -log_probabilities(logits)[np.arange(6), labels], rtol=1e-5)


def test_clipped_cross_entropy_is_that_of_keras_2_from_probabilities() -> None:
    logits = tf.constant([[0.0, 1.0, 2.0], [0.0, 20.0, 0.0], [40.0, 0.0, 0.0], [3.0, -2.0, 1.0]])
    labels = tf.constant([0, 2, 0, 1])

    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = clipped_cross_entropy(labels, logits)
    gradient = tape.gradient(losses, logits)

    probabilities = np.clip(tf.nn.softmax(logits).numpy()[np.arange(4), labels], 1e-7, 1 - 1e-7)
    np.testing.assert_allclose(losses, -np.log(probabilities), rtol=1e-6)
    assert losses[1].numpy() == pytest.approx(16.118, abs=1e-3)
    expected = (tf.nn.softmax(logits) - tf.one_hot(labels, 3)).numpy()
    expected[1:3] = 0  # clipped: no gradient
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_inference_uses_the_weights_of_the_moment() -> None:
    network = build_network((4, 4, 3), 10, **TINY, dropout=0)
    infer = make_inference(network)
    images = np.ones((2, 4, 4, 3), np.float32)
    before = infer(images).numpy()

    network.set_weights([weight * 2 + 1 for weight in network.get_weights()])

    assert (infer(images).numpy() != before).any()


def test_build_network_with_scale_and_offset_takes_raw_pixels() -> None:
    raw = build_network((4, 4, 3), 10, **TINY, dropout=0.5, scale=[0.5, 1, 2], offset=[-1, 0, 1])
    plain = build_network((4, 4, 3), 10, **TINY, dropout=0.5)
    plain.set_weights(raw.get_weights())
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)

    inputs = (pixels * [0.5, 1, 2] + [-1, 0, 1]).astype(np.float32)

    assert raw.inputs[0].dtype == "uint8"
    np.testing.assert_allclose(raw(pixels), plain(inputs), rtol=1e-5)


@pytest.mark.parametrize("first_activation", ["relu", "linear"])
@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("position", ["before_pooling", "after_pooling"])
@pytest.mark.parametrize("step", [0, 7])
def test_training_logits_use_rate_seed_and_place_of_each_dropout_layer(
    first_activation: str, rate: float, position: Any, step: int
) -> None:
    """Against plain operations, layer by layer, each with the mask that is its own."""
    network = build_network(
        (8, 8, 3),
        10,
        filters=[3, 4, 5],
        units=[6],
        first_activation=first_activation,
        dropout=rate,
        dropout_position=position,
        seed=2,
    )
    weights = [tf.constant(weight) for weight in network.get_weights() if weight.ndim]
    seeds = [layer.seed for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    images = tf.constant(np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32))
    numbers, step = tf.range(10, 14), tf.constant(step)

    logits = training_logits(network, training_parameters(network, "float32"), images, numbers, step)

    x = images
    for i in range(3):
        x = tf.nn.conv2d(x, weights[2 * i], 1, "SAME") + weights[2 * i + 1]
        x = tf.nn.relu(x) if i or first_activation == "relu" else x
        if i and position == "after_pooling":
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        kept = keep_mask(numbers, tuple(x.shape[1:]), rate, layer_key(seeds[i], step)) if rate else True
        x = tf.where(kept, x / (1 - rate), 0.0)
        x = tf.nn.max_pool2d(x, 2, 2, "VALID") if i and position == "before_pooling" else x
    x = tf.nn.relu(tf.reshape(x, [4, -1]) @ weights[6] + weights[7]) @ weights[8] + weights[9]
    np.testing.assert_allclose(logits, x, rtol=1e-4, atol=1e-5)


def test_build_network_after_pooling_has_dropout_behind_the_pooling_layers() -> None:
    network = build_network((32, 32, 3), 10, **ARTICLE, dropout=0.5, dropout_position="after_pooling")

    names = [layer.name for layer in network.layers]

    assert names[1:10] == [
        "convolution_1", "relu_1", "dropout_1",
        "convolution_2", "relu_2", "pool_2", "dropout_2",
        "convolution_3", "relu_3",
    ]  # fmt: skip


def test_training_logits_in_bfloat16_are_float32_and_near_those_of_float32() -> None:
    network = build_network((8, 8, 3), 10, **TINY, dropout=0.3)
    images = tf.constant(np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32))
    plain, half = (training_parameters(network, precision) for precision in ("float32", "bfloat16"))

    logits = training_logits(network, half, images, tf.range(4), tf.constant(0))

    assert logits.dtype == tf.float32
    assert [parameter.dtype for parameter in half] == [tf.bfloat16, tf.float32] * 4
    expected = training_logits(network, plain, images, tf.range(4), tf.constant(0)).numpy()
    np.testing.assert_allclose(logits, expected, atol=0.02 * np.abs(expected).max())
    assert (logits.numpy() != expected).any()


def test_training_logits_draw_other_masks_in_each_layer_and_for_each_seed() -> None:
    networks = [build_network((4, 4, 3), 10, **TINY | {"seed": seed}, dropout=0.5) for seed in (0, 1)]

    seeds = [layer.seed for network in networks for layer in network.layers if isinstance(layer, keras.layers.Dropout)]

    assert len(set(seeds)) == 4


def test_make_step_draws_new_masks_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    network = build_network((4, 4, 3), 10, **TINY, dropout=0.5)
    optimizer = training.make_optimizer("sgd", 0.1)
    optimizer.build(network.trainable_variables)

    def noting(*arguments: Any) -> tf.Tensor:
        tf.py_function(lambda value: steps.append(int(value)), [arguments[-1]], [])
        return training_logits(*arguments)

    monkeypatch.setattr(training, "training_logits", noting)
    step = training.make_step(network, optimizer, shards=1)

    for _ in range(3):
        step(np.zeros((4, 4, 4, 3), np.float32), np.zeros(4, np.uint8))

    assert steps == [0, 1, 2]
