"""`params.yaml` as typed, validated settings.

The file is read by the parser that DVC reads it with: PyYAML, a YAML 1.1 parser, takes `1e-3` for text, `010`
for eight and the second of two equal keys without a word, where DVC takes a number, ten, and refuses.
"""

import difflib
import math
import re
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, field_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML

from dropout_study import files
from dropout_study.architecture import is_pooled
from dropout_study.console import StudyError, printable
from dropout_study.datasets import DATASETS


class Variant(NamedTuple):
    """One training of the study; `key` is DVC's name for it, as in `dvc repro train@<key>`."""

    key: str
    optimizer: str
    dropout: float
    seed: int


KEY = re.compile(r"[a-z]+-[0-9.e+-]+-\d+")  # of a variant


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number is expected here")
    return value


def _rate(value: Any) -> float:
    # The number stays as it was written: 0 and 0.0 are different keys to DVC.
    if not 0 <= _number(value) < 1 or math.copysign(1, value) < 0:
        raise ValueError("a dropout rate is at least 0 and below 1")
    return value


def _validation(value: Any) -> float | Literal["test"]:
    if value == "test":
        return "test"
    if isinstance(value, str) or not 0 < _number(value) < 1:
        raise ValueError("either a share of the training images, above 0 and below 1, or the word test")
    return value


def _url(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(("http://", "https://", "file://")):
        raise ValueError("a URL that starts with http://, https:// or file:// is expected here")
    return value


LONGEST_SHOWN = 60  # characters of a value or a key in an error

Item = TypeVar("Item")
Several = Annotated[list[Item], Field(min_length=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Optimizer = Literal["sgd", "adadelta", "adam"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Download(_Section):
    """Where the archive comes from, and what it must be."""

    urls: list[Annotated[str, PlainValidator(_url)]]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Normalize(_Section):
    """How many images are used, which are held out, and how pixel values become network inputs."""

    train_size: Count | None
    method: Literal["standardize", "minmax"]
    validation: Annotated[float | Literal["test"], PlainValidator(_validation)]
    seed: Seed


class Network(_Section):
    """The size of the network, and where its dropout is."""

    filters: Several[Count]
    units: Several[Count]
    first_activation: Literal["relu", "linear"]
    dropout_position: Literal["before_pooling", "after_pooling"]


class LearningRate(_Section):
    """The learning rate of the first epoch, for each optimizer."""

    sgd: Positive
    adadelta: Positive
    adam: Positive


class Train(_Section):
    """How a variant is trained."""

    batch_size: Count
    epochs: Count
    learning_rate: LearningRate
    learning_rate_decay: Annotated[float, Field(gt=0, le=1)]
    loss: Literal["logits", "clipped"]
    precision: Literal["float32", "bfloat16"]
    test_epochs: Count
    threads: Annotated[int, Field(ge=0, le=1024)]
    checkpoint_every: Count


class Study(_Section):
    """What is varied: every optimizer with every dropout rate and every seed."""

    optimizers: Several[Optimizer]
    dropouts: Several[Annotated[float, PlainValidator(_rate)]]
    seeds: Several[Seed]

    @field_validator("optimizers", "dropouts", "seeds")
    @classmethod
    def _distinct(cls, values: list[Any]) -> list[Any]:
        before = set()
        for value in values:
            if value in before:
                raise ValueError(f"duplicate value {value}")
            before.add(value)
        return values


class Settings(_Section):
    """The current settings, one section per stage and one for the study."""

    dataset: Literal["digits", "cifar10"]
    download: Download
    normalize: Normalize
    network: Network
    train: Train
    study: Study

    @property
    def variants(self) -> list[Variant]:
        """Every variant of the study, in DVC's order and with DVC's keys."""
        return [
            Variant(f"{optimizer}-{dropout}-{seed}", optimizer, float(dropout), seed)
            for optimizer, dropout, seed in product(self.study.optimizers, self.study.dropouts, self.study.seeds)
        ]

    def variant(self, key: str | None) -> Variant:
        """Return the variant of the study that DVC calls `key`; raises `StudyError` if there is none."""
        variants = {variant.key: variant for variant in self.variants}
        if key not in variants:
            near = difflib.get_close_matches(key or "", variants, n=3) or list(variants)[:3]
            problem = f"{key}: {files.SETTINGS} has no such variant" if key else "no variant was named"
            raise StudyError(f"{problem}; name one of its {len(variants)}, such as {', '.join(near)}")
        return variants[key]

    def training_values(self, variant: Variant) -> dict[str, Any]:
        """Return all settings that the training of `variant` depends on, as arguments of the functions that take them.

        These are `devices.configure`, `network.build_network`, `training.make_optimizer` and `training.fit`.
        """
        fit = {"epochs", "batch_size", "learning_rate_decay", "loss", "precision", "test_epochs"}
        return {
            "device": self.train.model_dump(include={"threads", "precision"}),
            "network": {**self.network.model_dump(), "dropout": variant.dropout, "seed": variant.seed},
            "optimizer": {
                "name": variant.optimizer,
                "learning_rate": getattr(self.train.learning_rate, variant.optimizer),
            },
            "fit": {**self.train.model_dump(include=fit), "seed": variant.seed},
        }

    @property
    def classes(self) -> int:
        """The number of classes of the data set."""
        return len(DATASETS[self.dataset].classes)

    @property
    def images_in_use(self) -> int:
        """The number of images taken from the training set, held-out ones included."""
        return self.normalize.train_size or DATASETS[self.dataset].train_images

    @property
    def images_to_train_on(self) -> int:
        """The number of images that are left for training."""
        share = self.normalize.validation
        return self.images_in_use - (0 if share == "test" else math.ceil(share * self.images_in_use))


# What a study did that was published before a setting existed, by section.
BEFORE: dict[str, dict[str, Any]] = {
    "network": {"dropout_position": "before_pooling"},
    "train": {"loss": "logits", "precision": "float32", "test_epochs": 1},
}


def load_settings(path: Path = files.SETTINGS, *, published: bool = False) -> Settings:
    """Return the settings in `path`; raises `StudyError` that names every key that is wrong.

    Settings that a `published` study does not have, because they are newer, get the values with which it was computed.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = YAML(typ="safe").load(text)
    except FileNotFoundError:
        raise StudyError(
            f"{path}: there is no such file; copy one from presets/, for example presets/quick.yaml"
        ) from None
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # the parser raises whatever it meets in a tag without its value, or in deep nesting
        why = "\n".join(map(printable, str(error).splitlines()))
        raise StudyError(f"{path}: not valid YAML: {why or type(error).__name__}") from None
    if not isinstance(raw, dict):
        raise StudyError(f"{path}: expected settings by name, as in presets/quick.yaml, found {_shown(raw)}")
    if published:
        raw |= {section: values | (raw.get(section) or {}) for section, values in BEFORE.items()}
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(details) for details in error.errors(include_url=False)]
    else:
        problems = _contradictions(settings)
    if problems:
        raise StudyError("\n       ".join(f"{path}: {problem}" for problem in problems))
    return settings


def _contradictions(settings: Settings) -> list[str]:
    """Say what is wrong between settings that are right on their own."""
    dataset = DATASETS[settings.dataset]
    if settings.images_in_use > dataset.train_images:
        return [
            f"normalize.train_size = {settings.normalize.train_size}: {settings.dataset} has "
            f"{dataset.train_images} training images; take fewer, or null for all"
        ]
    problems = []
    held_out = settings.images_in_use - settings.images_to_train_on
    fewest = min(settings.images_to_train_on, held_out or settings.classes)
    if fewest < settings.classes:
        problems.append(
            f"normalize.validation = {settings.normalize.validation}: of {settings.images_in_use} images it holds out "
            f"{held_out} and leaves {settings.images_to_train_on}, too few for each of {settings.classes} classes on "
            "both sides; use more images or another share"
        )
    if settings.train.batch_size > settings.images_to_train_on:
        problems.append(
            f"train.batch_size = {settings.train.batch_size}: larger than the data, which leaves "
            f"{settings.images_to_train_on} images to train on; take at most that"
        )
    if settings.train.test_epochs > settings.train.epochs:
        problems.append(
            f"train.test_epochs = {settings.train.test_epochs}: more than the {settings.train.epochs} epochs of "
            "train.epochs; take at most that"
        )
    filters = settings.network.filters
    pools = sum(is_pooled(i) for i in range(1, len(filters) + 1))
    most_pools = int(math.log2(dataset.image_size))
    if pools > most_pools:
        problems.append(
            f"network.filters = {filters}: pooling halves the image {pools} times, and {settings.dataset} has "
            f"{dataset.image_size} pixels a side; name at most {len(filters) - pools + most_pools}"
        )
    return problems


def _explain(details: ErrorDetails) -> str:
    """Return one line for one of pydantic's errors: the key, its value, what is allowed."""
    location = details["loc"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{_shortened(printable(part))}" for part in location)
    key = key.lstrip(".")
    match details["type"]:
        case "missing":
            return f"{key}: missing; presets/quick.yaml shows every key"
        case "extra_forbidden":
            parent: Any = Settings
            for part in location[:-1]:
                parent = parent.model_fields[str(part)].annotation
            keys = list(parent.model_fields)
            near = difflib.get_close_matches(str(location[-1]), keys, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed here: {', '.join(keys)}"
            return f"{key}: unknown key; {hint}"
        case "invalid_key":
            return f"{key}: no name of a setting, which is text"
        case "value_error":
            allowed = str(details["ctx"]["error"])
        case "model_type" | "model_attributes_type":
            allowed = "a section with settings of its own is expected here"
        case "string_pattern_mismatch":
            allowed = "expected 64 lower-case hexadecimal digits"
        case "too_short":
            allowed = "name at least one"
        case "int_type" | "int_from_float":
            allowed = "a whole number is expected here"
        case "float_type":
            allowed = "a number is expected here"
        case _:
            allowed = details["msg"].replace("Input should be", "must be").replace("valid ", "")
    return f"{key} = {_shown(details['input'])}: {allowed}"


def _shown(value: Any) -> str:
    return _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."
