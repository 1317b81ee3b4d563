"""The stages against `dvc.yaml`: what they import, what they read, what they write."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.clones import PROJECT, SMALL, Clone, environment, small_project

PIPELINE: dict[str, Any] = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]
KEY = "sgd-0.5-0"

# Modules that no stage depends on, though it imports them, and why. What these import in turn only serves them.
EXCEPTIONS = {
    "stages/__init__.py": "holds no code",
    "dropout_study/__init__.py": "keeps a notebook's matplotlib backend away",
    "dropout_study/settings.py": "the values that matter are parameters of the stage; the rest is refusing",
    "dropout_study/files.py": "where files lie is in dvc.yaml, and how they are written changes no number",
    "dropout_study/console.py": "what is printed",
    "dropout_study/checkpoint.py": "a resumed run gives the bytes of an uninterrupted one, which tests prove",
}


def imported(module: Path) -> set[str]:
    """Return the project's modules that `module` imports anywhere, as paths."""
    observed = set()
    for node in ast.walk(ast.parse((PROJECT / module).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            path = Path(*name.split("."))
            for candidate in (path.with_suffix(".py"), path / "__init__.py"):
                if (PROJECT / candidate).exists():
                    observed.add(candidate.as_posix())
    return observed


def needed(module: str) -> set[str]:
    """Return the modules that `module` imports, transitively; what exceptions import is not followed."""
    observed: set[str] = set()
    ahead = {module}
    while ahead:
        current = ahead.pop()
        observed.add(current)
        if current not in EXCEPTIONS:
            ahead |= imported(Path(current)) - observed
    return observed


def support() -> set[str]:
    """Return the exceptions and all that they import: what any stage may count on."""
    observed: set[str] = set()
    ahead = set(EXCEPTIONS)
    while ahead:
        current = ahead.pop()
        observed.add(current)
        ahead |= imported(Path(current)) - observed
    return observed


def listed(stage: str, part: str) -> list[str]:
    """Return the paths in a part of a stage ("deps", "outs", "metrics") of dvc.yaml, for the variant KEY."""
    entries = PIPELINE[stage].get(part, [])
    paths = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
    return [path.replace("${key}", KEY) for path in paths]


def test_dvc_yaml_has_a_stage_for_each_script() -> None:
    assert list(PIPELINE) == ["download", "normalize", "train", "evaluate", "plot"]

    scripts = {path.stem for path in (PROJECT / "stages").glob("*.py")} - {"__init__"}

    assert scripts == set(PIPELINE)


@pytest.mark.parametrize("stage", PIPELINE)
def test_stage_depends_on_every_module_it_imports(stage: str) -> None:
    modules = needed(f"stages/{stage}.py")

    assert f"stages/{stage}.py" in modules
    assert modules - set(EXCEPTIONS) <= set(listed(stage, "deps"))


def test_exempt_modules_import_no_others() -> None:
    # By these settings are checked; the stages that use them list them: download sizes and classes, train the pooling.
    assert support() - set(EXCEPTIONS) == {"dropout_study/datasets/__init__.py", "dropout_study/architecture.py"}


def test_exempt_modules_are_imported_and_no_deps() -> None:
    modules = set().union(*(needed(f"stages/{stage}.py") for stage in PIPELINE))

    assert set(EXCEPTIONS) - modules <= {"stages/__init__.py"}
    for stage in PIPELINE:
        assert set(EXCEPTIONS).isdisjoint(listed(stage, "deps"))


def test_stages_are_imported_by_nothing() -> None:
    for path in [*(PROJECT / "stages").glob("*.py"), *(PROJECT / "dropout_study").rglob("*.py")]:
        names = imported(path.relative_to(PROJECT))
        assert not {name for name in names if name.startswith("stages/") and name != "stages/__init__.py"}


def test_dvc_yaml_interpolates_no_command() -> None:
    for stage, definition in PIPELINE.items():
        assert definition["cmd"] == f"python -m stages.{stage}"
        assert definition["desc"]


def test_dvc_yaml_params_are_single_settings() -> None:
    settings = YAML(typ="safe").load(PROJECT / "presets/quick.yaml")

    for definition in PIPELINE.values():
        for name in definition.get("params", []):
            value = settings
            for part in name.replace("${item.optimizer}", "sgd").split("."):
                value = value[part]
            assert not isinstance(value, dict), f"{name} is a section"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The tiny study, run with the real trainer."""
    clone = small_project(tmp_path_factory.mktemp("real") / "project")
    clone.change(study__optimizers=["sgd"], study__dropouts=[0.5])
    clone.repro()
    return clone


@pytest.mark.pipeline
@pytest.mark.parametrize("stage", PIPELINE)
def test_stage_needs_its_deps_alone_and_writes_its_outs_alone(real: Clone, tmp_path: Path, stage: str) -> None:
    for name in {*listed(stage, "deps"), *support(), "params.yaml"}:
        source, target = real.path / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    variables = environment(DVC_STAGE=f"{stage}@{KEY}", PYTHONDONTWRITEBYTECODE="1")
    subprocess.run(PIPELINE[stage]["cmd"], shell=True, cwd=tmp_path, env=variables, check=True)
    # The empty file by which a training holds its variant stays, and is ignored by Git.
    ignored = {tmp_path / ".checkpoints" / "locks" / f"{KEY}.lock", *(tmp_path / "logs").glob(f"{KEY}.*")}
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before - ignored

    outs = [tmp_path / name for name in [*listed(stage, "outs"), *listed(stage, "metrics")]]

    assert all(out.exists() for out in outs)
    assert {path for path in written if not any(path.is_relative_to(out) for out in outs)} == set()
    # And what it wrote is what it wrote in the whole pipeline: nothing else had a say.
    for path in written:
        relative = path.relative_to(tmp_path)
        assert path.read_bytes() == (real.path / relative).read_bytes(), relative


@pytest.mark.parametrize("stage", PIPELINE)
def test_stage_help_needs_no_tensorflow(stage: str) -> None:
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('stages.{stage}', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'tensorflow' not in sys.modules\n"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)

    assert "usage: python -m stages" in done.stdout


def test_small_settings_are_real_keys() -> None:
    settings = YAML(typ="safe").load(PROJECT / "presets/quick.yaml")

    for key in SMALL:
        section, name = key.split(".")
        assert name in settings[section]


def test_train_fingerprint_has_every_module_among_its_deps() -> None:
    from stages.train import MODULES

    assert {path.as_posix() for path in MODULES} == {name for name in listed("train", "deps") if name.endswith(".py")}
