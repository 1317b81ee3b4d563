"""Every command in the documents is run: here, or where this file says."""

import hashlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dropout_study.settings import load_settings
from tests.clones import PROJECT, SMALL, Clone
from tests.datasets.test_cifar10 import content, write_archive
from tests.test_network import LAYERS

CI = (PROJECT / ".ci/run").read_text()
README = (PROJECT / "README.md").read_text()
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md"))]
IN_ORDER = ("README.md", "docs/walkthrough.md", "docs/dvc.md")  # whose commands are run below, one after the other
TROUBLESHOOTING = "docs/troubleshooting.md"  # has tests of its own

# Commands that are not run here, and the line of `.ci/run` that runs them.
RUN_BY_CI = {
    "make run": "make run",
    "make figures": "make figures",
    "make test": "make test",
    "make test-fast": "make test-fast",
    "make test-slow": "make test-slow",
    "make test-all": "make test-slow",  # make test, then make test-slow
    "make lint": "make lint",
    "make format": "make format",
    "python3.11 -m venv .venv": 'python3.11 -m venv "$scratch/venv"',
    ". .venv/bin/activate": '. "$scratch/venv/bin/activate"',
    "pip install -c requirements.txt -e .": 'pip" install --quiet -c requirements.txt -e .',
}

# Commands that other tests run, smaller or elsewhere: the file, and a text in it.
RUN_BY_TESTS = {
    "make bench": ("tests/test_benchmark.py", '"-m", "benchmarks.training"'),
    "make bench JSON=bench.json": ("tests/test_benchmark.py", '"--json"'),
    "python -m benchmarks.verdict": ("tests/test_statistics.py", '"-m", "benchmarks.verdict"'),
    "dropout-study sweep --dry-run": ("tests/pipeline/test_sweep.py", '"sweep", "--dry-run"'),
    "dropout-study sweep --workers 2": ("tests/pipeline/test_sweep.py", 'sweeping(swept, "--workers", "1")'),
    "dropout-study status": ("tests/pipeline/test_sweep.py", '"dropout-study", "status"'),
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


ALL = {document: commands(document) for document in DOCUMENTS}


def test_commands_finds_those_of_the_readme() -> None:
    assert {"make run", "make test", "dvc repro", "dvc plots show"} <= set(ALL["README.md"])


@pytest.mark.parametrize("command", RUN_BY_CI)
def test_ci_runs_command(command: str) -> None:
    assert any(command in lines for lines in ALL.values())
    assert RUN_BY_CI[command] in CI


@pytest.mark.parametrize("command", RUN_BY_TESTS)
def test_another_test_runs_command(command: str) -> None:
    file, text = RUN_BY_TESTS[command]

    assert any(command in lines for lines in ALL.values())
    assert text in (PROJECT / file).read_text()


@pytest.mark.parametrize("document", sorted({*DOCUMENTS} - {*IN_ORDER, TROUBLESHOOTING}))
def test_document_names_only_commands_that_are_run(document: str) -> None:
    assert {*ALL[document]} <= {*RUN_BY_CI, *RUN_BY_TESTS}


def test_fast_tests_leave_out_every_marker_of_slow_ones() -> None:
    """What -m says on the command line replaces what it says in pyproject.toml."""
    options = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    markers = {marker.partition(":")[0] for marker in options["markers"]}

    (expression,) = re.findall(
        r'^test-fast:.*\n\tpytest .*-m "(.*)"$', (PROJECT / "Makefile").read_text(), re.MULTILINE
    )

    assert {part.removeprefix("not ") for part in expression.split(" and ")} == markers


def test_bench_target_runs_the_benchmark() -> None:
    assert re.search(r"^bench:.*\n\tpython -m benchmarks\.training", (PROJECT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 14, 0)])
def test_make_refuses_a_python_that_tensorflow_does_not_support(tmp_path: Path, version: tuple[int, ...]) -> None:
    python = tmp_path / "python"
    code = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{code}" "$2"\n')
    python.chmod(0o755)

    done = subprocess.run(
        ["make", "--file", str(PROJECT / "Makefile"), f"PYTHON={python}", ".venv/bin/pip"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode != 0
    assert "Python 3.11 to 3.13 is needed" in done.stdout
    assert not (tmp_path / ".venv").exists()


@pytest.mark.slow
@pytest.mark.pipeline
@pytest.mark.parametrize("document", IN_ORDER)
def test_commands_of_document_work_in_its_order(clone: Clone, tmp_path: Path, document: str) -> None:
    """In the small project, with a change to be committed; an archive of its own stands in for CIFAR-10."""
    archive = write_archive(tmp_path / "cifar-10-binary.tar.gz", content())
    clone.change(study__optimizers=["adadelta"], study__dropouts=[0.0, 0.5], study__seeds=[0])
    clone.repro()
    clone.commit("before the first change")
    clone.change(study__dropouts=[0.0, 0.4, 0.5])
    if document == "docs/dvc.md":
        clone.repro()  # which it takes for granted where results are shared
    fresh = Clone(tmp_path / "fresh")
    ran = set()

    for command in ALL[document]:
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
    assert len(ran) >= 7


def test_layer_table_is_the_networks() -> None:
    article = (PROJECT / "docs/article.md").read_text()

    for name, shape, count in LAYERS:
        if count or name.startswith(("pool", "flatten")):
            output = " × ".join(f"{size:,}" for size in shape)
            kind = name.partition("_")[0].replace("logits", "dense, softmax").replace("pool", "max-pooling")
            row = rf"^\| {kind}.*\| {output} \| {f'{count:,}' if count else ''} ?\|$"
            assert re.search(row, article, flags=re.MULTILINE), row


def test_readme_names_every_preset() -> None:
    table = README.partition("| preset |")[2].partition("\n\n")[0]

    names = [name for row in table.splitlines() for name in re.findall("`([a-z0-9-]+)`", row.split("|")[1:2][0])]

    assert sorted(names) == sorted(path.stem for path in (PROJECT / "presets").iterdir())


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 180


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md", "SECURITY.md"])
def test_links_exist(document: str) -> None:
    path = PROJECT / document
    text = path.read_text()
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    }

    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        if not target.startswith(("../../actions/", "../../security/")):  # GitHub's own pages of the repository
            assert (path.parent / target).exists(), target
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in anchors


def test_citation_names_the_version_and_the_article() -> None:
    citation = YAML(typ="safe").load(PROJECT / "CITATION.cff")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]

    (article,) = citation["references"]
    assert citation["version"] == project["version"]
    assert f"## {project['version']} " in (PROJECT / "CHANGELOG.md").read_text()
    assert article["title"] in README.replace("\n", " ")
    assert f"({article['year']})" in README
    assert article["repository-code"] in README


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_are_well_formed(document: str) -> None:
    for command in ALL[document]:
        assert shlex.split(command)
