"""scikit-learn's bundled handwritten digits, in CIFAR-10's shape: a demonstration that needs no network."""

import numpy as np

from dropout_study.datasets import DATASETS, Arrays


def load() -> Arrays:
    """Return the 1,797 digits: 8×8 grey levels 0 … 16 doubled to 16×16, stretched to 0 … 255, three channels.

    The split is fixed and stratified by class. Only 400 images are for training, so that there is something to
    overfit; the other 1,397 are for the test, which makes it sharper.
    """
    from sklearn.datasets import load_digits  # half a second that CIFAR-10 does not need
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(np.repeat(grey, 2, axis=1), 2, axis=2)
    images = np.repeat(images[..., None], 3, axis=3)
    labels = digits.target.astype(np.uint8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=DATASETS["digits"].test_images, stratify=labels, random_state=0
    )
    return Arrays(train_images, train_labels, test_images, test_labels)
