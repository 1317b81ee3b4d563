"""A versioned study of dropout: the library behind the pipeline in `dvc.yaml`."""

import os

# A notebook sets this for its children, and Keras imports matplotlib. No window is shown, and the backend that it names
# may not be installed here.
os.environ.pop("MPLBACKEND", None)
