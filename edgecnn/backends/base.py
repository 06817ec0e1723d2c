"""The contract of a backend, and the one place where it is enforced for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgecnn import registry
from edgecnn.errors import BackendError, ContractError, DeviceError, EdgecnnError
from edgecnn.spec import Artifact, BackendRef, TensorSpec

Array = npt.NDArray[Any]
Tensors = dict[str, Array]


# Fields of SessionOptions that a backend may lack: what it does not name in `honours` cannot be asked of it.
SETTINGS = ("spinning", "optimization")
Optimization = Literal["all", "extended", "basic", "disabled"]


@dataclass(frozen=True)
class SessionOptions:
    """How to run: `threads` None means all that this process may use; `dtype` is for backends that can choose.

    `spinning` lets threads that wait for work burn their core instead of sleeping; `optimization` is how far the graph is
    rewritten when it is loaded. A backend that has these settings names them in `honours`; others refuse to be asked.
    """

    threads: int | None = None
    dtype: Literal["float32", "float64"] = "float32"
    spinning: bool = False
    optimization: Optimization = "all"


class Session(Protocol):
    """A loaded, runnable model; a context manager."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""

    @property
    def device(self) -> str:
        """The device that was obtained, for example `cpu` or `cuda:0`."""

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        """Run synchronously on host arrays and return host arrays."""

    def __enter__(self) -> Session:
        """Return the session."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Release what the session holds."""


class Backend(Protocol):
    """Loads artifacts of some formats on some devices.

    A class may also state `requires: dict[str, str]`, from a module's name to the way to install it, and
    `honours: tuple[str, ...]`, which of `SETTINGS` it follows, and `timed = False`, where the time it takes says nothing of
    its devices, and `concurrent = True`, where several threads may run one session on the CPU at once; and have a method
    `missing() -> dict[str, str]`, from devices that it could have here to what they need.
    """

    name: str
    formats: tuple[str, ...]

    def devices(self) -> tuple[str, ...]:
        """List the devices that can be asked for on this machine."""

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> Session:
        """Load one artifact on one device, or raise a BackendError."""


class CheckedSession:
    """A session behind the contract: names, dtypes and shapes are checked on the way in and out."""

    def __init__(self, session: Session) -> None:
        self.inner = session
        self.inputs = session.inputs
        self.outputs = session.outputs
        self.device = session.device
        self._run = session.run
        self._in: Expected = [(spec.name, np.dtype(spec.dtype), set(), spec) for spec in self.inputs]
        self._out: Expected = [(spec.name, np.dtype(spec.dtype), set(), spec) for spec in self.outputs]
        if not self._in or not self._out:
            raise ContractError("a session must have at least one input and one output")

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        """Run, with every tensor checked.

        Raises:
            ContractError: a name is missing or unknown, or a dtype or shape differs from the specification.
            BackendError: the backend failed while running, with whatever it raised as the cause.
        """
        _check(feeds, self._in, "input")
        try:
            outputs = self._run(feeds)
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise BackendError(f"failed while running on {self.device}: {reason}") from error
        _check(outputs, self._out, "output")
        return outputs

    def __enter__(self) -> CheckedSession:
        self.inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run = _closed
        self.inner.__exit__(kind, error, trace)


def _closed(feeds: Mapping[str, Array]) -> Tensors:
    raise BackendError("the session is closed")


# For each tensor its name, dtype, the shapes that were found good before, and its specification.
Expected = list[tuple[str, np.dtype[Any], set[tuple[int, ...]], TensorSpec]]


def _check(tensors: Mapping[str, Array], expected: Expected, side: str) -> None:
    # This runs twice in every inference of a net that takes 30 microseconds: a shape is worked out only once.
    if len(tensors) != len(expected):
        _explain_names(tensors, expected, side)
    for name, dtype, known, spec in expected:
        array = tensors.get(name)
        if type(array) is np.ndarray and array.dtype is dtype and array.shape in known:
            continue
        if array is None:
            _explain_names(tensors, expected, side)
        else:
            _check_one(array, name, dtype, known, spec, side)


def _check_one(
    array: Array, name: str, dtype: np.dtype[Any], known: set[tuple[int, ...]], spec: TensorSpec, side: str
) -> None:
    if not isinstance(array, np.ndarray):
        found = f"{array.dtype} {array.shape}" if hasattr(array, "dtype") else "no array"
        raise ContractError(f"{side} {name!r} is a {type(array).__name__} ({found}); a numpy array is needed")
    if array.dtype != dtype or not array.size or not spec.accepts(array.shape):
        raise ContractError(
            f"{side} {name!r} is {array.dtype} {array.shape}; the model's is {spec.dtype} {_written(spec.shape)}"
        )
    known.add(array.shape)


def _explain_names(tensors: Mapping[str, Array], expected: Expected, side: str) -> None:
    raise ContractError(f"the {side}s are named {sorted(tensors)}; the model's are {[entry[0] for entry in expected]}")


def _written(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("N" if size is None else str(size) for size in shape) + ")"


def open_session(
    ref: BackendRef, artifact: Artifact, options: SessionOptions | None = None, backend: Backend | None = None
) -> CheckedSession:
    """Load an artifact as `ref` asks and put it behind the contract.

    Raises:
        RegistryError: the backend is unknown, broken or not installed.
        DeviceError: the device is not there, or another one was obtained.
        BackendError: the backend does not read this format, lacks a setting that was asked for, or failed to load it.
    """
    backend = backend if backend is not None else registry.get(registry.BACKENDS, ref.backend)
    if artifact.format not in backend.formats:
        raise BackendError(
            f"{ref.backend} reads {', '.join(backend.formats)}, and {artifact.path.name} is {artifact.format}"
        )
    if ref.device not in backend.devices():
        have = ", ".join(backend.devices()) or "none"
        missing: dict[str, str] = getattr(backend, "missing", dict)()
        told = f"; {missing[ref.device]}" if ref.device in missing else ""
        raise DeviceError(f"{ref}: no device {ref.device!r} on this machine for {ref.backend}; it has: {have}{told}")
    options = options or SessionOptions()
    _refuse_unknown(ref, backend, options)
    try:
        session = backend.load(artifact, ref.device, options)
    except EdgecnnError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BackendError(f"{ref}: {artifact.path} could not be loaded: {reason}") from error
    if session.device != ref.device:
        raise DeviceError(f"{ref}: asked for {ref.device} and obtained {session.device}; refusing to go on elsewhere")
    return CheckedSession(session)


def _refuse_unknown(ref: BackendRef, backend: Backend, options: SessionOptions) -> None:
    """Hold a request to what the backend can be asked: a setting that it would pass over in silence is an error."""
    honoured: tuple[str, ...] = getattr(backend, "honours", ())
    for name in SETTINGS:
        asked, plain = getattr(options, name), getattr(SessionOptions(), name)
        if asked != plain and name not in honoured:
            raise BackendError(
                f"{ref}: {ref.backend} has no setting for {name} ({asked} was asked for); leave it as it is"
            )
