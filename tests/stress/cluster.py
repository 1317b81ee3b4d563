"""A Ray cluster of two nodes on 127.0.0.1, a processor each, as long as standard input is open.

Prints its address. The line `kill` on standard input ends the second node as a power cut does, `add` adds another.
The environment has what Ray needs: see `ray_pool.variables`.
"""

import sys

from ray.cluster_utils import Cluster

STORE = 80 << 20
HEAD = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}

cluster = Cluster(initialize_head=True, head_node_args=HEAD)
nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE)]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "kill\n":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    elif line == "add\n":
        nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE))
    print(line, end="", flush=True)
cluster.shutdown()  # type: ignore[no-untyped-call]
