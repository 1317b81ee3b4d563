"""One script per stage of `dvc.yaml`; each reads settings, calls the library and writes its outputs."""

import os

# A notebook sets this for its children. No stage shows a window, and the backend may not be installed here.
os.environ.pop("MPLBACKEND", None)
