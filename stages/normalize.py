"""Hold out validation images, and turn pixels into network inputs by statistics of the rest."""

import numpy as np

from dropout_study import files, normalization
from dropout_study.console import run_stage, say
from dropout_study.settings import load_settings


def main() -> None:
    """Write data/normalized/ and metrics/normalization.json."""
    settings = load_settings().normalize
    images, labels = {}, {}
    for part in ("train", "test"):
        images[part], labels[part] = files.read_part(files.RAW, part)
    in_use = labels["train"][: settings.train_size]
    train, held_out = normalization.hold_out(in_use, settings.validation, settings.seed)
    test = np.arange(len(labels["test"]))
    parts = {
        "train": ("train", train),
        "validation": ("test", test) if settings.validation == "test" else ("train", held_out),
        "test": ("test", test),
    }
    counts = {part: normalization.count_values(images[source], indices) for part, (source, indices) in parts.items()}
    statistics = normalization.statistics(counts["train"])
    transform = normalization.fit(statistics, settings.method)
    summary = {}
    for part, (source, indices) in parts.items():
        shape = (len(indices), *images[source].shape[1:])
        blocks = normalization.transformed(images[source], indices, transform)
        files.write_blocks(files.images_file(files.NORMALIZED, part), shape, blocks)
        files.write_array(files.labels_file(files.NORMALIZED, part), labels[source][indices])
        before = normalization.summary(counts[part])
        after = normalization.summary(counts[part], transform.table)
        summary[part] = {"images": len(indices), "before": before, "after": after}
        moments = " → ".join(
            f"mean {of['mean']:.4g}, deviation {of['standard_deviation']:.4g}, largest {of['largest']:.4g}"
            for of in (before, after)
        )
        say(f"{part}: {len(indices):,} images, {moments}")
    per_channel = {name: value.tolist() for name, value in vars(statistics).items()}
    files.write_array(files.PIXEL_COUNTS, counts["train"])
    files.write_json(files.STATISTICS, {"method": settings.method, **transform.to_json(), **per_channel})
    files.write_json(files.NORMALIZATION, summary)


if __name__ == "__main__":
    run_stage(main, __doc__)
