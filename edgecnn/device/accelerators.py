"""Why ONNX Runtime's CUDA or TensorRT cannot be used here, found out in a process of its own, which may crash."""

from __future__ import annotations

from pathlib import Path

from edgecnn.backends import providers
from edgecnn.device.libraries import Missing, missing
from edgecnn.errors import EdgecnnError

SECONDS = 120
# One 1x1 convolution of a 1x1x4x4 image, IR 8, opset 13, as onnx.helper makes it: the box has no onnx package. It needs
# cuDNN, which ONNX Runtime only looks for when it is wanted.
MODEL = bytes.fromhex(
    "08083a630a0f0a01780a01771201792204436f6e761201672a13080108010801080110014201774a040000803f5a1b0a"
    "017812160a14080112100a0208010a0208010a0208040a020804621b0a017912160a14080112100a0208010a0208010a"
    "0208040a02080442040a00100d"
)
_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_LIBRARIES = {"cuda": "libonnxruntime_providers_cuda.so", "tensorrt": "libonnxruntime_providers_tensorrt.so"}
_PACKAGES = {
    "cuda": "pip install 'onnxruntime-gpu[cuda,cudnn]' brings them, or put their folder into LD_LIBRARY_PATH",
    "tensorrt": "pip install tensorrt of this major version brings them",
}
_CHILD = "import sys; from edgecnn.device import accelerators; accelerators.look(sys.argv[1])"


def problem(device: str) -> str | None:
    """Say what keeps `cuda:N` or `tensorrt:N` from being used, or None: a session is made there and run."""
    return providers.problem_apart(_CHILD, device, SECONDS, "it")


def look(device: str) -> None:
    """Make and run a session on the device; leave with 2 and the reason on stdout where that fails."""
    reason = reason_against(device)
    if reason:
        print(reason)
        raise SystemExit(2)


def reason_against(device: str) -> str | None:
    """Find what is missing for a device: the driver, libraries by name, or what ONNX Runtime itself says."""
    from edgecnn.backends.onnxruntime import import_onnxruntime

    try:
        ort = import_onnxruntime()
    except EdgecnnError as error:
        return str(error)
    kind = device.partition(":")[0]
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # those of the nvidia packages, which are on no search path
    library = Path(ort.__file__).parent / "capi" / _LIBRARIES[kind]
    lost = missing(library) if library.is_file() else ()
    if lost:
        return told(kind, lost)
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/nvhost-gpu").exists():
        return "there is no NVIDIA device here (no /dev/nvidiactl): the driver is not loaded, or the container was started without its GPU"
    return _refusal(ort, device, kind)


def told(kind: str, lost: tuple[Missing, ...]) -> str:
    """Name the libraries that are not found, and what brings them."""
    driver = [one for one in lost if one.name.startswith("libcuda.so")]
    rest = [one for one in lost if one not in driver]
    parts = []
    if rest:
        parts.append(f"not found: {', '.join(map(str, rest))}; {_PACKAGES[kind]}")
    if driver:
        parts.append("not found: libcuda.so.1, which comes with NVIDIA's driver and with no package of Python")
    return "; ".join(parts)


def _refusal(ort: object, device: str, kind: str) -> str | None:
    import numpy as np

    native = ort.SessionOptions()  # type: ignore[attr-defined]  # an untyped module
    native.log_severity_level = 3
    native.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    place = [(_PROVIDERS[kind], {"device_id": int(device.partition(":")[2] or 0)})]
    try:
        session = ort.InferenceSession(MODEL, native, providers=place, enable_fallback=0)  # type: ignore[attr-defined]
        session.run(None, {"x": np.ones((1, 1, 4, 4), np.float32)})
    except Exception as error:  # a dozen types of its own, and whatever a driver says
        return " ".join(str(error).split())[:300] or type(error).__name__
    got = session.get_providers()[0]
    return None if got == _PROVIDERS[kind] else f"asked for {_PROVIDERS[kind]}, ONNX Runtime gave {got}"
