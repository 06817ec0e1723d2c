"""ONNX Runtime on a box, over ssh: what the device answers, compared here; `remote:int8@user@host[:path]`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import TracebackType

import msgspec
import numpy as np

from edgecnn.backends.base import Array, SessionOptions, Tensors
from edgecnn.backends.web_wire import Header, pack, unpack
from edgecnn.errors import BackendError, DeviceError, UsageError
from edgecnn.host import Host
from edgecnn.spec import Artifact, TensorSpec
from edgecnn.ssh import Connection, Destination, find_ssh, sources

TEMPLATE = "user@host[:path]"
# The last that is named is started; the second takes over with the interpreter that the first finds.
_AGENT = ("edgecnn.device.box_channel", "edgecnn.device.box_store", "edgecnn.device.box_agent")
_CHILD = ("edgecnn.device.box_channel", "edgecnn.device.remote_child")


class _AnyHost(tuple[str, ...]):
    """Lists how a device is written. Any that is asked for may be there: only a connection tells."""

    __slots__ = ()

    def __contains__(self, device: object) -> bool:
        return isinstance(device, str)


class RemoteBackend:
    """Runs ONNX files on another machine's CPU, by the edgecnn and ONNX Runtime that `edgecnn deploy` left there.

    Devices are `user@host` and `user@host:path`, where path is the folder that was deployed into. The system's ssh connects,
    with the user's configuration and the arguments in the variable EDGECNN_SSH. The bytes of the artifact are sent, unless
    the bundle that is deployed there holds them. Times measured from here include the way there and back. `start_s` and
    `run_s` say how many seconds a model may take to load and to answer.
    """

    name = "remote"
    formats = ("onnx",)

    def __init__(self, start_s: float = 120.0, run_s: float = 600.0) -> None:
        self._start_s = start_s
        self._run_s = run_s

    def devices(self) -> tuple[str, ...]:
        """Say how a device is written; no host is asked.

        Raises:
            MissingPackageError: ssh is not installed.
        """
        find_ssh()
        return _AnyHost((TEMPLATE,))

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> RemoteSession:
        """Connect to a box and load an ONNX file there, from verified bytes.

        Raises:
            DeviceError: no host is named, or it cannot be reached or run on.
            BackendError: edgecnn or ONNX Runtime is not installed there, or refused the model.
        """
        data = artifact.read_bytes()
        try:
            destination = Destination.parse("" if device == "cpu" else device)
        except UsageError:
            what = "no box is named" if device == "cpu" else f"{device!r} is no box"
            raise DeviceError(f"{what}: write remote:{artifact.name}@{TEMPLATE}") from None
        connection = Connection(destination, sources(*_AGENT))
        try:
            there = connection.request({"do": "become", "folder": destination.path, "python": None})
            connection.start(sources(*_CHILD))
            signature = self._loaded(connection, there["bundle"], artifact, data, options)
            return RemoteSession(connection, device, signature, self._run_s)
        except BackendError as error:
            connection.close()
            kind = DeviceError if isinstance(error, DeviceError) else BackendError
            raise kind(f"{artifact.path}: could not be loaded on {device} ({error})") from error
        except BaseException:
            connection.close()
            raise

    def _loaded(
        self, connection: Connection, bundle: str, artifact: Artifact, data: bytes, options: SessionOptions
    ) -> Header:
        changed = {
            field.name: value
            for field in dataclasses.fields(options)
            if (value := getattr(options, field.name)) != field.default
        }
        told = {name: getattr(artifact, name) for name in ("name", "format", "precision", "target", "sha256")}
        path = None
        if artifact.sha256 is not None:
            question = pack({"do": "find", "bundle": bundle, "sha256": artifact.sha256}, {})
            path = _answer(connection.ask(question, self._start_s))[0]["path"]
        model = {"model": np.frombuffer(data, np.uint8)} if path is None else {}
        header = {"do": "load", "path": path, "artifact": told, "options": changed}
        return _answer(connection.ask(pack(header, model), self._start_s))[0]


class RemoteSession:
    """One model on one box; `host` is that machine's fingerprint, None where it cannot be read here."""

    host: Host | None

    def __init__(self, connection: Connection, device: str, signature: Header, run_s: float) -> None:
        self._connection = connection
        self._run_s = run_s
        self.device = device
        self.inputs = msgspec.convert(signature["inputs"], tuple[TensorSpec, ...])
        self.outputs = msgspec.convert(signature["outputs"], tuple[TensorSpec, ...])
        try:
            self.host = msgspec.convert(signature["host"], Host)
        except msgspec.ValidationError:  # another version of edgecnn describes its machine otherwise
            self.host = None

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        """Run on host arrays; a connection that is lost is a DeviceError."""
        return _answer(self._connection.ask(pack({"do": "run"}, feeds), self._run_s))[1]

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()


def _answer(message: bytes) -> tuple[Header, Tensors]:
    header, tensors = unpack(message)
    if "error" in header:
        raise BackendError(" ".join(str(header["error"]).split())[:400])
    return header, tensors
