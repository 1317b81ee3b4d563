"""Every preset is run, shrunk to a few images and one epoch, from normalize to plot."""

import hashlib
from pathlib import Path

import pytest

from dropout_study.settings import load_settings
from tests.clones import PROJECT, small_project
from tests.datasets.test_cifar10 import content, write_archive

pytestmark = pytest.mark.pipeline

PRESETS = sorted((PROJECT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_runs_from_download_to_plot(tmp_path: Path, preset: Path) -> None:
    clone = small_project(tmp_path / "project")
    clone.run("cp", f"presets/{preset.name}", "params.yaml")
    settings = load_settings(preset)
    rates = [settings.study.dropouts[0], settings.study.dropouts[-1]]
    clone.change(study__dropouts=rates, study__seeds=settings.study.seeds[:1])
    clone.change(normalize__train_size=200, train__epochs=1, train__batch_size=16)
    clone.change(network__filters=[2, 2, 2, 2], network__units=[4, 4])
    if settings.dataset == "cifar10":
        archive = write_archive(tmp_path / "cifar-10-binary.tar.gz", content())
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
        clone.change(download__urls=[archive.as_uri()], download__sha256=sha256)

    ran = clone.repro()

    keys = [variant.key for variant in load_settings(clone.path / "params.yaml").variants]
    assert ran == ["download", "normalize", *(f"train@{key}" for key in keys), "evaluate", "plot"]
    rows = (clone.path / "metrics/study.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == keys
    assert (clone.path / "models/best.keras").exists()
