"""bfloat16 in training: which kernels oneDNN runs, by its own log."""

import os
import re
import subprocess
import sys

from dropout_study import devices
from tests.clones import PROJECT

STEP = """
import sys
import numpy as np
from dropout_study import devices
devices.configure(threads=2, precision=sys.argv[1])
from dropout_study.network import build_network
from dropout_study.training import make_optimizer, make_step
network = build_network(
    (32, 32, 3), 10, filters=[64, 64, 128, 256], units=[32], first_activation="relu", dropout=0.5, seed=0
)
optimizer = make_optimizer("sgd", 0.01)
optimizer.build(network.trainable_variables)
step = make_step(network, optimizer, shards=2, precision=sys.argv[1])
step(np.zeros((8, 32, 32, 3), np.float32), np.zeros(8, np.uint8))
"""

LAYERS = ["ic3oc64", "ic64oc64", "ic64oc128", "ic128oc256"]
PASSES = {(name, layer) for name in ("forward_training", "backward_weights") for layer in LAYERS}
PASSES |= {("backward_data", layer) for layer in LAYERS[1:]}  # the images need no gradient


def run_step(precision: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", STEP, precision],
        # Without AVX-512, TensorFlow calls oneDNN only if it is told to.
        env=os.environ | {"PYTHONPATH": str(PROJECT), "ONEDNN_VERBOSE": "1", "TF_ENABLE_ONEDNN_OPTS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def convolutions(log: str) -> dict[tuple[str, str], set[str]]:
    """Return the dtypes of the operands of each convolution that oneDNN ran, by its pass and its channels."""
    kernels: dict[tuple[str, str], set[str]] = {}
    for line in re.findall(r"exec,cpu,convolution,.*", log):
        passed, operands, shape = re.findall(r",((?:forward|backward)\w*),(.*),mb\d+_(ic\d+oc\d+)", line)[0]
        kernels.setdefault((passed, shape), set()).update(re.findall(r"(?:src|wei|dst):(\w+):", operands))
    return kernels


def test_bfloat16_step_runs_bfloat16_kernels_in_every_pass_of_every_convolution() -> None:
    if not devices.BFLOAT16_SETS & {*devices.processor()["instruction_sets"]}:
        assert "train.precision = bfloat16: this processor" in run_step("bfloat16").stderr
        return

    done = run_step("bfloat16")

    assert done.returncode == 0, done.stderr
    assert convolutions(done.stdout) == {key: {"bf16"} for key in PASSES}


def test_float32_step_runs_no_bfloat16_kernel() -> None:
    done = run_step("float32")

    assert done.returncode == 0, done.stderr
    kernels = convolutions(done.stdout)
    assert len(kernels) == len(PASSES)
    assert set().union(*kernels.values()) == {"f32"}
