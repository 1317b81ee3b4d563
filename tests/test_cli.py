import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import pytest
from click.testing import CliRunner
from PIL import Image

from dropout_study import files, report
from dropout_study.cli import main
from dropout_study.results import Result
from dropout_study.verdict import Machine, read_verdict, write_verdict
from tests.clones import PROJECT, change_settings
from tests.studies import verdict_of
from tests.test_results import result


def run(*arguments: str) -> tuple[int, str, str]:
    outcome = CliRunner().invoke(main, arguments)
    return outcome.exit_code, outcome.stdout, outcome.stderr


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, with a subdirectory `metrics/plots`; the current directory is its top level."""
    path = tmp_path / "project"
    (path / "metrics/plots").mkdir(parents=True)
    (path / "dvc.yaml").touch()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, which is in no project."""
    path = tmp_path / "outside"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def write_results(rows: list[Result]) -> None:
    files.write_csv(files.STUDY, Result._fields, rows)
    write_verdict(files.VERDICT, replace(verdict_of(rows), machines=[Machine({"versions": {}}, [])]))


def write_model_and_image(directory: Path) -> None:
    """Write a model that takes 8×8 pixels to models/best.keras, and image.png."""
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    (directory / files.BEST_MODEL.parent).mkdir()
    keras.Sequential(layers).save(directory / files.BEST_MODEL)
    Image.new("RGB", (8, 8)).save(directory / "image.png")


def test_check_summarizes_valid_settings() -> None:
    status, out, _ = run("check", str(PROJECT / "presets/quick.yaml"))

    assert status == 0
    assert "valid. digits, 100 training images; 16 variants (optimizers adadelta, dropouts 0.0 0.3" in out
    assert "one seed" not in out


def test_check_warns_of_a_single_seed() -> None:
    _, out, _ = run("check", str(PROJECT / "presets/article.yaml"))

    assert "one seed gives no verdict" in out


def test_check_refuses_invalid_settings(write_settings: Callable[..., Path]) -> None:
    status, out, err = run("check", str(write_settings(train__epochs=0)))

    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert "train.epochs = 0" in err


def test_check_reads_params_yaml_by_default(project: Path) -> None:
    status, _, err = run("check")

    assert status == 1
    assert err.startswith("error: params.yaml: there is no such file")


def test_check_finds_the_project_from_a_subdirectory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(PROJECT / "presets/quick.yaml", project / "params.yaml")
    monkeypatch.chdir(project / "metrics/plots")

    status, out, _ = run("check")

    assert status == 0
    assert out.startswith(f"{Path('../../params.yaml')}: valid.")


def test_check_takes_a_path_from_the_current_directory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(PROJECT / "presets/quick.yaml", project / "metrics/mine.yaml")
    monkeypatch.chdir(project / "metrics")

    status, out, _ = run("check", "mine.yaml")

    assert status == 0
    assert out.startswith("mine.yaml: valid.")


def test_check_of_a_named_file_needs_no_project(outside: Path) -> None:
    shutil.copy(PROJECT / "presets/quick.yaml", "mine.yaml")

    status, out, _ = run("check", "mine.yaml")

    assert status == 0
    assert out.startswith("mine.yaml: valid.")


def test_results_prints_table_verdict_and_best_run(project: Path) -> None:
    write_results([result("sgd-0.1-0", 0.7), result("sgd-0.5-0", 0.9)])

    status, out, _ = run("results")

    assert status == 0
    verdict = read_verdict()
    assert out.startswith(f"{report.table(verdict)}\n\n{report.paragraph(verdict)}")
    assert "sgd: With one run a rate, it cannot be said which rate is best" in out
    assert "Best single run by validation accuracy (90.0 %): sgd-0.5-0, test accuracy 80.0 %" in out
    assert "dvc plots show" in out


def test_results_says_if_the_model_is_missing(project: Path) -> None:
    write_results([result("sgd-0.1-0")])

    _, without_model, _ = run("results")
    files.write_bytes(files.BEST_MODEL, b"")
    _, with_model, _ = run("results")

    assert "Its model: models/best.keras (missing; run `dvc repro` to make it)\n" in without_model
    assert "Its model: models/best.keras\n" in with_model


def test_results_says_if_the_settings_have_other_variants(project: Path) -> None:
    write_results([result("sgd-0.1-0"), result("sgd-0.5-0")])
    shutil.copy(PROJECT / "presets/quick.yaml", "params.yaml")

    _, changed, _ = run("results")
    change_settings(
        Path("params.yaml"), {"study.optimizers": ["sgd"], "study.dropouts": [0.1, 0.5], "study.seeds": [0]}
    )
    _, equal, _ = run("results")

    assert "The variants in params.yaml have changed since" in changed
    assert "have changed since" not in equal


def test_results_shows_the_table_even_if_all_diverged(project: Path) -> None:
    write_results([result("sgd-0.1-0", diverged=2)])

    status, out, _ = run("results")

    assert status == 0
    assert "1 of 1 runs (sgd-0.1-0 in epoch 2)" in out
    assert "Every run diverged, so there is no best model." in out


@pytest.mark.parametrize(
    ("recorded", "warning"),
    [
        ({}, None),
        ({"keras": "3.0.0"}, "computed with other versions: keras 3.0.0 (installed: 3."),
        ({"no-such-package": "1.0"}, "computed with other versions: no-such-package 1.0 (installed: none)."),
    ],
    ids=["installed", "another", "missing"],
)
def test_results_says_if_other_versions_are_installed(
    project: Path, recorded: dict[str, str], warning: str | None
) -> None:
    write_results([result("sgd-0.1-0")])
    versions = {package: importlib.metadata.version(package) for package in ("keras", "tensorflow")} | recorded
    write_verdict(files.VERDICT, replace(read_verdict(), machines=[Machine({"versions": versions}, ["sgd-0.1-0"])]))

    _, out, _ = run("results")

    assert warning in out if warning else "other versions" not in out


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (files.VERDICT, '{"optimizers": {}}'),
        (files.VERDICT, "<<<<<<< HEAD\n"),
        (files.STUDY, "variant\nsgd-0.1-0\n"),
        (files.STUDY, "<<<<<<< HEAD\n" + ",".join(Result._fields) + "\n"),
    ],
)
def test_results_names_the_way_out_of_damaged_files(project: Path, file: Path, content: str) -> None:
    write_results([result("sgd-0.1-0")])
    file.write_text(content)

    status, out, err = run("results")

    assert (status, out) == (1, "")
    assert err.startswith(f"error: {file}: damaged, or written by another version of the project (")
    assert err.endswith("`dvc repro` makes it again\n")


@pytest.mark.parametrize("file", [files.STUDY, files.VERDICT])
def test_results_without_a_run_says_how_to_make_one(project: Path, file: Path) -> None:
    write_results([result("sgd-0.1-0")])
    file.unlink()

    status, _, err = run("results")

    assert status == 1
    assert err.startswith(f"error: {file}: ")
    assert "`dvc repro` makes" in err


def test_results_finds_the_project_from_a_subdirectory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_results([result("sgd-0.1-0")])
    _, expected, _ = run("results")
    monkeypatch.chdir(project / "metrics/plots")

    status, out, _ = run("results")

    assert status == 0
    assert out == expected


def test_predict_finds_the_model_from_a_subdirectory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model_and_image(project)
    monkeypatch.chdir(project / "metrics/plots")

    status, out, _ = run("predict", "--json", "../../image.png")

    assert status == 0
    assert json.loads(out)["model"] == "../../models/best.keras"
    assert json.loads(out)["images"][0]["file"] == "../../image.png"


def test_predict_from_a_subdirectory_says_how_to_make_the_model(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / "metrics/plots")

    status, _, err = run("predict", "../../image.png")

    assert status == 1
    assert err.startswith("error: ../../models/best.keras: there is no such model; `dvc repro` makes it")


def test_predict_with_a_named_model_needs_no_project(outside: Path) -> None:
    write_model_and_image(outside)

    status, out, _ = run("predict", "--model", "models/best.keras", "image.png")

    assert status == 0
    assert out.startswith("image.png ")


@pytest.mark.parametrize("command", [["check"], ["results"], ["predict", "image.png"]])
def test_commands_outside_a_project_say_so(outside: Path, command: list[str]) -> None:
    status, out, err = run(*command)

    assert (status, out) == (1, "")
    assert err == (
        f"error: not in a project: no dvc.yaml in {outside} or above; change into the clone of the project\n"
    )


@pytest.mark.parametrize("command", [["check"], ["results"], ["predict", "image.png"]])
def test_commands_in_a_removed_directory_say_so(outside: Path, command: list[str]) -> None:
    outside.rmdir()

    status, out, err = run(*command)

    assert (status, out) == (1, "")
    assert err == "error: the current directory no longer exists; change into the clone of the project\n"


def test_completion_outside_a_project_is_no_error(outside: Path) -> None:
    variables = {"_DROPOUT_STUDY_COMPLETE": "bash_complete", "COMP_WORDS": "dropout-study check ", "COMP_CWORD": "2"}

    outcome = CliRunner(env=os.environ | variables).invoke(main, prog_name="dropout-study")

    assert outcome.exception is None or isinstance(outcome.exception, SystemExit)
    assert "," in outcome.stdout  # "file,": complete file names


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], ["check"], ["results"], ["predict"]])
def test_every_command_has_a_help_text(outside: Path, command: list[str], option: str) -> None:
    status, out, _ = run(*command, option)

    assert status == 0
    assert len(out.splitlines()) > 3
    assert "..." not in out.partition("Commands:")[2]  # a line that is cut in the list of commands
