"""What both training and evaluation have to know, without TensorFlow."""

import math
from collections.abc import Sequence


def is_pooled(convolution: int) -> bool:
    """Return whether max-pooling by 2 follows the convolution with this number (1, 2, …): all but the first."""
    return convolution > 1


def best_epoch(validation_losses: Sequence[float]) -> int:
    """Return the number (1, 2, …) of the epoch with the lowest finite loss, the first of equals; 0 if there is none."""
    finite = [(loss, epoch) for epoch, loss in enumerate(validation_losses, start=1) if math.isfinite(loss)]
    return min(finite)[1] if finite else 0
