"""Every command in the README and in CONTRIBUTING is run: here, or where this file says."""

import hashlib
import json
import re
import shlex
from pathlib import Path

import pytest

from dropout_study.settings import load_settings
from tests.clones import PROJECT, SMALL, Clone
from tests.datasets.test_cifar10 import content, write_archive
from tests.test_network import LAYERS

CI = (PROJECT / ".ci/run").read_text()
README = (PROJECT / "README.md").read_text()

# Commands that are not run here, and the line of `.ci/run` that runs them.
RUN_BY_CI = {
    "make run": "make run",
    "make figures": "make figures",
    "make test": "make test",
    "make test-fast": "make test-fast",
    "make lint": "make lint",
    "make format": "make format",
    "python3.11 -m venv .venv": 'python3.11 -m venv "$scratch/venv"',
    ". .venv/bin/activate": '. "$scratch/venv/bin/activate"',
    "pip install -c requirements.txt -e .": 'pip" install --quiet -c requirements.txt -e .',
}

# Commands that other tests run, smaller or elsewhere: the file, and a text in it.
RUN_BY_TESTS = {
    "make bench": ("tests/test_benchmark.py", '"-m", "benchmarks.training"'),
    "python -m stages.train adadelta-0.5-0": (
        "tests/pipeline/test_contributing.py",
        '"stages.train", "adadelta-0.5-0"',
    ),
    "dvc status train@adadelta-0.5-0": ("tests/pipeline/test_contributing.py", '"status", "train@adadelta-0.5-0"'),
    "dvc commit --force train": ("tests/pipeline/test_contributing.py", '"commit", "--force", "train"'),
}


def commands(document: str) -> list[str]:
    """Return the commands in the console blocks of a document, in order, without comments."""
    text = (PROJECT / document).read_text()
    blocks = re.findall(r"^```console\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [re.sub(r"\s+# .*", "", line.removeprefix("$ ")).strip() for line in lines]


def test_commands_finds_those_of_the_readme() -> None:
    assert {"make run", "make test", "dvc repro", "dvc plots show"} <= set(commands("README.md"))


@pytest.mark.parametrize("command", RUN_BY_CI)
def test_ci_runs_command(command: str) -> None:
    assert command in commands("README.md") + commands("CONTRIBUTING.md")
    assert RUN_BY_CI[command] in CI


@pytest.mark.parametrize("command", RUN_BY_TESTS)
def test_another_test_runs_command(command: str) -> None:
    file, text = RUN_BY_TESTS[command]

    assert command in commands("README.md") + commands("CONTRIBUTING.md")
    assert text in (PROJECT / file).read_text()


@pytest.mark.parametrize("command", commands("CONTRIBUTING.md"))
def test_contributing_names_only_commands_that_are_run(command: str) -> None:
    assert command in RUN_BY_CI or command in RUN_BY_TESTS


def test_bench_target_runs_the_benchmark() -> None:
    assert re.search(r"^bench:.*\n\tpython -m benchmarks\.training", (PROJECT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.pipeline
def test_readme_commands_work_in_its_order(clone: Clone, tmp_path: Path) -> None:
    """In the small project, with the rates and variants of the README; an archive of its own stands in for CIFAR-10."""
    archive = write_archive(tmp_path / "cifar-10-binary.tar.gz", content())
    clone.change(study__optimizers=["adadelta"], study__dropouts=[0.0, 0.5], study__seeds=[0])
    clone.commit("as in the README")
    fresh = Clone(tmp_path / "fresh")

    ran = set()

    for command in commands("README.md"):
        if command in RUN_BY_CI or command in RUN_BY_TESTS:
            continue
        where = clone
        if command in {"dvc pull", "dvc repro --pull"}:
            if not fresh.path.exists():
                clone.commit("a remote")
                clone.run("git", "clone", "--quiet", str(clone.path), str(fresh.path))
            where = fresh
        stand_in = command.replace("/mnt/dropout-study", str(tmp_path / "remote"))
        # It asks whether to go on.
        stand_in += " --force" if command.startswith("dvc gc") else ""
        where.run("sh", "-c", stand_in, HOME=str(tmp_path))
        ran.add(command)
        if command.startswith("cp presets/"):
            # What follows would be an hour's work: go on with the small network, and the archive's own hash.
            where.run("dropout-study", "check")
            assert load_settings(where.path / "params.yaml").dataset == "cifar10"
            sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
            small = {key.replace(".", "__"): value for key, value in SMALL.items()}
            where.change(**small | {"study__optimizers": ["adadelta"]}, download__sha256=sha256)
            where.change(download__urls=[archive.as_uri()])
        if command.startswith("CIFAR10_ARCHIVE="):
            facts = json.loads((where.path / "metrics/dataset.json").read_text())
            assert facts["dataset"] == "cifar10"
    assert len(ran) > 15


def test_readme_layer_table_is_the_networks() -> None:
    for name, shape, count in LAYERS:
        if count or name.startswith(("pool", "flatten")):
            output = " × ".join(f"{size:,}" for size in shape)
            kind = name.partition("_")[0].replace("logits", "dense, softmax").replace("pool", "max-pooling")
            row = rf"^\| {kind}.*\| {output} \| {f'{count:,}' if count else ''} ?\|$"
            assert re.search(row, README, flags=re.MULTILINE), row


def test_readme_names_every_preset() -> None:
    names = set(re.findall(r"^\| `([a-z0-9-]+)` \|", README, flags=re.MULTILINE)) & {
        path.stem for path in (PROJECT / "presets").iterdir()
    }

    assert names == {path.stem for path in (PROJECT / "presets").iterdir()}

    for name in names:
        load_settings(PROJECT / f"presets/{name}.yaml")


def test_readme_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (PROJECT / target).exists(), target

    anchors = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)
    }

    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        assert anchor in anchors


def test_readme_commands_are_well_formed() -> None:
    for command in commands("README.md"):
        assert shlex.split(command)
