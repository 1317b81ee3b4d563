import json
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest

from dropout_study import training
from dropout_study.network import build_network, make_inference
from dropout_study.training import LabelledImages, epoch_order, make_optimizer

TINY: dict[str, Any] = {"filters": [3, 4], "units": [5], "first_activation": "relu"}
RANDOM = np.random.default_rng(0)
LABELS = np.arange(42, dtype=np.uint8) % 3
# Each class has a bright channel of its own: learnable in a few epochs.
IMAGES = (RANDOM.normal(size=(42, 4, 4, 3)) * 0.3 + np.eye(3)[LABELS][:, None, None]).astype(np.float32)
TRAIN, VALIDATION = LabelledImages(IMAGES[:30], LABELS[:30]), LabelledImages(IMAGES[30:], LABELS[30:])
TEST = IMAGES[20:35]


@dataclass
class Run:
    """A tiny network and optimizer, and what training them came to."""

    network: keras.Model
    optimizer: keras.Optimizer
    record: training.TrainingRecord = field(default_factory=training.TrainingRecord)

    def fit(
        self, data: LabelledImages = TRAIN, record: training.TrainingRecord | None = None, **changes: Any
    ) -> training.TrainingRecord:
        settings = {"epochs": 3, "batch_size": 8, "learning_rate_decay": 1.0, "seed": 0} | changes
        validation = settings.pop("validation_data", VALIDATION)
        self.record = training.fit(self.network, self.optimizer, data, validation, TEST, record=record, **settings)
        return self.record

    @property
    def predictions(self) -> bytes:
        return training.predict_test(self.network, TEST, 1, self.record).tobytes()

    @property
    def weights(self) -> bytes:
        return b"".join(weight.numpy().tobytes() for weight in self.network.trainable_weights)


def built(optimizer: str = "adam", learning_rate: float = 0.01, dropout: float = 0.0, seed: int = 0) -> Run:
    """Return an untrained run."""
    network = build_network((4, 4, 3), 3, **TINY, dropout=dropout, seed=seed)
    run = Run(network, make_optimizer(optimizer, learning_rate))
    run.optimizer.build(network.trainable_variables)
    return run


def trained(optimizer: str = "adam", learning_rate: float = 0.01, dropout: float = 0.0, **changes: Any) -> Run:
    """Return a run that was trained for three epochs, or as `changes` say."""
    run = built(optimizer, learning_rate, dropout, changes.get("seed", 0))
    run.fit(**changes)
    return run


@pytest.mark.parametrize(("optimizer", "learning_rate"), [("sgd", 0.3), ("adadelta", 1.0), ("adam", 0.03)])
def test_fit_learns_with_every_optimizer(optimizer: str, learning_rate: float) -> None:
    record = trained(optimizer, learning_rate, epochs=30).record

    assert [row.epoch for row in record.history] == list(range(1, 31))
    assert record.history[-1].train_loss < record.history[0].train_loss / 2
    assert record.history[-1].validation_accuracy > 0.6
    assert record.diverged is None


def test_make_optimizer_returns_the_articles() -> None:
    adadelta, sgd = make_optimizer("adadelta", 1.0), make_optimizer("sgd", 0.01)

    assert (adadelta.rho, adadelta.epsilon, float(adadelta.learning_rate)) == (0.95, 1e-7, 1.0)
    assert (sgd.momentum, sgd.nesterov) == (0, False)
    with pytest.raises(ValueError, match="unknown optimizer 'lion'"):
        make_optimizer("lion", 1.0)


def test_fit_for_one_epoch_equals_keras_fit() -> None:
    """Against `fit`, with one-hot labels and without shuffling, on the same initial weights."""
    stock = build_network((4, 4, 3), 3, **TINY, dropout=0, seed=0)
    stock.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy", metrics=["accuracy"])
    order = epoch_order(30, seed=0, epoch=1)
    one_hot = np.eye(3, dtype=np.float32)[TRAIN.labels[order]]

    run = trained("sgd", 0.1, epochs=1)
    history = stock.fit(TRAIN.images[order], one_hot, batch_size=8, shuffle=False, verbose=0).history

    for mine, expected in zip(run.network.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-6)
    assert run.record.history[0].train_loss == pytest.approx(history["loss"][0], rel=1e-4)
    assert run.record.history[0].train_accuracy == pytest.approx(history["accuracy"][0])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_fit_gives_equal_bytes_to_equal_runs(dropout: float) -> None:
    first, again = trained(dropout=dropout), trained(dropout=dropout)

    assert first.record.history == again.record.history
    assert first.weights == again.weights


def test_fit_ends_when_on_step_raises() -> None:
    calls = 0
    epochs: list[int] = []

    def stop_in_the_second_epoch() -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(on_epoch=lambda record: epochs.append(len(record.history)), on_step=stop_in_the_second_epoch)

    assert (calls, epochs) == (6, [1])  # 30 images in batches of 8 are 4 steps an epoch


def test_fit_with_another_seed_is_another_run() -> None:
    assert trained(seed=0).weights != trained(seed=1).weights


def test_fit_takes_the_dropout_rate_from_the_network() -> None:
    with_dropout, without = trained("sgd", 1e-9, dropout=0.9, epochs=1), trained("sgd", 1e-9, epochs=1)

    (row,), (plain,) = with_dropout.record.history, without.record.history
    assert row.train_loss != pytest.approx(plain.train_loss, abs=1e-3)
    assert row.validation_loss == pytest.approx(plain.validation_loss, abs=1e-5)  # dropout is off in validation


def test_fit_decays_the_learning_rate_by_epoch() -> None:
    """With one image an epoch is one step, compared with the gradient of stock Keras from the same weights."""
    first = epoch_order(30, 0, 1)[:1]
    data = LabelledImages(TRAIN.images[first], TRAIN.labels[first])
    run = built("sgd", 0.5)
    states = [run.network.get_weights()]

    run.fit(data, learning_rate_decay=0.5, on_epoch=lambda _: states.append(run.network.get_weights()))

    for epoch, rate in enumerate([0.5, 0.25, 0.125]):
        stock = build_network((4, 4, 3), 3, **TINY, dropout=0, seed=0)
        stock.set_weights(states[epoch])
        stock.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy")
        stock.train_on_batch(data.images, data.labels)
        for mine, expected in zip(states[epoch + 1], stock.get_weights(), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-6)


def test_epoch_order_is_a_permutation_by_seed_and_epoch() -> None:
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1, 2**32 - 1) for epoch in (1, 2)]

    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert len({order.tobytes() for order in orders}) == 6
    np.testing.assert_array_equal(orders[0], epoch_order(50, 0, 1))


@pytest.mark.parametrize(("batch_size", "sizes"), [(8, [8, 8, 8, 6]), (30, [30]), (29, [29, 1])])
def test_fit_takes_every_image_once_an_epoch_and_the_last_batch_may_be_short(
    batch_size: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[np.ndarray] = []
    make_step = training.make_step

    def recording(*arguments: Any, **keywords: Any) -> training.Step:
        step = make_step(*arguments, **keywords)
        return lambda images, labels: (batches.append(images), step(images, labels))[1]  # type: ignore[func-returns-value]

    monkeypatch.setattr(training, "make_step", recording)

    trained(batch_size=batch_size, epochs=1)

    assert [len(batch) for batch in batches] == sizes
    assert {image.tobytes() for image in np.concatenate(batches)} == {image.tobytes() for image in TRAIN.images}


def test_fit_ends_a_divergence_with_the_initial_weights_and_nan() -> None:
    initial = built().weights

    run = trained("sgd", 1e12, epochs=5)

    assert run.record.diverged is not None
    assert run.record.diverged.epoch == len(run.record.history) == 1
    assert 1 <= (run.record.diverged.step or 0) <= 4
    assert np.isnan(run.record.history[-1].validation_loss)
    assert run.weights == initial


def test_fit_ends_a_later_divergence_with_the_weights_of_the_epoch_before() -> None:
    images = TRAIN.images.copy()
    run = built()
    finite = []

    def spoil(record: training.TrainingRecord) -> None:
        if not record.diverged:
            finite.append(run.weights)
        if len(record.history) == 2:
            images[epoch_order(30, 0, 3)[10]] = np.nan

    record = run.fit(LabelledImages(images, TRAIN.labels), epochs=5, on_epoch=spoil)

    # A ReLU hides the image from the loss of step 2, where it is seen, but not from the gradients.
    assert record.diverged == training.Divergence(epoch=3, step=2)
    assert [row.epoch for row in record.history] == [1, 2, 3]
    assert np.isnan(record.history[-1].train_loss)
    assert run.weights == finite[-1]


@pytest.mark.parametrize("shards", [2, 3, 8])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_fit_in_shards_changes_nothing_but_the_order_of_sums(shards: int, dropout: float) -> None:
    """With 30 images and batches of 8, the last one of 6 is shorter than 8 shards."""
    whole, split = trained(dropout=dropout), trained(dropout=dropout, shards=shards)

    for row, expected in zip(split.record.history, whole.record.history, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    for mine, same in zip(split.network.get_weights(), whole.network.get_weights(), strict=True):
        np.testing.assert_allclose(mine, same, rtol=1e-3, atol=1e-5)


def through_json(record: training.TrainingRecord) -> training.TrainingRecord:
    return training.TrainingRecord.restored(json.loads(json.dumps(record.to_json())), record.arrays())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fit_resumed_equals_an_uninterrupted_run(precision: str) -> None:
    settings: dict[str, Any] = {"learning_rate_decay": 0.5, "precision": precision, "test_epochs": 3}
    whole = trained(dropout=0.5, epochs=4, **settings)
    half = trained(dropout=0.5, epochs=2, **settings)
    resumed = built(dropout=0.5)
    resumed.network.set_weights(half.network.get_weights())
    for variable, value in zip(resumed.optimizer.variables, half.optimizer.variables, strict=True):
        variable.assign(value.numpy())

    resumed.fit(record=through_json(half.record), epochs=4, **settings)

    assert resumed.record.history == whole.record.history
    assert resumed.weights == whole.weights
    assert resumed.predictions == whole.predictions


@pytest.mark.parametrize("shards", [1, 2])
def test_fit_in_bfloat16_learns_what_float32_does(shards: int) -> None:
    exact = trained(dropout=0.3, epochs=20)
    half = trained(dropout=0.3, epochs=20, precision="bfloat16", shards=shards)

    for row, expected in zip(half.record.history[:3], exact.record.history[:3], strict=True):
        assert row.train_loss == pytest.approx(expected.train_loss, rel=0.05)
    assert half.record.history[-1].validation_loss < 0.6 * half.record.history[0].validation_loss
    assert half.weights != exact.weights
    assert {variable.dtype for variable in half.network.trainable_variables} == {"float32"}


def test_fit_by_the_clipped_loss_reports_it_for_training_alone() -> None:
    """At the first step of a wild network every image is clipped: a loss of 16.1, and no step."""
    run = built("sgd", 0.1)
    run.network.get_layer("logits").bias.assign([0.0, 0.0, 100.0])
    data = LabelledImages(TRAIN.images, np.zeros(30, np.uint8))
    before = run.weights

    record = run.fit(data, epochs=1, loss="clipped")

    assert record.history[0].train_loss == pytest.approx(-np.log(1e-7), rel=1e-6)
    assert record.history[0].validation_loss > 50
    assert run.weights == before


def test_fit_does_not_resume_a_diverged_training() -> None:
    diverged = trained("sgd", 1e12).record

    again = trained("sgd", 1e12, record=through_json(diverged)).record

    assert len(again.history) == len(diverged.history) == 1
    assert again.diverged == diverged.diverged


def noted_networks(run: Run, **settings: Any) -> list[np.ndarray]:
    """Fit, and return what stock Keras predicts of the test images after each epoch."""
    predicted: list[np.ndarray] = []
    run.fit(on_epoch=lambda _: predicted.append(run.network.predict(TEST, verbose=0)), **settings)
    return predicted


@pytest.mark.parametrize("test_epochs", [1, 3, 6])
def test_predict_test_has_the_last_epochs_and_the_best_one_without_dropout(test_epochs: int) -> None:
    run = built("adam", 0.2, dropout=0.5)
    expected = noted_networks(run, epochs=6, test_epochs=test_epochs)
    weights = run.weights

    predictions = training.predict_test(run.network, TEST, 2, run.record)

    losses = [row.validation_loss for row in run.record.history]
    best = losses.index(min(losses))
    assert best < 5  # else this tests nothing
    assert predictions.dtype == np.float32
    assert predictions.shape == (test_epochs + 1, *expected[0].shape)
    np.testing.assert_allclose(np.exp(predictions), [*expected[-test_epochs:], expected[best]], rtol=1e-4, atol=1e-6)
    assert run.weights == weights


def test_fit_with_validation_on_the_test_images_predicts_them_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted: list[int] = []

    def counting(*arguments: Any) -> Any:
        infer = make_inference(*arguments)
        return lambda images: (predicted.append(len(images)), infer(images))[1]  # type: ignore[func-returns-value]

    monkeypatch.setattr(training, "make_inference", counting)
    run = trained(validation_data=LabelledImages(TEST, LABELS[20:35]), test_epochs=2, epochs=4)

    assert predicted == [len(TEST)] * 4
    assert len(run.record.predictions) == 2


def test_predict_test_of_a_diverged_training_has_its_last_finite_epochs() -> None:
    images = TRAIN.images.copy()
    run = built("adam", 0.05)

    def spoil(record: training.TrainingRecord) -> None:
        expected.append(run.network.predict(TEST, verbose=0))
        if len(record.history) == 3:
            images[epoch_order(30, 0, 4)[10]] = np.nan

    expected: list[np.ndarray] = []
    run.fit(LabelledImages(images, TRAIN.labels), epochs=9, test_epochs=2, on_epoch=spoil)

    predictions = training.predict_test(run.network, TEST, 1, run.record)

    assert run.record.diverged is not None
    np.testing.assert_allclose(np.exp(predictions[:2]), expected[1:3], rtol=1e-4, atol=1e-6)


def test_predict_test_without_a_finite_epoch_has_the_initial_network_twice() -> None:
    initial = built().network.predict(TEST, verbose=0)
    run = trained("sgd", 1e12, epochs=5)

    predictions = training.predict_test(run.network, TEST, 1, run.record)

    np.testing.assert_allclose(np.exp(predictions), [initial, initial], rtol=1e-4, atol=1e-6)


def test_fit_records_predictions_that_are_not_finite_as_a_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(epochs=2)
    weights = run.weights
    monkeypatch.setattr(training, "log_probabilities", lambda logits: np.full(logits.shape, np.nan))

    run.fit(record=run.record, epochs=3)

    assert run.record.diverged == training.Divergence(epoch=3, step=None)
    assert np.isnan(run.record.history[-1].validation_loss)
    assert not np.isnan(run.record.history[-2].validation_loss)
    assert run.weights == weights


def test_training_record_takes_the_first_of_equally_good_epochs_as_the_best() -> None:
    rows = [training.Epoch(i, 0.0, 0.0, loss, 0.0) for i, loss in enumerate([3.0, 1.0, np.inf, 1.0, np.nan], start=1)]

    assert training.TrainingRecord(rows).best_epoch() == 2
    assert training.TrainingRecord(rows[2:3]).best_epoch() == 0
