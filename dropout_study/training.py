"""Epochs, learning rate and history: how one variant is trained."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dropout_study.architecture import best_epoch
from dropout_study.devices import tensorflow_loading
from dropout_study.network import (
    clipped_cross_entropy,
    cross_entropy,
    image_signature,
    log_probabilities,
    make_inference,
    shards_at_once,
    training_logits,
    training_parameters,
)

with tensorflow_loading():
    import keras
    import tensorflow as tf

NAN = float("nan")
LOSSES = {"logits": cross_entropy, "clipped": clipped_cross_entropy}  # of training, by the setting train.loss

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
    """What training produced so far, besides weights and optimizer variables.

    `history` has a row per epoch, `seconds` its duration. `predictions` are the log-probabilities of the test images,
    float32 [N, classes], after each of the last finite epochs, at most `test_epochs` of them. `best_weights` are those
    after the epoch with the lowest finite validation loss; empty if there is none.
    """

    history: list[Epoch] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    diverged: Divergence | None = None
    predictions: list[np.ndarray] = field(default_factory=list)
    best_weights: list[np.ndarray] = field(default_factory=list)

    def best_epoch(self) -> int:
        """Return the number of the epoch with the lowest finite validation loss; 0 if there is none."""
        return best_epoch([row.validation_loss for row in self.history])

    def mark_diverged(self, step: int | None = None) -> None:
        """Record that the last epoch diverged, in `step`: the NaN in its row is what `divergence_epoch` reads."""
        last = self.history[-1]
        self.diverged = Divergence(last.epoch, step)
        self.history[-1] = last._replace(validation_loss=NAN, validation_accuracy=NAN)

    def to_json(self) -> dict[str, Any]:
        """Return the record without its arrays, as JSON holds it."""
        return {"history": self.history, "seconds": self.seconds, "diverged": self.diverged}

    def arrays(self) -> dict[str, list[np.ndarray]]:
        """Return the arrays of the record by name."""
        return {"predictions": self.predictions, "best_weights": self.best_weights}

    @classmethod
    def restored(cls, value: dict[str, Any], arrays: Mapping[str, list[np.ndarray]]) -> "TrainingRecord":
        """Return the record whose `to_json` and `arrays` were saved."""
        diverged = value["diverged"] and Divergence(*value["diverged"])
        history = [Epoch(*row) for row in value["history"]]
        return cls(history, value["seconds"], diverged, arrays.get("predictions", []), arrays.get("best_weights", []))


def make_optimizer(name: str, learning_rate: float) -> keras.Optimizer:
    """Return the optimizer `name` ("sgd", "adadelta" or "adam") with a `learning_rate` above 0.

    Adadelta scales its own steps, so M. Zeiler (arXiv 1212.5701) gives it no learning rate, which is a rate of 1.0. So
    did the article's Keras 2, with the rho and epsilon below. Keras 3 has a default of 0.001, with which it hardly
    learns.
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
    test_images: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    learning_rate_decay: float,
    seed: int,
    loss: str = "logits",
    precision: str = "float32",
    test_epochs: int = 1,
    shards: int = 1,
    record: TrainingRecord | None = None,
    on_epoch: Callable[[TrainingRecord], None] = lambda record: None,
    on_step: Callable[[], None] = lambda: None,
) -> TrainingRecord:
    """Train `network` in place up to `epochs` epochs, and return the record of it.

    Every epoch takes every image of `data` once, in an order that `seed` and the epoch draw, in batches of `batch_size`
    of which the last may be short; each batch is computed in `shards` in parallel. The loss of training is the
    categorical cross-entropy, from "logits" or "clipped" (`LOSSES`), computed in `precision` (`training_parameters`);
    dropout is that of the network's layers. The learning rate is the optimizer's in the first epoch, and is multiplied
    by `learning_rate_decay` after each. `optimizer` has to be built. Predictions of the test images are kept for the
    last `test_epochs` epochs; if there are several, the images are predicted after every epoch, at no cost if
    validation has the same images.

    `on_step` is called after each step, `on_epoch` after each epoch with the record so far. To resume, pass that
    `record`, and network and optimizer in the state that they had then: nothing else is carried from epoch to epoch.

    When a loss, a weight or a prediction is no longer finite, training ends: the last row of the history is that
    epoch's, with NaN for its validation figures, and `network` gets the weights of the epoch before (the initial ones
    if there is none).
    """
    step = make_step(network, optimizer, shards, loss=loss, precision=precision)
    infer = make_inference(network, shards)
    first_rate = float(optimizer.learning_rate)
    record = record or TrainingRecord()
    weights = network.get_weights()
    validated_on_test = np.array_equal(validation_data.images, test_images)
    for epoch in range(len(record.history) + 1, epochs + 1):
        if record.diverged:
            break
        start = time.perf_counter()
        optimizer.learning_rate.assign(epoch_learning_rate(first_rate, learning_rate_decay, epoch))
        order = epoch_order(len(data.labels), seed, epoch)
        train_loss, accuracy, failed_step = _fit_epoch(step, data, order, batch_size, on_step)
        trained, validation, predictions = network.get_weights(), (NAN, NAN), []
        if not failed_step:
            logits = infer(validation_data.images)
            validation = measure(logits, validation_data.labels)
        seconds = time.perf_counter() - start
        # Any epoch may be one of the last: the next one may diverge. `predict_test` can make up for one alone.
        if not failed_step and (test_epochs > 1 or epoch == epochs):
            predictions = [log_probabilities(logits if validated_on_test else infer(test_images))]
        record.history.append(Epoch(epoch, train_loss, accuracy, *validation))
        if np.isfinite(validation[0]) and all(np.isfinite(array).all() for array in [*trained, *predictions]):
            weights = trained
            record.predictions = [*record.predictions, *predictions][-test_epochs:]
            if record.best_epoch() == epoch:
                record.best_weights = trained
        else:
            record.mark_diverged(failed_step)
            network.set_weights(weights)
        record.seconds.append(seconds)
        optimizer.learning_rate.assign(first_rate)  # a checkpoint holds the first rate, whatever its epoch
        on_epoch(record)
    return record


def predict_test(network: keras.Model, images: np.ndarray, shards: int, record: TrainingRecord) -> np.ndarray:
    """Return the log-probabilities of the test images, float32 [kept epochs + 1, N, classes], of a trained `network`.

    First those after each of the last finite epochs that `record` has, or of the network as it is if there are none;
    then those of the epoch with the lowest validation loss.
    """
    infer = make_inference(network, shards)
    last = record.predictions or [log_probabilities(infer(images))]
    finite_epochs = len(record.history) - (record.diverged is not None)
    if record.best_epoch() in (0, finite_epochs):
        return np.stack([*last, last[-1]])
    weights = network.get_weights()
    network.set_weights(record.best_weights)
    best = log_probabilities(infer(images))
    network.set_weights(weights)
    return np.stack([*last, best])


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


def make_step(
    network: keras.Model, optimizer: keras.Optimizer, shards: int, *, loss: str = "logits", precision: str = "float32"
) -> Step:
    """Return one training step, compiled once for batches of any size.

    The batch is computed in `shards` that run in parallel, one thread each, and their gradients are added up in a fixed
    order, in float32. `loss` and `precision` are as in `fit`. `optimizer` has to be built; its number of iterations is
    the step that the dropout masks depend on.
    """
    variables = network.trainable_variables
    image_losses = LOSSES[loss]

    def shard_step(
        parameters: list[tf.Tensor], images: tf.Tensor, labels: tf.Tensor, numbers: tf.Tensor, count: tf.Tensor
    ) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parameters)
            logits = training_logits(network, parameters, images, numbers, optimizer.iterations.value)
            total = tf.reduce_sum(image_losses(labels, logits))
            mean = total / tf.cast(count, tf.float32)
        hits = tf.math.count_nonzero(tf.argmax(logits, 1, tf.int32) == tf.cast(labels, tf.int32))
        return tape.gradient(mean, parameters), total, hits

    @tf.function(jit_compile=True, autograph=False)
    def update(gradients: list[list[tf.Tensor]]) -> tf.Tensor:
        """Apply the gradients of each shard, and return a number that is NaN or infinite if one of them has such."""
        total = [tf.add_n([tf.cast(share, tf.float32) for share in shares]) for shares in zip(*gradients, strict=True)]
        # A ReLU can hide a weight that is not a number from the loss. It shows in a gradient, unless it is of the first
        # layer, whose input has none.
        health = tf.add_n([tf.reduce_sum(tensor) for tensor in [*total, variables[0].value]])
        optimizer.apply(total, variables)
        return health

    @shards_at_once(shards, [image_signature(network), tf.TensorSpec([None], tf.uint8)])
    def step(parts: list[slice], images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        count = tf.shape(labels)[0]
        numbers = tf.range(count)
        parameters = training_parameters(network, precision)
        by_shard = [shard_step(parameters, images[part], labels[part], numbers[part], count) for part in parts]
        gradients, losses, hits = zip(*by_shard, strict=True)
        return tf.add_n(losses) + 0 * update(gradients), tf.add_n(hits)

    return step


def measure(logits: tf.Tensor, labels: np.ndarray) -> tuple[float, float]:
    """Return mean loss in nats and accuracy, a share, of `logits`, float32 [N, classes], for `labels`, integers [N]."""
    losses = cross_entropy(labels, logits).numpy()
    accuracy = (logits.numpy().argmax(axis=1) == labels).mean()
    return float(losses.mean(dtype=np.float64)), float(accuracy)
