"""Images classified by a saved model, which is not trusted: no code in it is run."""

import json
import math
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dropout_study import files
from dropout_study.console import StudyError, printable
from dropout_study.devices import tensorflow_loading
from dropout_study.images import read_image

MAX_MODEL_BYTES = 1_000_000_000  # of what is packed in a model file
MAX_JSON_BYTES = 10_000_000  # of each JSON file in a model file
MAX_INPUT_PIXELS = 1024 * 1024  # of an image that a model takes
MAX_TENSOR = 2**27  # values of the largest tensor in a model that classifies one image: 0.5 GB
MAX_TENSORS = 2**29  # of all tensors of one image together: Keras keeps the output of every layer to the end; 2 GB
BATCH_VALUES = 2**24  # values of the largest tensor of a batch; this study's network takes 256 images of 32 × 32 then
MAX_BATCH = 256
PRIME = 7919  # images that go through a sketch: the sizes of tensors of images, and hardly others, are multiples of it
TOP = 3


class Guess(NamedTuple):
    """A class and its probability in [0, 1]."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image file, most probable first, or why there are none."""

    path: Path
    guesses: Sequence[Guess] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as JSON holds it."""
        if self.error is not None:
            return {"file": str(self.path), "error": self.error}
        return {"file": str(self.path), "classes": [guess._asdict() for guess in self.guesses]}


class Model(NamedTuple):
    """A Keras model that takes pixels [N, height, width, 3], and the names of its outputs."""

    path: Path
    network: Any
    size: tuple[int, int]  # height, width
    batch: int  # how many images it takes at once
    classes: Sequence[str]


def load_model(path: Path) -> Model:
    """Load a `.keras` file in Keras's safe mode, which runs no code that the file may hold.

    The class names are those in its metadata.json (`model_file.save_model`), or numbers from 0. Raises `StudyError` if
    there is no such file, it is of another kind (for which the safe mode may be no guard), too large, or does not
    classify colour images of at most 1024 × 1024 pixels.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode) or path.suffix != ".keras":
            raise StudyError("a model is a file with a name that ends in .keras, as Keras 3 saves it")
        if not path.stat().st_size:
            raise StudyError("empty, as `evaluate` leaves it if every run diverged: there is no best model")
        config, metadata = _read_content(path)
        with tensorflow_loading():
            import keras

            size, count, batch = _check_sizes(config)
            network = keras.models.load_model(path, compile=False, safe_mode=True)
        classes = metadata.get("classes", [str(i) for i in range(count)])
        if not (isinstance(classes, list) and len(classes) == count and all(isinstance(name, str) for name in classes)):
            raise StudyError(f"`classes` in its metadata.json must be a list of {count} names, or absent")
    except FileNotFoundError:
        is_best = path.parts[-2:] == files.BEST_MODEL.parts  # also from a subdirectory
        way_out = (
            "`dvc repro` makes it; `dvc checkout`, or `dvc pull`, restores one that was made before"
            if is_best
            else f"check the path after --model; without --model it is {files.BEST_MODEL}"
        )
        raise StudyError(f"{printable(path)}: there is no such model; {way_out}") from None
    except StudyError as error:
        raise StudyError(f"{printable(path)}: {error}") from None
    except Exception as error:  # a damaged file fails wherever it happens to be damaged
        why = "it holds code (a Lambda layer?), which is not run" if "safe_mode" in str(error) else _one_line(error)
        raise StudyError(f"{printable(path)}: cannot be loaded as a Keras model: {why}") from error
    return Model(path, network, size, batch, classes)


def _read_content(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a model's configuration and metadata; raise `StudyError` if the file is too large when unpacked."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        texts = [member.file_size for member in members if member.filename.endswith(".json")]
        if sum(member.file_size for member in members) > MAX_MODEL_BYTES or max(texts, default=0) > MAX_JSON_BYTES:
            raise StudyError(
                f"too large when unpacked: more than {MAX_MODEL_BYTES:,} bytes, or a JSON file of more "
                f"than {MAX_JSON_BYTES:,}"
            )
        return dict(json.loads(archive.read("config.json"))), dict(json.loads(archive.read("metadata.json")))


def _check_sizes(config: dict[str, Any]) -> tuple[tuple[int, int], int, int]:
    """Return the size of the images that a model takes, the number of its classes, and how many images it may take.

    The model is only sketched: its variables have shapes and no values, and images go through it in a graph that is not
    run. Raises `StudyError` if the real model would take too much memory, or takes or gives other things.
    """
    import keras
    import tensorflow as tf

    try:
        with tf.Graph().as_default() as graph, keras.StatelessScope(initialize_variables=False):
            sketch = keras.saving.deserialize_keras_object(config, safe_mode=True)
            size, count = _check_shapes(sketch)
            sketch(tf.zeros((PRIME, *size, 3)), training=False)
        variables = sum(math.prod(variable.shape) for variable in sketch.variables)
        tensors = [tensor for operation in graph.get_operations() for tensor in operation.outputs]
        values = [tensor.shape.num_elements() or 0 for tensor in tensors]
        of_one_image = [value // PRIME for value in values if value % PRIME == 0]
        largest = max([*of_one_image, *(value for value in values if value % PRIME)])
        together = sum(of_one_image)
    finally:
        keras.utils.clear_session()  # else Keras would give the variables their values at the next opportunity
    if 4 * variables > MAX_MODEL_BYTES or largest > MAX_TENSOR or together > MAX_TENSORS:
        raise StudyError(
            f"too large: it has {variables:,} weights, and for one image a tensor of {largest:,} values and "
            f"{together:,} in all; at most {MAX_MODEL_BYTES // 4:,}, {MAX_TENSOR:,} and {MAX_TENSORS:,} are allowed"
        )
    return size, count, min(MAX_BATCH, max(1, BATCH_VALUES // max(of_one_image)), MAX_TENSORS // together)


def _check_shapes(network: Any) -> tuple[tuple[int, int], int]:
    """Return the size of the images that a network takes, and the number of its classes."""
    takes, gives = getattr(network, "input_shape", None), getattr(network, "output_shape", None)
    match takes, gives:
        case (None, int(height), int(width), 3), (None, int(count)) if count > 1 and height * width <= MAX_INPUT_PIXELS:
            return (height, width), count
    raise StudyError(
        f"takes {takes} and gives {gives}; needed is a model that takes images, (None, height, width, 3), of at most "
        f"{MAX_INPUT_PIXELS:,} pixels and gives a probability for each class, (None, 2 or more)"
    )


def predict(model: Model, paths: Iterable[Path]) -> Iterator[Prediction]:
    """Yield a prediction for each file, in order; a file that cannot be read has an error instead of classes.

    Raises `StudyError` if the model fails on an image, or if its outputs are no probabilities: not finite, outside
    [0, 1], or with a sum that is not within 0.001 of 1.
    """
    paths = iter(paths)
    while batch := list(islice(paths, model.batch)):
        images: dict[int, np.ndarray] = {}
        errors: dict[int, str] = {}
        for i, path in enumerate(batch):
            try:
                images[i] = read_image(path, model.size)
            except StudyError as error:
                errors[i] = str(error)
        rows = iter(_probabilities(model, np.stack([*images.values()])) if images else [])
        for i, path in enumerate(batch):
            if i in errors:
                yield Prediction(path, error=errors[i])
            else:
                row = next(rows)
                top = np.argsort(-row, kind="stable")[:TOP]
                yield Prediction(path, [Guess(model.classes[k], float(row[k])) for k in top])


def _probabilities(model: Model, images: np.ndarray) -> np.ndarray:
    try:
        rows = np.asarray(model.network(images, training=False)).astype(np.float64)
    except Exception as error:  # layers may fail in any way
        raise StudyError(f"{printable(model.path)}: fails on images: {_one_line(error)}") from error
    if not (np.isfinite(rows).all() and rows.min() >= 0 and rows.max() <= 1 and abs(rows.sum(-1) - 1).max() <= 1e-3):
        example = ", ".join(f"{value:.3g}" for value in rows[0, :TOP])
        raise StudyError(
            f"{printable(model.path)}: its outputs ({example} …) are no probabilities. If they are logits, save it "
            "with a softmax at its end: keras.Sequential([model, keras.layers.Softmax()])"
        )
    return rows


def _one_line(error: Exception) -> str:
    text = str(error).rpartition("Exception encountered: ")[2]  # Keras writes all that is above it first
    line = printable(" ".join(text.split())) or type(error).__name__
    return line if len(line) <= 200 else f"{line[:197]}..."
