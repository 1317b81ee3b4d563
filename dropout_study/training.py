"""Epochs, learning rate and history: how one variant is trained."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dropout_study.network import make_measure


class Images(NamedTuple):
    """Normalized images, float32 [N, H, W, C], and their labels, uint8 [N]; memory-mapped arrays will do."""

    images: np.ndarray
    labels: np.ndarray


class Epoch(NamedTuple):
    """A row of the history: mean losses in nats, accuracies as shares; training's with dropout on."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


class Divergence(NamedTuple):
    """Where the loss stopped being finite: epoch and step, both counted from 1."""

    epoch: int
    step: int


@dataclass
class Training:
    """A variant in training: what it has come to after each epoch."""

    history: list[Epoch] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    diverged: Divergence | None = None


def make_optimizer(name: str, learning_rate: float) -> keras.Optimizer:
    """Return the optimizer `name` ("sgd", "adadelta" or "adam").

    Adadelta's rho and epsilon are those of the article's Keras; the newer one has the same, but a default
    learning rate of 0.001, with which it hardly learns.
    """
    match name:
        case "sgd":
            return keras.optimizers.SGD(learning_rate)
        case "adadelta":
            return keras.optimizers.Adadelta(learning_rate, rho=0.95, epsilon=1e-7)
        case "adam":
            return keras.optimizers.Adam(learning_rate)
        case _:
            raise ValueError(f"unknown optimizer {name!r}; known: sgd, adadelta, adam")


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which the `count` images are seen in `epoch`: a function of its arguments alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def train(
    network: keras.Model,
    optimizer: keras.Optimizer,
    train: Images,
    validation: Images,
    *,
    epochs: int,
    batch_size: int,
    learning_rate_decay: float,
    seed: int,
    on_epoch: Callable[[Training], None] = lambda training: None,
) -> Training:
    """Train `network` in place and return how it went; `on_epoch` is called after each epoch.

    Every epoch sees every image once, in an order of its own; the last batch may be short. The loss is the
    categorical cross-entropy. After each epoch the learning rate is multiplied by `learning_rate_decay`.

    When a loss or a weight stops being finite, training ends: the history's last row is that epoch, with a
    validation loss that is not finite, and `network` has the weights of the last epoch before it (the initial ones
    if none).
    """
    step = _make_step(network, optimizer)
    measure = make_measure(network)
    first_rate = float(optimizer.learning_rate)
    training = Training()
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        before = network.get_weights()
        optimizer.learning_rate.assign(first_rate * learning_rate_decay ** (epoch - 1))
        loss, accuracy, failed_step = _train_epoch(step, train, epoch_order(len(train.labels), seed, epoch), batch_size)
        measured = measure(*validation) if failed_step is None else None
        validation_loss = measured.loss if measured else float("nan")
        steps = -(-len(train.labels) // batch_size)
        if not np.isfinite(validation_loss) or not _finite(network):
            training.diverged = Divergence(epoch, failed_step or steps)
            validation_loss = float("nan")
            network.set_weights(before)
        training.history.append(
            Epoch(
                epoch,
                loss,
                accuracy,
                validation_loss,
                measured.accuracy if measured and not training.diverged else float("nan"),
            )
        )
        training.seconds.append(time.perf_counter() - start)
        on_epoch(training)
        if training.diverged:
            break
    return training


def _train_epoch(
    step: Callable[[np.ndarray, np.ndarray], tuple[tf.Tensor, tf.Tensor]],
    data: Images,
    order: np.ndarray,
    batch_size: int,
) -> tuple[float, float, int | None]:
    """Return mean loss, accuracy and, if a loss was not finite, the step (from 1) at which it was."""
    total_loss = correct = 0.0
    for number, start in enumerate(range(0, len(order), batch_size), start=1):
        batch = order[start : start + batch_size]
        loss, hits = step(data.images[batch], data.labels[batch])
        total_loss += float(loss)
        correct += float(hits)
        if not np.isfinite(total_loss):
            return float("nan"), float("nan"), number
    return total_loss / len(order), correct / len(order), None


def _make_step(
    network: keras.Model, optimizer: keras.Optimizer
) -> Callable[[np.ndarray, np.ndarray], tuple[tf.Tensor, tf.Tensor]]:
    """Return one training step, traced once: images and labels to the sum of losses and the number of hits."""

    @tf.function(
        input_signature=[
            tf.TensorSpec(network.input_shape, tf.float32),
            tf.TensorSpec([None], tf.uint8),
        ]
    )
    def step(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            probabilities = network(images, training=True)
            losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply(gradients, network.trainable_variables)
        # A ReLU can hide a weight that is not a number from the loss; no gradient hides it from this sum.
        health = tf.add_n([tf.reduce_sum(gradient) for gradient in gradients])
        hits = tf.argmax(probabilities, axis=1) == tf.cast(labels, tf.int64)
        return tf.reduce_sum(losses) + 0 * health, tf.math.count_nonzero(hits)

    return step


def _finite(network: keras.Model) -> bool:
    return all(np.isfinite(weight).all() for weight in network.get_weights())
