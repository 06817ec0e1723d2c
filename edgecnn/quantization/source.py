"""Any float ONNX CNN, made ready to quantize: one opset, weights as weights, folded, named, and answering as before."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgecnn.errors import QuantizationError
from edgecnn.quantization.external import embed
from edgecnn.quantization.prepare import STEPS
from edgecnn.quantization.probe import TOLERANCE, Answer, answers_of, difference, first_line, open_plain
from edgecnn.quantization.suitable import check_file, check_prepared, opset_of, walk

_LARGEST = (1 << 31) - (1 << 20)  # protobuf's limit for one message, less what preparing may add


@dataclass(frozen=True)
class Source:
    """A float model that can be quantized, what the file held, and in words what was changed.

    `model` is one self-contained message of opset 13 or newer; every node has a name of its own, and the weights of
    its layers are float32 initializers. `sha256` is that of the file; where weights lie in files beside it, their bytes
    follow, in the order of their names.
    """

    model: onnx.ModelProto
    sha256: str
    changes: tuple[str, ...]


def read_source(path: Path) -> Source:
    """Read a float ONNX file of opset 7 or newer and prepare it, checked against the file itself at the end.

    Both are run on random inputs with ONNX Runtime's optimisations off (`edgecnn.quantization.probe`).

    Raises:
        QuantizationError: the file is no ONNX model or a damaged one, holds no convolution, is quantized, trained in or
            computed in another type, cannot be run, keeps weights outside its folder, or a step of the preparation
            failed or changed its answers; the message names the step.
    """
    data = _read(path)
    model = _parse(data, path)
    files = embed(model, path)
    check_file(model, str(path))
    if model.ByteSize() > _LARGEST:
        raise QuantizationError(f"{path}: is larger than 2 GB with its weights, which one ONNX file cannot hold")
    answers = _run_original(path if files else data, model, path)
    prepared = _prepare(model, answers, path)
    check_prepared(prepared, str(path))
    _describe_like(prepared, model)
    return Source(prepared, _hash(data, files), _changes(model, prepared, files))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise QuantizationError(f"{path}: cannot be read ({error.strerror})") from None


def _parse(data: bytes, path: Path) -> onnx.ModelProto:
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except Exception:  # protobuf's DecodeError, and RuntimeError where the message is nested too deep
        raise QuantizationError(f"{path}: is not an ONNX file, or a truncated one; export or copy it again") from None
    return model


def _run_original(file: Path | bytes, model: onnx.ModelProto, path: Path) -> list[Answer]:
    """Let ONNX Runtime answer random inputs by the file as it is."""
    try:
        session = open_plain(str(file) if isinstance(file, Path) else file)
    except Exception as error:  # ONNX Runtime raises a dozen types of its own, all meaning: it did not load
        own = {function.domain for function in model.functions}
        foreign = sorted({f"{node.domain}.{node.op_type}" for node in walk(model) if node.domain not in ("", "ai.onnx", *own)})  # fmt: skip
        hint = f"; it has operators that are not ONNX's: {', '.join(foreign)}" if foreign else ""
        raise QuantizationError(f"{path}: ONNX Runtime does not load it ({first_line(error)}){hint}") from None
    return answers_of(session, str(path))


def _prepare(model: onnx.ModelProto, answers: list[Answer], path: Path) -> onnx.ModelProto:
    """Run all steps and compare; only where the end differs is each step's own result looked at."""
    stages: dict[str, bytes] = {}
    current = _parse(model.SerializeToString(), path)
    for name, step in STEPS.items():
        try:
            current = step(current)
            stages[name] = current.SerializeToString()
        except Exception as error:  # of onnx, onnxscript and ONNX Runtime, whose exceptions have no common type
            raise QuantizationError(f"{path}: {name} failed ({first_line(error)}); export it with opset 17") from None
    try:
        onnx.checker.check_model(current, full_check=True)
        worst = difference(answers, stages[name])
    except Exception as error:
        raise QuantizationError(f"{path}: preparing it left a model that does not run ({first_line(error)})") from None
    if worst > TOLERANCE:
        raise QuantizationError(
            f"{path}: {_culprit(answers, stages)} changes its outputs by {worst:.1e} of their largest value, more than "
            f"{TOLERANCE:.0e}; export it with opset 17 and constant folding"
        )
    return current


def _culprit(answers: list[Answer], stages: dict[str, bytes]) -> str:
    """Name the first step after which the answers differ, or the model does not run."""
    for name, stage in stages.items():
        try:
            if difference(answers, stage) > TOLERANCE:
                return name
        except Exception:
            return name
    return "preparing it"


def _describe_like(prepared: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Keep who made the model and the notes in its metadata, which tools on the way may drop."""
    prepared.producer_name, prepared.producer_version = original.producer_name, original.producer_version
    del prepared.metadata_props[:]
    prepared.metadata_props.extend(original.metadata_props)


def _hash(data: bytes, files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256(data)
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _changes(before: onnx.ModelProto, after: onnx.ModelProto, files: tuple[Path, ...]) -> tuple[str, ...]:
    """Say in words what was done, by counting operators before and after."""
    old, new = (Counter(node.op_type for node in walk(model)) for model in (before, after))
    weights = {tensor.name for tensor in before.graph.initializer}
    listed = sum(value.name in weights for value in before.graph.input)
    opsets = opset_of(before), opset_of(after)
    removed = [f"{old[op] - new[op]} {op}" for op in ("Dropout", "Identity") if old[op] > new[op]]
    unnamed = sum(not node.name and node.op_type != "Constant" for node in before.graph.node)
    said = [
        ", ".join(file.name for file in files) + " read into the model" if files else "",
        f"opset {opsets[0]} converted to {opsets[1]}" if opsets[0] != opsets[1] else "",
        _count(len(before.functions), "function", "put into the graph"),
        _count(listed, "weight", "listed as inputs made constant"),
        _count(old["Constant"], "constant", "made weights"),
        _count(old["BatchNormalization"] - new["BatchNormalization"], "batch norm", "folded into convolutions"),
        f"{' and '.join(removed)} removed" if removed else "",
        _count(new["HardSwish"] - old["HardSwish"], "hard swish", "put together", "es"),
        _count(new["GlobalAveragePool"] - old["GlobalAveragePool"], "average", "over a whole plane made global"),
        _count(unnamed, "node", "named"),
    ]
    return tuple(filter(None, said))


def _count(number: int, what: str, done: str, plural: str = "s") -> str:
    return f"{number} {what}{plural if number > 1 else ''} {done}" if number > 0 else ""
