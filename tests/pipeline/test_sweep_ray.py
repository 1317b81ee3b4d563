"""`dropout-study sweep --ray`: a real Ray on loopback."""

import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.clones import Clone, environment
from tests.sweeps import KEYS, gates, outputs, processes, share, started, wait_until

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]


@pytest.fixture
def shared(swept: Clone, tmp_path: Path) -> list[str]:
    """What the options are that name a Git repository and a scratch directory; the project has a DVC remote."""
    return ["--repository", str(share(swept, tmp_path)), "--scratch", str(tmp_path / "scratch")]


def listening(pids: list[int]) -> set[str]:
    """Return the addresses on which the processes listen, by the sockets that /proc lists."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(str(link.readlink()))
            except OSError:
                continue
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                addresses.add(fields[1].partition(":")[0])
    return addresses


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for temporary files of a short path, which Ray's sockets need."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def processes_with(temporary: Path) -> list[int]:
    """Return the processes whose temporary files are in `temporary`: the sweep's, Ray's and all that they start."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"TMPDIR={temporary}\0".encode() in path.read_bytes():
                pids.append(int(path.parent.name))
    return pids


def test_ray_gives_the_bytes_of_a_sequential_run(shared: list[str], swept: Clone, temporary: Path) -> None:
    swept.run("dropout-study", "sweep", "--ray", *shared, RAY_ADDRESS="127.0.0.1:1", TMPDIR=str(temporary))
    by_ray = outputs(swept)

    for path in [swept.path / "dvc.lock", *(swept.path / "models/variants").iterdir()]:
        path.unlink()
    swept.run("git", "checkout", "--quiet", "dvc.lock")
    swept.repro("--force")

    assert outputs(swept) == by_ray
    assert [*temporary.glob("study-ray-*")] == []
    assert sorted(started(swept)[:4]) == sorted(KEYS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_ray_leaves_nothing_running_and_keeps_what_is_trained(
    shared: list[str], swept: Clone, temporary: Path, number: int
) -> None:
    (gates(swept) / "hold-adadelta-0.0-0").touch()
    sweep = subprocess.Popen(
        ["dropout-study", "sweep", "--ray", *shared],
        cwd=swept.path,
        env=environment(TMPDIR=str(temporary)),
        stdout=subprocess.PIPE,
        text=True,
    )
    status = swept.path / ".dvc/tmp/sweep/status.json"
    wait_until(lambda: status.exists() and status.read_text().count('"trained"') == 3)
    addresses = listening(processes_with(temporary))

    sweep.send_signal(number)
    sweep.communicate(timeout=300)

    assert addresses <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert addresses
    assert sweep.returncode == 130
    wait_until(lambda: not processes(Clone(Path(shared[3]))), 30)
    assert not list(Path(shared[3]).glob("worker-*"))
    wait_until(lambda: not processes_with(temporary), 30)
    assert not (swept.path / ".dvc/tmp/sweep/ray-token").exists()
    assert swept.run("git", "ls-remote", shared[1], "refs/dropout-study/*").stdout == ""
    assert (swept.path / "metrics/history/sgd-0.0-0.csv").exists()
    (gates(swept) / "hold-adadelta-0.0-0").unlink()
    assert "1 of 4 variants to train" in swept.run("dropout-study", "sweep").stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray", "--address", "auto"], "--ray starts a cluster, --address names one that runs"),
        (["--ray"], "params.yaml: train.threads is 0, all cores; Ray counts cores"),
    ],
)
def test_ray_refuses_what_contradicts_it(shared: list[str], swept: Clone, options: list[str], message: str) -> None:
    swept.change(train__threads=0)

    done = swept.run("dropout-study", "sweep", *options, *shared, check=False)

    assert done.returncode != 0
    assert message in done.stderr
