"""What the `remote` backend runs on the box: it holds one model in the box's own edgecnn and answers until its input ends.

It is sent over ssh and run by the interpreter of what is deployed there. Messages are those of `edgecnn.backends.web_wire`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn.device.box_channel import Channel

if TYPE_CHECKING:
    from edgecnn.backends.base import CheckedSession, Tensors

INSTALL = "`edgecnn deploy --install` puts it there"


def main() -> None:
    """Answer requests: to look a model up, to load it, and to run it; what is refused is answered with its reason."""
    channel = Channel()
    try:
        from edgecnn.backends.web_wire import pack, unpack
    except ModuleNotFoundError as error:
        channel.message()
        channel.answer({"error": f"{error.name} is not installed there: {INSTALL}", "tensors": []})
        return
    session: CheckedSession | None = None
    while True:
        header, tensors = unpack(channel.message())
        answer: dict[str, Any] = {}
        outputs: Tensors = {}
        try:
            if header["do"] == "find":
                answer = {"path": _find(Path(header["bundle"]), header["sha256"])}
            elif header["do"] == "load":
                session = _load(header, tensors)
                answer = _signature(session)
            elif session is not None:
                outputs = session.run(tensors)
        except Exception as error:  # runtimes raise a dozen types of their own
            answer = {"error": str(error) or type(error).__name__}
        channel.send(pack(answer, outputs))


def _find(bundle: Path, sha256: str) -> str | None:
    """Find the model in the bundle that is deployed, by its hash."""
    for path in bundle.glob("*.onnx"):
        if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return str(path.resolve())
    return None


def _load(header: dict[str, Any], tensors: Tensors) -> CheckedSession:
    from edgecnn.backends.base import SessionOptions, open_session
    from edgecnn.errors import EdgecnnError, MissingPackageError
    from edgecnn.spec import Artifact, BackendRef

    known = {field.name for field in dataclasses.fields(SessionOptions)}
    unknown = sorted(set(header["options"]) - known)
    if unknown:
        raise RuntimeError(f"the edgecnn there does not know {unknown[0]}, which is asked for: {INSTALL}")
    options = SessionOptions(**header["options"])
    with tempfile.TemporaryDirectory(prefix="edgecnn-remote-") as folder:
        path = Path(header["path"] or Path(folder) / "model.onnx")
        if header["path"] is None:
            path.write_bytes(tensors["model"].tobytes())
        artifact = Artifact(path=path, **header["artifact"])
        try:
            return open_session(BackendRef(backend="onnxruntime"), artifact, options)
        except MissingPackageError as error:
            raise RuntimeError(f"{error}: {INSTALL}") from error
        except EdgecnnError as error:  # the other side names the file, as it is called there
            raise RuntimeError(str(error).replace(f"{path}: ", "")) from error


def _signature(session: CheckedSession) -> dict[str, Any]:
    from edgecnn import host
    from edgecnn.spec import to_json

    specs = {side: json.loads(to_json(getattr(session, side))) for side in ("inputs", "outputs")}
    return {**specs, "host": json.loads(to_json(host.fingerprint()))}
