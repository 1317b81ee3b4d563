import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.clones import PROJECT

SAVE = """
import numpy as np
from pathlib import Path
from dropout_study.model_file import save_model
from dropout_study.network import build_network
network = build_network(
    (16, 16, 3), 10, filters=[3, 4], units=[5], first_activation="relu", dropout=0.5, seed=3,
    scale=[0.01] * 3, offset=[-1] * 3,
)
save_model(network, [*"0123456789"], Path("model.keras"))
np.save("expected.npy", network(np.load("pixels.npy")))
"""
LOAD = """
import keras, numpy as np
model = keras.models.load_model("model.keras", safe_mode=True)
np.save("found.npy", model.predict(np.load("pixels.npy"), verbose=0))
"""


def test_save_model_writes_equal_bytes_for_equal_models_that_stock_keras_loads(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)

    def run(code: str, **variables: str) -> None:
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            env=os.environ | variables,
        )

    saved = []
    for _ in range(2):
        run(SAVE, PYTHONPATH=str(PROJECT))
        saved.append((tmp_path / "model.keras").read_bytes())
        time.sleep(2)  # the times in a zip archive have a resolution of two seconds
    assert saved[0] == saved[1]
    run(LOAD)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), np.load(tmp_path / "expected.npy"), rtol=1e-5)
