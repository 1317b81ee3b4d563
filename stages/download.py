"""Fetch the data set, verify it and save it as uint8 arrays in data/raw/."""

import os

from dropout_study import files
from dropout_study.console import run_stage, say
from dropout_study.datasets import DATASETS, cifar10, describe, digits
from dropout_study.download import fetch
from dropout_study.settings import load_settings


def main() -> None:
    """Load the data set of the settings and write data/raw/ and metrics/dataset.json."""
    settings = load_settings()
    if settings.dataset == "cifar10":
        local = os.environ.get("CIFAR10_ARCHIVE")
        places = [*([local] if local else []), *settings.download.urls]
        arrays = cifar10.load(fetch(places, settings.download.sha256, files.DOWNLOADS))
    else:
        arrays = digits.load()
    for name, array in arrays._asdict().items():
        files.write_array(files.RAW / f"{name}.npy", array)
    files.write_json(files.CLASSES, list(DATASETS[settings.dataset].classes))
    facts = describe(settings.dataset, arrays)
    files.write_json(files.DATASET, facts)
    size = "×".join(map(str, facts["image_size"]))
    say(f"{settings.dataset}: {facts['classes']} classes, images of {size} pixels, {facts['channels']} channels")
    for part in ("train", "test"):
        per_class = facts[part]["per_class"].values()
        say(f"{part}: {facts[part]['images']:,} images, {min(per_class):,} to {max(per_class):,} a class")


if __name__ == "__main__":
    run_stage(main, __doc__)
