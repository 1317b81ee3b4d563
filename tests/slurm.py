"""A real SLURM of one node on 127.0.0.1, started as root, whose configuration nobody else's touches."""

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.clones import environment
from tests.needs import missing
from tests.sweeps import wait_until

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={directory}/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
MpiDefault=none
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=12000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 on which nothing listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


@contextmanager
def running_slurm(directory: Path) -> Iterator[dict[str, str]]:
    """Run SLURM with all its files in `directory`; yield the variables with which its commands find it."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    programs = [shutil.which(name, path=path) for name in DAEMONS]
    if os.getuid() or None in programs:
        missing("no SLURM that this user may start: as root, apt-get install slurmctld slurmd slurm-client munge")
    for name in ("munge", "state", "spool"):
        (directory / name).mkdir()
    key = directory / "munge/key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    controller, node = free_ports(2)
    configuration = directory / "slurm.conf"
    names = {"host": socket.gethostname().partition(".")[0], "controller": controller, "node": node}
    configuration.write_text(CONFIGURATION.format(directory=directory, **names))
    variables = {"SLURM_CONF": str(configuration)}
    munge = [f"--{name}-file={directory}/munge/{name}" for name in ("key", "log", "pid", "seed")]
    commands: tuple[list[str], ...] = (
        [str(programs[0]), "--foreground", "--force", f"--socket={directory}/munge/socket", *munge],
        [str(programs[1]), "-D"],
        [str(programs[2]), "-D"],
    )
    log = (directory / "log").open("wb")
    processes = []
    try:
        for command in commands:
            daemon = subprocess.Popen(command, env=environment(**variables), stdout=log, stderr=log, cwd=directory)
            processes.append(daemon)
            wait_until((directory / "munge/socket").exists, 30)
        wait_until(lambda: "idle" in slurm("sinfo", "--noheader", "--format=%T", **variables), 60)
        yield variables
    finally:
        slurm("scancel", "--full", "--signal=KILL", "--user=root", **variables)
        for process in reversed(processes):
            process.terminate()
            process.wait(timeout=30)
        log.close()


def slurm(*command: str, **variables: str) -> str:
    """Run a command of SLURM, and return what it prints, errors too."""
    done = subprocess.run(
        command, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    return done.stdout
