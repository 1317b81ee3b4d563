import os
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from dropout_study import training
from dropout_study.dropout import keep_mask, layer_key
from dropout_study.network import build_network, make_measure, training_logits
from tests.clones import PROJECT

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
    ("probabilities", (10,), 5_130),
]


def test_the_network_is_the_articles() -> None:
    network = build_network((32, 32, 3), 10, **ARTICLE, dropout=0.5)
    found = [(layer.name, tuple(layer.output.shape[1:]), layer.count_params()) for layer in network.layers]
    # A Dropout layer's counter of random numbers is no parameter of the network.
    found = [(name, shape, 0 if name.startswith("dropout") else count) for name, shape, count in found]
    assert found == LAYERS
    assert sum(int(np.prod(weight.shape)) for weight in network.trainable_weights) == 2_773_194
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            assert (layer.kernel_size, layer.padding) == ((3, 3), "same")
        if isinstance(layer, keras.layers.Dropout):
            assert layer.rate == 0.5
        if isinstance(layer, keras.layers.Dense):
            expected = "softmax" if layer.name == "probabilities" else "relu"
            assert layer.activation.__name__ == expected


def test_the_notebooks_first_convolution_has_no_activation() -> None:
    network = build_network((32, 32, 3), 10, **ARTICLE | {"first_activation": "linear"}, dropout=0.5)
    expected = [name for name, *_ in LAYERS if name != "relu_1"]
    assert [layer.name for layer in network.layers] == expected


def test_rate_0_has_no_dropout_layer() -> None:
    network = build_network((32, 32, 3), 10, **ARTICLE, dropout=0)
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in network.layers)


def test_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (
        build_network((4, 4, 3), 10, **TINY | {"seed": seed}, dropout=0.5).get_weights() for seed in (0, 0, 1)
    )
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()


def test_kernels_are_glorot_uniform() -> None:
    network = build_network((32, 32, 3), 10, **ARTICLE, dropout=0)
    kernel = network.get_layer("convolution_2").kernel.numpy()
    limit = np.sqrt(6 / (9 * 64 + 9 * 64))
    assert np.abs(kernel).max() <= limit
    assert np.abs(kernel).max() > 0.99 * limit
    assert np.abs(kernel).mean() == pytest.approx(limit / 2, rel=0.02)


def test_measure_agrees_with_keras_whatever_the_batch_size() -> None:
    network = build_network((4, 4, 3), 10, **TINY, dropout=0.5)
    network.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    random = np.random.default_rng(0)
    for count in (1, 7, 501):
        images = random.normal(size=(count, 4, 4, 3)).astype(np.float32)
        labels = random.integers(0, 10, count).astype(np.uint8)
        measured = make_measure(network)(images, labels)
        loss, accuracy = network.evaluate(images, labels, verbose=0)
        assert measured.loss == pytest.approx(loss, rel=1e-5)
        assert measured.accuracy == pytest.approx(accuracy)
        np.testing.assert_allclose(measured.probabilities, network.predict(images, verbose=0), rtol=1e-5)


def test_measure_sees_the_weights_of_the_moment() -> None:
    network = build_network((4, 4, 3), 10, **TINY, dropout=0)
    measure = make_measure(network)
    images, labels = np.ones((2, 4, 4, 3), np.float32), np.zeros(2, np.uint8)
    before = measure(images, labels).loss
    network.set_weights([weight * 2 + 1 for weight in network.get_weights()])
    assert measure(images, labels).loss != before


def test_a_network_with_scale_and_offset_takes_raw_pixels() -> None:
    raw = build_network((4, 4, 3), 10, **TINY, dropout=0.5, scale=[0.5, 1, 2], offset=[-1, 0, 1])
    plain = build_network((4, 4, 3), 10, **TINY, dropout=0.5)
    plain.set_weights(raw.get_weights())
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    inputs = (pixels * [0.5, 1, 2] + [-1, 0, 1]).astype(np.float32)
    assert raw.inputs[0].dtype == "uint8"
    np.testing.assert_allclose(raw(pixels), plain(inputs), rtol=1e-5)


@pytest.mark.parametrize("first_activation", ["relu", "linear"])
@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("step", [0, 7])
def test_training_draws_the_masks_of_seed_layer_and_step(first_activation: str, rate: float, step: int) -> None:
    """Against plain operations, layer by layer, each with the mask that is its own."""
    network = build_network(
        (8, 8, 3), 10, filters=[3, 4, 5], units=[6], first_activation=first_activation, dropout=rate, seed=2
    )
    weights = [tf.constant(weight) for weight in network.get_weights() if weight.ndim]
    images = tf.constant(np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32))
    numbers = tf.range(10, 14)
    found = training_logits(network, images, numbers, dropout=rate, seed=2, step=tf.constant(step))

    x = images
    for i in range(3):
        x = tf.nn.conv2d(x, weights[2 * i], 1, "SAME") + weights[2 * i + 1]
        x = tf.nn.relu(x) if i or first_activation == "relu" else x
        kept = keep_mask(numbers, tuple(x.shape[1:]), rate, layer_key(2, i + 1, tf.constant(step))) if rate else True
        x = tf.where(kept, x / (1 - rate), 0.0)
        x = tf.nn.max_pool2d(x, 2, 2, "VALID") if i else x
    x = tf.nn.relu(tf.reshape(x, [4, -1]) @ weights[6] + weights[7]) @ weights[8] + weights[9]
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


def test_every_step_of_a_training_has_its_own_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    network = build_network((4, 4, 3), 10, **TINY, dropout=0.5)
    optimizer = training.make_optimizer("sgd", 0.1)
    optimizer.build(network.trainable_variables)

    def noting(*arguments: Any, step: tf.Tensor, **keywords: Any) -> tf.Tensor:
        tf.py_function(lambda value: steps.append(int(value)), [step], [])
        return training_logits(*arguments, step=step, **keywords)

    monkeypatch.setattr(training, "training_logits", noting)
    step = training.make_step(network, optimizer, dropout=0.5, seed=0, shards=1)
    for _ in range(3):
        step(np.zeros((4, 4, 4, 3), np.float32), np.zeros(4, np.uint8))
    assert steps == [0, 1, 2]


@pytest.mark.parametrize(("threads", "shards"), [(1, 1), (2, 2), (10, 5), (16, 8)])
def test_shards_share_the_threads_evenly(threads: int, shards: int) -> None:
    code = (
        "import sys, tensorflow as tf\n"
        "from dropout_study.network import use_threads\n"
        "shards = use_threads(int(sys.argv[1]))\n"
        "print(shards, shards * tf.config.threading.get_intra_op_parallelism_threads())\n"
    )
    variables = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(threads)], env=variables, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(shards), str(threads)]
