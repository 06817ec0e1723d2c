"""int8 and fp16 from any float ONNX CNN: calibrated, placed, proved and gated; needs onnx and onnxruntime."""

from importlib.util import find_spec

from edgecnn.errors import MissingPackageError


def require() -> None:
    """See that the packages are there before a module of this package imports them.

    Raises:
        MissingPackageError: one is not; the message says how to get it.
    """
    for name, extra in (("onnx", "train"), ("onnxruntime", "cpu")):
        if find_spec(name) is None:
            raise MissingPackageError(
                f"quantization needs {name}, which is not installed: pip install 'edgecnn[{extra}]'"
            )
