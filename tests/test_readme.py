"""Every command in the README and in CONTRIBUTING is run: here, or where this file says."""

import re
import shlex
from pathlib import Path

import pytest

from dropout_study.settings import load_settings
from tests.clones import PROJECT, Clone
from tests.test_network import LAYERS

CI = (PROJECT / ".ci/run").read_text()
README = (PROJECT / "README.md").read_text()

# Commands that are not run here, and what runs them: a text that stands in `.ci/run`.
RUN_BY_CI = {
    "make run": "make run",
    "make test": "make test",
    "make lint": "make lint",
    "make test-fast": "make test",  # a part of it
    "make format": "make lint",  # its checks
    "python3.11 -m venv .venv": "python3.11 -m venv",
    ". .venv/bin/activate": '. "$scratch/venv/bin/activate"',
    "pip install -c requirements.txt -e .": "install --quiet -c requirements.txt -e .",
    "cp presets/cifar10-small.yaml params.yaml": "pytest -m full_size",
    "CIFAR10_ARCHIVE=~/cifar-10-binary.tar.gz dvc repro": "CIFAR10_ARCHIVE=",
}


def commands(document: str) -> list[str]:
    """Return the commands in the console blocks of a document, in order, without comments."""
    text = (PROJECT / document).read_text()
    blocks = re.findall(r"^```console\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [re.sub(r"\s+# .*", "", line.removeprefix("$ ")).strip() for line in lines]


def test_commands_are_found() -> None:
    assert {"make run", "make test", "dvc repro", "dvc plots show"} <= set(commands("README.md"))


@pytest.mark.parametrize("command", RUN_BY_CI)
def test_what_ci_runs_is_in_ci(command: str) -> None:
    assert command in commands("README.md") + commands("CONTRIBUTING.md")
    assert RUN_BY_CI[command] in CI


@pytest.mark.parametrize("command", commands("CONTRIBUTING.md"))
def test_contributing_names_only_commands_that_ci_runs(command: str) -> None:
    assert command in RUN_BY_CI


@pytest.mark.pipeline
def test_the_other_commands_of_the_readme_work_in_its_order(clone: Clone, tmp_path: Path) -> None:
    """In the small project; its rates and variants stand in for those of the README."""
    fresh = Clone(tmp_path / "fresh")
    clone.change(study__dropouts=[0.0, 0.5, 0.7], study__seeds=[0, 1, 2])
    clone.commit("as in the README")
    ran = set()
    for command in commands("README.md"):
        if command in RUN_BY_CI:
            continue
        where = clone
        if command in {"dvc pull", "dvc repro --pull"}:
            if not fresh.path.exists():
                clone.commit("a remote")
                clone.run("git", "clone", "--quiet", str(clone.path), str(fresh.path))
            where = fresh
        where.run("sh", "-c", command.replace("/mnt/dropout-study", str(tmp_path / "remote")))
        ran.add(command)
    assert len(ran) > 15


def test_the_layer_table_is_the_networks() -> None:
    for name, shape, count in LAYERS:
        if count or name.startswith(("pool", "flatten")):
            output = " × ".join(f"{size:,}" for size in shape)
            kind = name.partition("_")[0].replace("probabilities", "dense, softmax").replace("pool", "max-pooling")
            row = rf"^\| {kind}.*\| {output} \| {f'{count:,}' if count else ''} ?\|$"
            assert re.search(row, README, flags=re.MULTILINE), row


def test_presets_in_the_readme_are_the_presets() -> None:
    names = set(re.findall(r"^\| `([a-z0-9-]+)` \|", README, flags=re.MULTILINE)) & {
        path.stem for path in (PROJECT / "presets").iterdir()
    }
    assert names == {path.stem for path in (PROJECT / "presets").iterdir()}
    for name in names:
        load_settings(PROJECT / f"presets/{name}.yaml")


def test_the_table_of_results_is_that_of_the_committed_run() -> None:
    from dropout_study import evaluation

    shown = README.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    table = evaluation.table(evaluation.read_results(PROJECT / "metrics/study.csv"))
    assert shown.strip().removeprefix("```text\n").removesuffix("\n```") == table


def test_what_the_readme_points_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (PROJECT / target).exists(), target
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        assert anchor in anchors


def test_commands_are_well_formed() -> None:
    for command in commands("README.md"):
        assert shlex.split(command)
