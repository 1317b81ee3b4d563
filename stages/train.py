"""Train one variant of the study: its weights, its history and how long it took.

DVC names the variant in DVC_STAGE (train@<key>); by hand, name it as an argument. A run that was killed goes on
from its last checkpoint.
"""

import os
from pathlib import Path

from dropout_study import files
from dropout_study.checkpoint import Checkpoints, fingerprint, locked
from dropout_study.errors import interrupts_held, run_stage
from dropout_study.progress import TrainingReport, cores, machine, without_start_up_noise
from dropout_study.settings import load_settings

# What a result depends on beside settings and data: these modules, and what TensorFlow and its libraries obey.
MODULES = [Path("stages/train.py"), *(Path(f"dropout_study/{name}.py") for name in ("network", "dropout", "training"))]
VARIABLES = ("CUDA_VISIBLE_DEVICES", "ONEDNN_MAX_CPU_ISA", "TF_ENABLE_ONEDNN_OPTS", "TF_XLA_FLAGS", "XLA_FLAGS")


@without_start_up_noise()
def main(key: str | None = None) -> None:
    """Train the variant `key` and write its files in models/variants/, metrics/history/ and metrics/timing/."""
    settings = load_settings()
    variant = settings.variant(key or os.environ.get("DVC_STAGE", "").partition("@")[2])
    learning_rate = getattr(settings.train.learning_rate, variant.optimizer)
    threads = settings.train.threads or cores()
    with locked(variant.key):
        from dropout_study import network, training  # TensorFlow takes seconds: only once all is right

        train, validation = (
            training.Images(
                files.read_array(files.images_file(files.NORMALIZED, part)),
                files.read_array(files.labels_file(files.NORMALIZED, part)),
            )
            for part in ("train", "validation")
        )
        shards = network.use_threads(threads)
        about = machine("keras", "numpy", "tensorflow")
        numbers = settings.train.model_dump(exclude={"learning_rate", "threads", "checkpoint_every"})
        depends_on = [variant, settings.network.model_dump(), numbers, learning_rate, threads, shards]
        depends_on += [about["processor"], about["versions"], {name: os.environ.get(name) for name in VARIABLES}]
        digest = fingerprint(depends_on, [*train, *validation], MODULES)
        checkpoints = Checkpoints(variant.key, digest, settings.train.checkpoint_every)
        report = TrainingReport(variant.key, len(train.labels), settings.train.epochs)
        with checkpoints.telling(), interrupts_held() as stop_if_interrupted:
            model = network.build_network(
                train.images.shape[1:],
                settings.classes,
                **settings.network.model_dump(),
                dropout=variant.dropout,
                seed=variant.seed,
            )
            optimizer = training.make_optimizer(variant.optimizer, learning_rate)
            optimizer.build(model.trainable_variables)
            kept = checkpoints.resume(model, optimizer)

            def after_epoch(so_far: training.Training) -> None:
                checkpoints.keep(model, optimizer, so_far.to_json(), len(so_far.history))
                report.epoch(so_far.history[-1], so_far.seconds)
                stop_if_interrupted()

            result = training.train(
                model,
                optimizer,
                train,
                validation,
                dropout=variant.dropout,
                epochs=settings.train.epochs,
                batch_size=settings.train.batch_size,
                learning_rate_decay=settings.train.learning_rate_decay,
                seed=variant.seed,
                shards=shards,
                so_far=training.Training.from_json(kept) if kept else None,
                on_epoch=after_epoch,
                on_step=stop_if_interrupted,
            )
        if result.diverged:
            decay = settings.train.learning_rate_decay
            rate = training.epoch_learning_rate(learning_rate, decay, result.diverged.epoch)
            report.diverged(*result.diverged, variant.optimizer, rate)
        with files.replacing(files.weights_file(variant.key)) as temporary:
            model.save_weights(temporary)
        files.write_csv(files.history_file(variant.key), training.Epoch._fields, result.history)
        files.write_json(
            files.timing_file(variant.key),
            {
                "variant": variant.key,
                "status": "diverged" if result.diverged else "finished",
                "diverged": result.diverged and result.diverged._asdict(),
                "threads": threads,
                "seconds": [round(seconds, 3) for seconds in result.seconds],
                "images_per_second": [round(len(train.labels) / seconds, 1) for seconds in result.seconds],
                **about,
            },
        )
        checkpoints.clear()


if __name__ == "__main__":
    run_stage(main, __doc__, "key: the variant, for example adadelta-0.5-0")
