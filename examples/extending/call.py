"""What surrounds the model in a service: `--pre …/call.py:stretch --post …/call.py:name`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

GARMENTS = "T-shirt Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Boot".split()


def stretch(sample: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Stretch an image's contrast to the whole range; takes and gives arrays by input name."""
    image = sample["image"].astype(np.float32)
    low, high = image.min(), image.max()
    return {"image": (255 * (image - low) / max(high - low, 1)).astype(np.uint8)}


def name(outputs: dict[str, NDArray[Any]]) -> str:
    """Name the garment; takes arrays by output name, gives whatever the service needs."""
    return GARMENTS[int(outputs["output"].argmax())]
