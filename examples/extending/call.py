"""What surrounds the model in a service: `--pre …/call.py:stretch --post …/call.py:name`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

GARMENTS = "T-shirt Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Boot".split()


def stretch(sample: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Stretch an image's contrast to the whole range, and add the model's batch axis.

    Args:
        sample: arrays as they are in the data; here ``image``, shape (1, 28, 28).

    Returns:
        Arrays as the model takes them; here ``image``, shape (1, 1, 28, 28).
    """
    image = sample["image"].astype(np.float32)
    low, high = image.min(), image.max()
    stretched = 255 * (image - low) / max(high - low, 1)
    return {"image": stretched.astype(np.uint8)[None]}


def name(outputs: dict[str, NDArray[Any]]) -> str:
    """Name the garment; takes arrays by output name, gives whatever the service needs."""
    return GARMENTS[int(outputs["output"].argmax())]
