"""Spinning and optimization level: ONNX Runtime gets what was asked for, and a backend that lacks them refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import onnxruntime as ort
import pytest

from edgecnn import registry
from edgecnn.backends.base import SETTINGS, Array, Optimization, SessionOptions, Tensors, open_session
from edgecnn.bundle import Bundle
from edgecnn.errors import BackendError, EdgecnnError
from edgecnn.spec import Artifact, BackendRef, TensorSpec

LEVELS: dict[Optimization, ort.GraphOptimizationLevel] = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class Plain:
    """A backend that knows nothing of the settings."""

    name = "plain"
    formats = ("onnx",)
    device = "cpu"
    inputs = (TensorSpec(name="image", shape=(None,), dtype="uint8"),)
    outputs = (TensorSpec(name="logits", shape=(None,), dtype="float32"),)

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> Plain:
        return self

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        return {"logits": np.zeros(len(feeds["image"]), np.float32)}

    def __enter__(self) -> Plain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Knowing(Plain):
    """One that has the settings."""

    honours = SETTINGS


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("spinning", [False, True])
def test_onnxruntime_gets_what_was_asked_for(level: Optimization, spinning: bool, bundle_folder: Path) -> None:
    """The native session's own options name the level and the spinning that were asked for."""
    options = SessionOptions(threads=2, spinning=spinning, optimization=level)
    ref, artifact = BackendRef(backend="onnxruntime"), Bundle.open(bundle_folder).artifact("fp32")
    with open_session(ref, artifact, options) as session:
        native = session.inner._session.get_session_options()  # type: ignore[attr-defined]
        assert native.graph_optimization_level == LEVELS[level]
        assert native.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spinning))
        assert native.intra_op_num_threads == 2


@pytest.mark.parametrize(
    "options", [SessionOptions(spinning=True), SessionOptions(optimization="basic")], ids=lambda one: str(one)
)
def test_a_backend_without_a_setting_refuses_it(options: SessionOptions, tmp_path: Path) -> None:
    """A setting that a backend does not state is refused in one line that names it, and one that states it loads."""
    file = tmp_path / "model.onnx"
    file.write_bytes(b"model")
    artifact, ref = Artifact(name="x", format="onnx", path=file), BackendRef(backend="plain")
    with pytest.raises(BackendError, match=r"plain has no setting for (spinning|optimization)"):
        open_session(ref, artifact, options, Plain())
    open_session(ref, artifact, SessionOptions(), Plain())
    open_session(ref, artifact, options, Knowing())


def test_only_onnxruntime_claims_to_have_them() -> None:
    """Of the backends that can be had here only ONNX Runtime states the settings: the others would pass them over."""
    claiming = set()
    for name in registry.names(registry.BACKENDS):
        try:
            backend = registry.get(registry.BACKENDS, name)
        except EdgecnnError:
            continue
        if getattr(backend, "honours", ()):
            claiming.add(name)
    assert claiming == {"onnxruntime"}
