"""onnx's own evaluator: slow, written in numpy by other people, and so an independent oracle."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from edgecnn.backends.base import Array, SessionOptions, Tensors
from edgecnn.errors import BackendError
from edgecnn.spec import Artifact, TensorSpec

QDQ_OPSET = 19


class ReferenceBackend:
    """Runs ONNX files on the CPU by the letter of the operators' specification."""

    name = "reference"
    formats = ("onnx",)
    requires = {"onnx": "pip install onnx"}  # noqa: RUF012 -- a constant; ClassVar would say no more

    def devices(self) -> tuple[str, ...]:
        """List `cpu`."""
        return ("cpu",)

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> ReferenceSession:
        """Parse an ONNX file from its verified bytes."""
        import onnx
        import onnx.version_converter
        from onnx.reference import ReferenceEvaluator

        data = artifact.read_bytes()
        try:
            model = onnx.load_model_from_string(data)
            version = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
            if version < QDQ_OPSET:
                # The evaluator has no QuantizeLinear older than 19; what it computes has not changed since 13.
                model = onnx.version_converter.convert_version(model, QDQ_OPSET)
            return ReferenceSession(ReferenceEvaluator(model), model)
        except Exception as error:
            raise BackendError(f"{artifact.path}: onnx's evaluator could not load it ({error})") from error


class ReferenceSession:
    """One model in onnx's evaluator."""

    device = "cpu"

    def __init__(self, evaluator: Any, model: Any) -> None:
        self._evaluator = evaluator
        self.inputs = tuple(_spec(value) for value in model.graph.input)
        self.outputs = tuple(_spec(value) for value in model.graph.output)
        self._names = [spec.name for spec in self.outputs]

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        """Run on host arrays."""
        return dict(zip(self._names, self._evaluator.run(self._names, dict(feeds)), strict=True))

    def __enter__(self) -> ReferenceSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._evaluator = None


def _spec(value: Any) -> TensorSpec:
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    shape = tuple(size.dim_value if size.dim_value > 0 else None for size in tensor.shape.dim)
    return TensorSpec(name=value.name, shape=shape, dtype=str(tensor_dtype_to_np_dtype(tensor.elem_type)))
