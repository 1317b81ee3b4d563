"""Epochs, learning rate and history: how one variant is trained."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dropout_study.devices import tensorflow_loading
from dropout_study.network import (
    cross_entropy,
    image_signature,
    log_probabilities,
    make_inference,
    shards_at_once,
    training_logits,
)

with tensorflow_loading():
    import keras
    import tensorflow as tf

NAN = float("nan")

# A training step: a batch of images and labels to the sum of losses and the number of correct predictions.
Step = Callable[[np.ndarray, np.ndarray], tuple[tf.Tensor, tf.Tensor]]


class LabelledImages(NamedTuple):
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
    """Where the loss stopped being finite: epoch and step, both counted from 1; step None: after the last one."""

    epoch: int
    step: int | None


@dataclass
class TrainingRecord:
    """What is known of a training after some epochs: a row and the seconds of each, and whether it diverged."""

    history: list[Epoch] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    diverged: Divergence | None = None

    def mark_diverged(self, step: int | None = None) -> None:
        """Record that the last epoch diverged, in `step`: the NaN in its row is what `divergence_epoch` reads."""
        last = self.history[-1]
        self.diverged = Divergence(last.epoch, step)
        self.history[-1] = last._replace(validation_loss=NAN, validation_accuracy=NAN)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON holds it."""
        return {"history": self.history, "seconds": self.seconds, "diverged": self.diverged}

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> "TrainingRecord":
        """Return the record that `to_json` saved, or an empty one for None."""
        if value is None:
            return cls()
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


def fit(
    network: keras.Model,
    optimizer: keras.Optimizer,
    data: LabelledImages,
    validation_data: LabelledImages,
    *,
    epochs: int,
    batch_size: int,
    learning_rate_decay: float,
    seed: int,
    shards: int = 1,
    record: TrainingRecord | None = None,
    on_epoch: Callable[[TrainingRecord], None] = lambda record: None,
    on_step: Callable[[], None] = lambda: None,
) -> TrainingRecord:
    """Train `network` in place up to `epochs` epochs, and return the record of it.

    Every epoch takes every image of `data` once, in an order that `seed` and the epoch draw, in batches of `batch_size`
    of which the last may be short; each batch is computed in `shards` at once. The loss is the categorical
    cross-entropy; dropout is that of the network's layers. The learning rate is the optimizer's in the first epoch, and
    is multiplied by `learning_rate_decay` after each. `optimizer` has to be built.

    `on_step` is called after each step, `on_epoch` after each epoch with the record so far. To resume, pass that
    `record`, and network and optimizer in the state that they had then: nothing else is carried from epoch to epoch.

    When a loss or a weight stops being finite, training ends: the last row of the history is that epoch's, with NaN for
    its validation figures, and `network` gets the weights of the epoch before (the initial ones if there is none).
    """
    step = make_step(network, optimizer, shards)
    infer = make_inference(network, shards)
    first_rate = float(optimizer.learning_rate)
    record = record or TrainingRecord()
    weights = network.get_weights()
    for epoch in range(len(record.history) + 1, epochs + 1):
        if record.diverged:
            break
        start = time.perf_counter()
        optimizer.learning_rate.assign(epoch_learning_rate(first_rate, learning_rate_decay, epoch))
        order = epoch_order(len(data.labels), seed, epoch)
        loss, accuracy, failed_step = _fit_epoch(step, data, order, batch_size, on_step)
        validation = (NAN, NAN) if failed_step else measure(infer, validation_data)
        record.history.append(Epoch(epoch, loss, accuracy, *validation))
        trained = network.get_weights()
        if np.isfinite(validation[0]) and all(np.isfinite(weight).all() for weight in trained):
            weights = trained
        else:
            record.mark_diverged(failed_step)
            network.set_weights(weights)
        record.seconds.append(time.perf_counter() - start)
        optimizer.learning_rate.assign(first_rate)  # a checkpoint holds the first rate, whatever its epoch
        on_epoch(record)
    return record


def predict_test(network: keras.Model, images: np.ndarray, shards: int, record: TrainingRecord) -> np.ndarray:
    """Return the log-probabilities, float32 [N, classes], that the trained `network` gives the test images.

    If they are not finite, though all losses and weights were, `record` says from here on that the last epoch diverged;
    `network` keeps its weights.
    """
    predictions = log_probabilities(make_inference(network, shards)(images))
    if not (record.diverged or np.isfinite(predictions).all()):
        record.mark_diverged()
    return predictions


def _fit_epoch(
    step: Step, data: LabelledImages, order: np.ndarray, batch_size: int, on_step: Callable[[], None]
) -> tuple[float, float, int | None]:
    """Return mean loss and accuracy and, if a loss was not finite, the step (from 1) in which it was."""
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


def make_step(network: keras.Model, optimizer: keras.Optimizer, shards: int) -> Step:
    """Return one training step, traced once for batches of any size.

    The batch is computed in `shards` that run at once, a thread each, and their gradients are added up in a fixed
    order. `optimizer` has to be built; its number of iterations is the step that the dropout masks depend on.
    """
    variables = network.trainable_variables

    def shard_step(images: tf.Tensor, labels: tf.Tensor, numbers: tf.Tensor, count: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            logits = training_logits(network, images, numbers, optimizer.iterations.value)
            loss = tf.reduce_sum(cross_entropy(labels, logits))
            mean = loss / tf.cast(count, tf.float32)
        gradients = tape.gradient(mean, [variable.value for variable in variables])
        return gradients, loss, tf.math.count_nonzero(tf.argmax(logits, 1, tf.int32) == tf.cast(labels, tf.int32))

    @tf.function(jit_compile=True, autograph=False)
    def update(gradients: list[tf.Tensor]) -> None:
        optimizer.apply(gradients, variables)

    @shards_at_once(shards, [image_signature(network), tf.TensorSpec([None], tf.uint8)])
    def step(parts: list[slice], images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        count = tf.shape(labels)[0]
        numbers = tf.range(count)
        by_shard = [shard_step(images[part], labels[part], numbers[part], count) for part in parts]
        gradients, losses, hits = zip(*by_shard, strict=True)
        total = [tf.add_n(shares) for shares in zip(*gradients, strict=True)]
        # A ReLU can hide a weight that is not a number from the loss. It shows in a gradient, unless it is of the first
        # layer, whose input has none.
        health = tf.add_n([tf.reduce_sum(tensor) for tensor in [*total, variables[0].value]])
        update(total)
        return tf.add_n(losses) + 0 * health, tf.add_n(hits)

    return step


def measure(infer: Callable[[np.ndarray], tf.Tensor], data: LabelledImages) -> tuple[float, float]:
    """Return mean loss in nats and accuracy, a share, of the network whose inference `infer` is, without dropout."""
    logits = infer(data.images)
    losses = cross_entropy(data.labels, logits).numpy()
    accuracy = (logits.numpy().argmax(axis=1) == data.labels).mean()
    return float(losses.mean(dtype=np.float64)), float(accuracy)
