"""Image files damaged at random, each read as `predict` reads it, in a process that may use little memory and time.

`python -m tests.mutated_images --seed SEED --count COUNT` prints what became of them as JSON. The same seed gives the
same files; one that fails is kept, and named with its seed.
"""

import argparse
import io
import json
import random
import resource
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from dropout_study.console import StudyError
from dropout_study.images import read_image
from tests.memory import peak

CPU_SECONDS_EACH = 20  # far above the worst, far below for ever
MEGABYTES = 4_000  # beyond what the process has: more would be taken from the machine
MODES = {
    "bmp": ("RGB", "L", "P"),
    "gif": ("P", "L"),
    "jpeg": ("RGB", "L", "CMYK"),
    "png": ("RGB", "RGBA", "P", "L", "LA", "I;16", "1"),
    "ppm": ("RGB", "L", "1"),
    "tiff": ("RGB", "RGBA", "L", "CMYK", "I;16", "F"),
    "webp": ("RGB", "RGBA"),
}
OPTIONS: dict[str, tuple[dict[str, object], ...]] = {
    "gif": ({}, {"save_all": True, "append_images": [Image.new("P", (24, 16), 3)]}),
    "jpeg": ({}, {"progressive": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"}),
    "tiff": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "packbits"}),
    "webp": ({}, {"lossless": True}),
}
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]


def originals() -> dict[str, list[bytes]]:
    """Return small valid files by format, in many modes and ways to save."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    files: dict[str, list[bytes]] = {}
    for kind, modes in MODES.items():
        for mode in modes:
            grey = Image.fromarray(pixels[..., 0])
            if mode == "I;16":
                image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
            else:
                image = Image.fromarray(pixels).convert(mode)
            for options in OPTIONS.get(kind, ({},)):
                content = io.BytesIO()
                image.save(content, kind, **options)
                files.setdefault(kind, []).append(content.getvalue())
    return files


def mutated(chance: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Return `content` with one to eight faults: flipped bits, extreme numbers, cuts, and pieces of `others`."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 8])):
        # Half of the faults are where the header is, which has the sizes.
        start = chance.randrange(min(len(data), chance.choice([64, len(data)]))) if data else 0
        length = chance.choice([1, 4, 16, 256])
        match chance.randrange(6):
            case 0 if data:
                data[start] ^= 1 << chance.randrange(8)
            case 1:
                size = chance.choice([1, 2, 4])
                number = chance.choice(EXTREMES) & (256**size - 1)
                data[start : start + size] = number.to_bytes(size, chance.choice(["little", "big"]))
            case 2:
                del data[start:]
            case 3:
                del data[start : start + length]
            case 4:
                data[start:start] = data[start : start + length] * chance.choice([1, 2, 50])
            case 5:
                other = chance.choice(others)
                place = chance.randrange(len(other))
                data[start : start + length] = other[place : place + length]
    if data.startswith(b"\x89PNG") and chance.randrange(4):  # else few get beyond the checksums
        correct_checksums(data)
    return bytes(data)


def correct_checksums(png: bytearray) -> None:
    """Give every chunk of a PNG file the checksum of what it now holds."""
    place = 8
    while place + 12 <= len(png):
        end = place + 8 + int.from_bytes(png[place : place + 4])
        if end + 4 <= len(png):
            png[end : end + 4] = zlib.crc32(png[place + 4 : end]).to_bytes(4)
        place = end + 4


def outcome(path: Path) -> str:
    """Read an image: "read" or "refused", each as it should be."""
    try:
        pixels = read_image(path, (16, 16))
    except StudyError as error:
        return "refused" if str(error).isprintable() else "refused in several lines"
    return "read" if pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8 else "another array"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    files = originals()
    everything = [content for contents in files.values() for content in contents]
    page = Path("/proc/self/statm").read_text().split()[0]
    limit = int(page) * resource.getpagesize() + MEGABYTES * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = peak()
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as directory:
        for i in range(options.count):
            kind = chance.choice(list(files))
            path = Path(directory) / f"{i}.{kind}"
            content = mutated(chance, chance.choice(files[kind]), everything)
            path.write_bytes(content)
            cpu = time.process_time()
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu) + CPU_SECONDS_EACH, -1))  # else SIGXCPU ends it
            try:
                outcomes[f"{kind}: {outcome(path)}"] += 1
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"mutated-{options.seed}-{i}.{kind}"
                kept.write_bytes(content)
                print(f"--seed {options.seed}: file {i} failed, kept as {kept}", file=sys.stderr)
                raise
            slowest = max(slowest, time.process_time() - cpu)
            path.unlink()
    taken = peak() - before
    print(json.dumps({"outcomes": dict(sorted(outcomes.items())), "slowest": round(slowest, 3), "bytes": taken}))


if __name__ == "__main__":
    main()
