"""The conformance suite: what every backend and exporter must do, ours and theirs.

A third party runs it in a test of its own::

    from edgecnn.testing import check_backend
    check_backend(MyBackend(), Artifact(name="fp32", format="onnx", path=bundle / "fp32.onnx"))
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable

import numpy as np

from edgecnn.backends.base import Backend, CheckedSession, SessionOptions, Tensors, open_session
from edgecnn.errors import BackendError, ContractError, DeviceError, EdgecnnError
from edgecnn.exporter import Exported, Exporter, ExportRequest
from edgecnn.spec import Artifact, BackendRef, TensorSpec

BATCH = 3
# A batch may be computed in another order than single images, by float32's rounding and no more.
ROW_TOLERANCE = 1e-3


def check_backend(backend: Backend, artifact: Artifact, device: str | None = None) -> None:
    """Hold a backend to the contract on one artifact that it reads.

    Raises:
        ContractError: the first promise that it breaks.
        BackendError: it could not load the artifact at all.
    """
    _hold(bool(backend.name) and all(backend.formats), "a backend states its name and the formats it reads")
    _hold(artifact.format in backend.formats, f"{backend.name} does not read {artifact.format}")
    devices = backend.devices()
    _hold(bool(devices) and len(set(devices)) == len(devices), "devices() lists each device once, and at least one")
    ref = BackendRef(backend=backend.name, device=device or devices[0])
    with open_session(ref, artifact, SessionOptions(threads=1), backend) as session:
        _check_answers(session)
        _check_refusals(session)
    nowhere = BackendRef(backend=backend.name, device="nowhere:0")
    _refuses(DeviceError, lambda: open_session(nowhere, artifact, None, backend), "a device that is not there")
    strange = Artifact(name=artifact.name, format="no-such-format", path=artifact.path)
    _refuses(BackendError, lambda: open_session(ref, strange, None, backend), "a format it does not read")
    wrong = Artifact(
        name=artifact.name, format=artifact.format, path=artifact.path, sha256=hashlib.sha256().hexdigest()
    )
    _refuses(EdgecnnError, lambda: open_session(ref, wrong, None, backend), "a file whose hash is not the recorded one")


def check_exporter(exporter: Exporter, request: ExportRequest) -> Exported:
    """Hold an exporter to the contract on one request, and return what it wrote.

    Raises:
        ContractError: the first promise that it breaks.
        ExportError: it could not export at all.
    """
    _hold(bool(exporter.name) and bool(exporter.artifact), "an exporter states its name and its artifact's")
    _hold(set(exporter.needs) <= set(request.written), f"{exporter.name} needs {', '.join(exporter.needs)} first")
    before = set(request.folder.rglob("*"))
    exported = exporter.export(request)
    new = set(request.folder.rglob("*")) - before
    _hold(exported.path.is_file() and exported.path.stat().st_size > 0, "export() writes the file it returns")
    _hold(exported.path in new, "export() writes into the request's folder")
    _hold(new == {exported.path}, f"export() leaves nothing else behind: {sorted(path.name for path in new)}")
    _hold(
        exported.target in (request.target, "any"), f"asked for {request.target}, the artifact is for {exported.target}"
    )
    return exported


def make_feeds(inputs: tuple[TensorSpec, ...], batch: int, seed: int = 0) -> Tensors:
    """Make random feeds of a session's names, dtypes and shapes: bytes for uint8, 0 to 1 for floats."""
    generator = np.random.default_rng(seed)
    feeds: Tensors = {}
    for spec in inputs:
        shape = tuple(batch if size is None else size for size in spec.shape)
        if np.dtype(spec.dtype).kind == "f":
            feeds[spec.name] = generator.random(shape).astype(spec.dtype)
        else:
            feeds[spec.name] = generator.integers(0, 128, shape).astype(spec.dtype)
    return feeds


def _check_answers(session: CheckedSession) -> None:
    many = make_feeds(session.inputs, BATCH)
    first = session.run(many)
    for name, array in first.items():
        _hold(type(array) is np.ndarray, f"output {name!r} is a host numpy array, not {type(array).__name__}")
        _hold(len(array) == BATCH, f"output {name!r} has one row for each of {BATCH} images")
        _hold(bool(np.isfinite(array).all()), f"output {name!r} is finite on ordinary input")
    kept = {name: array.copy() for name, array in first.items()}
    session.run(make_feeds(session.inputs, BATCH, seed=1))
    for name, array in first.items():
        _hold(np.array_equal(array, kept[name]), f"output {name!r} is not overwritten by the next run")
    for row in range(BATCH):
        single = session.run({name: array[row : row + 1] for name, array in many.items()})
        for name, array in single.items():
            scale = max(1.0, float(np.abs(kept[name]).max()))
            off = float(np.abs(array[0].astype(np.float64) - kept[name][row]).max()) / scale
            _hold(off <= ROW_TOLERANCE, f"row {row} of {name!r} is the same alone and in a batch (off by {off:.2g})")


def _check_refusals(session: CheckedSession) -> None:
    good = make_feeds(session.inputs, 1)
    name = session.inputs[0].name
    other = np.float64 if good[name].dtype != np.float64 else np.int8
    cases: dict[str, Tensors] = {
        "no inputs": {},
        "a misnamed input": {f"not_{key}": array for key, array in good.items()},
        "one input too many": {**good, "one_too_many": good[name]},
        "a wrong dtype": {**good, name: good[name].astype(other)},
        "one dimension too many": {**good, name: good[name][None]},
        "an empty batch": {**good, name: good[name][:0]},
    }
    for what, feeds in cases.items():
        _refuses(ContractError, functools.partial(session.run, feeds), what)


def _refuses(kind: type[EdgecnnError], call: Callable[[], object], what: str) -> None:
    try:
        call()
    except kind:
        return
    except Exception as error:
        raise ContractError(f"{what} must raise {kind.__name__}, it raised {type(error).__name__}: {error}") from error
    raise ContractError(f"{what} must raise {kind.__name__}, and was accepted")


def _hold(promise: bool, text: str) -> None:
    if not promise:
        raise ContractError(f"broken promise: {text}")
