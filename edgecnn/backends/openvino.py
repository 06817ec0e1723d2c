"""OpenVINO on the CPU, computing in float32 unless the model itself says int8, and with its telemetry off."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from edgecnn.backends.base import Array, SessionOptions, Tensors
from edgecnn.errors import BackendError, DeviceError, MissingPackageError
from edgecnn.host import usable_threads
from edgecnn.spec import Artifact, TensorSpec

INSTALL = "pip install 'edgecnn[openvino]'"
# Left out: strings and bfloat16, which numpy has not, and float64, which the CPU plugin computes in float32.
_DTYPES = {
    "f32": "float32", "f16": "float16", "u8": "uint8", "i8": "int8", "i16": "int16", "u16": "uint16",
    "i32": "int32", "u32": "uint32", "i64": "int64", "u64": "uint64", "boolean": "bool",
}  # fmt: skip


class OpenVinoBackend:
    """Runs ONNX files with OpenVINO's CPU plugin."""

    name = "openvino"
    formats = ("onnx",)
    requires = {"openvino": INSTALL}  # noqa: RUF012 -- a constant; ClassVar would say no more

    def devices(self) -> tuple[str, ...]:
        """List `cpu`; loading proves that the plugin is there."""
        return ("cpu",)

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> OpenVinoSession:
        """Compile an ONNX file from its verified bytes.

        Raises:
            DeviceError: the CPU plugin is not there, or would compute in another precision than float32.
            BackendError: OpenVINO refused the model, or it takes or gives a type that cannot be kept.
        """
        openvino = import_openvino()
        data = artifact.read_bytes()
        try:
            core = openvino.Core()
            model = core.read_model(model=data)
        except Exception as error:
            raise BackendError(f"{artifact.path}: OpenVINO could not read it ({one_line(error)})") from error
        inputs, outputs = _specs(model.inputs), _specs(model.outputs)
        try:
            compiled = core.compile_model(model, "CPU", _config(options))
        except Exception as error:
            raise BackendError(f"{artifact.path}: OpenVINO could not compile it ({one_line(error)})") from error
        _insist(compiled, artifact)
        return OpenVinoSession(compiled, inputs, outputs)


class OpenVinoSession:
    """One compiled model and its one request."""

    device = "cpu"

    def __init__(self, compiled: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        # By position, as `inputs` are: a name may be one of several that OpenVINO keeps for a tensor.
        self._in = [(index, spec.name) for index, spec in enumerate(inputs)]
        self._out = [(index, spec.name) for index, spec in enumerate(outputs)]

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        """Run on host arrays; what is returned is copied, since the next run writes into the request's own tensors."""
        results = self._request.infer({index: feeds[name] for index, name in self._in}, share_inputs=True)
        return {name: results[index] for index, name in self._out}

    def property(self, name: str) -> Any:
        """Return a property of the compiled model, such as INFERENCE_PRECISION_HINT."""
        return self._compiled.get_property(name)

    def __enter__(self) -> OpenVinoSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._request = self._compiled = None


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    Its import alone sends an event to a web service, for which consent is taken where no one has refused it. An entry
    of None makes `import openvino_telemetry` fail, as where that package is not installed, and OpenVINO then takes a
    stub that sends nothing. The switches it has itself are a file in the home folder and a variable for CI.

    Raises:
        MissingPackageError: it is not installed.
    """
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"openvino is not installed here: {INSTALL}") from error
    return openvino


def one_line(error: Exception) -> str:
    """Return what OpenVINO's message says, without the lines that name its source files.

    Its messages are a pile: `Exception from FILE:LINE:` and `Check 'CONDITION' failed at FILE:LINE:` for every level
    that passed it on, and the reason below.
    """
    lines = [re.sub(r"^(Exception from|Check '.*' failed at) \S+:\d+:", "", line) for line in str(error).splitlines()]
    return " ".join(" ".join(lines).split())[:300] or type(error).__name__


def _config(options: SessionOptions) -> dict[str, Any]:
    return {
        # By itself the plugin takes bfloat16 where the CPU has it, and answers are then a hundredth off.
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        # Otherwise activations before int8 weights would be quantized too, which the model does not say.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "INFERENCE_NUM_THREADS": options.threads or usable_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }


def _insist(compiled: Any, artifact: Artifact) -> None:
    devices = compiled.get_property("EXECUTION_DEVICES")
    if list(devices) != ["CPU"]:
        raise DeviceError(f"{artifact.path}: asked OpenVINO for CPU, obtained {', '.join(devices) or 'nothing'}")
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision != "f32":
        raise DeviceError(f"{artifact.path}: asked OpenVINO to compute in f32, it chose {precision}")


def _specs(ports: Any) -> tuple[TensorSpec, ...]:
    return tuple(_spec(port) for port in ports)


def _spec(port: Any) -> TensorSpec:
    # A tensor that passes through Identity has the names of both ends; a result's own is in its friendly name.
    name = port.get_node().get_friendly_name().removesuffix("/sink_port_0")
    if name not in port.get_names():
        raise BackendError(f"OpenVINO names a tensor {sorted(port.get_names())}, and {name!r} is none of these")
    kind = port.get_element_type().get_type_name()
    if kind not in _DTYPES:
        raise BackendError(f"{name!r} is {kind}, which OpenVINO on a CPU cannot take or give as it is")
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise BackendError(f"{name!r} has no known number of dimensions, by which nothing could be checked")
    sizes = tuple(None if size.is_dynamic else int(size.get_length()) for size in shape)
    return TensorSpec(name=name, shape=sizes, dtype=_DTYPES[kind])
