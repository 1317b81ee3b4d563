"""`dropout-study predict`, and models that it must not trust."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dropout_study import prediction
from dropout_study.cli import main
from dropout_study.console import StudyError
from dropout_study.model_file import save_model
from dropout_study.network import build_network

CLASSES = ["frog", "truck", "deer", "bird"]
SIZE = 16


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = build_network(
        (SIZE, SIZE, 3),
        len(CLASSES),
        filters=[4, 5],
        units=[6],
        first_activation="relu",
        dropout=0.5,
        seed=2,
        scale=[0.02] * 3,
        offset=[-1] * 3,
    )
    path = tmp_path_factory.mktemp("model") / "model.keras"
    save_model(network, CLASSES, path)
    return path


@pytest.fixture
def run(model_file: Path) -> Callable[..., Result]:
    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(main, ["predict", "--model", str(model_file), *map(str, arguments)])

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A directory of three random images, 0.png to 2.png."""
    directory = tmp_path / "pictures"
    directory.mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)):
        Image.fromarray(image).save(directory / f"{i}.png")
    return directory


def changed(model_file: Path, path: Path, **members: bytes) -> Path:
    """Write the model with other `members` (metadata, config) of JSON to `path`."""
    with zipfile.ZipFile(model_file) as original, zipfile.ZipFile(path, "w") as archive:
        for name in original.namelist():
            archive.writestr(name, members.get(name.removesuffix(".json"), original.read(name)))
    return path


def test_predict_gives_the_probabilities_of_the_model(
    run: Callable[..., Result], model_file: Path, pictures: Path
) -> None:
    images = np.stack([np.asarray(Image.open(pictures / f"{i}.png")) for i in range(3)])
    expected = keras.models.load_model(model_file).predict(images, verbose=0)

    done = run("--json", pictures)

    printed = json.loads(done.stdout)
    assert (done.exit_code, printed["model"]) == (0, str(model_file))
    for i, (image, row) in enumerate(zip(printed["images"], expected, strict=True)):
        order = np.argsort(-row)[:3]
        assert image["file"] == str(pictures / f"{i}.png")
        assert [guess["name"] for guess in image["classes"]] == [CLASSES[k] for k in order]
        assert [guess["probability"] for guess in image["classes"]] == pytest.approx(row[order].tolist(), rel=1e-4)


def test_predict_prints_a_line_an_image(run: Callable[..., Result], pictures: Path) -> None:
    done = run(pictures / "1.png", pictures / "0.png")

    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(pictures / "1.png"), str(pictures / "0.png")]
    assert all(len(line) == 7 and set(line[1::2]) <= set(CLASSES) for line in lines)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_predict_reports_a_bad_file_and_classifies_the_others(
    run: Callable[..., Result], pictures: Path, options: list[str]
) -> None:
    (pictures / "1.png").write_text("no image")
    (pictures / "notes.txt").touch()

    done = run(*options, pictures, pictures / "missing.png")

    assert done.exit_code == 1
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: {pictures / '1.png'}: not an image")
    assert second == f"error: {pictures / 'missing.png'}: cannot be read: No such file or directory"
    if options:
        results = json.loads(done.stdout)["images"]
        assert ["error" in result for result in results] == [False, True, False, True]
    else:
        assert len(done.stdout.splitlines()) == 2


def test_predict_prints_names_that_do_nothing_to_a_terminal(
    run: Callable[..., Result], pictures: Path, model_file: Path, tmp_path: Path
) -> None:
    (pictures / "0.png").rename(pictures / "red\x1b[31m\n.png")
    metadata = json.dumps({"classes": ["\x1b]0;title\x07", "b", "c", "d"]}).encode()
    evil = changed(model_file, tmp_path / "evil.keras", metadata=metadata)

    done = CliRunner().invoke(main, ["predict", "--model", str(evil), str(pictures)])

    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert "red\\x1b[31m\\n.png" in done.stdout


def test_predict_takes_more_images_than_a_batch_in_order(
    model_file: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prediction.load_model(model_file)
    paths = [pictures / f"{i % 3}.png" for i in range(7)]
    whole = list(prediction.predict(model, paths))

    monkeypatch.setattr(prediction, "BATCH", 2)
    batched = list(prediction.predict(model, paths))

    assert [result.path for result in batched] == paths
    for result, expected in zip(batched, whole, strict=True):
        assert [guess.name for guess in result.guesses] == [guess.name for guess in expected.guesses]


def test_load_model_without_a_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"best.keras: there is no such model; `dvc repro` makes it"):
        prediction.load_model(tmp_path / "models/best.keras")
    with pytest.raises(StudyError, match=r"mine.keras: there is no such model; check the path after --model"):
        prediction.load_model(tmp_path / "mine.keras")


def test_load_model_refuses_other_and_damaged_files_in_one_line(tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "model.h5").touch()
    (tmp_path / "empty.keras").touch()
    (tmp_path / "text.keras").write_text("no model")
    (tmp_path / "cut.keras").write_bytes(model_file.read_bytes()[:-1_000])
    expected = {
        "model.h5": "a model is a file with a name that ends in .keras",
        "empty.keras": "empty, as `evaluate` leaves it if every run diverged",
        "text.keras": "cannot be loaded as a Keras model: ",
        "cut.keras": "cannot be loaded as a Keras model: ",
    }

    for name, reason in expected.items():
        with pytest.raises(StudyError) as caught:
            prediction.load_model(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")
        assert "\n" not in str(caught.value)


def test_load_model_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch = keras.layers.Lambda(lambda x: [x[:, :2], __import__("os").system("touch PWNED")][0])
    evil = saved(Path("evil.keras"), keras.layers.Flatten(), touch)
    Path("PWNED").unlink()  # saving ran it

    with pytest.raises(StudyError, match=r"it holds code .*, which is not run"):
        prediction.load_model(evil)

    assert not Path("PWNED").exists()
    keras.models.load_model(evil, safe_mode=False)
    assert Path("PWNED").exists()


def saved(path: Path, *layers: Any, shape: tuple[int, ...] = (8, 8, 3)) -> Path:
    keras.Sequential([keras.Input(shape), *layers]).save(path)
    return path


def test_load_model_numbers_classes_without_names(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.keras", keras.layers.Flatten(), keras.layers.Dense(3, "softmax"))

    assert prediction.load_model(path).classes == ["0", "1", "2"]


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8), (64,)])
def test_load_model_refuses_other_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = saved(tmp_path / "model.keras", keras.layers.Flatten(), keras.layers.Dense(3, "softmax"), shape=shape)

    with pytest.raises(StudyError, match=r"needed is a model that takes images, \(None, height, width, 3\)"):
        prediction.load_model(path)


def test_predict_refuses_outputs_that_are_no_probabilities(tmp_path: Path, pictures: Path) -> None:
    path = saved(tmp_path / "logits.keras", keras.layers.Flatten(), keras.layers.Dense(3))

    with pytest.raises(StudyError, match=r"are no probabilities\. If they are logits, save it with a softmax"):
        list(prediction.predict(prediction.load_model(path), [pictures / "0.png"]))
