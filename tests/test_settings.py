from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from dropout_study.console import StudyError
from dropout_study.settings import Variant, load_settings
from tests.clones import PROJECT

PRESETS = sorted((PROJECT / "presets").glob("*.yaml"))
ALL_RATES = [i / 10 for i in range(10)]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_load_settings_accepts_every_preset(preset: Path) -> None:
    assert load_settings(preset).variants


def test_presets_are_those_that_the_readme_names() -> None:
    names = {preset.stem for preset in PRESETS}

    cifar10 = {"cifar10-small", "cifar10-longer", "cifar10-3000", "cifar10-1000"}
    assert names == {"quick", *cifar10, "article", "article-notebook"}


def test_quick_preset_is_the_demonstration() -> None:
    settings = load_settings(PROJECT / "presets/quick.yaml")

    assert settings.dataset == "digits"
    assert settings.study.optimizers == ["adadelta"]
    assert settings.study.dropouts == [0.0, 0.3, 0.5, 0.8]
    assert settings.study.seeds == [0, 1, 2, 3]


def test_small_preset_is_a_sweep_of_10_000_images() -> None:
    settings = load_settings(PROJECT / "presets/cifar10-small.yaml")

    assert (settings.dataset, settings.normalize.train_size) == ("cifar10", 10_000)
    assert (settings.study.optimizers, settings.study.dropouts) == (["adadelta", "sgd"], ALL_RATES)
    assert len(settings.study.seeds) >= 3


@pytest.mark.parametrize(("name", "first_activation"), [("article", "relu"), ("article-notebook", "linear")])
def test_article_presets_are_what_the_article_ran(name: str, first_activation: str) -> None:
    settings = load_settings(PROJECT / f"presets/{name}.yaml")

    assert settings.dataset == "cifar10"
    assert settings.normalize.train_size is None
    assert settings.normalize.validation == "test"
    assert settings.normalize.method == "standardize"
    assert settings.network.filters == [64, 64, 128, 256]
    assert settings.network.units == [512, 512]
    assert settings.network.first_activation == first_activation
    assert (settings.train.batch_size, settings.train.epochs) == (512, 50)
    assert settings.train.learning_rate_decay == 1.0
    assert settings.study.optimizers == ["sgd", "adadelta"]
    assert (settings.train.learning_rate.sgd, settings.train.learning_rate.adadelta) == (0.01, 1.0)
    assert settings.study.dropouts == ALL_RATES


BAD = [
    ("train__epochs", 0, "train.epochs = 0: must be greater than or equal to 1"),
    ("train__epochs", "six", "train.epochs = 'six': a whole number is expected"),
    ("train__epochs", 6.5, "train.epochs = 6.5: a whole number is expected"),
    ("train__epochs", True, "train.epochs = True: a whole number is expected"),
    ("train__epoch", 6, "train.epoch: unknown key; did you mean epochs?"),
    ("trian", {}, "trian: unknown key; did you mean train?"),
    ("train__batch_size", 101, "train.batch_size = 101: larger than the data, which leaves 100"),
    ("study__dropouts", [-0.0], "study.dropouts[0] = -0.0: a dropout rate is at least 0 and below 1"),
    ("train__threads", 9999, "train.threads = 9999: must be less than or equal to 1024"),
    ("train__threads", -1, "train.threads = -1: must be greater than or equal to 0"),
    ("train__learning_rate", 0.1, "train.learning_rate = 0.1: a section"),
    ("train__learning_rate__sgd", 0.0, "train.learning_rate.sgd = 0.0: must be greater than 0"),
    ("train__learning_rate__sgd", float("inf"), "train.learning_rate.sgd = inf: must be a finite number"),
    ("train__learning_rate_decay", 1.5, "train.learning_rate_decay = 1.5: must be less than or equal to 1"),
    ("study__dropouts", [0.1, 1.0], "study.dropouts[1] = 1.0: a dropout rate is at least 0 and below 1"),
    ("study__dropouts", [-0.1], "study.dropouts[0] = -0.1: a dropout rate is at least 0 and below 1"),
    ("study__dropouts", [float("nan")], "study.dropouts[0] = nan: a dropout rate is"),
    ("study__dropouts", ["0.5"], "study.dropouts[0] = '0.5': a number is expected"),
    ("study__dropouts", [True], "study.dropouts[0] = True: a number is expected"),
    ("study__dropouts", [], "study.dropouts = []: name at least one"),
    ("study__dropouts", 0.5, "study.dropouts = 0.5: must be a list"),
    ("study__dropouts", [0.1, 0.10], "study.dropouts = [0.1, 0.1]: duplicate value 0.1"),
    ("study__dropouts", [0, 0.0], "study.dropouts = [0, 0.0]: duplicate value 0.0"),
    (
        "study__optimizers",
        ["adagrad"],
        "study.optimizers[0] = 'adagrad': must be 'sgd', 'adadelta' or 'adam'",
    ),
    ("study__optimizers", [], "study.optimizers = []: name at least one"),
    ("study__seeds", [-1], "study.seeds[0] = -1: must be greater than or equal to 0"),
    ("study__seeds", [0, 0], "study.seeds = [0, 0]: duplicate value 0"),
    ("dataset", "mnist", "dataset = 'mnist': must be 'digits' or 'cifar10'"),
    ("normalize__train_size", 60_000, "normalize.train_size = 60000: digits has 400 training images"),
    ("normalize__train_size", 0, "normalize.train_size = 0: must be greater than or equal to 1"),
    ("normalize__validation", 1, "normalize.validation = 1: either a share"),
    (
        "normalize__validation",
        0.005,
        "normalize.validation = 0.005: of 400 images it holds out 2 and leaves 398, too few",
    ),
    (
        "normalize__validation",
        0.995,
        "normalize.validation = 0.995: of 400 images it holds out 398 and leaves 2, too",
    ),
    ("normalize__validation", "tset", "normalize.validation = 'tset': either a share"),
    ("normalize__method", "z", "normalize.method = 'z': must be 'standardize' or 'minmax'"),
    ("network__filters", [8] * 6, "network.filters = [8, 8, 8, 8, 8, 8]: pooling halves the image 5 times"),
    ("network__filters", [0], "network.filters[0] = 0: must be greater than or equal to 1"),
    ("network__filters", [10**10], "network.filters[0] = 10000000000: must be less than or equal to 1000000000"),
    ("network__first_activation", "tanh", "network.first_activation = 'tanh': must be 'relu' or 'linear'"),
    (
        "network__dropout_position",
        "before",
        "network.dropout_position = 'before': must be 'before_pooling' or 'after_pooling'",
    ),
    ("train__precision", "float16", "train.precision = 'float16': must be 'float32' or 'bfloat16'"),
    ("train__loss", "mse", "train.loss = 'mse': must be 'logits' or 'clipped'"),
    ("train__test_epochs", 0, "train.test_epochs = 0: must be greater than or equal to 1"),
    ("train__test_epochs", 31, "train.test_epochs = 31: more than the 30 epochs of train.epochs; take at most that"),
    ("download__sha256", "c4a3", "download.sha256 = 'c4a3': expected 64 lower-case hexadecimal digits"),
    ("download__urls", ["ftp://x"], "download.urls[0] = 'ftp://x': a URL that starts with"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD, ids=lambda value: str(value)[:40])
def test_load_settings_names_file_key_value_and_what_is_allowed(
    write_settings: Callable[..., Path], key: str, value: Any, message: str
) -> None:
    path = write_settings(**{key: value})

    with pytest.raises(StudyError) as error:
        load_settings(path)
    assert f"{path}: {message}" in str(error.value)


def without(settings: Path, *names: str) -> Path:
    """Remove settings from a file, by name."""
    lines = settings.read_text().splitlines(keepends=True)
    settings.write_text("".join(line for line in lines if line.strip().partition(":")[0] not in names))
    return settings


def test_load_settings_of_a_published_study_fills_in_what_is_newer(write_settings: Callable[..., Path]) -> None:
    path = without(write_settings(train__loss="clipped"), "precision", "test_epochs", "dropout_position")

    settings = load_settings(path, published=True)

    assert (settings.train.precision, settings.train.test_epochs) == ("float32", 1)
    assert settings.network.dropout_position == "before_pooling"
    assert settings.train.loss == "clipped"
    with pytest.raises(StudyError, match=r"train.precision: missing; presets/quick.yaml shows every key"):
        load_settings(path)


def test_load_settings_names_all_that_is_wrong_at_once(write_settings: Callable[..., Path]) -> None:
    with pytest.raises(StudyError) as error:
        load_settings(write_settings(train__epochs=0, study__seeds=[-1]))
    assert "train.epochs = 0" in str(error.value)
    assert "study.seeds[0] = -1" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "not valid YAML"),
        ("train: {}\ntrain: {}\n", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("just text", "expected settings by name"),
        ("", "expected settings by name"),
        ("{}", "train: missing; presets/quick.yaml shows every key"),
    ],
)
def test_load_settings_refuses_other_yaml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"

    path.write_text(text)

    with pytest.raises(StudyError, match=message):
        load_settings(path)


def test_load_settings_refuses_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"

    path.write_bytes(b"\xff\xfe\xfa")

    with pytest.raises(StudyError, match="not valid YAML"):
        load_settings(path)


def test_load_settings_refuses_a_number_of_five_thousand_digits(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"

    path.write_text("train: " + 5_000 * "1")

    with pytest.raises(StudyError, match="not valid YAML"):
        load_settings(path)


def test_load_settings_shows_little_of_a_value_that_anchors_make_giant(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    lists = [f"- &{name} [*{before}, *{before}]\n" for before, name in pairwise("abcdefghijk")]
    path.write_text(f"- &a [{', '.join('x' * 10)}]\n{''.join(lists)}")

    with pytest.raises(StudyError) as error:
        load_settings(path)

    assert str(error.value).startswith(
        f"{path}: expected settings by name, as in presets/quick.yaml, found [['x', 'x',"
    )
    assert len(str(error.value)) < len(str(path)) + 200


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('"ep\\e[31mo\\nchs": 1', r"ep\x1b[31mo\nchs: unknown key"),
        ('"\\e[31m": 1\n"\\e[31m": 2', r'found duplicate key "\x1b[31m"'),
        ('"\\e[31m"', r"found '\x1b[31m'"),
        (f"{'x' * 200}: 1", f"{'x' * 57}...: unknown key"),
        ("3: 1", "[3]: no name of a setting, which is text"),
    ],
)
def test_load_settings_shows_keys_that_do_nothing_to_a_terminal(tmp_path: Path, text: str, shown: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)

    with pytest.raises(StudyError) as error:
        load_settings(path)

    assert shown in str(error.value)
    assert all(line.isprintable() for line in str(error.value).splitlines())


def test_load_settings_refuses_a_directory(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be read: Is a directory"):
        load_settings(tmp_path)


def test_load_settings_says_where_to_get_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no such file; copy one from presets/"):
        load_settings(tmp_path / "params.yaml")


def test_load_settings_reads_numbers_as_dvc_does(write_settings: Callable[..., Path]) -> None:
    path = write_settings()
    path.write_text(path.read_text().replace("[0, 1, 2, 3]", "[010]").replace("sgd: 0.01", "sgd: 1e-3"))

    settings = load_settings(path)

    assert settings.study.seeds == [10]
    assert settings.train.learning_rate.sgd == 0.001


def test_variants_have_the_keys_that_dvc_gives_them(write_settings: Callable[..., Path]) -> None:
    path = write_settings(study__optimizers=["sgd", "adam"], study__dropouts=[0, 0.1, 1e-05], study__seeds=[7])

    assert load_settings(path).variants == [
        Variant("sgd-0-7", "sgd", 0.0, 7),
        Variant("sgd-0.1-7", "sgd", 0.1, 7),
        Variant("sgd-1e-05-7", "sgd", 1e-05, 7),
        Variant("adam-0-7", "adam", 0.0, 7),
        Variant("adam-0.1-7", "adam", 0.1, 7),
        Variant("adam-1e-05-7", "adam", 1e-05, 7),
    ]


@pytest.mark.parametrize("key", ["adadelta-0-0", "adadelta-0.10-0", "", None, "../../etc/passwd"])
def test_variant_is_one_of_the_study(key: str | None) -> None:
    with pytest.raises(
        StudyError, match=r"(no such variant|no variant was named); name one of its 16, such as adadelta-0"
    ):
        load_settings(PROJECT / "presets/quick.yaml").variant(key)


@given(
    size=st.integers(20, 400),
    share=st.floats(0.01, 0.9),
)
def test_images_to_train_on_are_what_holding_out_leaves(size: int, share: float) -> None:
    settings = load_settings(PROJECT / "presets/quick.yaml")
    normalize = settings.normalize.model_copy(update={"train_size": size, "validation": share})
    settings = settings.model_copy(update={"normalize": normalize})

    train, _ = train_test_split(np.arange(size), test_size=share)

    assert settings.images_to_train_on == len(train)
