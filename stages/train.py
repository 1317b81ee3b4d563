"""Train one variant: its model, its history, its predictions of the test images, and on what it was computed.

DVC names the variant in DVC_STAGE (train@<key>); by hand, name it as an argument. A run that was killed resumes from
its last checkpoint. All that is printed is appended to logs/<key>.log.
"""

import os
from pathlib import Path

from dropout_study import devices, files
from dropout_study.checkpoint import Checkpoints, fingerprint, locked
from dropout_study.errors import interrupts_held, run_stage
from dropout_study.progress import TrainingReport, logged, without_start_up_noise
from dropout_study.settings import load_settings

# What defines the result: the modules that dvc.yaml lists for this stage.
LIBRARY = ("architecture", "devices", "dropout", "model_file", "network", "training")
MODULES = [Path("stages/train.py"), *(Path(f"dropout_study/{name}.py") for name in LIBRARY)]


def main(key: str | None = None) -> None:
    """Train the variant `key` and write what it came to, in models/, metrics/ and data/predictions/."""
    settings = load_settings()
    variant = settings.variant(key or os.environ.get("DVC_STAGE", "").partition("@")[2])
    with locked(variant.key), logged(files.log_file(variant.key)), without_start_up_noise():
        from dropout_study import model_file, network, training  # TensorFlow takes seconds: only now

        data = training.LabelledImages(*files.read_part(files.NORMALIZED, "train"))
        validation_data = training.LabelledImages(*files.read_part(files.NORMALIZED, "validation"))
        test_images = files.read_array(files.images_file(files.NORMALIZED, "test"))
        transform, classes = files.read_json(files.STATISTICS), files.read_json(files.CLASSES)
        device = devices.configure(settings.train.threads)
        provenance = devices.provenance(device)
        values = settings.training_values(variant)
        inputs = [*data, *validation_data, test_images]
        checkpoints = Checkpoints(
            variant.key, fingerprint([values, provenance], inputs, MODULES), settings.train.checkpoint_every
        )
        report = TrainingReport(variant.key, len(data.labels), settings.train.epochs)
        report.device(provenance["processor"] if device.name == "CPU" else device.name, device.threads, device.shards)
        with checkpoints.reporting_interrupts(), interrupts_held() as stop_if_interrupted:
            shapes = {"image_shape": test_images.shape[1:], "classes": len(classes), **values["network"]}
            model = network.build_network(**shapes)
            optimizer = training.make_optimizer(variant.optimizer, values["learning_rate"])
            optimizer.build(model.trainable_variables)

            def after_epoch(record: training.TrainingRecord) -> None:
                checkpoints.save_if_due(model, optimizer, record.to_json(), len(record.history))
                report.epoch(record.history[-1], record.seconds)
                stop_if_interrupted()

            record = training.fit(
                model,
                optimizer,
                data,
                validation_data,
                **values["fit"],
                shards=device.shards,
                record=training.TrainingRecord.from_json(checkpoints.resume(model, optimizer)),
                on_epoch=after_epoch,
                on_step=stop_if_interrupted,
            )
            predictions = training.predict_test(model, test_images, device.shards, record)
            saved = network.build_network(**shapes, scale=transform["scale"], offset=transform["offset"])
            saved.set_weights(model.get_weights())
            model_file.save_model(saved, classes, files.variant_file(variant.key))
        if record.diverged:
            decay = settings.train.learning_rate_decay
            rate = training.epoch_learning_rate(values["learning_rate"], decay, record.diverged.epoch)
            report.diverged(*record.diverged, variant.optimizer, rate)
        files.write_csv(files.history_file(variant.key), training.Epoch._fields, record.history)
        files.write_array(files.predictions_file(variant.key), predictions)
        files.write_json(files.provenance_file(variant.key), provenance)
        report.finished(record.seconds)
        checkpoints.clear()


if __name__ == "__main__":
    run_stage(main, __doc__, "key: the variant, for example adadelta-0.5-0")
