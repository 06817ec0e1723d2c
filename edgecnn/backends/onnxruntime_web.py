"""ONNX Runtime Web: WebAssembly in Node and in a headless Chromium, to compare a browser's answers with those elsewhere.

The npm package is the user's to install, by the command that the error names; nothing is ever fetched from here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgecnn.backends.base import Array, SessionOptions, Tensors
from edgecnn.backends.web_chromium import ChromiumLink
from edgecnn.backends.web_node import NodeLink
from edgecnn.backends.web_wire import Header, Link, pack, unpack
from edgecnn.errors import BackendError, DeviceError, MissingPackageError
from edgecnn.spec import Artifact, TensorSpec

VERSION = "1.30.0"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class OnnxRuntimeWebBackend:
    """Runs ONNX files in WebAssembly; devices are `node` and `chromium`, where each is on the PATH.

    Unlike elsewhere, `threads` None means one: what most web pages have. Times measured from here include the way to
    the process and back: 0.3 ms to Node, and 6 to 12 ms through Chromium's own network stack, which hides a small net.
    `start_s` and `run_s` say how many seconds a model may take to load and to answer.
    """

    name = "onnxruntime-web"
    formats = ("onnx",)

    def __init__(self, start_s: float = 120.0, run_s: float = 600.0) -> None:
        self._start_s = start_s
        self._run_s = run_s

    def devices(self) -> tuple[str, ...]:
        """List `node` and `chromium` as far as they are on the PATH.

        Raises:
            MissingPackageError: neither is, or the npm package is not installed.
        """
        find_package()
        places = {"node": shutil.which("node"), "chromium": _browser()}
        found = tuple(device for device, path in places.items() if path)
        if not found:
            raise MissingPackageError(
                "onnxruntime-web runs in Node or Chromium, and neither is on the PATH: apt-get install nodejs, or chromium"
            )
        return found

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> OnnxRuntimeWebSession:
        """Start a process of its own for the model and load it there from its verified bytes.

        Raises:
            MissingPackageError: the npm package is not installed.
            BackendError: the process could not be started, or ONNX Runtime refused the model or the threads.
        """
        data = np.frombuffer(artifact.read_bytes(), np.uint8)
        package = find_package()
        link = _link(device, package)
        try:
            header = {"do": "load", "threads": options.threads or 1}
            signature, _ = _answer(link.ask(pack(header, {"model": data}), self._start_s))
            return OnnxRuntimeWebSession(link, device, signature, self._run_s)
        except BackendError as error:
            link.close()
            raise BackendError(f"{artifact.path}: ONNX Runtime Web could not load it on {device} ({error})") from error
        except BaseException:
            link.close()
            raise


class OnnxRuntimeWebSession:
    """One model in one JavaScript process."""

    def __init__(self, link: Link, device: str, signature: Header, run_s: float) -> None:
        self._link = link
        self._run_s = run_s
        self.device = device
        self.inputs = tuple(_spec(entry) for entry in signature["inputs"])
        self.outputs = tuple(_spec(entry) for entry in signature["outputs"])

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        """Run on host arrays."""
        _, outputs = _answer(self._link.ask(pack({"do": "run"}, feeds), self._run_s))
        return outputs

    def __enter__(self) -> OnnxRuntimeWebSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()


def find_package() -> Path:
    """Find the npm package's `dist` folder below `EDGECNN_WEB`, or below edgecnn's folder for data.

    Raises:
        MissingPackageError: it is not there; the message is the command that puts it there.
    """
    folder = _web_folder()
    dist = folder / "node_modules" / "onnxruntime-web" / "dist"
    if not dist.is_dir():
        raise MissingPackageError(f"the npm package onnxruntime-web is not in {folder}: {install_command(folder)}")
    return dist


def install_command(folder: Path) -> str:
    """Write the command that installs the npm package into a folder; none of its packages needs scripts to be run."""
    return f"npm install --ignore-scripts --prefix {shlex.quote(str(folder))} onnxruntime-web@{VERSION}"


def _web_folder() -> Path:
    own, base = os.environ.get("EDGECNN_WEB"), Path(os.environ.get("XDG_DATA_HOME", ""))
    if own:
        return Path(own).absolute()
    try:
        # A relative XDG_DATA_HOME is to be ignored (XDG Base Directory 0.8).
        return (base if base.is_absolute() else Path.home() / ".local" / "share") / "edgecnn" / "web"
    except RuntimeError as error:
        raise MissingPackageError(
            "there is no home folder to look for onnxruntime-web in: set EDGECNN_WEB to the folder of its node_modules"
        ) from error


def _browser() -> str | None:
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


def _link(device: str, package: Path) -> Link:
    command = shutil.which("node") if device == "node" else _browser()
    if command is None:
        raise DeviceError(f"{device} is no longer on the PATH")
    return NodeLink(command, package) if device == "node" else ChromiumLink(command, package)


def _answer(message: bytes) -> tuple[Header, Tensors]:
    header, tensors = unpack(message)
    if "error" in header:
        raise BackendError(_reason(header["error"]))
    return header, tensors


def _reason(text: str) -> str:
    text = re.sub(r"^.*ERROR_CODE: \d+, ERROR_MESSAGE: ", "", text.strip(), flags=re.DOTALL)
    return " ".join(text.split())[:300] or "no reason given"


def _spec(entry: dict[str, Any]) -> TensorSpec:
    # A free size that a file writes as -1 comes as an unsigned number.
    shape = tuple(size if size is not None and 0 < size < 1 << 31 else None for size in entry["shape"])
    return TensorSpec(name=entry["name"], shape=shape, dtype=entry["dtype"])
