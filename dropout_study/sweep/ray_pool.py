"""Ray as the engine of a sweep: its tasks call the worker, on a cluster that runs or on one of this machine alone.

Ray contributes a queue, retries on other machines and the counting of processors and GPUs. Code, data and results
travel as for every other machine, by a Git repository and a DVC remote: see `remote`.
"""

import os
import secrets
import signal
import socket
import stat
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from dropout_study import files, report
from dropout_study.commands import without_credentials
from dropout_study.console import StudyError, printable, say
from dropout_study.sweep import remote
from dropout_study.sweep.board import ATTEMPTS, FAILED, RUNNING, TRAINED, WAITING, Board
from dropout_study.sweep.keeper import GRACE_SECONDS
from dropout_study.sweep.project import SWEEP
from dropout_study.sweep.worker import clear

TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
RAY_VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_worker_niceness": "0",
    # The keeper ends trainings. Ray's own ways would end the keeper, and leave the training.
    "RAY_process_group_cleanup_enabled": "0",
    "RAY_kill_child_processes_on_worker_exit": "0",
}
# The only way in which all of Ray listens on 127.0.0.1 alone.
LOOPBACK_VARIABLES = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
OBJECT_STORE_BYTES = 80 << 20
LONGEST_DIRECTORY = 20  # for temporary files
ANSWER_SECONDS = 10  # for a machine of the cluster to accept a connection
SENT = SWEEP / "ray.json"  # the sweep that runs, for the next one if this driver is killed


def require_ray(address: str | None) -> None:
    """Raise `StudyError` if Ray is not installed, or the cluster at `address` (None: one of our own) cannot be used."""
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise StudyError("Ray is not installed: pip install -c requirements-test.txt -e '.[cluster]'")
    if address == "local":
        raise StudyError("--address local: a Ray of this machine alone is what --ray starts, on 127.0.0.1 only")
    variables(address, os.environ)
    if address is not None:
        require_answer(address)


def variables(address: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that Ray needs before it is imported.

    For a running cluster, its token has to be in a file that only its owner can read, which RAY_AUTH_TOKEN_PATH names.
    """
    if address is None:
        return RAY_VARIABLES | LOOPBACK_VARIABLES
    token = environment.get(TOKEN_PATH)
    if not token:
        raise StudyError(f"{TOKEN_PATH} is not set: it names the file with the token of the cluster at {address}")
    try:
        mode = stat.S_IMODE(Path(token).stat().st_mode)
    except OSError as error:
        raise StudyError(f"{token}: the token of the cluster cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise StudyError(f"{token}: others can read the token of the cluster; chmod 600 {token}")
    return RAY_VARIABLES | {TOKEN_PATH: token}


@contextmanager
def connected(address: str | None, processors: int) -> Iterator[Any]:
    """Connect to the cluster at `address`, or start one of `processors` on this machine; yield the module `ray`."""
    os.environ |= variables(address, os.environ)
    token = SWEEP / "ray-token"
    if address is None:
        token.unlink(missing_ok=True)
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32), encoding="ascii")
        os.environ[TOKEN_PATH] = str(token.resolve())
    import ray

    # Its path is a part of that of Ray's sockets, which have at most 107 characters.
    short = tempfile.gettempdir() if len(tempfile.gettempdir()) <= LONGEST_DIRECTORY else "/tmp"
    session = tempfile.TemporaryDirectory(prefix="study-ray-", dir=short, ignore_cleanup_errors=True)
    try:
        options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
        if address is None:
            options |= {
                "address": "local",  # whatever RAY_ADDRESS says
                "num_cpus": processors,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": session.name,
            }
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**options)
        except ConnectionError as error:
            raise StudyError(f"--address {address}: no Ray cluster: {printable(error)}") from None
        except Exception as error:  # as Ray raises if a busy machine has not started it within 30 seconds
            if address is not None:
                raise
            again = "run the same command again, or without --ray"
            raise StudyError(f"Ray did not start on this machine: {printable(error)}; {again}") from None
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray's would end this process, and leave what it started
        yield ray
    finally:
        ray.shutdown()
        session.cleanup()
        if address is None:
            token.unlink(missing_ok=True)


def require_answer(address: str) -> None:
    """Raise `StudyError` if nothing listens at `address`, HOST:PORT, where Ray would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:
        raise StudyError(
            f"--address {address}: nothing answers there ({printable(error)}); `ray start --head` prints the address"
        ) from None


class Inbox:
    """Keeps what trainings print until the driver asks: an actor."""

    def __init__(self) -> None:
        self._lines: list[tuple[Any, ...]] = []
        self._places: dict[str, str] = {}

    def started(self, key: str, place: str) -> None:
        """Note where a variant is trained."""
        self._places[key] = place

    def line(self, key: str, text: str, progress: dict[str, Any] | None = None) -> None:
        """Note a line, and how far its training is."""
        self._lines.append((key, text, progress))

    def take(self) -> tuple[dict[str, str], list[tuple[Any, ...]]]:
        """Return where variants were started, and the lines, since the last call."""
        taken = self._places, self._lines
        self._places, self._lines = {}, []
        return taken


def train(repository: str, sweep: str, key: str, scratch: Path, checkpoints: Path | None, inbox: Any) -> None:
    """Train one variant in a Ray task."""
    os.environ.pop("OMP_NUM_THREADS", None)  # which Ray sets, and which moves results
    inbox.started.remote(key, f"{socket.gethostname()}, process {os.getpid()}")
    remote.work(repository, sweep, key, scratch, checkpoints, lambda *line: inbox.line.remote(key, *line))


def resources(threads: int, gpus: float) -> dict[str, float]:
    """Return what a training asks Ray for."""
    return {"num_cpus": threads, "num_gpus": gpus} if gpus else {"num_cpus": threads}


def room(nodes: Iterable[Mapping[str, float]], threads: int, gpus: float) -> int:
    """Return how many trainings have room at a time on `nodes`, each with its "CPU" and "GPU".

    Raises `StudyError` if none has, for which Ray would wait for ever.
    """
    needs = {"CPU": float(threads)} | ({"GPU": gpus} if gpus else {})
    total = sum(int(min(node.get(name, 0) / count for name, count in needs.items())) for node in nodes)
    if not total:
        wanted = report.count(threads, "core") + (f" and {gpus:g} GPU{'s' * (gpus > 1)}" if gpus else "")
        raise StudyError(f"no machine of the cluster has {wanted}, as each training needs; see train.threads")
    return total


class RayOptions(NamedTuple):
    """The cluster's `address` (None: one of this machine alone), and what its machines share and have."""

    address: str | None
    repository: str
    scratch: Path
    checkpoints: Path | None = None
    gpus: float = 0.0


class RayPool:
    """Trains by Ray as `options` say, each variant with `threads` processors."""

    def __init__(self, options: RayOptions, threads: int) -> None:
        self.options = options
        self.threads = threads
        self._sweep: str | None = None

    def run(self, board: Board, interrupted: Event) -> None:
        """Train the variants of the board, until all are done or `interrupted` is set."""
        self._sweep = remote.send(self.options.repository, board.keys)
        files.write_json(SENT, {"repository": self.options.repository, "sweep": self._sweep})
        with connected(self.options.address, self.threads * board.workers) as ray:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            board.workers = min(board.workers, room(nodes, self.threads, self.options.gpus))
            try:
                self._run_tasks(ray, board, interrupted)
            finally:
                clear_machines(ray, self.options.scratch)

    def _run_tasks(self, ray: Any, board: Board, interrupted: Event) -> None:
        _, repository, scratch, checkpoints, gpus = self.options
        # Beside the driver, so that no other machine takes it along.
        here = ray.get_runtime_context().get_node_id()
        inbox = ray.remote(Inbox).options(num_cpus=0, scheduling_strategy=_on(here)).remote()
        task = ray.remote(train).options(max_retries=0, **resources(self.threads, gpus))

        def submit(key: str) -> Any:
            return task.remote(repository, self._sweep, key, scratch, checkpoints, inbox)

        waiting = deque(board.keys)
        running: dict[Any, str] = {}
        losses: Counter[str] = Counter()
        while waiting or running:
            while waiting and len(running) < board.workers:
                key = waiting.popleft()
                running[submit(key)] = key
            done, _ = ray.wait([*running], num_returns=1, timeout=0.5)
            places, lines = ray.get(inbox.take.remote())
            for key, place in places.items():
                board.started(key, place)
            for line in lines:
                board.line(*line)
            if interrupted.is_set():
                for reference in running:  # else Ray waits for the next line that the training prints
                    ray.cancel(reference, force=True)
                ray.wait([*running], num_returns=len(running), timeout=30)
                for key in board.in_state(RUNNING):
                    board.ended(key, WAITING, 0.0, "interrupted")
                return
            for reference in done:
                key = running.pop(reference)
                try:
                    ray.get(reference)
                    board.ended(key, TRAINED, 0.0)
                except ray.exceptions.RayTaskError as error:
                    board.line(key, str(error.cause))
                    board.ended(key, FAILED, 0.0)
                except ray.exceptions.RayError as error:  # the worker or its machine is gone
                    board.line(key, str(error))
                    losses[key] += 1
                    if losses[key] < ATTEMPTS:
                        board.ended(key, WAITING, 0.0, f"{type(error).__name__}, will be tried again")
                        waiting.append(key)
                    else:
                        board.ended(key, FAILED, 0.0)
            board.write()

    def take_in(self, study_keys: Sequence[str]) -> Mapping[str, str]:
        """Take in what was pushed; return why some is refused, by variant. `study_keys` has those of the study."""
        if self._sweep is None:
            return {}
        refused = _collect_and_forget(self.options.repository, self._sweep, study_keys)
        SENT.unlink()
        return refused

    def logs(self) -> str:
        """Return where the logs of variants are that failed."""
        return str(remote.logs(self.options.scratch, self._sweep or ""))


def take_in_previous(study_keys: Sequence[str]) -> None:
    """Take in what the workers of a sweep pushed whose driver was killed; remove its refs."""
    if SENT.exists():
        previous = files.read_json(SENT)
        say(f"collecting what is left of a sweep that was killed: {previous['sweep']}")
        try:
            _collect_and_forget(previous["repository"], previous["sweep"], study_keys)
        except remote.NoSuchSweepError:
            say("nothing is left of it")
        except StudyError as error:
            place = without_credentials(previous["repository"])
            raise StudyError(f"{error}; if {place} is gone for good, remove {SENT}") from None
        SENT.unlink()


def _collect_and_forget(repository: str, sweep: str, study_keys: Sequence[str]) -> Mapping[str, str]:
    """Take in what was pushed of a sweep and remove its refs; return why some of it is refused, by variant."""
    collected = remote.collect(repository, sweep, study_keys)
    remote.forget(repository, sweep, collected.left)
    return collected.refused


def clear_machines(ray: Any, scratch: Path) -> None:
    """Remove from every machine of the cluster the clones of workers that were killed or cancelled."""
    task = ray.remote(clear)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    cleared = [task.options(num_cpus=0, scheduling_strategy=_on(node)).remote(scratch) for node in nodes]
    ray.wait(cleared, num_returns=len(cleared), timeout=6 * GRACE_SECONDS)


def _on(node: str) -> Any:
    """Return what has Ray run something on the node `node` and nowhere else."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)
