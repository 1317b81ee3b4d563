"""Train one variant of the study: its weights, its history and how long it took.

DVC names the variant in DVC_STAGE (train@<key>); by hand, name it as an argument.
"""

import os
import statistics

from dropout_study import files
from dropout_study.errors import run_stage
from dropout_study.progress import cores, machine, say, training_line
from dropout_study.settings import load_settings


def main(key: str | None = None) -> None:
    """Train the variant `key` and write its files in models/variants/, metrics/history/ and metrics/timing/."""
    settings = load_settings()
    variant = settings.variant(key or os.environ.get("DVC_STAGE", "").partition("@")[2])

    from dropout_study import network, training  # TensorFlow takes seconds: only once the settings are right

    network.use_threads(settings.train.threads)
    train, validation = (
        training.Images(
            files.read_array(files.images_file(files.NORMALIZED, part)),
            files.read_array(files.labels_file(files.NORMALIZED, part)),
        )
        for part in ("train", "validation")
    )
    model = network.build_network(
        train.images.shape[1:],
        settings.classes,
        **settings.network.model_dump(),
        dropout=variant.dropout,
        seed=variant.seed,
    )
    epochs = settings.train.epochs
    learning_rate = getattr(settings.train.learning_rate, variant.optimizer)

    def report(so_far: training.Training) -> None:
        seconds = statistics.median(so_far.seconds)
        speed = len(train.labels) / so_far.seconds[-1]
        left = seconds * (epochs - len(so_far.history))
        say(training_line(variant.key, epochs, *so_far.history[-1], speed, left))

    result = training.train(
        model,
        training.make_optimizer(variant.optimizer, learning_rate),
        train,
        validation,
        epochs=epochs,
        batch_size=settings.train.batch_size,
        learning_rate_decay=settings.train.learning_rate_decay,
        seed=variant.seed,
        on_epoch=report,
    )
    if result.diverged:
        say(
            f"{variant.key}  diverged: the loss stopped being finite in epoch {result.diverged.epoch}, step "
            f"{result.diverged.step}, with {variant.optimizer} at learning rate {learning_rate}; "
            "kept: the weights of the last epoch before it"
        )
    with files.replacing(files.weights_file(variant.key)) as temporary:
        model.save_weights(temporary)
    files.write_csv(files.history_file(variant.key), training.Epoch._fields, result.history)
    files.write_json(
        files.timing_file(variant.key),
        {
            "variant": variant.key,
            "status": "diverged" if result.diverged else "finished",
            "diverged": result.diverged and result.diverged._asdict(),
            "threads": settings.train.threads or cores(),
            "seconds": [round(seconds, 3) for seconds in result.seconds],
            "images_per_second": [round(len(train.labels) / s, 1) for s in result.seconds],
            **machine("keras", "numpy", "tensorflow"),
        },
    )


if __name__ == "__main__":
    run_stage(main, __doc__, "key: the variant, for example adadelta-0.5-0")
