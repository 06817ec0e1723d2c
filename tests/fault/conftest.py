"""The bundles that faults are planted into, and labelled images for them. All are read only: copy before planting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from fault.bundles import colour_bundle
from fault.faults import full_range
from once import made_once

from edgecnn.bundle import Bundle
from edgecnn.data import LabelledImages
from edgecnn.data.of_bundle import find_test_images


@pytest.fixture(scope="session")
def clean(bundle_folder: Path, shared_tmp: Path) -> Mapping[str, Path]:
    """Return the bundles by the names that faults call them by."""

    def make(folder: Path) -> None:
        full_range(bundle_folder, folder / "full")
        colour_bundle(folder)

    made = made_once(shared_tmp, "faults", make)
    return {"digits": bundle_folder, "colour": made / "bundle", "full range": made / "full"}


@pytest.fixture(scope="session")
def test_images(bundle_folder: Path) -> LabelledImages:
    """Return all test images that the digits' bundle was measured on."""
    images, note = find_test_images(Bundle.open(bundle_folder).manifest, None)
    assert images is not None
    assert note is None
    return images


@pytest.fixture(scope="session")
def digits(test_images: LabelledImages) -> LabelledImages:
    """Return the first of them."""
    return test_images.subset(np.arange(40))
