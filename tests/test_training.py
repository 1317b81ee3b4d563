import json
from typing import Any

import keras
import numpy as np
import pytest

from dropout_study import training
from dropout_study.network import build_network
from dropout_study.training import Images, epoch_order, make_optimizer

TINY: dict[str, Any] = {"filters": [3, 4], "units": [5], "first_activation": "relu"}
RANDOM = np.random.default_rng(0)
LABELS = np.arange(42, dtype=np.uint8) % 3
# Each class has a bright channel of its own: learnable in a few epochs.
IMAGES = (RANDOM.normal(size=(42, 4, 4, 3)) * 0.3 + np.eye(3)[LABELS][:, None, None]).astype(np.float32)
TRAIN, VALIDATION = Images(IMAGES[:30], LABELS[:30]), Images(IMAGES[30:], LABELS[30:])


def run(
    optimizer: str = "adam", learning_rate: float = 0.01, dropout: float = 0.0, **changes: Any
) -> tuple[training.Training, keras.Model]:
    network = build_network((4, 4, 3), 3, **TINY, dropout=dropout, seed=changes.get("seed", 0))
    settings = {"epochs": 3, "batch_size": 8, "learning_rate_decay": 1.0, "seed": 0, "dropout": dropout} | changes
    optimizer_ = make_optimizer(optimizer, learning_rate)
    optimizer_.build(network.trainable_variables)
    return training.train(network, optimizer_, TRAIN, VALIDATION, **settings), network


def weights(network: keras.Model) -> bytes:
    return b"".join(weight.numpy().tobytes() for weight in network.trainable_weights)


@pytest.mark.parametrize(("optimizer", "learning_rate"), [("sgd", 0.3), ("adadelta", 1.0), ("adam", 0.03)])
def test_every_optimizer_learns(optimizer: str, learning_rate: float) -> None:
    result, _ = run(optimizer, learning_rate, epochs=30)
    assert [row.epoch for row in result.history] == list(range(1, 31))
    assert result.history[-1].train_loss < result.history[0].train_loss / 2
    assert result.history[-1].validation_accuracy > 0.6
    assert result.diverged is None


def test_optimizers_are_the_articles() -> None:
    adadelta = make_optimizer("adadelta", 1.0)
    assert (adadelta.rho, adadelta.epsilon, float(adadelta.learning_rate)) == (0.95, 1e-7, 1.0)
    sgd = make_optimizer("sgd", 0.01)
    assert (sgd.momentum, sgd.nesterov) == (0, False)
    with pytest.raises(ValueError, match="unknown optimizer 'lion'"):
        make_optimizer("lion", 1.0)


def test_one_epoch_is_what_keras_does() -> None:
    """Against `fit`, with one-hot labels and without shuffling, on the same initial weights."""
    _, ours = run("sgd", 0.1, epochs=1)
    stock = build_network((4, 4, 3), 3, **TINY, dropout=0, seed=0)
    stock.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy", metrics=["accuracy"])
    order = epoch_order(30, seed=0, epoch=1)
    one_hot = np.eye(3, dtype=np.float32)[TRAIN.labels[order]]
    history = stock.fit(TRAIN.images[order], one_hot, batch_size=8, shuffle=False, verbose=0).history
    for mine, keras_ in zip(ours.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(mine, keras_, rtol=1e-4, atol=1e-6)
    result, _ = run("sgd", 0.1, epochs=1)
    assert result.history[0].train_loss == pytest.approx(history["loss"][0], rel=1e-4)
    assert result.history[0].train_accuracy == pytest.approx(history["accuracy"][0])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_equal_runs_give_equal_bytes(dropout: float) -> None:
    first, again = run(dropout=dropout), run(dropout=dropout)
    assert first[0].history == again[0].history
    assert weights(first[1]) == weights(again[1])


def test_what_is_called_after_every_step_can_end_the_training() -> None:
    calls = 0

    def stop_in_the_second_epoch() -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt

    epochs: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run(epochs=3, on_epoch=lambda so_far: epochs.append(len(so_far.history)), on_step=stop_in_the_second_epoch)
    assert (calls, epochs) == (6, [1])  # 30 images in batches of 8 are 4 steps an epoch


def test_another_seed_gives_another_run() -> None:
    assert weights(run(seed=0)[1]) != weights(run(seed=1)[1])


def test_dropout_is_on_in_training_and_off_in_validation() -> None:
    (with_, _), (without, _) = run("sgd", 1e-9, dropout=0.9, epochs=1), run("sgd", 1e-9, epochs=1)
    assert with_.history[0].train_loss != pytest.approx(without.history[0].train_loss, abs=1e-3)
    assert with_.history[0].validation_loss == pytest.approx(without.history[0].validation_loss, abs=1e-5)


def test_the_learning_rate_decays_by_epoch() -> None:
    network = build_network((4, 4, 3), 3, **TINY, dropout=0, seed=0)
    one = epoch_order(30, 0, 1)[:1]
    data = Images(TRAIN.images[one], TRAIN.labels[one])
    optimizer = make_optimizer("sgd", 0.5)
    optimizer.build(network.trainable_variables)
    states = [network.get_weights()]
    training.train(
        network,
        optimizer,
        data,
        VALIDATION,
        dropout=0,
        epochs=3,
        batch_size=8,
        learning_rate_decay=0.5,
        seed=0,
        on_epoch=lambda _: states.append(network.get_weights()),
    )
    # With one image an epoch is one step, against the gradient that stock Keras finds from the same weights.
    for epoch, rate in enumerate([0.5, 0.25, 0.125]):
        stock = build_network((4, 4, 3), 3, **TINY, dropout=0, seed=0)
        stock.set_weights(states[epoch])
        stock.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy")
        stock.train_on_batch(data.images, data.labels)
        for mine, expected in zip(states[epoch + 1], stock.get_weights(), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-6)


def test_an_order_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1, 2**32 - 1) for epoch in (1, 2)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert len({order.tobytes() for order in orders}) == 6
    np.testing.assert_array_equal(orders[0], epoch_order(50, 0, 1))


def test_batches_larger_than_what_is_left_are_short() -> None:
    result, _ = run(batch_size=30)
    assert len(result.history) == 3


def test_divergence_is_a_result_with_finite_weights() -> None:
    result, network = run("sgd", 1e12, epochs=5)
    assert result.diverged is not None
    assert result.diverged.epoch == len(result.history) == 1
    assert 1 <= result.diverged.step <= 4
    assert np.isnan(result.history[-1].validation_loss)
    initial = build_network((4, 4, 3), 3, **TINY, dropout=0, seed=0)
    assert weights(network) == weights(initial)


def test_divergence_later_keeps_the_weights_of_the_epoch_before() -> None:
    images = TRAIN.images.copy()
    network = build_network((4, 4, 3), 3, **TINY, dropout=0, seed=0)
    kept = []

    def spoil(so_far: training.Training) -> None:
        if not so_far.diverged:
            kept.append(weights(network))
        if len(so_far.history) == 2:
            images[epoch_order(30, 0, 3)[10]] = np.nan

    optimizer = make_optimizer("adam", 0.01)
    optimizer.build(network.trainable_variables)
    result = training.train(
        network,
        optimizer,
        Images(images, TRAIN.labels),
        VALIDATION,
        dropout=0,
        epochs=5,
        batch_size=8,
        learning_rate_decay=1.0,
        seed=0,
        on_epoch=spoil,
    )
    # A ReLU hides the image from the loss of step 2, where it is seen, but not from the gradients.
    assert result.diverged == training.Divergence(epoch=3, step=2)
    assert [row.epoch for row in result.history] == [1, 2, 3]
    assert np.isnan(result.history[-1].train_loss)
    assert weights(network) == kept[-1]


@pytest.mark.parametrize("shards", [2, 3, 8])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_shards_change_nothing_but_the_order_of_sums(shards: int, dropout: float) -> None:
    """With 30 images and batches of 8, the last one of 6 is shorter than 8 shards."""
    (whole, network), (split, same) = run(dropout=dropout), run(dropout=dropout, shards=shards)
    for one, other in zip(whole.history, split.history, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    for mine, expected in zip(same.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-3, atol=1e-5)


def test_a_training_that_goes_on_is_the_one_that_never_stopped() -> None:
    whole, network = run(dropout=0.5, epochs=4, learning_rate_decay=0.5)
    states: list[tuple[training.Training, list[np.ndarray], list[np.ndarray]]] = []
    half = build_network((4, 4, 3), 3, **TINY, dropout=0.5, seed=0)
    optimizer = make_optimizer("adam", 0.01)
    optimizer.build(half.trainable_variables)

    def remember(so_far: training.Training) -> None:
        value = training.Training.from_json(json.loads(json.dumps(so_far.to_json())))
        states.append((value, half.get_weights(), [variable.numpy() for variable in optimizer.variables]))

    settings: dict[str, Any] = {"dropout": 0.5, "batch_size": 8, "learning_rate_decay": 0.5, "seed": 0}
    training.train(half, optimizer, TRAIN, VALIDATION, epochs=2, on_epoch=remember, **settings)

    resumed = build_network((4, 4, 3), 3, **TINY, dropout=0.5, seed=9)
    optimizer = make_optimizer("adam", 0.01)
    optimizer.build(resumed.trainable_variables)
    so_far, arrays, variables = states[-1]
    resumed.set_weights(arrays)
    for variable, value in zip(optimizer.variables, variables, strict=True):
        variable.assign(value)
    result = training.train(resumed, optimizer, TRAIN, VALIDATION, epochs=4, so_far=so_far, **settings)
    assert result.history == whole.history
    assert weights(resumed) == weights(network)


def test_a_training_that_had_diverged_does_not_go_on() -> None:
    result, _ = run("sgd", 1e12)
    again, _ = run("sgd", 1e12, so_far=training.Training.from_json(json.loads(json.dumps(result.to_json()))))
    assert len(again.history) == len(result.history) == 1
    assert again.diverged == result.diverged
