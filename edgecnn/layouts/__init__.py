"""A bundle's artifacts as other servers and runtimes want them on the disk; the models in them are the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgecnn.bundle import Bundle
from edgecnn.errors import UsageError
from edgecnn.files import folder_atomic
from edgecnn.layouts.ort_package import EVIDENCE, write_ort_package
from edgecnn.layouts.triton import REPOSITORY, write_triton

WRITERS: dict[str, Callable[[Bundle, Path], list[str]]] = {
    "triton": write_triton,
    "ort-model-package": write_ort_package,
}
_MARKS = {"triton": REPOSITORY, "ort-model-package": EVIDENCE}


def write_layout(bundle: Bundle, layout: str, out: Path) -> list[str]:
    """Write a verified bundle's ONNX artifacts to the folder `out` and return what to say about them, a line each.

    Raises:
        BundleError: a file is not what the manifest recorded.
        UsageError: something that is not such a layout is there already, or the bundle holds no ONNX artifact.
    """
    if not any(record.format == "onnx" for record in bundle.manifest.artifacts.values()):
        raise UsageError(f"{bundle.where}: holds no ONNX artifact, which is all that --layout {layout} can carry")
    if out.exists() and not (out / _MARKS[layout]).exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out}: exists and is no {layout}, so it will not be replaced; choose another folder")
    bundle.verify()
    with folder_atomic(out) as temporary:
        return WRITERS[layout](bundle, temporary)
