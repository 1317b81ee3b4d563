"""How fast the article's network is trained: as its code builds it, by this project, and by PyTorch.

Each contestant has a process of its own, with its own threads, and they take turns, a step each: what disturbs the
machine disturbs them all. This module imports no framework; the processes do. `make bench` runs it.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from dropout_study import devices, files
from dropout_study.architecture import is_pooled
from dropout_study.console import StudyError, without_start_up_noise

FILTERS, UNITS, CLASSES = [64, 64, 128, 256], [512, 512], 10
LEARNING_RATE, RHO, EPSILON = 1.0, 0.95, 1e-7  # the article's Adadelta
EPOCH_VALIDATION, EPOCHS = 512, 3  # images, epochs
WARM_UP = 2
MIN_ROUNDS = 3
STEP_SECONDS, EPOCH_SECONDS = 120, 90  # after which no further round begins


class Options(NamedTuple):
    """What is measured: dropout rate, images a step, threads, pixels a side, steps at most, and images an epoch."""

    rate: float
    batch_size: int
    threads: int
    image_size: int
    steps: int
    epoch_images: int = 4_096


Contestant = Callable[[Options, Connection], Callable[[], Any]]  # prepares a turn


def random_images(options: Options, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return normalized images, float32 [count, H, W, 3], and labels, uint8 [count]: random ones."""
    random = np.random.default_rng(seed)
    images = random.standard_normal((count, options.image_size, options.image_size, 3), np.float32)
    return images, random.integers(0, CLASSES, count).astype(np.uint8)


# Each ratio is the speed of ours, first, to that of the other.
RATIOS = {
    "stock": ("ours", "stock"),
    "rate_0": ("ours", "ours_rate_0"),
    "pytorch": ("ours", "pytorch"),
    "pytorch_compiled": ("ours", "pytorch_compiled"),
    "pytorch_rate_0": ("ours_rate_0", "pytorch_rate_0"),
    "ceiling": ("ours", "ceiling"),
    "float32": ("ours_bfloat16", "ours"),
    "stock_bfloat16": ("ours_bfloat16", "stock_bfloat16"),
    "pytorch_bfloat16": ("ours_bfloat16", "pytorch_bfloat16"),
    "ceiling_bfloat16": ("ours_bfloat16", "ceiling_bfloat16"),
    "epoch": ("epoch_ours", "epoch_stock"),
}
ROWS = [
    ("stock", "stock Keras layers, a step", "stock"),
    ("ours", "this project, a step", None),
    ("ours_rate_0", "this project at rate 0, a step", "rate_0"),
    ("pytorch", "PyTorch, eager, a step", "pytorch"),
    ("pytorch_compiled", "PyTorch, compiled, a step", "pytorch_compiled"),
    ("pytorch_rate_0", "PyTorch, eager, rate 0, a step", "pytorch_rate_0"),
    ("ceiling", "ceiling: the products of a step alone", "ceiling"),
    ("stock_bfloat16", "bfloat16: stock Keras layers", "stock_bfloat16"),
    ("ours_bfloat16", "bfloat16: this project (to its float32)", "float32"),
    ("pytorch_bfloat16", "bfloat16: PyTorch, eager", "pytorch_bfloat16"),
    ("ceiling_bfloat16", "bfloat16: ceiling", "ceiling_bfloat16"),
    ("epoch_stock", "stock Keras, fit, an epoch", "epoch"),
    ("epoch_ours", "this project, fit, an epoch", None),
]


def run(options: Options, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything and return it: options, machine, images per second by name, and the ratios of ours to each.

    What is not installed is None. Raises `StudyError` if this project's own contestant fails.
    """
    load = os.getloadavg()
    has_pytorch = importlib.util.find_spec("torch") is not None
    if not has_pytorch:
        report("PyTorch is not installed and does not take part: pip install torch")
    has_bfloat16 = bool(devices.BFLOAT16_SETS.intersection(devices.processor()["instruction_sets"]))
    if not has_bfloat16:
        report("this processor has no bfloat16 instructions; bfloat16 does not take part")
    names = [
        name for name in NAMES if (has_pytorch or "pytorch" not in name) and (has_bfloat16 or "bfloat16" not in name)
    ]
    with contestants(names, options) as turns:
        steps = take_turns(turns, options.steps, WARM_UP, STEP_SECONDS, report)
    with contestants(["epoch_stock", "epoch_ours"], options) as turns:
        epochs = take_turns(turns, EPOCHS, 1, EPOCH_SECONDS, report)
    if not {"ours", "ours_rate_0"} <= set(steps) or "epoch_ours" not in epochs:
        raise StudyError("this project's own training failed, so there is nothing to compare; its error is above")
    speeds: dict[str, float | None] = dict.fromkeys([*NAMES, "epoch_stock", "epoch_ours"])
    for name, seconds in steps.items():
        speeds[name] = options.batch_size / median(seconds)
    for name, seconds in epochs.items():
        speeds[name] = options.epoch_images / median(seconds)
    packages = [*devices.PACKAGES, *(["torch"] if has_pytorch else [])]
    return {
        "options": options._asdict(),
        "machine": {
            **devices.processor(),
            "cores": devices.cores(),
            "load": [round(value, 2) for value in load],
            "versions": {package: importlib.metadata.version(package) for package in packages},
        },
        "rounds": {"steps": len(steps["ours"]), "epochs": len(epochs["epoch_ours"])},
        "images_per_second": {name: speed and round(speed, 1) for name, speed in speeds.items()},
        "ratios": {name: _ratio(speeds[ours], speeds[rival]) for name, (ours, rival) in RATIOS.items()},
    }


def _ratio(ours: float | None, rival: float | None) -> float | None:
    return round(ours / rival, 3) if ours and rival else None


def table(result: dict[str, Any]) -> str:
    """Return the result as people read it."""
    lines = [f"{'':<40}{'images/s':>10}{'speed-up':>12}"]
    for name, text, ratio in ROWS:
        speed, times = result["images_per_second"][name], ratio and result["ratios"][ratio]
        lines.append(f"{text:<40}{f'{speed:.1f}' if speed else 'not there':>10}{f'{times:.2f} ×' if times else '':>12}")
    options, machine, rounds = result["options"], result["machine"], result["rounds"]
    lines.append(
        f"The speed-up is that of this project; at rate 0, of this project at rate 0.\n"
        f"Dropout {options['rate']:g}, batches of {options['batch_size']}, {options['image_size']} pixels a side, "
        f"{options['threads']} threads; "
        f"medians of {rounds['steps']} steps and {rounds['epochs']} epochs, taking turns.\n"
        f"{machine['processor']}, {machine['cores']} cores; {' '.join(machine['instruction_sets'])}; "
        f"load {' '.join(map(str, machine['load']))} before"
    )
    return "\n".join(lines)


@contextmanager
def contestants(names: list[str], options: Options) -> Iterator[dict[str, Connection]]:
    """Start a process for each name, and yield the connections by which each is told to take its turn."""
    context = get_context("spawn")
    processes, turns = [], {}
    try:
        for name in names:
            ours, theirs = context.Pipe()
            process = context.Process(target=_contestant, args=(name, options, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            turns[name] = ours
        yield turns
    finally:
        for connection in turns.values():
            connection.close()
        for process in processes:
            process.join(timeout=10)
            process.kill()


def take_turns(
    turns: dict[str, Connection], rounds: int, warm_up: int, seconds_at_most: float, report: Callable[[str], None]
) -> dict[str, list[float]]:
    """Return the seconds that each took in each round, after `warm_up` rounds that do not count.

    There are up to `rounds`; after `seconds_at_most` no further one begins, if there were three. Contestants that fail
    are left out with a warning.
    """
    start = time.monotonic()
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(-warm_up, rounds):
        if number >= MIN_ROUNDS and time.monotonic() - start > seconds_at_most:
            break
        for name in list(seconds):
            try:
                turns[name].send(None)
                seconds[name].append(turns[name].recv())
            except (EOFError, BrokenPipeError, ConnectionResetError):
                del seconds[name]
                report(f"warning: {name} failed and is left out; its error is above")
        report("warming up" if number < 0 else f"round {number + 1} of {rounds}: {', '.join(seconds)}")
    return {name: values[warm_up:] for name, values in seconds.items()}


def _contestant(name: str, options: Options, turn: Connection) -> None:
    """Take a turn whenever told to, and send the seconds it took; end when the connection closes."""
    with without_start_up_noise():
        take = CONTESTANTS[name](options, turn)
        try:
            while True:
                turn.recv()
                start = time.perf_counter()
                take()
                turn.send(time.perf_counter() - start)
        except (EOFError, BrokenPipeError):
            pass


def _stock_model(options: Options, policy: str = "float32") -> Any:
    """Return the network as the article's code builds it, compiled as it compiles it, with a dtype policy of Keras."""
    with devices.tensorflow_loading():
        import keras
        import tensorflow as tf

    keras.config.set_dtype_policy(policy)
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    layers = keras.layers
    model = keras.Sequential([keras.Input((options.image_size, options.image_size, 3))])
    for i, count in enumerate(FILTERS, start=1):
        model.add(layers.Conv2D(count, 3, padding="same", activation="relu"))
        if options.rate:
            model.add(layers.Dropout(options.rate))
        if is_pooled(i):
            model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    for count in UNITS:
        model.add(layers.Dense(count, activation="relu"))
    model.add(layers.Dense(CLASSES, activation="softmax", dtype="float32"))  # as Keras advises for mixed precision
    # jit_compile=True would compile the convolutions by XLA, which makes it ten times slower on a processor.
    optimizer = keras.optimizers.Adadelta(LEARNING_RATE, rho=RHO, epsilon=EPSILON)
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return model


def _one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[labels]


def _stock(options: Options, _: Connection, policy: str = "float32") -> Callable[[], Any]:
    model = _stock_model(options, policy)
    import tensorflow as tf  # after Keras, which it would load with the user's settings

    images, labels = random_images(options, options.batch_size)
    batch = (tf.constant(images), tf.constant(_one_hot(labels)))
    return lambda: model.train_on_batch(*batch)


def _our_network(options: Options) -> Any:
    from dropout_study.network import build_network

    return build_network(
        (options.image_size, options.image_size, 3),
        CLASSES,
        filters=FILTERS,
        units=UNITS,
        first_activation="relu",
        dropout=options.rate,
        seed=0,
    )


def _our_training(options: Options) -> tuple[Any, Any, int]:
    from dropout_study.training import make_optimizer

    shards = devices.configure(options.threads).shards
    model = _our_network(options)
    optimizer = make_optimizer("adadelta", LEARNING_RATE)
    optimizer.build(model.trainable_variables)
    return model, optimizer, shards


def _ours(options: Options, _: Connection, precision: str = "float32") -> Callable[[], Any]:
    from dropout_study import training

    model, optimizer, shards = _our_training(options)
    step = training.make_step(model, optimizer, shards, precision=precision)
    batch = random_images(options, options.batch_size)
    return lambda: float(step(*batch)[0])


def _ceiling(options: Options, _: Connection, precision: str = "float32") -> Callable[[], Any]:
    """Return the convolutions and matrix products of a step, forward and for both gradients, and nothing between them.

    They are sharded as this project's step is. No step can be faster that computes these products with these kernels.
    """
    with devices.tensorflow_loading():
        import tensorflow as tf

    from dropout_study.network import shards_at_once

    shards = devices.configure(options.threads).shards
    random = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return tf.cast(random.standard_normal(shape, np.float32), precision)

    layers = []  # the input, the kernel and the gradient of the output of each
    side, channels = options.image_size, 3
    for i, count in enumerate(FILTERS, start=1):
        layers.append((array(options.batch_size, side, side, channels), array(3, 3, channels, count)))
        channels, side = count, side // 2 if is_pooled(i) else side
    inputs = side * side * channels
    for count in [*UNITS, CLASSES]:
        layers.append((array(options.batch_size, inputs), array(inputs, count)))
        inputs = count
    tensors = [
        tensor for x, kernel in layers for tensor in (x, array(*x.shape[:-1], kernel.shape[-1]))
    ]  # of the whole batch, so arguments: TensorFlow would fold constants
    kernels = [tf.Variable(kernel) for _, kernel in layers]

    @shards_at_once(shards, [tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for tensor in tensors])
    def products(parts: list[slice], *tensors: Any) -> Any:
        results = []
        for part in parts:
            for i, kernel in enumerate(kernels):
                x, upstream, weights = tensors[2 * i][part], tensors[2 * i + 1][part], kernel.value()
                if len(weights.shape) == 4:
                    options = {"strides": [1, 1, 1, 1], "padding": "SAME"}
                    results.append(tf.nn.conv2d(x, weights, 1, "SAME"))
                    results.append(
                        tf.raw_ops.Conv2DBackpropFilter(
                            input=x, filter_sizes=tf.shape(weights), out_backprop=upstream, **options
                        )
                    )
                    if i:  # the images need no gradient
                        results.append(
                            tf.raw_ops.Conv2DBackpropInput(
                                input_sizes=tf.shape(x), filter=weights, out_backprop=upstream, **options
                            )
                        )
                else:
                    results += [x @ weights, tf.matmul(x, upstream, transpose_a=True)]
                    results.append(tf.matmul(upstream, weights, transpose_b=True))
        # An element of each is used: TensorFlow removes what nothing depends on.
        return tf.add_n([tf.cast(tf.reshape(result, [-1])[0], tf.float32) for result in results])

    return lambda: products(*tensors).numpy()


def _pytorch(options: Options, _: Connection, compiled: bool = False, bfloat16: bool = False) -> Callable[[], Any]:
    # As untyped modules: types are checked where PyTorch is installed and where it is not.
    torch: Any = importlib.import_module("torch")
    nn: Any = torch.nn
    torch.set_num_threads(options.threads)
    layers: list[Any] = []
    channels, side = 3, options.image_size
    for i, count in enumerate(FILTERS, start=1):
        layers += [nn.Conv2d(channels, count, 3, padding="same"), nn.ReLU()]
        if options.rate:
            layers.append(nn.Dropout(options.rate))
        if is_pooled(i):
            layers.append(nn.MaxPool2d(2))
            side //= 2
        channels = count
    layers.append(nn.Flatten())
    inputs = channels * side * side
    for count in UNITS:
        layers += [nn.Linear(inputs, count), nn.ReLU()]
        inputs = count
    layers.append(nn.Linear(inputs, CLASSES))  # the softmax is in PyTorch's loss
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=LEARNING_RATE, rho=RHO, eps=EPSILON)
    model = torch.compile(model) if compiled else model
    images, labels = random_images(options, options.batch_size)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    y = torch.from_numpy(labels.astype(np.int64))

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def _epoch_stock(options: Options, _: Connection) -> Callable[[], Any]:
    model = _stock_model(options)
    images, labels = random_images(options, options.epoch_images)
    validation_images, validation_labels = random_images(options, EPOCH_VALIDATION, seed=1)
    return lambda: model.fit(
        images,
        _one_hot(labels),
        batch_size=options.batch_size,
        epochs=1,
        verbose=0,
        validation_data=(validation_images, _one_hot(validation_labels)),
    )


def _epoch_ours(options: Options, turn: Connection) -> Callable[[], Any]:
    """Train as the stage does, a checkpoint after every epoch included; each epoch waits for its turn."""
    from dropout_study import training
    from dropout_study.checkpoint import Checkpoints

    model, optimizer, shards = _our_training(options)
    directory = tempfile.TemporaryDirectory()
    os.environ["DROPOUT_STUDY_CHECKPOINTS"] = directory.name
    checkpoints = Checkpoints("bench", "epoch")

    def take() -> None:
        start = time.perf_counter()

        def after_epoch(record: training.TrainingRecord) -> None:
            nonlocal start
            checkpoints.save_if_due(model, optimizer, record.to_json(), len(record.history), record.arrays())
            turn.send(time.perf_counter() - start)
            turn.recv()
            start = time.perf_counter()

        with directory:
            training.fit(
                model,
                optimizer,
                training.LabelledImages(*random_images(options, options.epoch_images)),
                training.LabelledImages(*random_images(options, EPOCH_VALIDATION, seed=1)),
                random_images(options, 0)[0],
                epochs=1_000_000,
                batch_size=options.batch_size,
                learning_rate_decay=1.0,
                seed=0,
                shards=shards,
                on_epoch=after_epoch,
            )

    return take


def _without_dropout(contestant: Contestant, options: Options, turn: Connection) -> Callable[[], Any]:
    return contestant(options._replace(rate=0.0), turn)


CONTESTANTS: dict[str, Contestant] = {
    "stock": _stock,
    "ours": _ours,
    "ours_rate_0": partial(_without_dropout, _ours),
    "pytorch": _pytorch,
    "pytorch_compiled": partial(_pytorch, compiled=True),
    "pytorch_rate_0": partial(_without_dropout, _pytorch),
    "ceiling": _ceiling,
    "stock_bfloat16": partial(_stock, policy="mixed_bfloat16"),
    "ours_bfloat16": partial(_ours, precision="bfloat16"),
    "pytorch_bfloat16": partial(_pytorch, bfloat16=True),
    "ceiling_bfloat16": partial(_ceiling, precision="bfloat16"),
    "epoch_stock": _epoch_stock,
    "epoch_ours": _epoch_ours,
}
NAMES = [name for name in CONTESTANTS if not name.startswith("epoch")]  # those that take turns by steps


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark as a command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description="Compare the speed of training with stock Keras and, if it is installed, PyTorch. Takes up to five "
        "minutes, and wants the machine for itself.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rate", type=float, default=0.5, help="dropout rate, at least 0 and below 1")
    parser.add_argument("--batch-size", type=int, default=512, help="images a step")
    parser.add_argument("--threads", type=int, default=devices.cores(), help="threads of each contestant")
    parser.add_argument("--image-size", type=int, default=32, help="pixels a side, a power of two from 8")
    parser.add_argument("--steps", type=int, default=8, help="steps of each contestant, at most")
    parser.add_argument("--epoch-images", type=int, default=4_096, help="images an epoch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    options = vars(parser.parse_args(arguments))
    path = options.pop("json")
    try:
        result = run(Options(**options), lambda text: print(text, file=sys.stderr, flush=True))
    except StudyError as error:
        sys.exit(f"error: {error}")
    print(table(result))
    if path:
        files.write_json(path, result)


if __name__ == "__main__":
    main()
