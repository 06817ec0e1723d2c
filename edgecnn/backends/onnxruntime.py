"""ONNX Runtime on the CPU and on other providers; one that was asked for and not obtained is an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from edgecnn.backends import providers
from edgecnn.backends.base import Array, SessionOptions, Tensors
from edgecnn.errors import BackendError, DeviceError, EdgecnnError, MissingPackageError
from edgecnn.host import target_of_host, usable_threads
from edgecnn.spec import Artifact, TensorSpec

INSTALL = "pip install 'edgecnn[cpu]', or 'edgecnn[gpu]' for CUDA (one of the two, not both)"
FULL_RANGE_TARGETS = ("x86-64-vnni", "arm64")
_LEVELS = {
    "all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC", "disabled": "ORT_DISABLE_ALL",
}  # fmt: skip
_DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(uint8)": "uint8",
    "tensor(int8)": "int8", "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(bool)": "bool",
    "tensor(int16)": "int16", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
}  # fmt: skip


class OnnxRuntimeBackend:
    """Runs ONNX files; devices are `cpu`, with onnxruntime-gpu `cuda:0` and `tensorrt:0`, and those of plugins."""

    name = "onnxruntime"
    formats = ("onnx",)
    honours = ("spinning", "optimization")
    concurrent = True
    requires = {"onnxruntime": INSTALL}  # noqa: RUF012 -- a constant; ClassVar would say no more

    def devices(self) -> tuple[str, ...]:
        """List `cpu`, what the installed wheel holds providers for, and the plugins there are; loading proves the rest."""
        held = import_onnxruntime().get_available_providers()
        wheel = [device for device, provider in providers.WHEEL.items() if provider in held]
        return ("cpu", *wheel, *providers.plugins())

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> OnnxRuntimeSession:
        """Load an ONNX file from its verified bytes.

        Raises:
            DeviceError: the device's provider is not there or left nodes to the CPU.
            BackendError: ONNX Runtime refused the model.
        """
        ort = import_onnxruntime()
        data = artifact.read_bytes()
        try:
            native = _session_options(ort, artifact, device, options)
            plugin = providers.plugins().get(device)
            if plugin:
                wanted, chosen = providers.attach(ort, native, plugin), None
            else:
                wanted, settings = providers.builtin(device, artifact.precision)
                chosen = [(wanted, settings)]
            session = ort.InferenceSession(data, native, providers=chosen, enable_fallback=0)
        except EdgecnnError:
            raise
        except Exception as error:  # onnxruntime raises a dozen types of its own, all meaning: it did not load
            kind = DeviceError if device != "cpu" else BackendError
            raise kind(f"{artifact.path}: ONNX Runtime could not load it on {device} ({_first_line(error)})") from error
        got = session.get_providers()[0]
        if got != wanted:
            raise DeviceError(f"{artifact.path}: asked for {wanted}, ONNX Runtime gave {got}")
        if plugin:
            providers.insist(session, wanted, artifact)
        return OnnxRuntimeSession(session, device)


class OnnxRuntimeSession:
    """One InferenceSession on one device."""

    def __init__(self, session: Any, device: str) -> None:
        self._session = session
        self.device = device
        self.inputs = tuple(_spec(value) for value in session.get_inputs())
        self.outputs = tuple(_spec(value) for value in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        # The Python method around the native one checks the names again, and where a provider fails while running it
        # goes on with the CPU without a word. The native one takes the same arguments and does neither.
        self._run = getattr(session, "_sess", session).run

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        """Run on host arrays."""
        return dict(zip(self._names, self._run(self._names, feeds, None), strict=True))

    @property
    def metadata(self) -> dict[str, str]:
        """The key-value metadata stored in the model file."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def __enter__(self) -> OnnxRuntimeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = self._run = None


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, with its telemetry and its warnings off.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"onnxruntime is not installed here: {INSTALL}") from error
    onnxruntime.disable_telemetry_events()  # for a process that had imported it before edgecnn
    onnxruntime.set_default_logger_severity(3)  # warnings about its own internals are not for the user
    return onnxruntime


def _session_options(ort: Any, artifact: Artifact, device: str, options: SessionOptions) -> Any:
    native = ort.SessionOptions()
    native.intra_op_num_threads = options.threads or usable_threads()
    native.inter_op_num_threads = 1
    native.log_severity_level = 3
    native.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[options.optimization])
    native.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
    if artifact.target in FULL_RANGE_TARGETS and target_of_host() == "x86-64":
        # Without VNNI the 16 bit sums of full-range int8 weights saturate; this computes them right, only slower.
        native.add_session_config_entry("session.x64quantprecision", "1")
    if device.partition(":")[0] in ("cuda", "tensorrt"):
        # Without this ONNX Runtime only warns and runs what the provider cannot on the CPU.
        native.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return native


def _spec(value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    if value.type not in _DTYPES:
        raise BackendError(f"{value.name!r} is a {value.type}, which has no numpy type and cannot be fed from here")
    return TensorSpec(name=value.name, shape=shape, dtype=_DTYPES[value.type])


def _first_line(error: Exception) -> str:
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    return " ".join(text.split())[:300] or type(error).__name__
