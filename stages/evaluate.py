"""Compare the predictions of every variant with the test labels; judge the rates, and copy the best model."""

from dropout_study import files, report, results, statistics
from dropout_study.console import run_stage, say
from dropout_study.settings import load_settings
from dropout_study.verdict import rounded


def main() -> None:
    """Write the tables and the verdict in metrics/, and models/best.keras, which is empty if every run diverged."""
    settings = load_settings()
    stale = results.remove_stale_files([variant.key for variant in settings.variants])
    if stale:
        say(f"removed, of variants that are no longer in {files.SETTINGS}: {', '.join(map(str, stale))}")
    labels = files.read_array(files.labels_file(files.NORMALIZED, "test"), (None,))
    classes = files.read_json(files.CLASSES)
    rows, scores, provenances = [], {}, {}
    for variant in settings.variants:
        history = results.read_history(files.history_file(variant.key))
        scores[variant.key], best_scores = results.variant_scores(variant.key, labels, len(classes))
        rows.append(results.make_result(variant, history, scores[variant.key], best_scores))
        provenances[variant.key] = files.read_json(files.provenance_file(variant.key))
    verdict, rates = statistics.write_tables(files.STUDY.parent, rows, scores, provenances, settings)
    files.write_bytes(files.VERDICT_PAGE, report.markdown(verdict, settings.dataset, rows).encode())
    say(f"{report.table(verdict)}\n\n{report.paragraph(verdict)}\n")

    best = results.choose_best(rows)
    files.write_json(files.EVALUATION, rounded(results.metrics(rows, best, rates)))
    if best is None:
        # DVC needs the files, and its plots the rows.
        files.write_bytes(files.BEST_MODEL, b"")
        name, predicted, labels = "", labels[:0], labels[:0]
        say(f"every run diverged, so there is no best model, and {files.BEST_MODEL} is empty")
    else:
        name = best.variant
        predicted = results.read_predictions(name, len(labels), len(classes))[-2].argmax(axis=1)
        files.copy(files.variant_file(name), files.BEST_MODEL)
        say(f"best single run by validation accuracy: {name}, copied to {files.BEST_MODEL}")
    confusion = [(name, *pair) for pair in results.confusion(labels, predicted, classes)]
    files.write_csv(files.CONFUSION, results.CONFUSION_COLUMNS, confusion)


if __name__ == "__main__":
    run_stage(main, __doc__)
