"""Which artifact a verification runs where, and what of that can be timed and weighed."""

from __future__ import annotations

from collections.abc import Sequence

from edgecnn import host, registry
from edgecnn.backends import providers
from edgecnn.backends.base import Backend, SessionOptions, open_session
from edgecnn.bundle import Bundle
from edgecnn.device.fit import Cpu, emulated_host
from edgecnn.errors import EdgecnnError, UsageError
from edgecnn.predict import DEFAULT_BACKEND
from edgecnn.spec import BackendRef

# Backends that run elsewhere than in this process, and what that means for a stopwatch and for a scale.
_UNTIMED = {
    "emulated": "an emulated CPU's times mean nothing",
    "remote": "the way there and back would be timed with it; `edgecnn verify` there measures it",
}
_UNWEIGHED = {
    **_UNTIMED,
    "emulated": "an emulated process weighs otherwise",
    "onnxruntime-web": "it runs in another process",
}


def choose(bundle: Bundle, asked: Sequence[BackendRef]) -> tuple[list[BackendRef], list[str]]:
    """List what is to be verified: what was asked for, an artifact left open being every one that the backend reads.

    Where nothing was asked for it is every ONNX artifact on the CPU, and on every other device of ONNX Runtime that is
    there and takes it; besides, why the others do not.

    Raises:
        UsageError: nothing in the bundle can be run as asked.
        RegistryError: a backend is unknown, broken or not installed.
    """
    if asked:
        refs = [one for ref in asked for one in _spread(bundle, ref)]
        return list(dict.fromkeys(refs)), []
    backend: Backend = registry.get(registry.BACKENDS, DEFAULT_BACKEND)
    refs, left = _spread(bundle, BackendRef(backend=DEFAULT_BACKEND)), list[str]()
    for device in backend.devices():
        if device == "cpu":
            continue
        candidates = _spread(bundle, BackendRef(backend=DEFAULT_BACKEND, device=device))
        problem = providers.problem(device) if device in providers.plugins() else None
        if problem is not None:
            left.append(f"{DEFAULT_BACKEND}@{device}: {problem}")
            continue
        for ref in candidates:
            reason = _refusal(bundle, ref, backend)
            if reason is None:
                refs.append(ref)
            else:
                left.append(f"{ref}: {reason}")
    return refs, left


def cpu_of(ref: BackendRef) -> Cpu | None:
    """Describe the CPU whose int8 kernels run a candidate; None where it is none, or not ONNX Runtime's that do."""
    if ref.backend == "emulated":
        from edgecnn.device.emulate import CPUS

        cpu = CPUS.get(ref.device)
        return None if cpu is None else Cpu(cpu.target, ("avx2",) if cpu.name == "Haswell" else ())
    if ref.backend != DEFAULT_BACKEND or ref.device != "cpu":
        return None
    return Cpu(host.target_of_host(), host.cpu()[1])


def untimed(ref: BackendRef) -> str | None:
    """Say why times taken of a candidate would mean nothing; None where they mean something."""
    return _UNTIMED.get(ref.backend) or emulated_host()


def unweighed(ref: BackendRef) -> str | None:
    """Say why the memory of a process that runs a candidate would not be the candidate's."""
    return _UNWEIGHED.get(ref.backend) or ("this machine is emulated" if emulated_host() else None)


def _spread(bundle: Bundle, ref: BackendRef) -> list[BackendRef]:
    formats = registry.get(registry.BACKENDS, ref.backend).formats
    if ref.artifact is not None:
        found = bundle.artifact(ref.artifact).format
        if found not in formats:
            raise UsageError(f"{ref}: {ref.backend} reads {', '.join(formats)}, and {ref.artifact} is {found}")
        return [ref]
    names = [name for name, record in bundle.manifest.artifacts.items() if record.format in formats]
    if not names:
        raise UsageError(f"{ref}: {bundle.where} holds no artifact that {ref.backend} reads ({', '.join(formats)})")
    return [BackendRef(backend=ref.backend, artifact=name, device=ref.device) for name in names]


def _refusal(bundle: Bundle, ref: BackendRef, backend: Backend) -> str | None:
    """Load an artifact on a device and let go of it; say why that does not work."""
    try:
        open_session(ref, bundle.artifact(ref.artifact), SessionOptions(threads=1), backend).__exit__(None, None, None)
    except EdgecnnError as error:
        return str(error)
    return None
