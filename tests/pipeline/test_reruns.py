"""What runs again after a change, and what does not."""

import re
from itertools import pairwise

import pytest

from dropout_study.settings import load_settings
from tests.clones import Clone

pytestmark = pytest.mark.pipeline

SGD = ["train@sgd-0.0-0", "train@sgd-0.5-0"]
ADADELTA = ["train@adadelta-0.0-0", "train@adadelta-0.5-0"]


def trainings(ran: list[str]) -> list[str]:
    return [stage for stage in ran if stage.startswith("train@")]


def test_repro_again_runs_nothing(clone: Clone) -> None:
    output = clone.dvc("repro")

    assert "Data and pipelines are up to date." in output
    assert clone.repro() == []


def test_repro_with_one_rate_more_trains_it_alone(clone: Clone) -> None:
    clone.change(study__dropouts=[0.0, 0.25, 0.5])

    ran = clone.repro()

    assert sorted(ran[:2]) == ["train@adadelta-0.25-0", "train@sgd-0.25-0"]
    assert ran[2:] == ["evaluate", "plot"]

    rows = (clone.path / "metrics/study.csv").read_text().splitlines()

    assert [row.split(",")[0] for row in rows[1:]] == [
        f"{optimizer}-{rate}-0" for optimizer in ("sgd", "adadelta") for rate in (0.0, 0.25, 0.5)
    ]


def test_repro_with_reordered_or_fewer_rates_trains_nothing(clone: Clone) -> None:
    clone.change(study__dropouts=[0.5, 0.0])

    assert trainings(clone.repro()) == []

    clone.change(study__dropouts=[0.5])

    assert trainings(clone.repro()) == []

    left = sorted(path.name for path in (clone.path / "models/variants").iterdir())

    assert left == ["adadelta-0.5-0.keras", "sgd-0.5-0.keras"]
    assert sorted(path.name for path in (clone.path / "metrics/history").iterdir()) == [
        "adadelta-0.5-0.csv",
        "sgd-0.5-0.csv",
    ]
    assert clone.repro() == []


def test_repro_with_one_optimizer_more_trains_it_alone(clone: Clone) -> None:
    clone.change(study__optimizers=["sgd", "adadelta", "adam"])

    assert trainings(clone.repro()) == ["train@adam-0.0-0", "train@adam-0.5-0"]


def test_repro_with_another_learning_rate_trains_its_optimizer_alone(clone: Clone) -> None:
    before = clone.results()

    clone.change(train__learning_rate__sgd=0.02)

    assert sorted(trainings(clone.repro())) == SGD
    assert clone.results() != before

    clone.change(train__learning_rate__sgd=0.01)

    assert trainings(clone.repro()) == []
    assert clone.results() == before


def test_repro_with_other_epochs_trains_all(clone: Clone) -> None:
    clone.change(train__epochs=3)

    ran = clone.repro()

    assert sorted(trainings(ran)) == sorted(SGD + ADADELTA)
    assert {"download", "normalize"}.isdisjoint(ran)


def test_repro_with_another_normalization_downloads_nothing(clone: Clone) -> None:
    before = clone.results()
    clone.change(normalize__method="minmax")

    ran = clone.repro()

    assert ran[0] == "normalize"
    assert sorted(trainings(ran)) == sorted(SGD + ADADELTA)

    clone.change(normalize__method="standardize")

    assert trainings(clone.repro()) == []
    assert clone.results() == before


def test_repro_after_a_change_of_figures_only_plots(clone: Clone) -> None:
    clone.append("dropout_study/figures.py")

    assert clone.repro() == ["plot"]


def test_repro_after_a_change_of_exempt_modules_and_urls_runs_nothing(clone: Clone) -> None:
    for module in ("settings", "files", "console", "checkpoint", "cli"):
        clone.append(f"dropout_study/{module}.py")
    clone.change(download__urls=["https://example.com/cifar-10-binary.tar.gz"])

    assert clone.repro() == []


def test_repro_of_one_variant_runs_it_alone(clone: Clone) -> None:
    clone.change(train__epochs=3)

    assert clone.repro("train@adadelta-0.5-0") == ["train@adadelta-0.5-0"]


def test_dag_reads_like_the_readme(clone: Clone) -> None:
    graph = clone.dvc("dag", "--collapse-foreach-matrix", "--dot")

    nodes = set(re.findall(r'^"([^"]+)";', graph, flags=re.MULTILINE))

    assert nodes == {"download", "normalize", "train", "evaluate", "plot"}

    arrows = set(re.findall(r'"(\w+)" -> "(\w+)"', graph))
    in_turn = ["download", "normalize", "train", "evaluate", "plot"]

    assert set(pairwise(in_turn)) <= arrows


def test_stage_list_has_descriptions(clone: Clone) -> None:
    listed = clone.dvc("stage", "list").splitlines()

    assert len(listed) == 8
    for line in listed:
        _, description = line.split(maxsplit=1)
        assert not description.startswith("Outputs")


def test_variant_keys_are_those_of_dvc(clone: Clone) -> None:
    rates = [0, 1e-05, 1e-7, 0.1, 0.30000000000000004, 0.999]
    clone.change(study__optimizers=["adam", "sgd"], study__dropouts=rates, study__seeds=[0, 4294967295])
    listed = clone.dvc("stage", "list", "--name-only").split()

    keys = [name.partition("@")[2] for name in listed if name.startswith("train@")]

    assert keys == [variant.key for variant in load_settings(clone.path / "params.yaml").variants]
    assert len(keys) == 24
