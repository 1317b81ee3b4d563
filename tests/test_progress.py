import os
import subprocess
import sys

import pytest

from dropout_study import progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3720, "1 h 02 min")],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    report = progress.TrainingReport("sgd-0.5-0", images=1_000, epochs=12)
    report.epoch((3, 1.23456, 0.5, 2.0, 1.0), [9.0, 0.5, 0.8])
    assert capsys.readouterr().out == (
        "sgd-0.5-0  epoch  3/12  loss 1.2346  accuracy  50.00%  validation loss 2.0000  accuracy 100.00%"
        "   1,250 images/s  6 s left\n"
    )


def test_the_first_epoch_which_compiles_is_no_measure_of_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    report = progress.TrainingReport("sgd-0.5-0", images=1_000, epochs=3)
    report.epoch((1, 1.0, 0.5, 2.0, 1.0), [9.0])
    report.epoch((2, 1.0, 0.5, 2.0, 1.0), [9.0, 2.0])
    report.epoch((3, 1.0, 0.5, 2.0, 1.0), [9.0, 2.0, 2.0])
    assert [line.partition("images/s  ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "up to 18 s left",
        "2 s left",
        "0 s left",
    ]


def test_a_divergence_says_where_and_with_what(capsys: pytest.CaptureFixture[str]) -> None:
    progress.TrainingReport("sgd-0.5-0", images=1_000, epochs=12).diverged(3, 7, "sgd", 0.5)
    said = capsys.readouterr().out
    assert "in epoch 3, step 7, with sgd at learning rate 0.5" in said


def test_the_machine_is_described() -> None:
    facts = progress.machine("numpy")
    assert facts["cores"] == progress.cores() >= 1
    assert facts["processor"]
    assert set(facts["versions"]) == {"python", "numpy"}  # type: ignore[call-overload]


def test_start_up_noise_is_held_back_and_everything_else_passed_on() -> None:
    code = (
        "import os\n"
        "from dropout_study.progress import without_start_up_noise\n"
        "with without_start_up_noise():\n"
        "    os.write(2, b'I0000 00:00:1 2 port.cc:153] oneDNN custom operations are on.\\n')\n"
        "    os.write(2, b'E0000 00:00:1 2 other.cc:1] out of memory\\n')\n"
        "os.write(2, b'after\\n')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stderr == b"E0000 00:00:1 2 other.cc:1] out of memory\nafter\n"


def test_the_last_words_of_a_library_that_aborts_are_passed_on() -> None:
    code = (
        "import os\n"
        "from dropout_study.progress import without_start_up_noise\n"
        "with without_start_up_noise():\n"
        "    os.write(2, b'F0000 this processor will not do\\n')\n"
        "    os.abort()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert run.returncode < 0
    assert run.stderr == b"F0000 this processor will not do\n"


def test_importing_the_network_says_nothing() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import dropout_study.network"],
        capture_output=True,
        check=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert (run.stdout, run.stderr) == (b"", b"")


def test_a_download_is_told_in_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress.download_bar("archive.tar.gz", 500, 2_000) as bar:
        bar.update(1_000)
        bar.refresh()
    text = capsys.readouterr().err
    assert "archive.tar.gz: 1.50k of 2.00k" in text
    assert "%|" not in text
