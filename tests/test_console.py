"""What people see: reports, logs, signals; in processes of their own where descriptors and signals count."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dropout_study import console
from tests.clones import PROJECT


def row(epoch: int, **changes: float) -> dict[str, float]:
    figures = {"train_loss": 1.23456, "train_accuracy": 0.5, "validation_loss": 2.0, "validation_accuracy": 1.0}
    return {"epoch": epoch, **figures, **changes}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3720, "1 h 02 min")],
)
def test_duration_reads_as_people_say_it(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


@pytest.fixture
def report(tmp_path: Path) -> console.TrainingReport:
    return console.TrainingReport("sgd-0.5-0", images=1_000, epochs=12, path=tmp_path / "logs/sgd-0.5-0.jsonl")


def test_training_report_prints_a_line_an_epoch(
    report: console.TrainingReport, capsys: pytest.CaptureFixture[str]
) -> None:
    report.epoch(row(3), [9.0, 0.5, 0.8])

    assert capsys.readouterr().out == (
        "sgd-0.5-0  epoch  3/12  loss 1.2346  accuracy  50.00%  validation loss 2.0000  accuracy 100.00%"
        "   1,250 images/s  6 s left\n"
    )


def test_training_report_does_not_measure_by_the_first_epoch(
    report: console.TrainingReport, capsys: pytest.CaptureFixture[str]
) -> None:
    report.epoch(row(1), [9.0])
    report.epoch(row(2), [9.0, 2.0])

    report.epoch(row(3), [9.0, 2.0, 2.0])

    assert [line.partition("images/s  ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "up to 1 min 39 s left",
        "20 s left",
        "18 s left",
    ]


def test_training_report_says_where_a_training_diverged(
    report: console.TrainingReport, capsys: pytest.CaptureFixture[str]
) -> None:
    report.diverged(3, 7, "sgd", 0.5)

    assert "in epoch 3, step 7, with sgd at learning rate 0.5" in capsys.readouterr().out


def test_training_report_names_device_precision_and_a_loss_that_is_not_that_of_validation(
    report: console.TrainingReport, capsys: pytest.CaptureFixture[str]
) -> None:
    report.started("a processor", 2, 2, "bfloat16", "logits")
    report.started("a GPU", 1, 1, "float32", "clipped")

    assert capsys.readouterr().out == (
        "sgd-0.5-0  on a processor, 2 threads, each batch in 2 shards, bfloat16\n"
        "sgd-0.5-0  on a GPU, 1 thread, batches whole, float32\n"
        "sgd-0.5-0  the training loss is clipped as in Keras 2; validation and test losses are not\n"
    )


def test_training_report_sums_up_speed(report: console.TrainingReport, capsys: pytest.CaptureFixture[str]) -> None:
    report.finished(row(2), [3.0, 1.0], diverged=False)

    assert capsys.readouterr().out == "sgd-0.5-0  finished: 2 epochs in 4.0 s, 500 images/s\n"


def test_training_report_writes_a_json_line_an_epoch(report: console.TrainingReport) -> None:
    report.started("a processor", 2, 2, "float32", "logits")
    report.epoch(row(1), [4.0])
    report.epoch(row(2, validation_loss=math.nan), [4.0, 2.0])
    report.finished(row(2, validation_loss=math.nan), [4.0, 2.0], diverged=True)

    lines = [json.loads(line) for line in report.path.read_text().splitlines()]

    assert [(line["epoch"], line["state"]) for line in lines] == [
        (0, "training"),
        (1, "training"),
        (2, "training"),
        (2, "diverged"),
    ]
    assert lines[1] == {
        "variant": "sgd-0.5-0",
        "images": 1000,
        "epochs": 12,
        **row(1),
        "seconds": 4.0,
        "images_per_second": 250.0,
        "total_seconds": 4.0,
        "state": "training",
    }
    assert lines[3]["validation_loss"] is None
    assert console.last_progress(report.path) == lines[3]


def test_training_report_on_a_full_disk_prints_all_the_same(
    report: console.TrainingReport, capsys: pytest.CaptureFixture[str]
) -> None:
    report.path.parent.write_text("a file in the place of the directory")

    report.epoch(row(3), [1.0])

    assert "epoch  3/12" in capsys.readouterr().out


def test_training_speed_is_that_of_the_last_finished_training(report: console.TrainingReport) -> None:
    report.finished(row(2), [8.0, 8.0], diverged=False)
    report.finished(row(2), [1.5, 2.5], diverged=False)

    assert console.training_speed(report.path) == (2, 4.0, 500.0)


def test_training_speed_of_an_unfinished_one_is_none(report: console.TrainingReport) -> None:
    assert console.training_speed(report.path) is None

    report.epoch(row(1), [8.0])

    assert console.training_speed(report.path) is None

    report.finished(row(2), [8.0, 8.0], diverged=False)
    report.epoch(row(1), [2.0])

    assert console.training_speed(report.path) == (2, 16.0, 125.0)


def test_last_progress_passes_over_a_line_that_is_cut_off(report: console.TrainingReport) -> None:
    assert console.last_progress(report.path) is None
    report.epoch(row(1), [8.0])
    report.epoch(row(2), [8.0, 8.0])

    report.path.write_bytes(report.path.read_bytes()[:-9])

    assert (console.last_progress(report.path) or {})["epoch"] == 1


LOGGED = """
import os, sys
from pathlib import Path
from dropout_study.console import logged, say
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
        "from dropout_study.console import run_stage\n"
        "from dropout_study.console import logged, say\n"
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
        "from dropout_study.console import without_start_up_noise\n"
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
        "from dropout_study.console import without_start_up_noise\n"
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
    with console.download_bar("archive.tar.gz", 500, 2_000) as bar:
        bar.update(1_000)
        bar.refresh()

    text = capsys.readouterr().err

    assert "archive.tar.gz: 1.50k of 2.00k" in text
    assert "%|" not in text


# Waits for a line on standard input, not for some time, so that no test depends on how busy the machine is. A signal
# that comes just before a read blocks would be handled after it: hence the polling.
HELD = """
import select, signal, sys
from dropout_study.console import interrupts_held
def wait():
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        pass
    sys.stdin.readline()
signal.signal(signal.SIGINT, {handler})
try:
    with interrupts_held() as stop_if_interrupted:
        print("held", flush=True)
        {inside}
    print("block ended", flush=True)
except KeyboardInterrupt as interrupt:
    print("interrupted by", interrupt.args, flush=True)
wait()
print("end", flush=True)
"""
STOPPING = "stopping after this step; interrupt again to stop immediately\n"


def start(inside: str, handler: str = "signal.default_int_handler") -> subprocess.Popen[str]:
    """Start a process that holds interrupts while it runs `inside`, and wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HELD.format(inside=inside, handler=handler)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert read_line(process) == "held\n"
    return process


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "inside",
    [
        "while True: wait(); print('step', flush=True); stop_if_interrupted()",
        "wait(); print('step', flush=True)",
    ],
    ids=["when asked", "at the end of the block"],
)
def test_interrupts_held_raises_after_the_step(inside: str, number: signal.Signals) -> None:
    process = start(inside)

    process.send_signal(number)

    assert read_line(process) == STOPPING
    printed, _ = process.communicate("continue\n", timeout=30)
    assert printed == f"step\ninterrupted by ({number:d},)\nend\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_held_lets_second_interrupt_end_the_process(number: signal.Signals) -> None:
    process = start("wait()")

    process.send_signal(signal.SIGINT)

    assert read_line(process) == STOPPING
    assert process.poll() is None

    process.send_signal(number)

    assert process.wait(30) == -number
    assert process.communicate()[0] == ""


def test_interrupts_held_leaves_ignored_signal_ignored() -> None:
    """As in the background of a shell script."""
    process = start("wait()", handler="signal.SIG_IGN")

    process.send_signal(signal.SIGINT)

    assert process.communicate("continue\n", timeout=30)[0] == "block ended\nend\n"
    assert process.returncode == 0


def test_interrupts_held_restores_handlers() -> None:
    process = start("pass")
    assert read_line(process) == "block ended\n"

    process.send_signal(signal.SIGTERM)

    assert process.wait(30) == -signal.SIGTERM
    process.communicate()


def test_run_stage_escapes_what_the_locale_cannot_encode() -> None:
    code = (
        "from dropout_study.console import run_stage\n"
        "from dropout_study.console import say\n"
        r"run_stage(lambda: say('7.5 \xb1 7.0 \u2192 \udcff'), 'A stage.')"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(PROJECT), "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("7.5 \\xb1 7.0 \\u2192 \\udcff\n", "")
