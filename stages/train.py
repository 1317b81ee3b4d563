"""Train one variant: its model, its history, its predictions of the test images, and its provenance.

DVC names the variant in DVC_STAGE (train@<key>); by hand, name it as an argument. A run that was killed resumes from
its last checkpoint. All that is printed is appended to logs/<key>.log, and a JSON line per epoch to logs/<key>.jsonl.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from dropout_study import devices, files
from dropout_study.checkpoint import Checkpoints, dependencies, fingerprint, locked
from dropout_study.console import (
    StudyError,
    TrainingReport,
    interrupts_held,
    logged,
    printable,
    run_stage,
    without_start_up_noise,
)
from dropout_study.settings import Variant, load_settings

# What defines the result: the modules and the data that dvc.yaml lists for this stage.
LIBRARY = ("architecture", "devices", "dropout", "model_file", "network", "training")
MODULES = [Path("stages/train.py"), *(Path(f"dropout_study/{name}.py") for name in LIBRARY)]
ARRAYS = [name(files.NORMALIZED, part) for part in ("train", "validation") for name in files.PART_FILES]
DATA = [files.CLASSES, files.STATISTICS, *ARRAYS, files.images_file(files.NORMALIZED, "test")]


def require_unchanged(variant: Variant, before: dict[str, Any]) -> None:
    """Raise `StudyError` if what the training depends on is not as `before`: DVC would record it as it is now."""
    try:
        after = dependencies(load_settings().training_values(variant), [*MODULES, *DATA])
        changed = [name for name, value in before.items() if after[name] != value]
    except (StudyError, OSError) as error:
        changed = [printable(error)]
    if changed:
        files.history_file(variant.key).unlink(missing_ok=True)
        raise StudyError(
            f"{variant.key}: changed during the training: {', '.join(changed)}; only its checkpoint is kept. Run the "
            "same command again to train with the change; if you undo the change first, that takes seconds"
        )


def main(key: str | None = None) -> None:
    """Train the variant `key`, and write its files in models/, metrics/ and data/predictions/."""
    settings = load_settings()
    variant = settings.variant(key or os.environ.get("DVC_STAGE", "").partition("@")[2])
    values = settings.training_values(variant)
    with locked(variant.key), logged(files.log_file(variant.key)), without_start_up_noise():
        before = dependencies(values, [*MODULES, *DATA])
        from dropout_study import model_file, network, training  # TensorFlow takes seconds: only now

        data, validation_data = (
            training.LabelledImages(*files.read_part(files.NORMALIZED, part)) for part in ("train", "validation")
        )
        test_images = files.read_array(files.images_file(files.NORMALIZED, "test"))
        transform, classes = files.read_json(files.STATISTICS), files.read_json(files.CLASSES)
        device = devices.configure(**values["device"])
        provenance = devices.provenance(device)
        checkpoints = Checkpoints(variant.key, fingerprint([before, provenance]), settings.train.checkpoint_every)
        report = TrainingReport(variant.key, len(data.labels), settings.train.epochs, files.progress_file(variant.key))
        name = provenance["processor"] if device.name == "CPU" else device.name
        report.started(name, device.threads, device.shards, settings.train.precision, settings.train.loss)
        with checkpoints.reporting_interrupts(), interrupts_held() as stop_if_interrupted:
            shapes = {"image_shape": test_images.shape[1:], "classes": len(classes), **values["network"]}
            model = network.build_network(**shapes)
            optimizer = training.make_optimizer(**values["optimizer"])
            optimizer.build(model.trainable_variables)
            state = checkpoints.resume(model, optimizer)

            def after_epoch(record: training.TrainingRecord) -> None:
                epoch = len(record.history)
                last = epoch == settings.train.epochs or record.diverged is not None
                checkpoints.save_if_due(model, optimizer, record.to_json(), epoch, record.arrays(), last=last)
                with suppress(OSError):  # a full disk costs the view of the training, not the training
                    files.write_csv(files.history_file(variant.key), training.Epoch._fields, record.history)
                report.epoch(record.history[-1]._asdict(), record.seconds)
                stop_if_interrupted()

            record = training.fit(
                model,
                optimizer,
                data,
                validation_data,
                test_images,
                **values["fit"],
                shards=device.shards,
                record=training.TrainingRecord.restored(state.progress, state.arrays) if state else None,
                on_epoch=after_epoch,
                on_step=stop_if_interrupted,
            )
            predictions = training.predict_test(model, test_images, device.shards, record)
            saved = network.build_network(**shapes, scale=transform["scale"], offset=transform["offset"])
            saved.set_weights(model.get_weights())
            require_unchanged(variant, before)
            model_file.save_model(saved, classes, files.variant_file(variant.key))
        if record.diverged:
            decay = settings.train.learning_rate_decay
            rate = training.epoch_learning_rate(values["optimizer"]["learning_rate"], decay, record.diverged.epoch)
            report.diverged(*record.diverged, variant.optimizer, rate)
        files.write_csv(files.history_file(variant.key), training.Epoch._fields, record.history)
        files.write_array(files.predictions_file(variant.key), predictions)
        files.write_json(files.provenance_file(variant.key), provenance)
        report.finished(record.history[-1]._asdict(), record.seconds, diverged=record.diverged is not None)
        checkpoints.clear()


if __name__ == "__main__":
    run_stage(main, __doc__, "key: the variant, for example adadelta-0.5-0")
