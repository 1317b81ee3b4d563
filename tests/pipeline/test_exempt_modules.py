"""Modules on which no stage depends define no number: changed where they may be, they leave every byte as it was."""

import re
from pathlib import Path

import pytest

from tests.clones import Clone, small_project
from tests.stages.test_stages import EXCEPTIONS, PIPELINE

pytestmark = pytest.mark.pipeline

# In each module what a developer might change without a thought for results: words, digits that are printed, names of
# temporary files, how often a state is saved.
CHANGES = {
    "stages/__init__.py": (r"One script per stage", "One module per stage"),
    "dropout_study/__init__.py": (r"# A notebook", "# A notebook of any kind"),
    "dropout_study/settings.py": (r"a dropout rate is at least 0 and below 1", "not a dropout rate"),
    "dropout_study/files.py": (r'"\.unfinished-"', '".temporary-"'),
    "dropout_study/console.py": (r":\.4f\}", ":.1f}"),
    "dropout_study/checkpoint.py": (r"if epoch % self\.every and", "if epoch % 2 and"),
}


def outputs(clone: Clone) -> dict[Path, bytes]:
    """Return the content of every file that a stage writes."""
    directories = (clone.path / name for name in ("data", "models", "metrics"))
    paths = (path for directory in directories for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(clone.path): path.read_bytes() for path in paths}


def test_every_exempt_module_is_changed() -> None:
    assert set(CHANGES) == set(EXCEPTIONS)


@pytest.mark.slow
def test_exempt_modules_define_no_number(tmp_path: Path) -> None:
    """All are changed at once; if this fails, change them one by one to see which one it is."""
    clone = small_project(tmp_path / "project")
    clone.change(study__optimizers=["adadelta"], study__dropouts=[0.5], train__epochs=3)
    clone.repro()
    expected = outputs(clone)
    for module, (pattern, replacement) in CHANGES.items():
        path = clone.path / module
        changed, count = re.subn(pattern, replacement, path.read_text())
        assert count, module
        path.write_text(changed)

    for stage in PIPELINE:
        clone.run("python", "-m", f"stages.{stage}", DVC_STAGE=f"{stage}@adadelta-0.5-0")

    assert outputs(clone) == expected
