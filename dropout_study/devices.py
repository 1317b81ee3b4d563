"""What the study computes on: processor or GPU, threads, shards, and what else changes the bytes of a result.

Importing this module does not import TensorFlow, so that the facts of a machine cost nothing to read.
"""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dropout_study.console import StudyError, without_start_up_noise

MAX_SHARDS = 8
PACKAGES = ("keras", "numpy", "tensorflow", "h5py")  # h5py writes the weights in a .keras file

# Environment variables with which TensorFlow, XLA, oneDNN, cuBLAS and NumPy can compute other bytes from the same
# inputs, by prefix: a list of names would be out of date with every release. NVIDIA_ is no such prefix: API keys and
# containers use it. Of TF_, what is Terraform's or does no arithmetic is left out: it may hold secrets, or differ
# between equal machines.
ARITHMETIC_VARIABLES = re.compile(r"(TF|XLA|ONEDNN|DNNL|CUBLAS|NPY)_\w+|NVIDIA_TF32_OVERRIDE")
OTHER_VARIABLES = re.compile(
    r"TF_(CLI|CPP|LOG|PLUGIN|REATTACH|REGISTRY|STATE|TOKEN|VAR)_\w+|TF_(CONFIG|DATA_DIR|IN_AUTOMATION|INPUT|LOG|WORKSPACE)"
    r"|TF_FORCE_GPU_ALLOW_GROWTH|TF_GPU_ALLOCATOR|TF_NUM_INT(ER|RA)OP_THREADS|XLA_PYTHON_CLIENT_\w+|\w+_VERBOSE\w*"
)

# Instruction sets by which oneDNN, XLA and the Arm Compute Library choose their kernels, as Linux names them.
INSTRUCTION_SETS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
    "asimd",
    "asimddp",
    "asimdhp",
    "bf16",
    "i8mm",
    "sve",
    "sve2",
    "svebf16",
)

BFLOAT16_SETS = {"avx512_bf16", "amx_bf16", "bf16"}  # of which one is enough; bf16 is ARM's


class Device(NamedTuple):
    """What TensorFlow computes on: "CPU" or the name of a GPU, the processor's threads, and shards of a batch."""

    name: str
    threads: int
    shards: int


@contextmanager
def tensorflow_loading() -> Iterator[None]:
    """Import Keras and TensorFlow in this block: quietly, and with their defaults, on which the study's numbers rest.

    A user's keras.json and KERAS_* variables do not count: they are removed, and Keras looks for its files below
    /dev/null, where there are none. TensorFlow takes the memory of GPUs as it needs it.
    """
    for name in [name for name in os.environ if name.startswith("KERAS_")]:
        del os.environ[name]
    os.environ |= {"KERAS_BACKEND": "tensorflow", "KERAS_HOME": os.devnull, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    with without_start_up_noise():
        import keras  # noqa: F401
        import tensorflow as tf

        tf.config.list_physical_devices()  # TensorFlow looks for GPUs here, and says so
        yield


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def configure(threads: int, precision: str = "float32") -> Device:
    """Have TensorFlow compute on a GPU if it has one, else on `threads` threads (0: one per core); return the device.

    Two threads that compute half a batch each are faster than two that share every operation of a whole one, so a
    batch is split into one shard per thread, or into 8 at most that share the threads evenly. A GPU takes a batch
    whole, in float32 rather than TF32. Equal runs give equal bytes on equal devices with equal numbers of threads.

    Raises `StudyError` if `precision` is "bfloat16" and the processor that would compute has no instructions for it.
    Call it before anything is computed; TensorFlow raises `RuntimeError` after that.
    """
    with tensorflow_loading():
        import tensorflow as tf

    threads = threads or cores()
    gpus = tf.config.list_physical_devices("GPU")
    if precision == "bfloat16" and not gpus:
        require_bfloat16(processor())
    shards = 1 if gpus else even_shards(threads)
    tf.config.threading.set_inter_op_parallelism_threads(shards)
    tf.config.threading.set_intra_op_parallelism_threads(threads // shards)
    tf.config.experimental.enable_tensor_float_32_execution(enabled=False)
    tf.config.experimental.enable_op_determinism()
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "CPU"
    return Device(name, threads, shards)


def require_bfloat16(facts: Mapping[str, Any]) -> None:
    """Raise `StudyError` if the processor that `processor` describes has no bfloat16 instructions."""
    if not BFLOAT16_SETS.intersection(facts["instruction_sets"]):
        raise StudyError(
            f"params.yaml: train.precision = bfloat16: this processor ({facts['processor']}) has no bfloat16 "
            f"instructions ({', '.join(sorted(BFLOAT16_SETS))}) and would be slower; set float32"
        )


def even_shards(threads: int) -> int:
    """Return the largest number of shards, up to 8, that divides `threads`, so that no core is idle."""
    return next(count for count in range(MAX_SHARDS, 0, -1) if threads % count == 0)


def provenance(device: Device) -> dict[str, Any]:
    """Return the provenance of a result, as JSON holds it. Equal machines give equal values: no names, no times."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {
        "device": device.name,
        **processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": device.threads,
        "shards": device.shards,
        "versions": {"python": platform.python_version(), **versions, **gpu_libraries(device)},
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if ARITHMETIC_VARIABLES.fullmatch(name) and not OTHER_VARIABLES.fullmatch(name)
        },
    }


def gpu_libraries(device: Device, driver_file: str = "/proc/driver/nvidia/version") -> dict[str, str]:
    """Return what a GPU computes with: NVIDIA's packages, the driver, and the compute capability; nothing on a CPU."""
    if device.name == "CPU":
        return {}
    import tensorflow as tf

    packages = {dist.name: dist.version for dist in importlib.metadata.distributions() if "nvidia" in (dist.name or "")}
    try:
        driver = Path(driver_file).read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        driver = ""
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
    capability = ".".join(map(str, details.get("compute_capability", ())))
    return {**dict(sorted(packages.items())), "driver": driver, "compute_capability": capability}


def processor(cpuinfo: str = "/proc/cpuinfo") -> dict[str, Any]:
    """Return the processor's name, with what else tells its kind apart, and its instruction sets.

    On Linux these are family and model on x86, and implementer and part on ARM, where there is no name.
    """
    facts: dict[str, str] = {}
    try:
        with open(cpuinfo, encoding="utf-8") as file:
            for line in file:
                name, colon, value = line.partition(":")
                if not colon:
                    break  # the end of the first core
                facts[name.strip()] = value.strip()
    except OSError:
        pass
    name = facts.get("model name") or platform.processor() or platform.machine()
    kind = {"family": "cpu family", "model": "model", "implementer": "CPU implementer", "part": "CPU part"}
    numbers = [f"{label} {facts[key]}" for label, key in kind.items() if key in facts]
    if numbers:
        name += f" ({', '.join(numbers)})"
    flags = facts.get("flags", facts.get("Features", "")).split()
    return {"processor": name, "instruction_sets": [flag for flag in INSTRUCTION_SETS if flag in flags]}
