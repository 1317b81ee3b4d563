"""Images classified by a saved model, which is not trusted: no code in it is run."""

import json
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

BATCH = 256  # images
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
    classes: Sequence[str]


def load_model(path: Path) -> Model:
    """Load a `.keras` file in Keras's safe mode, which runs no code that the file may hold.

    The class names are those in its metadata.json (`model_file.save_model`), or numbers from 0. Raises `StudyError` if
    there is no such file, or if it is not a model that classifies colour images.
    """
    if not path.exists():
        is_best = path.parts[-2:] == files.BEST_MODEL.parts  # also from a subdirectory
        way_out = (
            "`dvc repro` makes it; `dvc checkout`, or `dvc pull`, restores one that was made before"
            if is_best
            else f"check the path after --model; without --model it is {files.BEST_MODEL}"
        )
        raise StudyError(f"{printable(path)}: there is no such model; {way_out}")
    if path.suffix != ".keras":  # of other kinds the safe mode may be no guard
        raise StudyError(f"{printable(path)}: a model is a file with a name that ends in .keras, as Keras 3 saves it")
    if not path.stat().st_size:
        reason = "empty, as `evaluate` leaves it if every run diverged: there is no best model"
        raise StudyError(f"{printable(path)}: {reason}")
    try:
        with tensorflow_loading():
            import keras

            network = keras.models.load_model(path, compile=False, safe_mode=True)
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read("metadata.json"))
    except Exception as error:  # a damaged file fails wherever it happens to be damaged
        why = "it holds code (a Lambda layer?), which is not run" if "safe_mode" in str(error) else _one_line(error)
        raise StudyError(f"{printable(path)}: cannot be loaded as a Keras model: {why}") from error
    takes, gives = getattr(network, "input_shape", None), getattr(network, "output_shape", None)
    match takes, gives:
        case (None, int(height), int(width), 3), (None, int(count)):
            classes = metadata.get("classes", [str(i) for i in range(count)])
            return Model(path, network, (height, width), classes)
    raise StudyError(
        f"{printable(path)}: takes {takes} and gives {gives}; needed is a model that takes images, (None, height, "
        "width, 3), and gives a probability for each class, (None, classes)"
    )


def predict(model: Model, paths: Iterable[Path]) -> Iterator[Prediction]:
    """Yield a prediction for each file, in order; a file that cannot be read has an error instead of classes.

    Raises `StudyError` if the outputs of the model are no probabilities.
    """
    paths = iter(paths)
    while batch := list(islice(paths, BATCH)):
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
    rows = np.asarray(model.network(images, training=False))
    if not (rows.min() >= 0 and np.allclose(rows.sum(axis=1), 1, atol=1e-3)):
        example = ", ".join(f"{value:.3g}" for value in rows[0, :TOP])
        raise StudyError(
            f"{printable(model.path)}: its outputs ({example} …) are no probabilities. If they are logits, save it "
            "with a softmax at its end: keras.Sequential([model, keras.layers.Softmax()])"
        )
    return rows


def _one_line(error: Exception) -> str:
    line = printable(" ".join(str(error).split())) or type(error).__name__
    return line if len(line) <= 200 else f"{line[:197]}..."
