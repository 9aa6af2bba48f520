"""A metric of one's own: `optimize … --metric examples/extending/metric.py:worst_class`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def worst_class(outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of correct answers for the class that is recognized least; higher is better.

    Args:
        outputs: the model's logits, stacked over the samples, shape (samples, classes).
        labels: class numbers, shape (samples,).
    """
    correct = outputs.argmax(1) == labels
    return min(float(np.mean(correct[labels == label])) for label in np.unique(labels))
