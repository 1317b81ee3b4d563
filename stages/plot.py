"""Draw the article's pictures, and write all histories as one table."""

from dropout_study import evaluation, figures, files
from dropout_study.errors import run_stage
from dropout_study.progress import say
from dropout_study.settings import load_settings


def main() -> None:
    """Write the pictures in metrics/plots/, and metrics/histories.csv."""
    load_settings()
    classes = files.read_json(files.CLASSES)
    shown = list(figures.SAMPLES)
    images = files.read_array(files.images_file(files.RAW, "train"))[shown]
    labels = files.read_array(files.labels_file(files.RAW, "train"))[shown]
    figures.save(figures.samples(images, [classes[label] for label in labels]), files.PLOTS / "samples.png")

    results = evaluation.read_results()
    groups = evaluation.by_rate(results)
    histories = {
        result.variant: [
            {column: float(value) for column, value in row.items()}
            for row in files.read_csv(files.history_file(result.variant))
        ]
        for result in results
    }
    for optimizer in dict.fromkeys(result.optimizer for result in results):
        rates = {rate: group for (name, rate), group in groups.items() if name == optimizer}
        accuracies = {rate: [r.test_accuracy for r in group if not r.diverged] for rate, group in rates.items()}
        losses = {rate: [r.test_loss for r in group if not r.diverged] for rate, group in rates.items()}
        runs = {rate: [histories[r.variant] for r in group] for rate, group in rates.items()}
        for name, figure in {
            "accuracy": figures.bars(accuracies, optimizer, "test accuracy", 1 / len(classes)),
            "loss": figures.bars(losses, optimizer, "test loss (nats)", None),
            "history": figures.histories(runs, optimizer),
        }.items():
            figures.save(figure, files.PLOTS / f"{name}-{optimizer}.png")
    rows = figures.history_rows(results, histories)
    files.write_csv(files.HISTORIES, figures.HISTORY_COLUMNS, rows)
    say(f"pictures: {files.PLOTS}/; as a page: dvc plots show --open; the table: dropout-study results")


if __name__ == "__main__":
    run_stage(main, __doc__)
