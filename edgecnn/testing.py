"""The conformance suite: what every backend and exporter must do, ours and theirs.

A third party runs it in a test of its own::

    from edgecnn.testing import check_backend
    check_backend(MyBackend(), Artifact(name="fp32", format="onnx", path=bundle / "fp32.onnx"))
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgecnn.backends.base import Array, Backend, CheckedSession, SessionOptions, Tensors, open_session
from edgecnn.errors import BackendError, ContractError, DeviceError, EdgecnnError
from edgecnn.exporter import Exported, Exporter, ExportRequest
from edgecnn.spec import Artifact, BackendRef, TensorSpec

BATCH = 3
_RUNS = 8
FREE = 32  # the size of a dimension that may vary and is not the batch
# A batch may be computed in another order than single images, by float32's rounding and no more; so may two threads.
ROW_TOLERANCE = 1e-3
ONE_THREAD = SessionOptions(threads=1)
Reopen = Callable[[SessionOptions], CheckedSession]


def check_backend(backend: Backend, artifact: Artifact, device: str | None = None) -> None:
    """Hold a backend to the contract on one artifact that it reads.

    A backend promises:

    - it states a name, the formats it reads, and each device of this machine once;
    - the device obtained is the one asked for (`device`, by default the first); one that is not there is a DeviceError,
      a format it does not read a BackendError, and a file whose SHA-256 is not the recorded one an EdgecnnError;
    - a session's tensors have distinct names; with a batch that may vary, all of them have;
    - answers are host numpy arrays of the stated names, in the stated order, dtypes and shapes, one row an image, finite
      on ordinary input, and the caller's own: no later run writes over them;
    - inputs go by their names, not their order, are read in any memory layout, and are not written to;
    - the same feeds give the same answers, a row is the same alone and in a batch, both to `ROW_TOLERANCE` of the largest;
    - missing, misnamed, superfluous, mistyped, misshapen and empty inputs are a ContractError, and the session lives on;
    - `threads` is taken, and `dtype` "float64" is taken, ignored or refused by a BackendError; the answers stay what they are;
    - where it states `concurrent`, several threads running one session on the CPU at once each get their own answers;
    - two sessions live side by side; a closed one raises an EdgecnnError when it is run, and releases its files, threads
      and processes (counted where there is /proc).

    It asks only for what can be seen from outside: whether the threads asked for are those used is for your own test.
    A model of several inputs, and one of several outputs, are worth a call each. Takes a dozen loads and thirty runs.

    Raises:
        ContractError: the first promise that it breaks.
        BackendError: it could not load the artifact at all.
    """
    _hold(bool(backend.name) and all(backend.formats), "a backend states its name and the formats it reads")
    _hold(artifact.format in backend.formats, f"{backend.name} does not read {artifact.format}")
    devices = backend.devices()
    _hold(bool(devices) and len(set(devices)) == len(devices), "devices() lists each device once, and at least one")
    ref = BackendRef(backend=backend.name, device=device or devices[0])

    def opened(options: SessionOptions) -> CheckedSession:
        return open_session(ref, artifact, options, backend)

    with opened(ONE_THREAD) as session:
        _check_signature(session)
        feeds = make_feeds(session.inputs, _batch_of(session.inputs))
        answers = _check_answers(session, feeds)
        _check_feeding(session, feeds, answers)
        _check_refusals(session)
        if ref.device == "cpu" and getattr(backend, "concurrent", False):
            _check_threads(session, feeds, answers)
        _check_beside(opened, session, feeds, answers)
        _check_options(opened, feeds, answers)
    _check_places(ref, artifact, backend)
    _refuses(EdgecnnError, functools.partial(session.run, feeds), "a session that is closed")


def _check_places(ref: BackendRef, artifact: Artifact, backend: Backend) -> None:
    nowhere = BackendRef(backend=ref.backend, device="nowhere:0")
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
    """Make random feeds of a session's names, dtypes and shapes.

    Integers are all that a byte of their sign holds, floats lie between 0 and 1. What may vary behind the batch gets the size `FREE`.
    """
    generator = np.random.default_rng(seed)
    feeds: Tensors = {}
    for spec in inputs:
        shape = tuple(size if size is not None else FREE if axis else batch for axis, size in enumerate(spec.shape))
        kind = np.dtype(spec.dtype)
        if kind.kind == "f":
            feeds[spec.name] = generator.random(shape).astype(kind)
        elif kind.kind == "b":
            feeds[spec.name] = generator.integers(0, 2, shape).astype(kind)
        else:
            most = min(256, int(np.iinfo(kind).max) + 1)
            feeds[spec.name] = generator.integers(0, most, shape).astype(kind)
    return feeds


def _batch_of(inputs: tuple[TensorSpec, ...]) -> int:
    """Choose a batch: BATCH where it may vary, else the model's own."""
    fixed = [spec.shape[0] for spec in inputs if spec.shape and spec.shape[0] is not None]
    return fixed[0] if fixed else BATCH


def _check_signature(session: CheckedSession) -> None:
    for side, specs in (("input", session.inputs), ("output", session.outputs)):
        names = [spec.name for spec in specs]
        _hold(all(names) and len(set(names)) == len(names), f"{side}s have names, each its own: {names}")
        free = {bool(spec.shape) and spec.shape[0] is None for spec in specs}
        _hold(len(free) == 1, f"the batch may vary in all {side}s or in none")


def _check_answers(session: CheckedSession, feeds: Tensors) -> Tensors:
    """Hold the answers for `feeds` to their promises, and return a copy of them."""
    count = len(next(iter(feeds.values())))
    first = session.run(feeds)
    stated = [spec.name for spec in session.outputs]
    _hold(list(first) == stated, f"outputs come in the order stated: {stated}, not {list(first)}")
    for name, array in first.items():
        _hold(type(array) is np.ndarray, f"output {name!r} is a host numpy array, not {type(array).__name__}")
        _hold(len(array) == count, f"output {name!r} has one row for each of {count} images")
        _hold(bool(np.isfinite(array).all()), f"output {name!r} is finite on ordinary input")
    kept = {name: array.copy() for name, array in first.items()}
    session.run(make_feeds(session.inputs, count, seed=1))
    for name, array in first.items():
        _hold(np.array_equal(array, kept[name]), f"output {name!r} is not overwritten by the next run")
    _alike(session.run(feeds), kept, "the same when it is run again")
    for row in range(count if session.inputs[0].shape[0] is None else 0):
        single = session.run({name: array[row : row + 1] for name, array in feeds.items()})
        _alike(
            single,
            {name: array[row : row + 1] for name, array in kept.items()},
            f"the same alone and in a batch (row {row})",
        )
    return kept


def _check_feeding(session: CheckedSession, feeds: Tensors, answers: Tensors) -> None:
    """Hold it to reading inputs by name, in any layout, without writing to them."""
    before = {name: array.copy() for name, array in feeds.items()}
    frozen = {name: array.copy() for name, array in feeds.items()}
    for array in frozen.values():
        array.setflags(write=False)
    strided = {name: np.repeat(array, 2, axis=array.ndim - 1)[..., ::2] for name, array in feeds.items()}
    for given, what in (
        (dict(reversed(feeds.items())), "the same whatever order its inputs are given in"),
        (frozen, "the same for inputs that are read-only"),
        (strided, "the same for inputs that are not contiguous in memory"),
    ):
        try:
            found = session.run(given)
        except BackendError as error:
            raise ContractError(f"broken promise: answers are {what}: {error}") from error
        _alike(found, answers, what)
    changed = [name for name, array in feeds.items() if not np.array_equal(array, before[name])]
    _hold(not changed, f"inputs are not written to: {', '.join(changed)}")


def _check_refusals(session: CheckedSession) -> None:
    good = make_feeds(session.inputs, _batch_of(session.inputs))
    first = session.inputs[0].name
    cases: dict[str, Tensors] = {
        "no inputs": {},
        "a misnamed input": {f"not_{key}": array for key, array in good.items()},
        "one input too many": {**good, "one_too_many": good[first]},
    }
    for name, array in good.items():
        other = np.float64 if array.dtype != np.float64 else np.int8
        cases |= {
            f"input {name!r} missing": {key: one for key, one in good.items() if key != name},
            f"input {name!r} of a wrong dtype": {**good, name: array.astype(other)},
            f"input {name!r} with one dimension too many": {**good, name: array[None]},
            f"input {name!r} without any image": {**good, name: array[:0]},
        }
    for what, feeds in cases.items():
        _refuses(ContractError, functools.partial(session.run, feeds), what)
    session.run(good)


def _check_threads(session: CheckedSession, feeds: Tensors, answers: Tensors) -> None:
    """Hold it to answers that threads do not mix up: one with these feeds, one with others, a few runs each."""
    others = make_feeds(session.inputs, _batch_of(session.inputs), seed=2)
    sides = [(feeds, answers), (others, session.run(others))]
    meet = threading.Barrier(len(sides))

    def run(side: tuple[Tensors, Tensors]) -> list[Tensors]:
        meet.wait()
        try:
            return [session.run(side[0]) for _ in range(_RUNS)]
        except BackendError as error:
            raise ContractError(f"broken promise: several threads may run one session at once: {error}") from error

    with ThreadPoolExecutor(len(sides)) as pool:
        for found, (_, wanted) in zip(pool.map(run, sides), sides, strict=True):
            for one in found:
                _alike(one, wanted, "the same while another thread runs the session")


def _check_beside(opened: Reopen, session: CheckedSession, feeds: Tensors, answers: Tensors) -> None:
    """Open and close three more beside a session: it must live on, and nothing may be left of them."""
    held = []
    for _ in range(3):
        with opened(ONE_THREAD) as second:
            _alike(second.run(feeds), answers, "the same from a second session")
        held.append(_held())
    _alike(session.run(feeds), answers, "the same after another session was closed")
    # Runtimes keep a pool or a library from the first one on; what grows with each is never given back.
    leaking = [what for what, first in held[0].items() if first < held[1][what] < held[2][what]]
    _hold(not leaking, f"a closed session releases what it holds: {', '.join(leaking)} left behind each time")


def _check_options(opened: Reopen, feeds: Tensors, answers: Tensors) -> None:
    with opened(SessionOptions(threads=2)) as session:
        _alike(session.run(feeds), answers, "the same with two threads as with one")
    try:
        session = opened(SessionOptions(dtype="float64"))
    except BackendError:
        return
    with session:
        _alike(session.run(feeds), answers, "the same in float64 as in float32")


def _alike(found: Mapping[str, Array], wanted: Mapping[str, Array], what: str) -> None:
    _hold(list(found) == list(wanted), f"outputs have the same names in every run: {list(wanted)}, not {list(found)}")
    for name, array in found.items():
        _hold(array.shape == wanted[name].shape, f"{name!r} is {what}: {wanted[name].shape}, not {array.shape}")
        scale = max(1.0, float(np.abs(wanted[name]).max()))
        off = float(np.abs(array.astype(np.float64) - wanted[name]).max()) / scale
        _hold(off <= ROW_TOLERANCE, f"{name!r} is {what} (off by {off:.2g})")


def _held() -> dict[str, int]:
    """Count what this process holds; nothing where there is no /proc."""
    here = Path("/proc/self")
    if not (here / "fd").is_dir():
        return {}
    children = [file.read_text().split() for file in here.glob("task/*/children")]
    return {
        "open files": len(list((here / "fd").iterdir())),
        "threads": len(list((here / "task").iterdir())),
        "processes": sum(map(len, children)),
    }


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
