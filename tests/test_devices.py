import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tensorflow as tf

from dropout_study import devices
from dropout_study.console import StudyError
from tests.clones import PROJECT


class Recorded:
    """TensorFlow's settings as `configure` makes them, with a list of devices of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpus: list[str]) -> None:
        self.calls: dict[str, Any] = {}

        def record(name: str) -> Any:
            return lambda *arguments, **keywords: self.calls.update({name: [*arguments, *keywords.values()]})

        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: gpus if kind == "GPU" else ["CPU"])
        details = {"device_name": f"{gpus[0]} X", "compute_capability": (8, 9)} if gpus else {}
        monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
        monkeypatch.setattr(tf.config.threading, "set_inter_op_parallelism_threads", record("inter"))
        monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", record("intra"))
        monkeypatch.setattr(tf.config.experimental, "enable_tensor_float_32_execution", record("tf32"))
        monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", record("determinism"))


def test_configure_gives_a_processor_a_shard_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch, gpus=[])

    device = devices.configure(threads=2)

    assert device == ("CPU", 2, 2)
    assert recorded.calls == {"inter": [2], "intra": [1], "tf32": [False], "determinism": []}


def test_configure_takes_all_cores_for_0(monkeypatch: pytest.MonkeyPatch) -> None:
    Recorded(monkeypatch, gpus=[])
    monkeypatch.setattr(devices, "cores", lambda: 6)

    device = devices.configure(threads=0)

    assert device == ("CPU", 6, 6)


def test_configure_gives_a_gpu_whole_batches_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch, gpus=["Tensor", "Another"])

    device = devices.configure(threads=4)

    assert device == ("Tensor X", 4, 1)
    assert recorded.calls == {"inter": [1], "intra": [4], "tf32": [False], "determinism": []}
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"


@pytest.mark.parametrize(
    ("instruction_set", "gpus"), [("avx512_bf16", []), ("amx_bf16", []), ("bf16", []), ("", ["T"])]
)
def test_configure_allows_bfloat16_where_there_are_instructions_or_a_gpu(
    instruction_set: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Recorded(monkeypatch, gpus)
    monkeypatch.setattr(devices, "processor", lambda: {"processor": "X", "instruction_sets": [instruction_set]})

    device = devices.configure(threads=2, precision="bfloat16")

    assert device.threads == 2


def test_configure_refuses_bfloat16_without_instructions_and_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    Recorded(monkeypatch, gpus=[])
    monkeypatch.setattr(devices, "processor", lambda: {"processor": "EPYC X", "instruction_sets": ["avx2", "fma"]})

    with pytest.raises(StudyError) as error:
        devices.configure(threads=2, precision="bfloat16")

    assert str(error.value).startswith("params.yaml: train.precision = bfloat16: this processor (EPYC X) has no")
    assert str(error.value).endswith("set float32")
    assert devices.configure(threads=2, precision="float32") == ("CPU", 2, 2)


@pytest.mark.parametrize(("threads", "shards"), [(1, 1), (2, 2), (7, 7), (10, 5), (16, 8), (11, 1)])
def test_even_shards_leave_no_thread_idle(threads: int, shards: int) -> None:
    assert devices.even_shards(threads) == shards


def test_configure_sets_the_threads_of_a_real_process() -> None:
    code = (
        "import tensorflow as tf\n"
        "from dropout_study import devices\n"
        "device = devices.configure(6)\n"
        "print(device.shards, tf.config.threading.get_intra_op_parallelism_threads(),\n"
        "    tf.config.threading.get_inter_op_parallelism_threads(),\n"
        "    tf.config.experimental.tensor_float_32_execution_enabled())\n"
    )

    printed = run(code)

    assert printed.split() == ["6", "1", "6", "False"]


def run(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(PROJECT)} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture
def arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without variables that change arithmetic."""
    for name in [name for name in os.environ if devices.ARITHMETIC_VARIABLES.fullmatch(name)]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("arithmetic")
def test_provenance_is_equal_on_one_machine_and_names_what_counts() -> None:
    device = devices.Device("CPU", 2, 2)

    first, again = devices.provenance(device), devices.provenance(device)

    assert first == again
    assert [*first] == [
        "device", "processor", "instruction_sets", "system", "threads", "shards", "versions", "variables"
    ]  # fmt: skip
    assert [*first["versions"]] == ["python", "keras", "numpy", "tensorflow", "h5py"]
    assert first["processor"]
    assert first["variables"] == {}


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(
    "name",
    ["TF_SET_ONEDNN_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE", "XLA_FLAGS", "TF_NEW_IN_2_99"],
)
def test_provenance_has_variables_that_change_arithmetic_and_no_others(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "BF16")
    for other in (
        *("TF_CPP_MIN_LOG_LEVEL", "ONEDNN_VERBOSE", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_API_KEY"),
        *("TF_VAR_password", "TF_TOKEN_app_terraform_io", "TF_CLI_CONFIG_FILE", "TF_CONFIG"),
    ):
        monkeypatch.setenv(other, "secret")

    provenance = devices.provenance(devices.Device("CPU", 2, 2))

    assert provenance["variables"] == {name: "BF16"}


class Package(NamedTuple):
    name: str
    version: str


def test_gpu_libraries_are_those_found_at_run_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Recorded(monkeypatch, gpus=["Tensor"])
    installed = [
        Package("nvidia-cudnn-cu12", "9.3.0"),
        Package("numpy", "2.4.6"),
        Package("nvidia-cublas-cu12", "12.5"),
    ]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: installed)
    driver_file = tmp_path / "version"
    driver_file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86\nGCC version: 12\n")

    libraries = devices.gpu_libraries(devices.Device("Tensor X", 2, 1), str(driver_file))

    assert libraries == {
        "nvidia-cublas-cu12": "12.5",
        "nvidia-cudnn-cu12": "9.3.0",
        "driver": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86",
        "compute_capability": "8.9",
    }
    assert devices.gpu_libraries(devices.Device("CPU", 2, 2)) == {}


CPUINFO = {
    "x86": (
        "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n"
        "model name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 fma avx512f amx_bf16\n\n"
        "processor\t: 1\nmodel name\t: another\n"
    ),
    "arm": (
        "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd aes asimdhp sve bf16\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: 0xd40\n"
    ),
    "family alone": "cpu family\t: 6\n",
}


@pytest.mark.parametrize(
    ("machine", "name", "instruction_sets"),
    [
        ("x86", "Intel(R) Xeon(R) (family 6, model 143)", ["avx2", "fma", "avx512f", "amx_bf16"]),
        ("arm", "aarch64 (implementer 0x41, part 0xd40)", ["asimd", "asimdhp", "bf16", "sve"]),
        ("family alone", "aarch64 (family 6)", []),
    ],
)
def test_processor_reads_what_linux_says(
    machine: str, name: str, instruction_sets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO[machine])

    facts = devices.processor(str(cpuinfo))

    assert facts == {"processor": name, "instruction_sets": instruction_sets}


def test_importing_devices_does_not_import_tensorflow() -> None:
    code = "import sys\nimport dropout_study.devices\nprint('tensorflow' in sys.modules, 'keras' in sys.modules)\n"

    assert run(code).split() == ["False", "False"]


@pytest.mark.parametrize(
    "keras_json",
    [
        '{"floatx": "float16", "epsilon": 0.5, "backend": "jax", "image_data_format": "channels_first"}',
        '{"floatx": "bfloat16", "nnx_enabled": true}',  # which Keras refuses
    ],
)
def test_tensorflow_loading_overrides_a_users_settings_of_keras(keras_json: str, tmp_path: Path) -> None:
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras/keras.json").write_text(keras_json)
    code = (
        "from dropout_study.devices import tensorflow_loading\n"
        "with tensorflow_loading():\n"
        "    import keras\n"
        "config = keras.config\n"
        "print(config.backend(), config.floatx(), config.epsilon(), config.image_data_format())\n"
    )

    variables = {"KERAS_BACKEND": "torch", "KERAS_MAX_EPOCHS": "one", "KERAS_NNX_ENABLED": "true"}

    printed = run(code, HOME=str(tmp_path), MPLBACKEND="module://not_installed", **variables)

    assert os.listdir(tmp_path / ".keras") == ["keras.json"]
    assert printed.split() == ["tensorflow", "float32", "1e-07", "channels_last"]
