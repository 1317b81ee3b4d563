"""Draw the pictures; write the tables behind `dvc plots show`, and the script that its page needs."""

import numpy as np
import vl_convert

from dropout_study import figures, files, page_tables, report
from dropout_study.console import run_stage, say
from dropout_study.results import read_history, read_predictions, read_rates, read_reliability, read_results
from dropout_study.settings import load_settings
from dropout_study.verdict import read_verdict, rounded

VEGA_LITE = "6.4"  # goes with the Vega and Vega-Embed that vl_convert puts into the script; page.html names all three


def main() -> None:
    """Write the pictures in metrics/plots/, the tables of the page and data/vega.js."""
    dataset = load_settings().dataset
    files.write_bytes(files.VEGA, vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE).encode())
    transform = files.read_json(files.STATISTICS)
    counts = files.read_array(files.PIXEL_COUNTS, (256, 3))
    pixels = page_tables.pixel_rows(counts, transform["scale"], transform["offset"], transform["method"])
    files.write_csv(files.PIXELS, page_tables.PIXEL_COLUMNS, rounded(pixels))

    classes = files.read_json(files.CLASSES)
    results, rates = read_results(), read_rates()
    histories = {result.variant: read_history(files.history_file(result.variant)) for result in results}
    files.write_csv(files.HISTORIES, page_tables.HISTORY_COLUMNS, rounded(page_tables.history_rows(results, histories)))
    paragraph = report.paragraph(read_verdict())
    summary = page_tables.summary_rows(report.studied(dataset, results), paragraph)
    files.write_csv(files.SUMMARY, page_tables.SUMMARY_COLUMNS, summary)

    images, labels = {}, {}
    for part in ("train", "test"):
        images[part], labels[part] = files.read_part(files.RAW, part)
    shown = list(figures.SAMPLES)
    pictures = {
        "samples": figures.samples(images["train"][shown], [classes[i] for i in labels["train"][shown]], dataset),
        **figures.of_study(rates, results, histories, read_reliability()),
    }
    best = files.read_json(files.EVALUATION)["best"]  # None: every run diverged
    if best:
        name = best["variant"]
        cells = [(cell["actual"], cell["predicted"], int(cell["images"])) for cell in files.read_csv(files.CONFUSION)]
        log_probabilities = read_predictions(name, len(labels["test"]), len(classes))[-2]
        pictures["confusion"] = figures.confusion(cells, name)
        pictures["mistakes"] = figures.mistakes_of(
            name, classes, images["test"], labels["test"], np.exp(log_probabilities)
        )
    for name, figure in pictures.items():
        figures.save(figure, files.PLOTS / f"{name}.png")
    say(f"pictures: {files.PLOTS}/; as a page: dvc plots show --open; the table: dropout-study results")


if __name__ == "__main__":
    run_stage(main, __doc__)
