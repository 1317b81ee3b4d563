"""What the article's network looks like, as far as it has to be known without TensorFlow."""


def is_pooled(convolution: int) -> bool:
    """Return whether max-pooling by 2 follows the convolution with this number (1, 2, …): all but the first."""
    return convolution > 1
