"""ONNX Runtime's execution providers beyond its own CPU: how each is asked for, and the proof that it did the work.

A device of a plugin provider is `NAME`, or `NAME:KIND` where the plugin offers several kinds of hardware (`cpu`, `gpu`,
`npu`). It comes from an installed package, such as onnxruntime-ep-webgpu, or from the environment:
`EDGECNN_ORT_PLUGINS="webgpu=/opt/libonnxruntime_providers_webgpu.so,acme:npu=/opt/libacme.so"`.

The rule for all of them: every node that computes runs on the provider. ONNX Runtime places nodes that work out shapes
on the CPU of its own accord; SHAPE_WORK lists the operators that may stay there with a plugin. With CUDA and TensorRT
no node may.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from edgecnn.errors import DeviceError, EdgecnnError, UsageError
from edgecnn.spec import Artifact

VARIABLE = "EDGECNN_ORT_PLUGINS"
CPU = "CPUExecutionProvider"
WHEEL = {"cuda:0": "CUDAExecutionProvider", "tensorrt:0": "TensorrtExecutionProvider"}
NAMES = {"onnxruntime_qnn": "qnn", "onnxruntime_ep_nv_tensorrt_rtx": "tensorrt-rtx"}
KINDS = {"openvino": ("cpu", "gpu", "npu"), "qnn": ("cpu", "gpu", "npu")}
# Some libraries only answer to their own name when they are registered; packages tell it, the variable does not.
PROVIDERS = {
    "webgpu": "WebGpuExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
SHAPE_WORK = frozenset({
    "Concat", "Constant", "ConstantOfShape", "Gather", "Identity", "Range", "Reshape", "Shape", "Size", "Slice",
    "Squeeze", "Unsqueeze",
})  # fmt: skip
PROBE_SECONDS = 60
_PROBE = "import sys; from edgecnn.backends import providers; providers.look(sys.argv[1])"


@dataclass(frozen=True)
class Plugin:
    """A device that a plugin provider may give, and where the plugin is: a package's module, or a library."""

    device: str
    module: str | None = None
    library: Path | None = None

    @property
    def kind(self) -> str | None:
        """What follows the colon, in ONNX Runtime's letters: CPU, GPU or NPU."""
        return self.device.partition(":")[2].upper() or None


def builtin(device: str, precision: str) -> tuple[str, dict[str, Any]]:
    """Return the provider inside the wheel for `cpu`, `cuda:N` or `tensorrt:N`, and its options.

    TensorRT takes eight-bit and half-precision layers only where it is told that the model means them.
    """
    kind, _, index = device.partition(":")
    if kind == "cuda":
        return "CUDAExecutionProvider", {"device_id": int(index or 0), "use_tf32": 0}
    if kind == "tensorrt":
        # TensorRT has TF32 on by itself, a tenth of float32's precision, and ONNX Runtime no option for it.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        options = {"trt_int8_enable": int(precision == "int8"), "trt_fp16_enable": int(precision == "fp16")}
        return "TensorrtExecutionProvider", {"device_id": int(index or 0), **options}
    return CPU, {}


def plugins() -> dict[str, Plugin]:
    """Find plugin providers by device: the packages on the path, without importing them, then the variable's.

    Raises:
        UsageError: the variable is not a list of NAME=/path/to/library.
    """
    found = {device: Plugin(device, module=module) for module in _packages() for device in _devices(module)}
    for entry in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        device, equals, path = entry.partition("=")
        if not equals or not device or not Path(path).is_absolute() or device.partition(":")[0] in _TAKEN:
            raise UsageError(f"{VARIABLE}: {entry!r} is not NAME=/path/to/library with a name other than {_TAKEN_TEXT}")
        found[device] = Plugin(device, library=Path(path))
    return found


_TAKEN = ("cpu", "cuda", "tensorrt")
_TAKEN_TEXT = ", ".join(_TAKEN)


def attach(ort: Any, native: Any, plugin: Plugin) -> str:
    """Register the plugin, put its device into the session options and return its provider's name.

    Raises:
        DeviceError: ONNX Runtime is too old, the plugin cannot be loaded, or it does not list the device.
    """
    needed = ("register_execution_provider_library", "get_ep_devices")
    if not all(hasattr(ort, name) for name in needed) or not hasattr(
        ort.InferenceSession, "get_provider_graph_assignment_info"
    ):
        raise DeviceError(
            f"{plugin.device}: plugin providers need ONNX Runtime 1.24 or newer, this is {ort.__version__}"
        )
    device = _pick(plugin, _offered(ort, plugin))
    native.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    native.add_provider_for_devices([device], {})
    return str(device.ep_name)


def insist(session: Any, provider: str, artifact: Artifact) -> None:
    """Make sure that every node but the work on shapes was placed on the provider.

    Raises:
        DeviceError: nodes were left elsewhere, or nothing was placed on the provider at all.
    """
    placed: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        placed.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    if not placed.get(provider):
        raise DeviceError(f"{artifact.path}: {provider} was given no node of this model")
    left = {
        f"{count} {operator} on {name.removesuffix('ExecutionProvider')}"
        for name, counts in placed.items()
        for operator, count in counts.items()
        if name != provider and operator not in SHAPE_WORK
    }
    if left:
        raise DeviceError(f"{artifact.path}: {provider} cannot run all of it and left {', '.join(sorted(left))}")


def problem(device: str) -> str | None:
    """Say what keeps a plugin's device from being used, or None; in a process of its own, which a driver may crash."""
    return problem_apart(_PROBE, device, PROBE_SECONDS, "its plugin")


def problem_apart(script: str, device: str, seconds: float, what: str) -> str | None:
    """Run a script on a device in a process of its own; None where it ends well, else its last line or how `what` ended."""
    import subprocess  # only doctor and verify need it

    command = [sys.executable, "-c", script, device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"{what} did not answer within {seconds} s"
    if done.returncode == 0:
        return None
    return (done.stdout.strip().splitlines() or [f"{what} ended the process ({done.returncode})"])[-1]


def look(device: str) -> None:
    """Register the plugin and pick its device; leave with 2 and a line on stdout where that fails."""
    from edgecnn.backends.onnxruntime import import_onnxruntime

    try:
        ort = import_onnxruntime()
        attach(ort, ort.SessionOptions(), plugins()[device])
    except EdgecnnError as error:
        print(error)
        raise SystemExit(2) from None


def _packages() -> list[str]:
    found = set()
    for place in sys.path:
        try:
            names = [entry.name for entry in Path(place or ".").glob("onnxruntime_*")]
        except OSError:
            continue
        found |= {
            name for name in names if name in NAMES or (name.startswith("onnxruntime_ep_") and name.isidentifier())
        }
    return sorted(found)


def _devices(module: str) -> list[str]:
    name = NAMES.get(module) or module.removeprefix("onnxruntime_ep_").replace("_", "-")
    return [name, *(f"{name}:{kind}" for kind in KINDS.get(name, ()))]


def _offered(ort: Any, plugin: Plugin) -> list[Any]:
    try:
        name, library = _library(plugin)
        before = _from(ort, library)
        if not before and library not in _REGISTERED:
            ort.register_execution_provider_library(name, library)
            _REGISTERED.add(library)
        return before or _from(ort, library)
    except EdgecnnError:
        raise
    except Exception as error:  # a package's own import and ONNX Runtime's loader may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DeviceError(f"{plugin.device}: its plugin could not be loaded ({reason})") from error


# ONNX Runtime keeps a library for the whole process and refuses it a second time.
_REGISTERED: set[str] = set()


def _library(plugin: Plugin) -> tuple[str, str]:
    base = plugin.device.partition(":")[0]
    if plugin.library is not None:
        if not plugin.library.is_file():
            raise DeviceError(f"{plugin.device}: {VARIABLE} says {plugin.library}, and there is no such file")
        return PROVIDERS.get(base, base), str(plugin.library)
    package = import_module(str(plugin.module))
    return package.get_ep_name(), str(package.get_library_path())


def _from(ort: Any, library: str) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_metadata.get("library_path") == library]


def _pick(plugin: Plugin, offered: list[Any]) -> Any:
    if not offered:
        raise DeviceError(
            f"{plugin.device}: its plugin is registered and lists no device: the hardware or its driver is not there"
        )
    kinds = sorted({device.device.type.name for device in offered})
    fitting = [device for device in offered if plugin.kind in (None, device.device.type.name)]
    if not fitting:
        raise DeviceError(f"{plugin.device}: its plugin lists only {', '.join(kinds).lower()}")
    if plugin.kind is None and len(kinds) > 1:
        name = plugin.device
        choices = ", ".join(f"{name}:{kind.lower()}" for kind in kinds)
        raise DeviceError(f"{name}: its plugin lists several kinds of device; ask for one of {choices}")
    return fitting[0]
