"""What `tune` may choose from on this machine, in order of preference: the default first, then what is nearest to it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgecnn import registry
from edgecnn.backends.base import Backend, Optimization, SessionOptions, open_session
from edgecnn.bundle import Bundle
from edgecnn.device.profile import Purpose, Settings
from edgecnn.errors import EdgecnnError, UsageError
from edgecnn.predict import DEFAULT_BACKEND, artifact_for
from edgecnn.spec import BackendRef

LEVELS: tuple[Optimization, ...] = ("all", "extended", "basic")
MANY = 16  # images a run while the other choices are made for throughput
BATCHES = (1, 4, 16, 64)
EACH = 8  # up to so many threads every number is tried, above it the powers of two


def default_settings(ref: BackendRef, usable: int) -> Settings:
    """Say how `predict` and `serve` run without a profile."""
    plain = SessionOptions()
    return Settings(backend=str(ref), threads=usable, spinning=plain.spinning, optimization=plain.optimization, batch=1)


def references(bundle: Bundle, asked: Sequence[BackendRef]) -> tuple[list[BackendRef], list[tuple[str, str]]]:
    """List what can run here: every ONNX artifact on every device of ONNX Runtime, or what was asked for; the default first.

    Besides, what there seemed to be and why it cannot be used: a registered provider is not yet a usable one.

    Raises:
        UsageError: something asked for is not ONNX Runtime's.
        EdgecnnError: something asked for cannot be loaded, or nothing can.
    """
    backend: Backend = registry.get(registry.BACKENDS, DEFAULT_BACKEND)
    if asked:
        return [_asked(bundle, ref) for ref in asked], []
    first = artifact_for(bundle, BackendRef(backend=DEFAULT_BACKEND), backend).name
    names = [name for name, record in bundle.manifest.artifacts.items() if record.format in backend.formats]
    names.sort(key=lambda name: name != first)
    found, left = list[BackendRef](), list[tuple[str, str]]()
    for device in backend.devices():
        for name in names:
            ref = BackendRef(backend=DEFAULT_BACKEND, artifact=name, device=device)
            try:
                open_session(ref, bundle.artifact(name), SessionOptions(threads=1), backend).__exit__(None, None, None)
                found.append(ref)
            except EdgecnnError as error:
                if (device, name) == ("cpu", first):
                    raise
                left.append((str(ref), str(error)))
    return found, left


def _asked(bundle: Bundle, ref: BackendRef) -> BackendRef:
    if ref.backend != DEFAULT_BACKEND:
        raise UsageError(f"{ref}: only {DEFAULT_BACKEND} has settings to tune; leave it out")
    artifact = artifact_for(bundle, ref)
    open_session(ref, artifact, SessionOptions(threads=1)).__exit__(None, None, None)
    return BackendRef(backend=ref.backend, artifact=artifact.name, device=ref.device)


def candidates(refs: Sequence[BackendRef], usable: int, purpose: Purpose) -> list[Settings]:
    """Combine all choices but the batch; the first is the default, and the others follow by how many settings differ.

    Threads spin only where there are several; elsewhere, and on other devices than the CPU, neither does anything.
    """
    default = default_settings(refs[0], usable)
    found = [
        Settings(
            backend=str(ref),
            threads=threads,
            spinning=spinning,
            optimization=level,
            batch=1 if purpose == "latency" else MANY,
        )
        for ref in refs
        for threads in (thread_counts(usable) if ref.device == "cpu" else [usable])
        for spinning in ((False, True) if threads > 1 and ref.device == "cpu" else (False,))
        for level in LEVELS
    ]
    return nearest_first(default, found)


def in_batches(settings: Settings, default: Settings) -> list[Settings]:
    """Combine what was chosen with every batch; the first is the default."""
    return nearest_first(default, [msgspec.structs.replace(settings, batch=batch) for batch in BATCHES])


def nearest_first(default: Settings, others: Sequence[Settings]) -> list[Settings]:
    """Put the default in front, and then those that differ from it in fewer settings first."""
    return [default, *sorted((one for one in others if one != default), key=lambda one: distance(one, default))]


def distance(one: Settings, other: Settings) -> int:
    """Count the settings in which two differ."""
    return sum(getattr(one, name) != getattr(other, name) for name in Settings.__struct_fields__)


def thread_counts(usable: int) -> list[int]:
    """List the numbers of threads to try, all that are usable first, since that is the default."""
    counts = {usable, *range(1, min(usable, EACH) + 1), *(2**power for power in range(usable.bit_length()))}
    return sorted((count for count in counts if count <= usable), reverse=True)
