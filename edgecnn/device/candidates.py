"""What `tune` may choose from on this machine, in order of preference: the default first, then what is nearest to it.

The choices are made in up to three races, each of the last one's winner: artifact, device, level and threads; whether threads
spin, in every number of them again; and the batch. All of them at once would be hundreds on a machine of eight cores.
"""

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
        return list(dict.fromkeys(_asked(bundle, ref) for ref in asked)), []
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


def kinds(refs: Sequence[BackendRef], default: Settings, purpose: Purpose) -> list[Settings]:
    """Combine artifacts, devices, levels and numbers of threads, which are all usable ones elsewhere than on the CPU."""
    found = [
        Settings(
            backend=str(ref),
            threads=threads,
            spinning=default.spinning,
            optimization=level,
            batch=1 if purpose == "latency" else MANY,
        )
        for ref in refs
        for threads in (thread_counts(default.threads) if ref.device == "cpu" else [default.threads])
        for level in LEVELS
    ]
    return nearest_first(default, found)


def with_spinning(chosen: Settings, default: Settings) -> list[Settings]:
    """Combine what was chosen with threads that spin while they wait, in every number of them that can wait.

    A race of its own, because such threads take their cores from the next candidate for as long as they spin, and every round
    has to wait for that.
    """
    counts = thread_counts(default.threads) if BackendRef.parse(chosen.backend).device == "cpu" else []
    spinning = [msgspec.structs.replace(chosen, threads=count, spinning=True) for count in counts if count > 1]
    return nearest_first(default, [chosen, *spinning])


def in_batches(chosen: Settings, default: Settings) -> list[Settings]:
    """Combine what was chosen with every batch."""
    return nearest_first(default, [msgspec.structs.replace(chosen, batch=batch) for batch in BATCHES])


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
