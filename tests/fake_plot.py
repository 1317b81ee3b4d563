"""A plot stage that draws nothing, for tests of what surrounds it: copied over `stages/plot.py`.

Like the real one, it writes the tables and pictures that dvc.yaml names, first the script of the page.
"""

import hashlib

from dropout_study import files
from dropout_study.console import run_stage
from dropout_study.settings import load_settings


def main() -> None:
    settings = load_settings()
    files.write_bytes(files.VEGA, b"// a script")
    digest = hashlib.sha256(files.STUDY.read_bytes() + settings.dataset.encode()).hexdigest()
    for path in (files.SUMMARY, files.HISTORIES, files.PIXELS):
        files.write_csv(path, ("digest",), [(digest,)])
    for name in ("loss", "confusion", "samples"):
        files.write_bytes(files.PLOTS / f"{name}.png", digest.encode())


if __name__ == "__main__":
    run_stage(main, "Pretend to draw.")
