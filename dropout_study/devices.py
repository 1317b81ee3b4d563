"""What the study computes on: processor or GPU, threads, shards, and what else changes the bytes of a result.

Importing this module does not import TensorFlow, so that the facts of a machine cost nothing to read.
"""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from dropout_study.progress import without_start_up_noise

MAX_SHARDS = 8
PACKAGES = ("keras", "numpy", "tensorflow", "h5py")  # h5py writes the weights in a .keras file

# Environment variables with which TensorFlow, and the libraries below it, compute other bytes from the same inputs:
# other kernels, other precision, another order of sums. The names are those in TensorFlow 2.21's libraries and in the
# manuals of oneDNN ("CPU dispatcher control", "CPU ISA hints", "Floating-point math mode") and of NVIDIA (cuBLAS,
# TF32). Which GPU is visible is not among them: provenance names the device itself.
ARITHMETIC_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_CPU_ISA_HINTS",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "NPY_DISABLE_CPU_FEATURES",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_LEVEL",
    "TF_CONV2D_USE_FP16_ACCUMULATE",
    "TF_CUDNN_DETERMINISTIC",
    "TF_CUDNN_DISABLE_CONV_1X1_OPTIMIZATION",
    "TF_CUDNN_USE_AUTOTUNE",
    "TF_CUDNN_USE_RUNTIME_FUSION",
    "TF_CUDNN_WORKSPACE_LIMIT_IN_MB",
    "TF_DETERMINISTIC_OPS",
    "TF_DISABLE_JIT_KERNELS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_ENABLE_ONEDNN_SPMM",
    "TF_ENABLE_WINOGRAD_NONFUSED",
    "TF_ENABLE_ZENDNN_OPTS",
    "TF_MATMUL_AUTOTUNE_ENABLE",
    "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS",
    "TF_ONEDNN_THREADPOOL_USE_CALLER_THREAD",
    "TF_OVERRIDE_GLOBAL_THREADPOOL",
    "TF_SET_ONEDNN_FPMATH_MODE",
    "TF_USE_CUBLASLT",
    "TF_USE_DEEP_CONV2D",
    "TF_USE_DEFAULT_CONV_ALGO",
    "TF_USE_EIGEN_PARALLEL_FOR_IN_WORK_SHARDER",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
)

# Those by which oneDNN, XLA and the Arm Compute Library choose their kernels, as Linux names them.
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


class Device(NamedTuple):
    """What TensorFlow computes on: "CPU" or the name of a GPU, the processor's threads, and shards of a batch."""

    name: str
    threads: int
    shards: int


@contextmanager
def tensorflow_loading() -> Iterator[None]:
    """Import Keras and TensorFlow in this block: quietly, and with the defaults on which the study's numbers rest.

    A user's keras.json and KERAS_BACKEND do not count.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with without_start_up_noise():
        import keras
        import tensorflow as tf

        keras.config.set_floatx("float32")
        keras.config.set_epsilon(1e-7)
        keras.config.set_image_data_format("channels_last")
        tf.config.list_physical_devices()  # TensorFlow looks for GPUs here, and says so
        yield


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def configure(threads: int) -> Device:
    """Have TensorFlow compute on a GPU if it has one, else on `threads` threads (0: one a core); return what it is.

    Two threads that compute half a batch each are faster than two that share every operation of a whole one, so a
    batch is split into a shard a thread, or into 8 at most that share the threads evenly. A GPU takes a batch whole,
    in float32 rather than TF32. Equal runs give equal bytes on equal devices with equal numbers of threads.

    Call it before anything is computed; TensorFlow raises `RuntimeError` after that.
    """
    import tensorflow as tf

    threads = threads or cores()
    gpus = tf.config.list_physical_devices("GPU")
    shards = 1 if gpus else even_shards(threads)
    tf.config.threading.set_inter_op_parallelism_threads(shards)
    tf.config.threading.set_intra_op_parallelism_threads(threads // shards)
    tf.config.experimental.enable_tensor_float_32_execution(enabled=False)
    tf.config.experimental.enable_op_determinism()
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "CPU"
    return Device(name, threads, shards)


def even_shards(threads: int) -> int:
    """Return the most shards, up to 8, among which `threads` divide without a rest, so that no core is idle."""
    return next(count for count in range(MAX_SHARDS, 0, -1) if threads % count == 0)


def provenance(device: Device) -> dict[str, Any]:
    """Return on what a result was computed, as JSON holds it. Equal machines give equal values: no names, no times."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {
        "device": device.name,
        **processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": device.threads,
        "shards": device.shards,
        "versions": {"python": platform.python_version(), **versions, **gpu_libraries(device)},
        "variables": {name: os.environ[name] for name in ARITHMETIC_VARIABLES if name in os.environ},
    }


def gpu_libraries(device: Device) -> dict[str, str]:
    """Return the versions of CUDA and cuDNN for which TensorFlow was built, if `device` is a GPU."""
    if device.name == "CPU":
        return {}
    import tensorflow as tf

    build = tf.sysconfig.get_build_info()
    return {name: str(build[f"{name}_version"]) for name in ("cuda", "cudnn") if f"{name}_version" in build}


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
