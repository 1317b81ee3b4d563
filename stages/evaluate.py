"""Measure every variant of the study on the test images, choose the best, save it as a model for raw pixels."""

from dropout_study import files, report, statistics
from dropout_study.errors import run_stage
from dropout_study.model_file import save_model
from dropout_study.progress import say, without_start_up_noise
from dropout_study.results import Result, choose_best, confusion, make_result, remove_strangers, summary
from dropout_study.settings import load_settings


@without_start_up_noise()
def main() -> None:
    """Write the tables and the verdict in metrics/, data/predictions/ and models/best.keras."""
    settings = load_settings()
    strangers = remove_strangers(settings.variants)
    if strangers:
        say(f"removed, no longer in the study (DVC has them in its cache): {', '.join(map(str, strangers))}")

    from dropout_study.network import build_network, make_measure, use_threads  # only now: it takes seconds

    shards = use_threads(settings.train.threads)
    images = files.read_array(files.images_file(files.NORMALIZED, "test"))
    labels = files.read_array(files.labels_file(files.NORMALIZED, "test"))
    classes = files.read_json(files.CLASSES)
    sizes = settings.network.model_dump()
    network = build_network(images.shape[1:], len(classes), **sizes, dropout=0, seed=0)
    measure = make_measure(network, shards)
    results, predicted = [], {}
    for variant in settings.variants:
        network.load_weights(files.weights_file(variant.key))
        measured = measure(images, labels)
        files.write_array(files.predictions_file(variant.key), measured.probabilities)
        predicted[variant.key] = measured.probabilities.argmax(axis=1)
        history = files.read_csv(files.history_file(variant.key))
        results.append(make_result(variant, history, measured.loss, measured.accuracy))
        say(f"{variant.key}  test loss {measured.loss:.4f}  accuracy {measured.accuracy:7.2%}")

    files.write_csv(files.STUDY, Result._fields, results)
    rates = statistics.rates(results, len(classes))
    files.write_csv(files.RATES, statistics.RATE_COLUMNS, [list(row.values()) for row in rates])
    found = statistics.verdict(results, len(labels), settings.normalize.validation)
    files.write_json(files.VERDICT, found)
    say(f"{report.table(found)}\n\n{found['paragraph']}\n")
    best = choose_best(results)
    files.write_json(files.EVALUATION, summary(results, best, rates))
    pairs = confusion(labels, predicted[best.variant], classes)
    files.write_csv(
        files.CONFUSION, ("variant", "actual", "predicted", "images"), [(best.variant, *row) for row in pairs]
    )

    transform = files.read_json(files.STATISTICS)
    model = build_network(
        images.shape[1:],
        len(classes),
        **sizes,
        dropout=best.dropout,
        seed=best.seed,
        scale=transform["scale"],
        offset=transform["offset"],
    )
    model.load_weights(files.weights_file(best.variant))
    save_model(model, classes, files.BEST_MODEL)
    say(f"best single run by validation accuracy: {best.variant}, saved as {files.BEST_MODEL}")


if __name__ == "__main__":
    run_stage(main, __doc__)
