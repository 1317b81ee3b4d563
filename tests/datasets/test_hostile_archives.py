"""Archives that are wrong inside, though the settings accept their hash: refused in a line that names the member."""

import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from dropout_study.console import StudyError
from dropout_study.datasets import Arrays, cifar10
from tests.clones import PROJECT
from tests.datasets.test_cifar10 import MEMBERS

pytestmark = pytest.mark.pipeline

RECORDS = 3  # in a batch of these archives
BATCH = RECORDS * 3_073
END = bytes(1_024)
CUT_OFF = "cannot be read as a gzipped tar archive"
ZEROS = gzip.compress(bytes(99_999_744))  # a tenth of a megabyte; a whole number of blocks


@pytest.fixture(scope="module", autouse=True)
def _small_batches() -> Iterable[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "RECORDS", RECORDS)
        patch.setattr(cifar10, "MEMBER_BYTES", BATCH)
        yield


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    return header(name, len(content), kind, link) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def batch(size: int = BATCH, label: int = 9) -> bytes:
    content = np.zeros((RECORDS, 3_073), np.uint8)
    content[:, 1:] = np.arange(3_072) % 251
    content[1, 0] = label
    return (content.tobytes() + bytes(size))[:size]


def entries(**changes: bytes) -> dict[str, bytes]:
    """Return the entries of a good archive by name; `test_batch` and the like are changed."""
    names = {name: Path(name).stem for name in MEMBERS}
    return {name: changes.get(names[name], entry(name, batch())) for name in MEMBERS}


def tar(*before: bytes, after: Iterable[bytes] = (), **changes: bytes) -> bytes:
    return b"".join([*before, *entries(**changes).values(), *after, END])


def load(directory: Path, content: bytes) -> Arrays | str:
    """Load an archive; return the error if it is refused, which is one line that names it and the way out."""
    path = directory / "archive.tar.gz"
    path.write_bytes(content)
    message: str | None = None
    try:
        arrays = cifar10.load(path)
    except StudyError as error:
        message = str(error)
    assert os.listdir(directory) == [path.name]
    if message is not None:
        assert message.isprintable()
        assert message.startswith(f"{path}: ")
        assert message.endswith("cifar-10-binary.tar.gz, as in presets/")
        assert len(message) < len(str(path)) + 600
        return message
    assert [array.shape for array in arrays] == [
        (5 * RECORDS, 32, 32, 3),
        (5 * RECORDS,),
        (RECORDS, 32, 32, 3),
        (RECORDS,),
    ]
    assert max(arrays.train_labels.max(), arrays.test_labels.max()) <= 9
    return arrays


def number(value: int) -> bytes:
    """Return a size as GNU tar writes one that has too many digits."""
    return (value % 256**12).to_bytes(12) if value < 0 else b"\x80" + value.to_bytes(11)


def sized(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a header with any size, and the checksum that it needs."""
    block = bytearray(header(name, 0, kind))
    block[124:136] = number(size)
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(**records: str) -> bytes:
    info = tarfile.TarInfo("x")
    info.pax_headers = records
    return info.create_pax_header(info.get_info(), "utf-8")[: -tarfile.BLOCKSIZE]


LAST = MEMBERS[-1]
TYPES = {
    "symbolic-link": tarfile.SYMTYPE,
    "hard-link": tarfile.LNKTYPE,
    "character-device": tarfile.CHRTYPE,
    "block-device": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "sparse": tarfile.GNUTYPE_SPARSE,
    "contiguous": tarfile.CONTTYPE,
    "unknown": b"Z",
}
WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "missing": (lambda: tar(test_batch=b""), f"lacks {LAST}"),
    "two-missing": (lambda: tar(data_batch_2=b"", data_batch_4=b""), f"lacks {MEMBERS[1]}, {MEMBERS[3]}"),
    "all-missing": (lambda: entry("readme.html", b"x") + END, f"lacks {MEMBERS[0]}"),
    "empty": (lambda: END, f"lacks {MEMBERS[0]}"),
    "short": (
        lambda: tar(test_batch=entry(LAST, batch(BATCH - 1))),
        f"{LAST} has 9,218 bytes, expected a file of 9,219",
    ),
    "long": (
        lambda: tar(test_batch=entry(LAST, batch(BATCH + 1))),
        f"{LAST} has 9,220 bytes, expected a file of 9,219",
    ),
    "no-content": (lambda: tar(test_batch=entry(LAST)), f"{LAST} has 0 bytes"),
    "directory": (lambda: tar(test_batch=entry(LAST, kind=tarfile.DIRTYPE)), f"{LAST} has 0 bytes, expected a file"),
    "twice": (lambda: tar(after=[entry(LAST, batch())]), f"{LAST} is there twice"),
    "twice-at-once": (lambda: tar(entry(MEMBERS[2], batch())), f"{MEMBERS[2]} is there twice"),
    "link-beside": (lambda: tar(entry("x", kind=tarfile.SYMTYPE, link="/etc")), "x is of type b'2'"),
    "absolute": (lambda: tar(entry("/etc/PWNED", b"x")), "/etc/PWNED leads out"),
    "absolute-after": (lambda: tar(after=[entry("/etc/PWNED", b"x")]), "/etc/PWNED leads out"),
    "parent": (lambda: tar(entry("../PWNED", b"x")), r"\.\./PWNED leads out"),
    "parent-within": (lambda: tar(entry("a/../../PWNED", b"x")), r"a/\.\./\.\./PWNED leads out"),
    "parent-directory": (lambda: tar(entry("..", kind=tarfile.DIRTYPE)), r"\.\. leads out"),
    "escape-in-name": (lambda: tar(entry("../\x1b[31m\n\udcff", b"x")), r"\.\./\\x1b\[31m\\n\\udcff leads out"),
    "label-10": (lambda: tar(test_batch=entry(LAST, batch(label=10))), f"{LAST}, record 1: label 10, expected 0 to 9"),
    "label-255": (lambda: tar(data_batch_1=entry(MEMBERS[0], batch(label=255))), f"{MEMBERS[0]}, record 1: label 255"),
    "huge": (lambda: tar(sized("bomb", 10**18)), r"bomb has 1,000,000,000,000,000,000 bytes; all are at most"),
    "negative-size": (lambda: tar(sized("bomb", -5)), "bomb has -5 bytes"),
    "negative-size-of-batch": (lambda: tar(test_batch=sized(LAST, -5)), f"{LAST} has -5 bytes"),
    "checksum": (lambda: tar(after=[b"x" * tarfile.BLOCKSIZE]), f"{CUT_OFF}: {LAST}: "),
    "long-name": (lambda: tar(header("x" * 200)), r"\./@LongLink is of type b'L'"),
    "long-link": (lambda: tar(header("x", kind=tarfile.SYMTYPE, link="y" * 200)), r"\./@LongLink is of type b'K'"),
    **{
        kind: (lambda kind=kind: tar(test_batch=entry(LAST, kind=TYPES[kind], link=MEMBERS[0])), f"{LAST} is of type")  # type: ignore[misc]
        for kind in TYPES
    },
    **{
        f"batch-as-{kind}": (lambda kind=kind: tar(test_batch=entry(LAST, batch(), TYPES[kind])), f"{LAST} is of type")  # type: ignore[misc]
        for kind in TYPES
    },
}


def plain_zip() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(LAST, batch())
    return content.getvalue()


NO_ARCHIVES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "page": lambda: b"<html>busy</html>",
    "plain-tar": tar,
    "zip": plain_zip,
    "compressed-text": lambda: gzip.compress(b"text, and long enough to be a header" * 20),
    "compressed-twice": lambda: gzip.compress(gzip.compress(tar())),
    "short-text": lambda: gzip.compress(b"text"),
    "start-alone": lambda: b"\x1f\x8b",
    "wrong-checksum": lambda: gzip.compress(tar())[:-8] + bytes(8),
    "more-after": lambda: gzip.compress(tar()) + b"more",
    "damaged": lambda: gzip.compress(tar())[:200] + b"\xff" * 50 + gzip.compress(tar())[250:],
}


def test_load_reads_a_good_archive_of_this_size(tmp_path: Path) -> None:
    arrays = load(tmp_path, gzip.compress(tar()))

    assert not isinstance(arrays, str)
    assert arrays.test_labels.tolist() == [0, 9, 0]
    np.testing.assert_array_equal(arrays.test_images[0, 0, 1], [1, (1_024 + 1) % 251, (2_048 + 1) % 251])


@pytest.mark.parametrize("wrong", WRONG)
def test_load_refuses_what_is_wrong_by_the_name_of_the_member(tmp_path: Path, wrong: str) -> None:
    content, message = WRONG[wrong]

    assert re.search(message, str(load(tmp_path, gzip.compress(content()))))


@pytest.mark.parametrize("kind", NO_ARCHIVES)
def test_load_refuses_what_is_no_gzipped_tar(tmp_path: Path, kind: str) -> None:
    assert CUT_OFF in str(load(tmp_path, NO_ARCHIVES[kind]()))


def test_load_refuses_every_beginning_of_an_archive(tmp_path: Path) -> None:
    whole = gzip.compress(tar())

    for size in range(len(whole)):
        assert isinstance(load(tmp_path, whole[:size]), str)


def test_load_refuses_every_beginning_of_a_tar_by_the_name_of_a_member(tmp_path: Path) -> None:
    whole = tar()[: -len(END)]

    for size in [*range(1, len(whole), 97), len(whole) - 1]:
        message = str(load(tmp_path, gzip.compress(whole[:size], 1)))
        assert re.search(f"{CUT_OFF}: ({'|'.join(MEMBERS)}|its beginning): ", message)


HARMLESS: dict[str, Callable[[], bytes]] = {
    "readme": lambda: tar(entry("cifar-10-batches-bin/", kind=tarfile.DIRTYPE), entry("readme.html", b"text")),
    "reversed": lambda: b"".join(reversed(entries().values())) + END,
    "times": lambda: tar(pax(mtime="1234567890.5")),
    "times-of-all": lambda: tar(sized("pax_global_header", 0, tarfile.XGLTYPE)),
    "broken-pax-header": lambda: tar(entry("x", b"no length=1\n\xff" * 9, tarfile.XHDTYPE)),
    "renamed-to-the-parent": lambda: tar(pax(path="../../PWNED")),
    "thousands-of-pax-headers": lambda: tar(pax(comment="x") * 5_000),
    "without-an-end": lambda: tar()[: -len(END)],
    "padded": lambda: tar() + bytes(10_240),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_load_reads_an_archive_that_is_only_unusual(tmp_path: Path, kind: str) -> None:
    arrays = load(tmp_path, gzip.compress(HARMLESS[kind]()))

    assert not isinstance(arrays, str), arrays
    assert all((a == b).all() for a, b in zip(arrays, load(tmp_path, gzip.compress(tar())), strict=True))


def test_load_reads_what_follows_the_end_up_to_the_limit_and_then_the_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "MAXIMUM_BYTES", len(tar()) + 100_000)
    whole = gzip.compress(tar() + bytes(100_000))

    assert not isinstance(load(tmp_path, whole), str)
    assert CUT_OFF in str(load(tmp_path, whole[:-8] + bytes(8)))
    assert f"has more than {len(tar()) + 100_000:,} bytes" in str(load(tmp_path, gzip.compress(tar() + bytes(100_001))))


flips = st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4)


def damaged(content: bytes, places: Iterable[tuple[int, int]]) -> bytes:
    """Return `content` with bits flipped, half of them in the headers."""
    data = bytearray(content)
    for place, bits in places:
        step = BATCH + -BATCH % tarfile.BLOCKSIZE + tarfile.BLOCKSIZE
        position = place % len(MEMBERS) * step + place // 7 % 512 if place % 2 else place
        data[position % len(data)] ^= bits
    return bytes(data)


def refused_or_read(places: Iterable[tuple[int, int]], outside: bool) -> None:
    with TemporaryDirectory() as name:
        if outside:
            load(Path(name), damaged(gzip.compress(tar()), places))
        else:
            load(Path(name), gzip.compress(damaged(tar(), places), 1))


@settings(max_examples=400, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(flips, st.booleans())
def test_load_refuses_400_damaged_archives_or_reads_them(places: list[tuple[int, int]], outside: bool) -> None:
    refused_or_read(places, outside)


@pytest.mark.stress
@seed(int(os.environ["STRESS_SEED"]))
@settings(max_examples=20_000, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(flips, st.booleans())
def test_load_refuses_20_000_damaged_archives_or_reads_them(places: list[tuple[int, int]], outside: bool) -> None:
    refused_or_read(places, outside)


# Up to ten gigabytes each, if they were unpacked.
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "member": (lambda: gzip.compress(sized("bomb", 10**10)) + ZEROS * 100, "bomb has 10,000,000,000 bytes; all are"),
    "members": (
        lambda: b"".join(gzip.compress(sized(f"bomb-{i}", 99_999_744)) + ZEROS for i in range(100)),
        "bomb-1 has 99,999,744 bytes; all are at most 200,000,000",
    ),
    "name": (
        lambda: gzip.compress(sized("././@LongLink", 10**10, tarfile.GNUTYPE_LONGNAME)) + ZEROS * 100,
        "././@LongLink is of type b'L'",
    ),
    "pax-header": (
        lambda: gzip.compress(sized("./PaxHeaders/x", 10**10, tarfile.XHDTYPE)) + ZEROS * 100,
        "./PaxHeaders/x has 10,000,000,000 bytes; all are",
    ),
    "largest-pax-header": (
        lambda: gzip.compress(sized("./PaxHeaders/x", 199_999_488, tarfile.XHDTYPE)) + ZEROS * 2,
        f"{CUT_OFF}: ./PaxHeaders/x: it ends there",
    ),
    "pax-headers": (
        lambda: gzip.compress(sized("./PaxHeaders/x", 0, tarfile.XHDTYPE) * 20_000),
        f"{CUT_OFF}: ./PaxHeaders/x: it ends there",
    ),
    "end": (lambda: gzip.compress(END) + ZEROS * 100, "has more than 200,000,000 bytes when unpacked"),
    "end-at-the-limit": (
        lambda: gzip.compress(sized("x", 199_999_488)) + ZEROS * 2 + gzip.compress(END) + ZEROS * 20,
        "has more than 200,000,000 bytes when unpacked",
    ),
    "batch": (
        lambda: gzip.compress(sized(MEMBERS[0], 10**10)) + ZEROS * 100,
        f"{MEMBERS[0]} has 10,000,000,000 bytes",
    ),
}
LOAD_AND_PRINT_MEMORY = """
import resource, sys
from pathlib import Path
from dropout_study.datasets import cifar10
from dropout_study.console import StudyError
from tests.memory import peak
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
before = peak()
for path in sys.argv[1:]:
    try:
        cifar10.load(Path(path))
        print("loaded")
    except StudyError as error:
        print(error)
    print((peak() - before) // 1_000_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process has had")
def test_load_needs_little_memory_and_no_disk_for_archives_that_unpack_to_gigabytes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.tar.gz" for name in BOMBS]
    for path, (content, _) in zip(paths, BOMBS.values(), strict=True):
        path.write_bytes(content())

    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_PRINT_MEMORY, *map(str, paths)],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )

    lines = done.stdout.splitlines()
    for path, message, megabytes, (_, reason) in zip(paths, lines[::2], lines[1::2], BOMBS.values(), strict=True):
        assert message.startswith(f"{path}: {reason}")
        assert int(megabytes) < 50, message


def everything_in(directory: Path) -> set[str]:
    """Return the names of all files, links and directories in `directory`, at whatever depth."""
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*")}


@pytest.mark.parametrize("wrong", ["missing", "parent", "absolute", "symbolic-link", "twice-at-once", "long-name"])
def test_download_stage_writes_nothing_but_a_wrong_archive(
    tmp_path: Path, write_settings: Callable[..., Any], wrong: str
) -> None:
    """In a process of its own, where batches have the size of CIFAR-10's: another error may come first."""
    content = gzip.compress(WRONG[wrong][0]())
    sha256 = hashlib.sha256(content).hexdigest()
    outside = tmp_path / "archive.tar.gz"
    outside.write_bytes(content)
    project, temporary, home = (tmp_path / name for name in ("parent/project", "temporary", "home"))
    for directory in (project, temporary, home):
        directory.mkdir(parents=True)
    configuration = write_settings(dataset="cifar10", download__urls=[outside.as_uri()], download__sha256=sha256)
    configuration.rename(project / "params.yaml")
    before = everything_in(tmp_path)

    done = subprocess.run(
        [sys.executable, "-m", "stages.download"],
        cwd=project,
        env=os.environ
        | {"PYTHONPATH": str(PROJECT), "CIFAR10_ARCHIVE": "", "TMPDIR": str(temporary), "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if not line.startswith("archive.tar.gz: ")]
    assert error.startswith(f"error: data/downloads/{sha256}: ")
    assert everything_in(tmp_path) - before == {
        *(f"parent/project/data{name}" for name in ("", "/downloads", f"/downloads/{sha256}"))
    }
    assert not os.path.lexists("/etc/PWNED")
