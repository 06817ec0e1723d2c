"""scikit-learn's 1,797 real handwritten digits, 8x8: the built-in set."""

from __future__ import annotations

import numpy as np

from edgecnn.data.dataset import Item, Listing
from edgecnn.errors import MissingPackageError


def list_digits() -> Listing:
    """List the digits, grey levels 0 to 16 stretched to 0 to 255.

    There is no official split. Two in five images are held out for the test: that many are needed before an
    int8 model that flips an answer or two can be shown to be within one point of float32.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MissingPackageError("the digits need scikit-learn: pip install 'edgecnn[train]'") from error
    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    items = [
        Item(f"digit-{index:04d}", int(label), image)
        for index, (image, label) in enumerate(zip(pixels, bunch.target, strict=True))
    ]
    return Listing(labels=tuple(str(digit) for digit in range(10)), items=items, val=0.1, test=0.4)
