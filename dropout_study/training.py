"""Epochs, learning rate and history: how one variant is trained."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dropout_study.network import Batch, make_measure, shards_at_once, training_logits

NAN = float("nan")


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
    """What a training has come to after some epochs."""

    history: list[Epoch] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    diverged: Divergence | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {"history": self.history, "seconds": self.seconds, "diverged": self.diverged}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Training":
        """Return what `to_json` saved."""
        diverged = value["diverged"] and Divergence(*value["diverged"])
        return cls([Epoch(*row) for row in value["history"]], value["seconds"], diverged)


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


def epoch_learning_rate(first: float, decay: float, epoch: int) -> float:
    """Return the learning rate of `epoch`, counted from 1: `first`, multiplied by `decay` after each epoch."""
    return first * decay ** (epoch - 1)


def train(
    network: keras.Model,
    optimizer: keras.Optimizer,
    train: Images,
    validation: Images,
    *,
    dropout: float,
    epochs: int,
    batch_size: int,
    learning_rate_decay: float,
    seed: int,
    shards: int = 1,
    so_far: Training | None = None,
    on_epoch: Callable[[Training], None] = lambda training: None,
    on_step: Callable[[], None] = lambda: None,
) -> Training:
    """Train `network` in place and return how it went; `on_epoch` is called after each epoch, `on_step` each step.

    Every epoch sees every image once, in an order of its own; the last batch may be short. The loss is the
    categorical cross-entropy. After each epoch the learning rate is multiplied by `learning_rate_decay`.

    Every batch is computed in `shards` at once. `optimizer` has to be built. To go on with a training, pass `so_far`
    as `on_epoch` got it, and network and optimizer in the state that they then had; nothing else is remembered from
    one epoch to the next.

    When a loss or a weight stops being finite, training ends: the history's last row is that epoch, with a
    validation loss that is not finite, and `network` has the weights of the last epoch before it (the initial ones
    if none).
    """
    step = make_step(network, optimizer, dropout=dropout, seed=seed, shards=shards)
    measure = make_measure(network, shards)
    first_rate = float(optimizer.learning_rate)
    training = so_far or Training()
    weights = network.get_weights()
    for epoch in range(len(training.history) + 1, epochs + 1):
        if training.diverged:
            break
        start = time.perf_counter()
        optimizer.learning_rate.assign(epoch_learning_rate(first_rate, learning_rate_decay, epoch))
        order = epoch_order(len(train.labels), seed, epoch)
        loss, accuracy, failed_step = _train_epoch(step, train, order, batch_size, on_step)
        measured = measure(*validation) if failed_step is None else None
        row = Epoch(epoch, loss, accuracy, *(measured[:2] if measured else (NAN, NAN)))
        trained = network.get_weights()
        if np.isfinite(row.validation_loss) and all(np.isfinite(weight).all() for weight in trained):
            weights = trained
        else:
            training.diverged = Divergence(epoch, failed_step or -(-len(order) // batch_size))
            row = row._replace(validation_loss=NAN, validation_accuracy=NAN)
            network.set_weights(weights)
        training.history.append(row)
        training.seconds.append(time.perf_counter() - start)
        optimizer.learning_rate.assign(first_rate)
        on_epoch(training)
    return training


def _train_epoch(
    step: Batch, data: Images, order: np.ndarray, batch_size: int, on_step: Callable[[], None]
) -> tuple[float, float, int | None]:
    """Return mean loss, accuracy and, if a loss was not finite, the step (from 1) at which it was."""
    total_loss = correct = 0.0
    for number, start in enumerate(range(0, len(order), batch_size), start=1):
        batch = order[start : start + batch_size]
        loss, hits = step(data.images[batch], data.labels[batch])
        total_loss += float(loss)
        correct += float(hits)
        on_step()
        if not np.isfinite(total_loss):
            return NAN, NAN, number
    return total_loss / len(order), correct / len(order), None


def make_step(network: keras.Model, optimizer: keras.Optimizer, *, dropout: float, seed: int, shards: int) -> Batch:
    """Return one training step, traced once: images and labels to the sum of losses and the number of hits.

    The batch is computed in `shards` that run at once, a thread each, and their gradients are added up in a fixed
    order. `optimizer` has to be built; its number of iterations is the step that the dropout masks depend on.
    """
    variables = network.trainable_variables

    def shard_step(images: tf.Tensor, labels: tf.Tensor, numbers: tf.Tensor, count: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            logits = training_logits(
                network, images, numbers, dropout=dropout, seed=seed, step=optimizer.iterations.value
            )
            classes = tf.cast(labels, tf.int32)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits))
            mean = loss / tf.cast(count, tf.float32)
        gradients = tape.gradient(mean, [variable.value for variable in variables])
        return gradients, loss, tf.math.count_nonzero(tf.argmax(logits, 1, tf.int32) == classes)

    @tf.function(jit_compile=True, autograph=False)
    def update(gradients: list[tf.Tensor]) -> None:
        optimizer.apply(gradients, variables)

    @shards_at_once(network, shards)
    def step(images: tf.Tensor, labels: tf.Tensor, parts: list[slice]) -> tuple[tf.Tensor, tf.Tensor]:
        count = tf.shape(labels)[0]
        numbers = tf.range(count)
        by_shard = [shard_step(images[part], labels[part], numbers[part], count) for part in parts]
        gradients, losses, hits = zip(*by_shard, strict=True)
        total = [tf.add_n(same) for same in zip(*gradients, strict=True)]
        # A ReLU can hide a weight that is not a number from the loss. It shows in a gradient, unless it is of the first
        # layer, whose input has none.
        health = tf.add_n([tf.reduce_sum(tensor) for tensor in [*total, variables[0].value]])
        update(total)
        return tf.add_n(losses) + 0 * health, tf.add_n(hits)

    return step
