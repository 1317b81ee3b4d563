"""A trained network as a `.keras` file: equal models are equal bytes."""

import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dropout_study import files

if TYPE_CHECKING:
    import keras


def save_model(model: "keras.Model", classes: Sequence[str], path: Path) -> None:
    """Save `model` as a `.keras` file that is a function of the model and of its class names, which it carries.

    Keras puts the time of saving into the archive, as a date in its metadata and as the time of its members, and
    the memory addresses of shared objects into the configuration, where any distinct numbers will do. The names of
    the classes, in the order of the outputs, are in the metadata, which Keras does not read.
    """
    with files.replacing(path) as temporary:
        model.save(temporary)
        original = zipfile.ZipFile(io.BytesIO(temporary.read_bytes()))
        with zipfile.ZipFile(temporary, "w") as archive:
            for name in original.namelist():
                content = original.read(name)
                if name == "metadata.json":
                    metadata = json.loads(content) | {"date_saved": "1980-01-01@00:00:00", "classes": list(classes)}
                    content = json.dumps(metadata).encode()
                elif name == "config.json":
                    content = _number_in_turn(content)
                archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


def _number_in_turn(config: bytes) -> bytes:
    """Return a model's configuration with its shared objects numbered 0, 1, … as they appear."""
    shared = rb'(?<="shared_object_id": )\d+'
    numbers = {address: b"%d" % i for i, address in enumerate(dict.fromkeys(re.findall(shared, config)))}
    return re.sub(shared, lambda match: numbers[match[0]], config)
