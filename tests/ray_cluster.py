"""A real Ray cluster of two nodes on 127.0.0.1, set up as docs/cluster.md says."""

import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.clones import PROJECT, environment


class Nodes(NamedTuple):
    """The cluster: its process, its address, and what a driver needs in its environment."""

    process: subprocess.Popen[str]
    address: str
    variables: dict[str, str]

    def call(self, command: str) -> None:
        """Have the cluster kill or add a node, and wait until it has."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == f"{command}\n"


@contextmanager
def running_nodes(directory: Path, **variables: str) -> Iterator[Nodes]:
    """Run the cluster below `directory`, with `variables` in the environment of its workers and of the driver."""
    token = directory / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    documented = dict(re.findall(r"(RAY_\w+)=(\S+)", (PROJECT / "docs/cluster.md").read_text()))
    assert documented["RAY_AUTH_MODE"] == "token"
    # The last one has all of Ray listen on 127.0.0.1 alone.
    own = {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    variables |= documented | own
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ray_nodes.py")), str(directory / "nodes")],
        # A worker has a site cache in its clone; this one is for those that do not.
        env=environment(**variables, DVC_SITE_CACHE_DIR=str(directory / "site")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        yield Nodes(process, process.stdout.readline().strip(), variables)
    finally:
        process.communicate(timeout=60)
