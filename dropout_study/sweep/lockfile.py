"""dvc.lock as text, a stage a block: taken apart, and put together, in milliseconds where DVC takes seconds."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

HEADER = "schema: '2.0'\nstages:\n"


def split(text: str) -> dict[str, str]:
    """Return the blocks of a dvc.lock by the name of their stage, in order."""
    blocks: dict[str, str] = {}
    name = ""
    for line in text.removeprefix(HEADER).splitlines(keepends=True):
        if re.match(r"  \S", line):
            name = line.strip().removesuffix(":").strip("'\"")
            blocks[name] = ""
        if name:
            blocks[name] += line
    return blocks


def join(blocks: Mapping[str, str]) -> str:
    """Return the dvc.lock that has these blocks."""
    return HEADER + "".join(blocks.values())


def only(text: str, stages: Iterable[str]) -> str:
    """Return a dvc.lock with nothing but `stages` of the one in `text`: what DVC reads and writes fast."""
    blocks = split(text)
    return join({name: blocks[name] for name in stages if name in blocks})


def merged(text: str, entries: Mapping[str, str], order: Sequence[str]) -> str:
    """Return a dvc.lock with new blocks: in place of old ones, else at the end, in the order of the stages `order`.

    That is where `dvc repro` puts them. If they come in several times, those at the end are brought into order, too.
    """
    blocks = {**split(text), **entries}
    place = {name: i for i, name in enumerate(order)}
    last = [*takewhile(place.__contains__, reversed(blocks))]
    names = [*blocks][: len(blocks) - len(last)] + sorted(last, key=place.__getitem__)
    return join({name: blocks[name] for name in names})
