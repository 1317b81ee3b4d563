import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from dropout_study import files, report, statistics
from dropout_study.cli import main
from dropout_study.results import Result, read_rates
from tests.clones import PROJECT, change_settings
from tests.test_results import result


def run(*arguments: str) -> tuple[int, str, str]:
    outcome = CliRunner().invoke(main, arguments)
    return outcome.exit_code, outcome.stdout, outcome.stderr


def test_check_says_what_the_settings_amount_to() -> None:
    status, out, _ = run("check", str(PROJECT / "presets/quick.yaml"))
    assert status == 0
    assert "valid. digits, 1167 images to train on; 15 variants (optimizers adadelta, dropouts 0.0 0.3" in out
    assert "one seed" not in out
    _, out, _ = run("check", str(PROJECT / "presets/article-sgd.yaml"))
    assert "one seed, of which no verdict can be given" in out


def test_check_refuses_bad_settings(write_settings: Callable[..., Path]) -> None:
    status, out, err = run("check", str(write_settings(train__epochs=0)))
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert "train.epochs = 0" in err


def test_check_reads_params_yaml_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run("check")
    assert status == 1
    assert "params.yaml: there is no such file" in err


def write_results(rows: list[Result]) -> None:
    files.write_csv(files.STUDY, Result._fields, rows)
    rates = statistics.rates(rows, classes=10)
    files.write_csv(files.RATES, statistics.RATE_COLUMNS, [[*row.values()] for row in rates])
    verdict = statistics.verdict(rows, test_images=500, validation=0.1)
    files.write_json(files.VERDICT, verdict | {"machines": [{"provenance": {"versions": {}}, "variants": []}]})


def test_results_prints_table_best_and_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [result("sgd-0.1-0", 0.7), result("sgd-0.5-0", 0.9)]
    write_results(rows)
    status, out, _ = run("results")
    assert status == 0
    assert out.startswith(report.table(files.read_json(files.VERDICT), read_rates()))
    assert "sgd: one seed: no statement. Best in validation: 0.5, with a test accuracy of 80.0 %." in out
    assert "Best single run by validation accuracy (90.0 %): sgd-0.5-0, test accuracy 80.0 %" in out
    assert "its model will be, after `dvc repro`, models/best.keras" in out
    assert "These are not the variants of params.yaml as it is now" in out
    assert "dvc plots show" in out
    files.write_bytes(files.BEST_MODEL, b"")
    shutil.copy(PROJECT / "presets/quick.yaml", "params.yaml")
    change_settings(
        Path("params.yaml"), {"study.optimizers": ["sgd"], "study.dropouts": [0.1, 0.5], "study.seeds": [0]}
    )
    _, out, _ = run("results")
    assert "its model is models/best.keras" in out
    assert "These are not" not in out


def test_results_shows_the_table_even_if_all_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_results([result("sgd-0.1-0", diverged=2)])
    status, out, err = run("results")
    assert status == 1
    assert "diverged: sgd-0.1-0 in epoch 2" in out
    assert err.startswith("error: every variant of the study diverged")


def test_results_of_another_version_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_results([result("sgd-0.1-0")])
    files.write_json(files.VERDICT, {"optimizers": {}})
    status, _, err = run("results")
    assert status == 1
    assert err.startswith("error: metrics/verdict.json: has no 'diverged'; another version of the project wrote it")
    files.VERDICT.unlink()
    status, _, err = run("results")
    assert status == 1
    assert "metrics/verdict.json: there is no such file yet; `dvc repro` makes it" in err


def test_results_without_a_run_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run("results")
    assert status == 1
    assert "`dvc repro` makes them" in err


@pytest.mark.parametrize("command", [[], ["check"], ["results"]])
def test_every_command_has_a_help_text(command: list[str]) -> None:
    status, out, _ = run(*command, "--help")
    assert status == 0
    assert len(out.splitlines()) > 3
    assert "..." not in out.partition("Commands:")[2]  # a line that is cut in the list of commands
