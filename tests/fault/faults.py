"""Every planted fault in one table: how it is planted, which question has to catch it, and where it is.

`FAULTS` are planted into copies of three bundles: `digits` (one channel, fp32 and int8), `colour` (three channels, from
larger pictures) and `full range` (digits with int8 weights of all eight bits). `ALLOWED` are changes that are none.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx
from fault import backends, planting
from fault.backends import FaultyBackend, SaturatingBackend, SaturatingSession
from fault.planting import (
    Edit,
    attribute,
    behind,
    bias,
    bump,
    constant,
    int8_weights,
    operator,
    put,
    scale,
    step,
    weight,
)
from onnx import helper, numpy_helper
from PIL import Image

from edgecnn import images
from edgecnn.backends.base import Backend
from edgecnn.bundle import Bundle
from edgecnn.data import LabelledImages
from edgecnn.parity import ParityReport, Verdict, compare
from edgecnn.parity.localize.cut import Open, open_on_cpu
from edgecnn.spec import BackendRef, Preprocess, Tolerance

Array = npt.NDArray[Any]
Question = Literal["computation", "decisions", "decoding", "repeat", "batch", "threads"]

FIRST, LAST, HEAD = r"^net\.layers\.0\.0\b", r"^net\.layers\.2\.0\b", r"net\.head\b"
NOISE, SHARE = "times torch float32's own", "times its quantization error"


@dataclass(frozen=True)
class Fault:
    """One fault. `caught` are the questions that must answer FAIL, the first of them for a `reason` that fits.

    It is planted by an `edit` of an artifact, or otherwise into the `folder` of the bundle, or by a `backend` that is at
    fault, or a machine (`around`). `block` and `blame` are what localization has to say; no block: it is in none.
    """

    name: str
    caught: tuple[Question, ...]
    reason: str
    edit: Edit | None = None
    folder: Callable[[Path], None] | None = None
    backend: Callable[[], Backend] | None = None
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    artifact: str = "fp32"
    bundle: str = "digits"
    device: str = "cpu"
    labelled: bool = False
    block: str = ""
    blame: str = "model file"
    kernel: Open | None = None


@dataclass(frozen=True)
class Caught:
    """One question that answered FAIL."""

    question: str
    reason: str
    figure: str


def plant(fault: Fault, bundle: Path) -> None:
    """Change a copy of the bundle, where the fault is in it."""
    if fault.edit is not None:
        planting.plant(bundle, fault.artifact, fault.edit)
    if fault.folder is not None:
        fault.folder(bundle)


def examine(
    fault: Fault, bundle: Path, data: LabelledImages | None = None, reference: BackendRef | None = None
) -> ParityReport:
    """Compare what the fault is planted in; `data` are used where it is about decisions, or torch is the reference."""
    backend = fault.backend() if fault.backend is not None else None
    name = backend.name if backend is not None else "onnxruntime"
    candidate = BackendRef(backend=name, artifact=fault.artifact, device=fault.device)
    if fault.labelled:
        reference = BackendRef(backend="onnxruntime", artifact="fp32")
    images = data if reference is not None else None
    with backends.registered(backend), fault.around():
        return compare(Bundle.open(bundle), reference, [candidate], images, Tolerance(max_drop=0.01))


def failures(report: ParityReport) -> list[Caught]:
    """List the questions that answered FAIL, in the order in which they are asked."""
    found = []
    if report.decoding is not None and report.decoding.verdict is Verdict.FAIL:
        found.append(Caught("decoding", report.decoding.reason, ""))
    for cell in report.cells:
        computation, decisions = cell.computation, cell.decisions
        if computation.verdict is Verdict.FAIL:
            found.append(Caught("computation", computation.reason, _figure(computation.multiple, computation.share)))
        if decisions is not None and decisions.verdict is Verdict.FAIL:
            found.append(Caught("decisions", decisions.reason, f"{100 * decisions.drop:+.1f} points"))
        for one in getattr(cell, "steadiness", ()):
            if one.verdict is Verdict.FAIL:
                units = (None, one.multiple) if computation.share is not None else (one.multiple, None)
                found.append(Caught(one.what, one.reason, _figure(*units)))
    return found


def _figure(multiple: float | None, share: float | None) -> str:
    if multiple is not None:
        return f"{multiple:.3g} × float32's error"
    return f"{share:.3g} × quantization error" if share is not None else ""


# What is planted by more than a line.


def _swap_classes(model: onnx.ModelProto) -> None:
    for name in planting.layer(model, "head").input[1:3]:
        planting.change_constant(model, name, lambda value: value[[1, 0, *range(2, len(value))]])


def _drop_class(model: onnx.ModelProto) -> None:
    for name in planting.layer(model, "head").input[1:3]:
        tensor = planting.initializer(model, name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:-1].copy(), name))
    for value in model.graph.output:
        value.type.tensor_type.shape.dim[1].dim_value -= 1


def _swap_channels(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(planting.int64(2, 1, 0), "bgr"))
    for node in model.graph.node:
        node.input[:] = ["swapped" if name == "image" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Gather", ["image", "bgr"], ["swapped"], axis=3))


def _drop_probabilities(model: onnx.ModelProto) -> None:
    kept = [value for value in model.graph.output if value.name != "probabilities"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    model.graph.node.remove(planting.nodes(model, "Softmax")[0])


def _swap_outputs(model: onnx.ModelProto) -> None:
    for old, new in (("logits", "aside"), ("probabilities", "logits"), ("aside", "probabilities")):
        planting.rename(old, new)(model)


def _stale_dequantizer(factor: float) -> Edit:
    """Read the head's input by another scale than it was written by."""

    def edit(model: onnx.ModelProto) -> None:
        node = planting.dequantizer(model, "Gemm", 0)
        value = numpy_helper.to_array(planting.initializer(model, node.input[1]))
        model.graph.initializer.append(numpy_helper.from_array((value * factor).astype(np.float32), "stale"))
        node.input[1] = "stale"

    return edit


def _softmax_over_the_batch(model: onnx.ModelProto) -> None:
    node = planting.nodes(model, "Softmax")[0]
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", 0))


def other_epsilon(bundle: Path) -> None:
    """Fold the second batch norm with an epsilon of 1e-3, which is TensorFlow's, in place of torch's 1e-5."""
    from safetensors.numpy import load_file

    weights = load_file(bundle / "model.safetensors")
    variance, shift = weights["layers.2.1.running_var"], weights["layers.2.1.bias"]
    factor = np.sqrt((variance + 1e-5) / (variance + 1e-3))

    def edit(model: onnx.ModelProto) -> None:
        weight("last", lambda value: value * factor[:, None, None, None])(model)
        bias("last", lambda value: (value - shift) * factor + shift)(model)

    planting.plant(bundle, "fp32", edit)


def bad_quantization(bundle: Path) -> None:
    """Quantize badly, and record faithfully what that answers: three bits are left of the head's weights."""
    planting.plant(bundle, "int8", int8_weights("Gemm", lambda value: np.round(value / 60) * 60))
    record(bundle, "int8")


def record(bundle: Path, artifact: str) -> None:
    """Record an artifact's answers for the goldens as onnx's own evaluator gives them."""
    from edgecnn.backends.base import open_session

    opened = Bundle.open(bundle)
    with open_session(BackendRef(backend="reference"), opened.artifact(artifact)) as session:
        logits = session.run({"image": opened.goldens().pixels})["logits"]
    planting.plant_array(bundle, f"recorded_{artifact}", lambda value: logits)


def full_range(source: Path, bundle: Path) -> None:
    """Make a bundle whose int8 weights take all eight bits, which x86 without VNNI cannot add up in 16."""
    from edgecnn.quantization.feeds import from_arrays
    from edgecnn.quantization.qdq import quantize
    from edgecnn.quantization.recipe import Recipe
    from edgecnn.quantization.rungs import Workshop
    from edgecnn.quantization.source import read_source
    from edgecnn.quantization.yardstick import Yardstick

    shutil.copytree(source, bundle)
    opened = Bundle.open(bundle)
    model = read_source(opened.artifact("fp32").path).model
    feeds, recipe = from_arrays({"image": opened.goldens().pixels}), Recipe()
    ranges = Workshop(feeds, recipe, Yardstick(model, feeds)).ranges(model, "min-max")
    planting.replace(bundle, "int8", quantize(model, ranges, recipe))
    record(bundle, "int8")


def _by_nearest(image: Image.Image, size: tuple[int, int], preprocess: Preprocess) -> Image.Image:
    return image.resize(size, Image.Resampling.NEAREST)


def _by_bicubic(image: Image.Image, size: tuple[int, int], preprocess: Preprocess) -> Image.Image:
    return image.resize(size, Image.Resampling.BICUBIC)


def _without_antialiasing(image: Image.Image, size: tuple[int, int], preprocess: Preprocess) -> Image.Image:
    """Resize as OpenCV and torch's `interpolate` do by default: two neighbours, however small the picture gets."""
    values = np.asarray(image, np.float64)
    rows, columns = ((np.arange(to) + 0.5) * of / to - 0.5 for to, of in zip(size[::-1], values.shape[:2], strict=True))

    def between(array: Array, at: Array, axis: int) -> Array:
        low = np.clip(np.floor(at).astype(int), 0, array.shape[axis] - 1)
        high = np.minimum(low + 1, array.shape[axis] - 1)
        share = np.clip(at - low, 0, 1).reshape([-1 if one == axis else 1 for one in range(array.ndim)])
        result: Array = np.take(array, low, axis) * (1 - share) + np.take(array, high, axis) * share
        return result

    return Image.fromarray(np.rint(between(between(values, rows, 0), columns, 1)).astype(np.uint8))


def resizing(by: Callable[[Image.Image, tuple[int, int], Preprocess], Image.Image]) -> Callable[[], Any]:
    """Be a machine that resizes by another filter."""
    return lambda: mock.patch.object(images, "_resize", by)


def kernel(edit: Edit, which: str) -> Open:
    """Compute every block that holds a layer (by its operator and number) as if it had been edited."""

    @contextmanager
    def opened(model: onnx.ModelProto) -> Iterator[Any]:
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        if any(node.name == which for node in copy.graph.node):
            edit(copy)
        with open_on_cpu(copy) as session:
            yield session

    return opened


@contextmanager
def open_saturating(model: onnx.ModelProto) -> Iterator[Any]:
    """Run a block as x86 without VNNI does."""
    with SaturatingSession(model) as session:
        yield session


def _node(which: str, edit: Edit) -> Edit:
    """Edit a model that need not be whole: what `layer` finds by its place is found by the node's name there."""

    def edited(model: onnx.ModelProto) -> None:
        only = [node for node in model.graph.node if node.op_type != "Conv" or node.name == which]
        kept = onnx.ModelProto.FromString(model.SerializeToString())
        del kept.graph.node[:]
        kept.graph.node.extend(only)
        edit(kept)
        done = {node.name: node for node in kept.graph.node}
        for node in model.graph.node:
            node.CopyFrom(done.get(node.name, node))
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept.graph.initializer)

    return edited


LAST_CONV = "node_Conv_41"
_NAN = _node(LAST_CONV, bias("last", lambda value: put(value, (3,), np.nan)))
_SHIFTED = _node(LAST_CONV, attribute("last", "pads", [2, 2, 0, 0]))
_NO_BIAS = _node(LAST_CONV, bias("last", lambda value: value * 0))

IN_THE_MODEL = [
    Fault("a weight of the first convolution, by 1e-3", ("computation",), NOISE,
          weight("first", lambda value: bump(value, 1e-3)), block=FIRST),
    Fault("a weight of the last convolution, by 1e-3", ("computation",), NOISE,
          weight("last", lambda value: bump(value, 1e-3)), block=LAST),
    Fault("a weight of the head, by 1e-3", ("computation",), NOISE, weight("head", lambda value: bump(value, 1e-3)), block=HEAD),
    Fault("weights rounded to half precision", ("computation",), NOISE,
          weight("last", lambda value: value.astype(np.float16)), block=LAST),
    Fault("kernel transposed", ("computation",), NOISE, weight("last", lambda value: value.transpose(0, 1, 3, 2)), block=LAST),
    Fault("kernel turned by half a turn", ("computation",), NOISE, weight("first", lambda value: value[:, :, ::-1, ::-1]), block=FIRST),
    Fault("input planes swapped inside the net", ("computation",), NOISE, weight("last", lambda value: value[:, ::-1]), block=LAST),
    Fault("bias dropped", ("computation",), NOISE, bias("first", lambda value: value * 0), block=FIRST),
    Fault("batch norm's epsilon", ("computation",), NOISE, folder=other_epsilon, block=LAST),
    Fault("padding on one side", ("computation",), NOISE, attribute("last", "pads", [2, 2, 0, 0]), block=LAST),
    Fault("activation missing", ("computation",), NOISE, operator("Relu", "Identity", 1), block=r"^averagepool$"),
    Fault("another activation", ("computation",), NOISE, operator("Relu", "LeakyRelu", 0, alpha=0.01), block=FIRST),
    Fault("average in place of maximum pooling", ("computation",), NOISE,
          operator("MaxPool", "AveragePool", kernel_shape=[2, 2], strides=[2, 2]), block="^averagepool$"),
    Fault("zero point of the normalisation (mean)", ("computation",), NOISE,
          constant("Sub", lambda value: value + 1), block="^sub ", blame="preprocessing"),
    Fault("scale of the normalisation (std)", ("computation",), NOISE,
          constant("Mul", lambda value: value * 1.001), block="^sub ", blame="preprocessing"),
    Fault("normalised to one instead of the data's", ("computation",), NOISE,
          constant("Mul", lambda value: 0 * value + 1 / 255), block="^sub ", blame="preprocessing"),
    Fault("order of colours", ("computation",), NOISE, _swap_channels, bundle="colour", block="^gather ", blame="preprocessing"),
    Fault("two classes swapped", ("computation",), NOISE, _swap_classes, block=HEAD),
    Fault("NaN in one channel's weights", ("computation",), "not finite",
          weight("last", lambda value: put(value, (3, 0, 0, 0), np.nan)), block=LAST),
    Fault("infinity in a weight", ("computation",), "not finite", weight("head", lambda value: put(value, (0, 0), np.inf)), block=HEAD),
]  # fmt: skip
IN_INT8 = [
    Fault("stale scale of an activation", ("computation",), SHARE, scale("Gemm", 0, 2.0), artifact="int8", block="^globalaveragepool$"),
    Fault("stale scale of one dequantizer", ("computation",), SHARE, _stale_dequantizer(1.25), artifact="int8", block=HEAD),
    Fault("stale scale of one dequantizer, by 5 %", ("computation",), SHARE, _stale_dequantizer(1.05), artifact="int8",
          block=HEAD),
    Fault("scale of one class's weights", ("computation",), SHARE, scale("Gemm", 1, 1.2), artifact="int8", block=HEAD),
    Fault("scale of the head's weights", ("computation",), SHARE, scale("Gemm", 1, 1.05, everywhere=True), artifact="int8", block=HEAD),
    Fault("scale of a convolution's weights", ("computation",), SHARE, scale("Conv", 1, 1.1, everywhere=True), artifact="int8", block=LAST),
    Fault("sign of one int8 weight", ("computation",), SHARE,
          int8_weights("Gemm", lambda value: put(value, planting.largest(value), -value[planting.largest(value)])),
          artifact="int8", block=HEAD),
    Fault("int8 kernel transposed", ("computation",), SHARE,
          int8_weights("Conv", lambda value: value.transpose(0, 1, 3, 2)), artifact="int8", block=LAST),
    Fault("scale that is not a number", ("computation",), "not finite", scale("Gemm", 1, float("nan")), artifact="int8", block=HEAD),
    Fault("quantized badly, recorded faithfully", ("decisions",), "points", folder=bad_quantization, artifact="int8",
          labelled=True, block=HEAD),
]  # fmt: skip
SHAPE = r"shape|\(None, 10\)"
SOFTMAX = r"'probabilities' is not the softmax of 'logits'"
OF_THE_OUTPUTS = [
    Fault("probabilities missing", ("computation",), "'probabilities' is missing", _drop_probabilities),
    Fault("probabilities renamed", ("computation",), "'probabilities' is missing", planting.rename("probabilities", "scores")),
    Fault("logits renamed", ("computation",), "'logits' is missing", planting.rename("logits", "raw")),
    Fault("the outputs' names swapped", ("computation",), SOFTMAX, _swap_outputs),
    Fault("softmax over the batch", ("computation",), SOFTMAX, _softmax_over_the_batch, block="^softmax$"),
    Fault("probabilities scaled", ("computation",), SOFTMAX, behind("probabilities", "Mul", [np.array([0.99], np.float32)]),
          block="^mul$"),
    Fault("logits scaled, probabilities not", ("computation",), SOFTMAX, behind("logits", "Mul", [np.array([1.5], np.float32)])),
    Fault("outputs truncated: one class missing", ("computation",), SHAPE, _drop_class),
    Fault("one class missing in the logits", ("computation",), SHAPE, behind("logits", "Gather", [planting.int64(*range(9))], axis=1)),
    Fault("one class missing in the probabilities", ("computation",), "shape|'probabilities'",
          behind("probabilities", "Gather", [planting.int64(*range(9))], axis=1)),
    Fault("one axis too many", ("computation",), SHAPE, behind("logits", "Unsqueeze", [planting.int64(2)])),
    Fault("logits in double", ("computation",), "float64",
          behind("logits", "Cast", [], onnx.TensorProto.DOUBLE, to=onnx.TensorProto.DOUBLE)),
    Fault("probabilities in half", ("computation",), "float16",
          behind("probabilities", "Cast", [], onnx.TensorProto.FLOAT16, to=onnx.TensorProto.FLOAT16)),
    Fault("input renamed", ("computation",), "pixels|'image'", planting.rename("image", "pixels")),
]  # fmt: skip
OF_THE_MACHINE = [
    Fault("resized to the nearest pixel", ("decoding",), "of 255 levels", around=resizing(_by_nearest), bundle="colour", blame="input"),
    Fault("resized by another filter", ("decoding",), "of 255 levels", around=resizing(_by_bicubic), bundle="colour", blame="input"),
    Fault("resized without antialiasing", ("decoding",), "of 255 levels", around=resizing(_without_antialiasing),
          bundle="colour", blame="input"),
]  # fmt: skip
OF_THE_BACKEND = [
    Fault("int8 sums that saturate in 16 bits", ("computation",), SHARE, backend=SaturatingBackend, artifact="int8",
          bundle="full range", block=r"net\.layers\.0\.0", blame="kernel", kernel=open_saturating),
    Fault("NaN from one channel of a kernel", ("computation",), "not finite", backend=lambda: FaultyBackend(edit=_NAN),
          block=LAST, blame="kernel", kernel=kernel(_NAN, LAST_CONV)),
    Fault("a kernel that pads on one side", ("computation",), NOISE, backend=lambda: FaultyBackend(edit=_SHIFTED),
          block=LAST, blame="kernel", kernel=kernel(_SHIFTED, LAST_CONV)),
    Fault("a kernel that forgets the bias", ("computation",), NOISE, backend=lambda: FaultyBackend(edit=_NO_BIAS),
          block=LAST, blame="kernel", kernel=kernel(_NO_BIAS, LAST_CONV)),
    Fault("computed in bfloat16", ("computation",), NOISE, backend=lambda: FaultyBackend(backends.rounded_to_bfloat16)),
    Fault("a quiet fall back to the CPU", ("computation",), "asked for npu:0 and obtained cpu",
          backend=lambda: FaultyBackend(falls_back=True), device="npu:0"),
    Fault("rows swapped in a batch", ("batch", "computation"), "one sample at a time", backend=lambda: FaultyBackend(backends.rows_swapped)),
    Fault("answers of the run before", ("batch",), "one sample at a time",
          backend=lambda: FaultyBackend(backends.answers_of_the_run_before)),
    Fault("another answer each time", ("repeat",), "once more", backend=lambda: FaultyBackend(backends.another_answer_each_time)),
    Fault("another answer with other threads", ("threads",), "number of threads",
          backend=lambda: FaultyBackend(backends.wrong_with_other_threads)),
]  # fmt: skip
FAULTS = {fault.name: fault for fault in (*IN_THE_MODEL, *IN_INT8, *OF_THE_OUTPUTS, *OF_THE_MACHINE, *OF_THE_BACKEND)}
ALLOWED = {
    fault.name: fault
    for fault in (
        Fault("a weight of the first convolution, by one unit in the last place", (), "", weight("first", step)),
        Fault("a weight of the last convolution, by one unit in the last place", (), "", weight("last", step)),
        Fault("a weight of the head, by one unit in the last place", (), "", weight("head", step)),
        Fault("the simulated CPU, with room for every sum", (), "", backend=lambda: SaturatingBackend(saturate=False),
              artifact="int8", bundle="full range"),
        Fault("a backend around another, with nothing wrong", (), "", backend=FaultyBackend),
    )
}  # fmt: skip
