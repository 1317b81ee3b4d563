"""What the stage `train` depends on is named once for DVC and once for checkpoints; both must be the same."""

from typing import Any

from ruamel.yaml import YAML

from dropout_study.settings import load_settings
from tests.clones import PROJECT

TRAIN: dict[str, Any] = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]["train"]


def test_train_params_are_the_values_that_checkpoints_depend_on() -> None:
    settings = load_settings(PROJECT / "presets/quick.yaml")
    values = settings.training_values(settings.variants[0])
    of_the_matrix = {"dropout", "seed"}

    params = {
        *(f"network.{name}" for name in values["network"].keys() - of_the_matrix),
        *(f"train.{name}" for name in values["fit"].keys() - of_the_matrix),
        "train.learning_rate.${item.optimizer}",
        "train.threads",  # in the fingerprint as the threads in use, in the provenance
    }

    assert set(TRAIN["params"]) == params


def test_train_reads_no_test_labels() -> None:
    assert "data/normalized/test_images.npy" in TRAIN["deps"]
    assert not [path for path in TRAIN["deps"] if "test_labels" in path]
