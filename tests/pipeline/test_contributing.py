"""The way out of retraining that CONTRIBUTING describes, with the real `dvc`."""

from pathlib import Path

import pytest

from tests.clones import Clone

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]


def test_commit_force_train_takes_results_as_those_of_refactored_code(clone: Clone, tmp_path: Path) -> None:
    clone.dvc("remote", "add", "--default", "storage", str(tmp_path / "remote"))
    clone.append("dropout_study/training.py")
    clone.run("python", "-m", "stages.train", "adadelta-0.5-0", DVC_STAGE="train@adadelta-0.5-0")
    status = clone.dvc("status", "train@adadelta-0.5-0")

    clone.dvc("commit", "--force", "train")
    clone.commit("a refactoring")
    clone.dvc("push", "--run-cache")
    colleague = Clone(tmp_path / "colleague")
    clone.run("git", "clone", "--quiet", str(clone.path), str(colleague.path))
    (colleague.path / "dvc.lock").unlink()  # what is left is the run cache alone

    assert "dropout_study/training.py" in status
    assert "changed outs" not in status
    assert clone.repro() == []
    assert not [stage for stage in colleague.repro("--pull") if stage.startswith("train@")]


def test_status_lists_outputs_of_a_refactoring_that_changed_bytes(clone: Clone) -> None:
    clone.append("dropout_study/training.py")
    clone.append("metrics/history/adadelta-0.5-0.csv", "3,0,0,0,0\n")

    status = clone.dvc("status", "train@adadelta-0.5-0")

    assert "changed outs" in status
