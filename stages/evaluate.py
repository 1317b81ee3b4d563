"""Compare the predictions of every variant with the test labels; judge the rates, and copy the best model."""

from dropout_study import files, report, results, statistics
from dropout_study.console import run_stage, say
from dropout_study.settings import load_settings


def main() -> None:
    """Write the tables and the verdict in metrics/, and models/best.keras."""
    settings = load_settings()
    stale = results.remove_stale_files([variant.key for variant in settings.variants])
    if stale:
        say(f"removed, of variants that are no longer in {files.SETTINGS}: {', '.join(map(str, stale))}")
    labels = files.read_array(files.labels_file(files.NORMALIZED, "test"), (None,))
    classes = files.read_json(files.CLASSES)
    rows, scores, provenances = [], {}, {}
    for variant in settings.variants:
        history = results.read_history(files.history_file(variant.key))
        predictions = results.read_predictions(variant.key, len(labels), len(classes))
        scores[variant.key] = results.image_scores(predictions[:-1], labels)
        best_scores = results.image_scores(predictions[-1:], labels)
        rows.append(results.make_result(variant, history, scores[variant.key], best_scores))
        provenances[variant.key] = files.read_json(files.provenance_file(variant.key))
    verdict = statistics.verdict(rows, scores, settings.normalize.validation)
    epochs, machines = settings.train.test_epochs, results.machines(provenances)
    verdict = results.rounded(verdict | {"test_epochs": epochs, "machines": machines})
    rates = statistics.rates(rows, verdict, len(classes))
    files.write_csv(files.STUDY, results.Result._fields, results.rounded(rows))
    files.write_csv(files.RATES, statistics.RATE_COLUMNS, results.rounded([[*row.values()] for row in rates]))
    reliability = results.reliability_rows(rows, scores)
    files.write_csv(files.RELIABILITY, results.RELIABILITY_COLUMNS, results.rounded(reliability))
    files.write_json(files.VERDICT, verdict)
    files.write_bytes(files.VERDICT_PAGE, report.markdown(verdict, settings.dataset, rows).encode())
    say(f"{report.table(verdict)}\n\n{report.paragraph(verdict)}\n")

    best = results.choose_best(rows)
    files.write_json(files.EVALUATION, results.rounded(results.metrics(rows, best, rates)))
    predicted = results.read_predictions(best.variant, len(labels), len(classes))[-2].argmax(axis=1)
    confusion = [(best.variant, *pair) for pair in results.confusion(labels, predicted, classes)]
    files.write_csv(files.CONFUSION, results.CONFUSION_COLUMNS, confusion)
    files.copy(files.variant_file(best.variant), files.BEST_MODEL)
    say(f"best single run by validation accuracy: {best.variant}, copied to {files.BEST_MODEL}")


if __name__ == "__main__":
    run_stage(main, __doc__)
