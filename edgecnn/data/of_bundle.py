"""Find the test images that a bundle was measured on, where they are still at hand."""

from __future__ import annotations

import msgspec

from edgecnn.data.dataset import DataOptions, LabelledImages
from edgecnn.data.open import open_data
from edgecnn.errors import DataError, EdgecnnError, SchemaError
from edgecnn.manifest import Manifest


def find_test_images(manifest: Manifest, source: str | None) -> tuple[LabelledImages | None, str | None]:
    """Open `source`, or where the manifest says the data came from, and return its test split.

    Returns:
        The images, or None where the recorded place does not hold them, and a note for the user or None.

    Raises:
        DataError: `source` was named and cannot be used.
    """
    try:
        options = msgspec.convert(manifest.provenance.training.get("data_options", {}), type=DataOptions)
    except msgspec.ValidationError as error:
        raise SchemaError(f"the manifest's provenance.training.data_options: {error}") from None
    side = manifest.preprocess
    options = msgspec.structs.replace(options, size=side.height, channels=side.channels, fit=side.fit, strict=False)
    try:
        dataset = open_data(source or manifest.provenance.data, options)
        if dataset.labels != manifest.labels:
            raise DataError(
                f"{source or manifest.provenance.data}: its classes ({', '.join(dataset.labels[:5])}, ...) are not the bundle's"
            )
    except EdgecnnError as error:
        if source is not None:
            raise
        return None, f"no labelled images, so decisions are not measured; name some with --data ({error})"
    if dataset.test.sha256() != manifest.provenance.test_sha256:
        if source is None:
            return (None, f"{manifest.provenance.data} is not the data of this bundle any more; name some with --data")
        return (dataset.test, "these are not the images that the bundle was measured on; their test split is used")
    return dataset.test, None
