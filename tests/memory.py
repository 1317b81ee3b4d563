"""How much memory a process has needed."""

import re
from pathlib import Path


def peak() -> int:
    """Return the bytes that this process had at most. Only Linux tells.

    Not by `ru_maxrss`, which a process inherits from the one that started it: from pytest, which may have had more.
    """
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024
