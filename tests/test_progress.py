import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dropout_study import progress
from tests.clones import PROJECT


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3720, "1 h 02 min")],
)
def test_duration_reads_as_people_say_it(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_training_report_prints_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    report = progress.TrainingReport("sgd-0.5-0", images=1_000, epochs=12)

    report.epoch((3, 1.23456, 0.5, 2.0, 1.0), [9.0, 0.5, 0.8])

    assert capsys.readouterr().out == (
        "sgd-0.5-0  epoch  3/12  loss 1.2346  accuracy  50.00%  validation loss 2.0000  accuracy 100.00%"
        "   1,250 images/s  6 s left\n"
    )


def test_training_report_does_not_measure_by_the_first_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    report = progress.TrainingReport("sgd-0.5-0", images=1_000, epochs=3)
    report.epoch((1, 1.0, 0.5, 2.0, 1.0), [9.0])
    report.epoch((2, 1.0, 0.5, 2.0, 1.0), [9.0, 2.0])

    report.epoch((3, 1.0, 0.5, 2.0, 1.0), [9.0, 2.0, 2.0])

    assert [line.partition("images/s  ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "up to 18 s left",
        "2 s left",
        "0 s left",
    ]


def test_training_report_says_where_a_training_diverged(capsys: pytest.CaptureFixture[str]) -> None:
    progress.TrainingReport("sgd-0.5-0", images=1_000, epochs=12).diverged(3, 7, "sgd", 0.5)

    tip = capsys.readouterr().out

    assert "in epoch 3, step 7, with sgd at learning rate 0.5" in tip


def test_training_report_names_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    report = progress.TrainingReport("sgd-0.5-0", images=1_000, epochs=12)

    report.device("a processor", 2, 2)
    report.device("a GPU", 1, 1)

    assert capsys.readouterr().out == (
        "sgd-0.5-0  on a processor, 2 threads, each batch in 2 shards\nsgd-0.5-0  on a GPU, 1 thread, batches whole\n"
    )


def test_training_report_sums_up_speed(capsys: pytest.CaptureFixture[str]) -> None:
    progress.TrainingReport("sgd-0.5-0", images=1_000, epochs=2).finished([3.0, 1.0])

    assert capsys.readouterr().out == "sgd-0.5-0  finished: 2 epochs in 4.0 s, 500 images/s\n"


LOGGED = """
import os, sys
from pathlib import Path
from dropout_study.progress import logged, say
with logged(Path("logs/run.log")):
    say("first")
    os.write(2, b"from a library\\n")
    {inside}
say("after")
"""


def run_logged(directory: Path, inside: str = "pass") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOGGED.format(inside=inside)],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_finished_training_reads_the_last_line_that_the_report_printed(capsys: pytest.CaptureFixture[str]) -> None:
    report = progress.TrainingReport("sgd-0.5-0", images=10_000, epochs=2)
    report.finished([8.0])
    report.finished([1.5, 2.5])

    speed = progress.finished_training(f"{capsys.readouterr().out}2026-11-25 15:00:00  process 7\n")

    assert speed == (2, 4.0, 5000.0)


def test_finished_training_of_an_interrupted_one_is_none() -> None:
    assert progress.finished_training("sgd-0.5-0  the next run resumes after epoch 5\ninterrupted\n") is None


def test_logged_appends_what_is_printed_and_still_prints_it(tmp_path: Path) -> None:
    runs = [run_logged(tmp_path) for _ in range(2)]

    assert {(run.stdout, run.stderr) for run in runs} == {("first\nafter\n", "from a library\n")}
    lines = (tmp_path / "logs/run.log").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  process \d+", lines[0])
    assert lines.count("first") == lines.count("from a library") == 2
    assert "after" not in lines


def test_logged_has_the_error_that_ended_the_block(tmp_path: Path) -> None:
    run = run_logged(tmp_path, "raise ValueError('too much')")

    assert run.returncode == 1
    log = (tmp_path / "logs/run.log").read_text()
    assert "first\n" in log
    assert "Traceback" in log
    assert log.endswith("ValueError: too much\n")


def test_logged_without_a_place_for_the_log_warns_and_continues(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file in the place of the directory")

    run = run_logged(tmp_path)

    assert run.returncode == 0
    assert run.stdout == "warning: logs/run.log: no log is written (File exists)\nfirst\nafter\n"


def test_logged_keeps_the_last_lines_of_a_killed_process(tmp_path: Path) -> None:
    run = run_logged(tmp_path, "os.kill(os.getpid(), 9)")

    assert run.returncode == -9
    lines = (tmp_path / "logs/run.log").read_text().splitlines()
    assert {"first", "from a library"} <= set(lines)


def test_logged_output_whose_reader_has_ended_ends_a_stage_without_a_traceback(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from dropout_study.errors import run_stage\n"
        "from dropout_study.progress import logged, say\n"
        "def main():\n"
        "    with logged(Path('run.log')):\n"
        "        while True: say('a line')\n"
        "run_stage(main, 'A stage.')\n"
    )
    reading, writing = os.pipe()
    os.close(reading)

    with open(writing) as pipe:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )

    message = "error: standard output was closed by its reader; what is finished is kept\n"
    assert (done.returncode, done.stderr) == (1, message)


def test_start_up_noise_is_hidden_and_everything_else_printed() -> None:
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


def test_start_up_noise_filter_prints_the_last_words_of_a_library_that_aborts() -> None:
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


def test_network_import_prints_nothing() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import dropout_study.network"],
        capture_output=True,
        check=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )

    assert (run.stdout, run.stderr) == (b"", b"")


def test_download_bar_prints_plain_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress.download_bar("archive.tar.gz", 500, 2_000) as bar:
        bar.update(1_000)
        bar.refresh()

    text = capsys.readouterr().err

    assert "archive.tar.gz: 1.50k of 2.00k" in text
    assert "%|" not in text
