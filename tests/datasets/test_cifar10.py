import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from dropout_study.console import StudyError
from dropout_study.datasets import DATASETS, describe
from dropout_study.datasets.cifar10 import MEMBER_BYTES, RECORDS, TEST_MEMBER, TRAIN_MEMBERS, load

MEMBERS = (*TRAIN_MEMBERS, TEST_MEMBER)


def member(number: int) -> bytes:
    """Return a batch whose record r is labelled (r + number) % 10 and has one red, green and blue pixel."""
    records = np.zeros((RECORDS, 3_073), np.uint8)
    records[:, 0] = (np.arange(RECORDS) + number) % 10
    records[:, 1 + 33] = 10 + number  # red, row 1, column 1
    records[:, 1 + 1024 + 2] = 20 + number  # green, row 0, column 2
    records[:, 1 + 2048 + 32] = 30 + number  # blue, row 1, column 0
    return records.tobytes()


def write_archive(path: Path, members: Mapping[str, bytes]) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def content() -> dict[str, bytes]:
    return {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n"} | {
        name: member(number) for number, name in enumerate(MEMBERS)
    }


def test_load_decodes_by_channel_and_row_in_the_order_of_the_batches(tmp_path: Path) -> None:
    shuffled = dict(reversed(content().items()))

    arrays = load(write_archive(tmp_path / "a.tar.gz", shuffled))

    assert arrays.train_images.shape == (50_000, 32, 32, 3)
    assert arrays.test_images.shape == (10_000, 32, 32, 3)
    assert all(array.dtype == np.uint8 for array in arrays)

    images = np.concatenate([arrays.train_images, arrays.test_images])
    labels = np.concatenate([arrays.train_labels, arrays.test_labels])

    for number in range(6):
        image = np.zeros((32, 32, 3), np.uint8)
        image[1, 1, 0], image[0, 2, 1], image[1, 0, 2] = 10 + number, 20 + number, 30 + number
        np.testing.assert_array_equal(images[number * RECORDS + 5], image)
        assert labels[number * RECORDS + 5] == (5 + number) % 10


def test_describe_has_what_the_article_prints(tmp_path: Path) -> None:
    facts = describe("cifar10", load(write_archive(tmp_path / "a.tar.gz", content())))

    assert facts["image_size"] == [32, 32]
    assert facts["channels"] == 3
    assert facts["train"] == {
        "images": 50_000,
        "per_class": dict.fromkeys(DATASETS["cifar10"].classes, 5_000),
    }
    assert facts["test"] == {"images": 10_000, "per_class": dict.fromkeys(DATASETS["cifar10"].classes, 1_000)}


def spoiled(what: str) -> dict[str, bytes]:
    members = content()
    match what:
        case "missing":
            del members[TEST_MEMBER]
        case "short":
            members[TEST_MEMBER] = members[TEST_MEMBER][:-1]
        case "label":
            batch = bytearray(members[MEMBERS[2]])
            batch[7 * 3_073] = 10
            members[MEMBERS[2]] = bytes(batch)
    return members


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", f"has no {TEST_MEMBER}"),
        ("short", f"{TEST_MEMBER} has 30,729,999 bytes, expected 30,730,000"),
        ("label", f"{MEMBERS[2]}, record 7: label 10, expected 0 to 9"),
    ],
)
def test_load_refuses_a_wrong_member(tmp_path: Path, what: str, message: str) -> None:
    assert MEMBER_BYTES == 30_730_000

    archive = write_archive(tmp_path / "a.tar.gz", spoiled(what))

    with pytest.raises(StudyError) as error:
        load(archive)
    assert message in str(error.value)
    assert str(archive) in str(error.value)


@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.1, 0.5, 0.99])
def test_load_refuses_a_truncated_archive(tmp_path: Path, keep: float) -> None:
    path = write_archive(tmp_path / "a.tar.gz", content())
    load(path)
    whole = path.read_bytes()

    path.write_bytes(whole[: int(keep * len(whole))])

    with pytest.raises(StudyError, match=r"download\.sha256 has to be that of the binary version"):
        load(path)


def test_load_refuses_a_page_in_place_of_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"

    path.write_text("<html>")

    with pytest.raises(StudyError, match="not a gzip file"):
        load(path)
