"""A Ray cluster of two nodes on 127.0.0.1, a processor each, as long as standard input is open.

Each runs in a directory of its own below the one that the argument names. Prints its address. The line `kill` on
standard input ends the second node as a power cut does, `add` adds another. The environment has what docs/cluster.md
sets.
"""

import os
import sys
from itertools import count
from pathlib import Path

from ray.cluster_utils import Cluster

STORE = 80 << 20
HEAD = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}

numbers = count(1)


def enter_directory() -> None:
    """Make a directory for the node that is started next, and change to it: its workers will be there."""
    directory = Path(sys.argv[1]) / f"node-{next(numbers)}"
    directory.mkdir(parents=True)
    os.chdir(directory)


enter_directory()
cluster = Cluster(initialize_head=True, head_node_args=HEAD)
enter_directory()
nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE)]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "kill\n":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    elif line == "add\n":
        enter_directory()
        nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE))
    print(line, end="", flush=True)
cluster.shutdown()  # type: ignore[no-untyped-call]
