"""Sources of labelled images, their splits, and what is wrong with them; `open_data` is the way in."""

from edgecnn.data.dataset import DataOptions, Dataset, LabelledImages
from edgecnn.data.open import open_data

__all__ = ["DataOptions", "Dataset", "LabelledImages", "open_data"]
