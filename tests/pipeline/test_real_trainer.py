"""The whole study with the real trainer, on a tiny network."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.clones import PROJECT, Clone, copied, environment, small_project
from tests.sweeps import outputs

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A tiny study of SGD and Adadelta at rate 0.5, run for real. Not to be changed, but for its logs."""
    clone = small_project(tmp_path_factory.mktemp("real") / "project")
    clone.change(study__dropouts=[0.5])
    assert "train@adadelta-0.5-0" in clone.repro()
    clone.commit("the study")
    return clone


def rows(clone: Clone) -> dict[str, dict[str, str]]:
    with (clone.path / "metrics/study.csv").open() as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def test_train_writes_every_output(studied: Clone) -> None:
    for key in ("sgd-0.5-0", "adadelta-0.5-0"):
        history = (studied.path / f"metrics/history/{key}.csv").read_text().splitlines()
        provenance = json.loads((studied.path / f"metrics/provenance/{key}.json").read_text())
        predictions = np.load(studied.path / f"data/predictions/{key}.npy")

        assert history[0] == "epoch,train_loss,train_accuracy,validation_loss,validation_accuracy"
        assert [line.split(",")[0] for line in history[1:]] == ["1", "2"]
        assert (provenance["device"], provenance["threads"], provenance["shards"]) == ("CPU", 1, 1)
        assert (predictions.shape, predictions.dtype) == ((2, 1397, 10), np.float32)
        np.testing.assert_allclose(np.exp(predictions).sum(axis=2), 1, rtol=1e-5)


def test_model_gives_the_predictions(studied: Clone) -> None:
    pixels = np.load(studied.path / "data/raw/test_images.npy")

    for key in ("sgd-0.5-0", "adadelta-0.5-0"):
        model = keras.models.load_model(studied.path / f"models/variants/{key}.keras")
        predictions = np.load(studied.path / f"data/predictions/{key}.npy")
        np.testing.assert_allclose(np.log(model.predict(pixels, verbose=0)), predictions[0], atol=1e-4)


def test_model_loads_in_stock_keras_without_this_package(studied: Clone, tmp_path: Path) -> None:
    code = (
        "import sys, keras, numpy\n"
        "model = keras.models.load_model(sys.argv[1], safe_mode=True)\n"
        "print(model.predict(numpy.zeros((1, 16, 16, 3), 'uint8'), verbose=0).shape)\n"
        "assert not [name for name in sys.modules if name.startswith('dropout_study')]\n"
        "try: import dropout_study\n"
        "except ModuleNotFoundError: print('alone')\n"
    )
    # Without site-packages' hooks, by which an editable install is found; what Keras needs is named instead.
    variables = environment(PYTHONPATH=str(Path(keras.__file__).parents[1]))

    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(studied.path / "models/variants/sgd-0.5-0.keras")],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.split("\n") == ["(1, 10)", "alone", ""], done.stderr


def test_predict_takes_any_variant(studied: Clone, tmp_path: Path) -> None:
    shutil.copy(PROJECT / "docs/four.png", tmp_path / "four.png")

    done = studied.run(
        "dropout-study", "predict", "--model", "models/variants/sgd-0.5-0.keras", str(tmp_path / "four.png")
    )

    assert "four.png" in done.stdout
    assert done.stdout.count("%") == 3


@pytest.mark.slow
def test_train_never_reads_the_test_labels(studied: Clone, tmp_path: Path) -> None:
    with copied(studied, tmp_path / "project") as clone:
        expected = {path: path.read_bytes() for path in (clone.path / "data/predictions").iterdir()}
        for directory in ("raw", "normalized"):
            (clone.path / f"data/{directory}/test_labels.npy").unlink()

        clone.run("python", "-m", "stages.train", "sgd-0.5-0")

        assert {path: path.read_bytes() for path in expected} == expected


def test_evaluate_and_plot_do_not_import_tensorflow(studied: Clone) -> None:
    for stage in ("evaluate", "plot"):
        code = (
            f"import sys, runpy; sys.argv = ['stages.{stage}']\n"
            f"runpy.run_module('stages.{stage}', run_name='__main__')\n"
            "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
        )

        studied.run(sys.executable, "-c", code)


def test_train_appends_to_its_log(studied: Clone) -> None:
    log = studied.path / "logs/sgd-0.5-0.log"
    before = log.read_text()

    studied.run("python", "-m", "stages.train", "sgd-0.5-0")

    assert log.read_text().startswith(before)
    added = log.read_text().removeprefix(before)
    assert "sgd-0.5-0  epoch 2/2  loss" in added
    assert "sgd-0.5-0  finished: 2 epochs in" in added


def test_best_model_is_a_copy_that_takes_raw_pixels(studied: Clone) -> None:
    best = json.loads((studied.path / "metrics/evaluation.json").read_text())["best"]
    model = keras.models.load_model(studied.path / "models/best.keras")

    variant = studied.path / f"models/variants/{best['variant']}.keras"

    assert (studied.path / "models/best.keras").read_bytes() == variant.read_bytes()

    observed = model.predict(np.load(studied.path / "data/raw/test_images.npy"), verbose=0)
    labels = np.load(studied.path / "data/raw/test_labels.npy")

    assert (observed.argmax(axis=1) == labels).mean() == pytest.approx(best["test_accuracy"], abs=1e-6)


def test_repro_of_another_user_in_another_clone_gives_the_same_bytes(studied: Clone, tmp_path: Path) -> None:
    """A user whose Keras is set up differently, and who runs it from a notebook."""
    fresh = Clone(tmp_path / "fresh")
    studied.run("git", "clone", "--quiet", str(studied.path), str(fresh.path))
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras/keras.json").write_text('{"floatx": "float16", "epsilon": 0.1, "backend": "tensorflow"}')

    fresh.run("dvc", "repro", HOME=str(tmp_path), MPLBACKEND="module://matplotlib_inline.backend_inline")

    assert outputs(fresh) == outputs(studied)
    assert fresh.run("git", "status", "--porcelain").stdout == ""


@pytest.mark.slow
def test_repro_takes_a_diverged_variant_as_a_result_and_going_back_trains_nothing(
    studied: Clone, tmp_path: Path
) -> None:
    with copied(studied, tmp_path / "project") as clone:
        clone.change(train__learning_rate__sgd=1e12)

        output = clone.dvc("repro")

        assert "sgd-0.5-0  diverged: a loss, weight or prediction stopped being finite in epoch 1, step" in output
        assert "with sgd at learning rate 1e+12" in output
        results = rows(clone)
        assert (results["sgd-0.5-0"]["diverged"], results["adadelta-0.5-0"]["diverged"]) == ("1", "")
        evaluation = json.loads((clone.path / "metrics/evaluation.json").read_text())
        assert evaluation["best"]["variant"] == "adadelta-0.5-0"
        assert evaluation["variants"]["sgd-0.5-0"]["diverged"] == 1
        assert "1 of 2 runs (sgd-0.5-0 in epoch 1)" in clone.run("dropout-study", "results").stdout
        assert clone.repro() == []

        clone.change(train__learning_rate__sgd=0.01)

        assert clone.repro() == ["evaluate", "plot"]
        assert rows(clone)["sgd-0.5-0"]["diverged"] == ""
