"""The data that a bundle was measured on, found again or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from photos import GOOD, noise, write_npz

from edgecnn.bundle import Bundle
from edgecnn.data import open_data
from edgecnn.data.of_bundle import find_test_images
from edgecnn.errors import DataError, EdgecnnError


def test_the_test_images_of_a_bundle_are_found(bundle_folder: Path) -> None:
    """The test split that a bundle was measured on is found where the manifest says, without a note."""
    manifest = Bundle.open(bundle_folder).manifest
    images, note = find_test_images(manifest, None)
    assert note is None
    assert images is not None
    assert images.sha256() == open_data("digits").test.sha256() == manifest.provenance.test_sha256


def test_other_images_for_a_bundle_are_told_apart(bundle_folder: Path, tmp_path: Path) -> None:
    """Another set of the same classes is used with a note, one of other classes is refused, a lost one is noted."""
    manifest = Bundle.open(bundle_folder).manifest
    same = write_npz(tmp_path / "same.npz", x_train=noise(100, 8, 8), y_train=np.arange(100) % 10)
    images, note = find_test_images(manifest, same)
    assert images is not None
    assert "not the images that the bundle was measured on" in str(note)
    with pytest.raises(DataError, match=r"its classes \(0, 1, \.\.\.\) are not the bundle's"):
        find_test_images(manifest, write_npz(tmp_path / "other.npz", **GOOD))
    provenance = msgspec.structs.replace(manifest.provenance, data=str(tmp_path / "gone"))
    images, note = find_test_images(msgspec.structs.replace(manifest, provenance=provenance), None)
    assert images is None
    assert "is not there" in str(note)
    provenance = msgspec.structs.replace(manifest.provenance, data=same)
    images, note = find_test_images(msgspec.structs.replace(manifest, provenance=provenance), None)
    assert images is None
    assert "is not the data of this bundle any more" in str(note)


@pytest.mark.parametrize("options", [{"seed": "x"}, {"surprise": 1}, 5], ids=str)
def test_foreign_data_options_are_an_error_of_ours(bundle_folder: Path, options: Any) -> None:
    """A manifest whose data options make no sense is one of edgecnn's errors, not a crash."""
    manifest = Bundle.open(bundle_folder).manifest
    training = {**manifest.provenance.training, "data_options": options}
    provenance = msgspec.structs.replace(manifest.provenance, training=training)
    with pytest.raises(EdgecnnError):
        find_test_images(msgspec.structs.replace(manifest, provenance=provenance), "digits")
