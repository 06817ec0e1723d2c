"""What a parity check is of: a bundle, or any ONNX file; which artifacts it has, and which output is its answer."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgecnn.backends.base import CheckedSession, open_session
from edgecnn.bundle import Bundle
from edgecnn.errors import BackendError, ContractError, UsageError
from edgecnn.parity.order import sort_nodes
from edgecnn.predict import artifact_for
from edgecnn.spec import Artifact, BackendRef, TensorSpec, Tolerance, to_json

if TYPE_CHECKING:
    import onnx

MODEL = "model"
LARGEST_ANSWER = 1 << 16  # values of one sample's answer
_FLOATS = ("float32", "float16", "float64")
# Operators that round to few bits; op types are plain text in the file, so that they are found without onnx too.
_ROUNDING = (b"QuantizeLinear", b"DequantizeLinear", b"QLinear", b"ConvInteger", b"MatMulInteger", b"MatMulNBits")


@dataclass(frozen=True)
class Subject:
    """A bundle, or an ONNX file in `path`; `outputs` are all that candidates must have, `answer` the one judged.

    `classes` names what the answer's values stand for, by their number where nobody says; `size` is how many there are.
    """

    name: str
    path: Path
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    answer: str
    labels: tuple[str, ...] | None
    tolerance: Tolerance
    bundle: Bundle | None = None

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Subject:
        """Take a bundle by what its manifest states."""
        manifest = bundle.manifest
        return cls(
            name=manifest.name,
            path=bundle.root,
            sha256=hashlib.sha256(to_json(manifest.files)).hexdigest(),
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            answer="logits",
            labels=manifest.labels,
            tolerance=manifest.tolerance,
            bundle=bundle,
        )

    @classmethod
    def of_model(cls, path: Path) -> Subject:
        """Take an ONNX file by the inputs and outputs it has: its first float output is the answer.

        Raises:
            UsageError: it is not there, has no input, or no output is float.
            BackendError: it is no ONNX model, or takes or gives what is no tensor.
        """
        artifact = model_artifact(path)
        inputs, outputs, labels = _signature(artifact)
        if not inputs:
            raise UsageError(f"{path}: has no input, so it answers the same whatever it is fed; give one that has")
        floats = [spec.name for spec in outputs if spec.dtype in _FLOATS]
        if not floats:
            raise UsageError(f"{path}: no output is float, so there is nothing to compare backends by")
        return cls(
            name=path.name,
            path=path,
            sha256=artifact.sha256 or "",
            inputs=inputs,
            outputs=outputs,
            answer=floats[0],
            labels=labels,
            tolerance=Tolerance(),
        )

    def artifact(self, ref: BackendRef) -> Artifact:
        """Find what a backend is to run: an artifact by name, or an .onnx file by its path.

        Raises:
            UsageError: there is no such artifact or file.
        """
        name = ref.artifact
        if name and name.lower().endswith(".onnx") and not (self.bundle and name in self.bundle.manifest.artifacts):
            return model_artifact(Path(name))
        if self.bundle is not None:
            return artifact_for(self.bundle, ref)
        if name in (None, MODEL):
            return replace(model_artifact(self.path), name=MODEL)
        raise UsageError(
            f"{ref}: {self.name} has no artifact {name!r}; give the path of an .onnx file, or leave it out"
        )

    def is_own(self, artifact: Artifact) -> bool:
        """Say whether an artifact is the subject's, and not another file it is compared with."""
        return self.bundle is not None and artifact.name in self.bundle.manifest.artifacts

    def classes(self, size: int) -> tuple[str, ...]:
        """Name the answer's values, of which there are `size`."""
        return self.labels if self.labels and len(self.labels) == size else tuple(map(str, range(size)))

    def check(self, session: CheckedSession) -> None:
        """Hold a side to the subject's inputs and outputs, by name, dtype and shape.

        A bundle's shapes are the manifest's; those of two ONNX files may differ where one leaves a size free.

        Raises:
            ContractError: it has others.
        """
        strict = self.bundle is not None
        for kind, stated, found in (("input", self.inputs, session.inputs), ("output", self.outputs, session.outputs)):
            _check_specs(kind, {spec.name: spec for spec in stated}, {spec.name: spec for spec in found}, strict)


def is_model(path: Path) -> bool:
    """Say whether a path is an ONNX file, by its name, and not a bundle."""
    return path.suffix.lower() == ".onnx" and not path.is_dir()


def model_artifact(path: Path) -> Artifact:
    """Describe an ONNX file by what is in it.

    Raises:
        UsageError: it is not there.
    """
    if not path.is_file():
        raise UsageError(f"{path}: is not there; give an .onnx file")
    artifact = Artifact(name=path.name, format="onnx", path=path)
    data = artifact.read_bytes()
    return Artifact(
        name=path.name, format="onnx", path=path, precision=_precision(data), sha256=hashlib.sha256(data).hexdigest()
    )


def load_model(artifact: Artifact) -> onnx.ModelProto:
    """Parse an ONNX file; its nodes come in order, whatever it was written with.

    Raises:
        BackendError: it is none.
    """
    import onnx

    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(artifact.read_bytes())
    except BackendError:
        raise
    except Exception as error:  # protobuf's DecodeError, which has no public name
        raise BackendError(f"{artifact.path}: is no ONNX model ({error}); export or copy it again") from None
    if not model.graph.output:
        raise BackendError(f"{artifact.path}: holds no graph, so it is no whole ONNX model; export or copy it again")
    sort_nodes(model)
    return model


@functools.lru_cache(maxsize=4)
def prepared_model(path: Path, sha256: str) -> onnx.ModelProto:
    """Read a file as `edgecnn quantize` does, weights as weights, else as it is where that does not take it.

    Raises:
        BackendError: it is no ONNX model.
    """
    from edgecnn.errors import QuantizationError
    from edgecnn.quantization.source import read_source

    try:
        model = read_source(path).model
        sort_nodes(model)
        return model
    except QuantizationError:
        return load_model(Artifact(name=path.name, format="onnx", path=path, sha256=sha256 or None))


def answer_size(subject: Subject) -> int | None:
    """Count the values of one sample's answer, None where a size is free."""
    sizes = next(spec.shape[1:] for spec in subject.outputs if spec.name == subject.answer)
    return None if not sizes or any(size is None for size in sizes) else math.prod(size or 0 for size in sizes)


def _precision(data: bytes) -> str:
    """Tell int8 from fp16 from fp32."""
    if any(word in data for word in _ROUNDING):
        return "int8"
    if find_spec("onnx") is None:
        return "fp32"  # judged as such, a file in float16 fails: never the other way round
    import onnx

    try:
        model = onnx.ModelProto.FromString(data)
    except Exception:  # whoever loads it will say so
        return "fp32"
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {one.t.data_type for node in model.graph.node for one in node.attribute if one.HasField("t")}
    kinds |= {one.i for node in model.graph.node if node.op_type == "Cast" for one in node.attribute}
    reduced = kinds & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    return "fp16" if reduced else "fp32"


def _signature(artifact: Artifact) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[str, ...] | None]:
    """Read inputs, outputs and edgecnn's note of the labels, by onnx where it is installed, else by ONNX Runtime."""
    if find_spec("onnx") is None:
        with open_session(BackendRef(backend="onnxruntime"), artifact) as session:
            return session.inputs, session.outputs, None
    from onnx.helper import tensor_dtype_to_np_dtype

    model = load_model(artifact)
    weights = {tensor.name for tensor in model.graph.initializer}

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        if not value.type.HasField("tensor_type"):
            kind = (value.type.WhichOneof("value") or "something").removesuffix("_type")
            raise BackendError(
                f"{artifact.path}: {value.name!r} is a {kind} and no tensor; export it with tensors alone"
            )
        tensor = value.type.tensor_type
        shape = tuple(size.dim_value if size.dim_value > 0 else None for size in tensor.shape.dim)
        return TensorSpec(name=value.name, shape=shape, dtype=str(tensor_dtype_to_np_dtype(tensor.elem_type)))

    notes = next((entry.value for entry in model.metadata_props if entry.key == "edgecnn.labels"), "[]")
    try:
        labels = msgspec.json.decode(notes, type=tuple[str, ...])
    except msgspec.MsgspecError:
        labels = ()
    inputs = tuple(spec(value) for value in model.graph.input if value.name not in weights)
    return inputs, tuple(spec(value) for value in model.graph.output), labels or None


def _check_specs(kind: str, stated: dict[str, TensorSpec], found: dict[str, TensorSpec], strict: bool) -> None:
    missing = sorted(set(stated) - set(found))
    if missing:
        raise ContractError(f"{kind} {missing[0]!r} is missing; it has {', '.join(sorted(found))}")
    told = "the manifest states" if strict else "the model has"
    for name in sorted(found):
        got, wanted = found[name], stated.get(name)
        if wanted is None:
            expected = f"no such {kind}"
        elif got.dtype == wanted.dtype and _fits(got.shape, wanted.shape, strict):
            continue
        else:
            expected = f"dtype {wanted.dtype}, shape {wanted.shape}"
        raise ContractError(f"{kind} {name!r} has dtype {got.dtype}, shape {got.shape}; {told} {expected}")


def _fits(got: tuple[int | None, ...], wanted: tuple[int | None, ...], strict: bool) -> bool:
    if strict:
        return got == wanted
    free = not got or not wanted  # a model may leave out the shape of an output
    return free or (
        len(got) == len(wanted) and all(None in pair or pair[0] == pair[1] for pair in zip(got, wanted, strict=True))
    )
