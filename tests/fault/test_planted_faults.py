"""Faults planted into real bundles, each with its hashes made good, so that only parity can find them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgecnn.assemble import ExportOptions, export_bundle
from edgecnn.bundle import Bundle
from edgecnn.data import DataOptions, LabelledImages, open_data
from edgecnn.data.of_bundle import find_test_images
from edgecnn.errors import BackendError, CheckpointError, DataError, EdgecnnError, ImageError
from edgecnn.nets.compact import compact_config
from edgecnn.parity import ParityReport, Verdict, compare
from edgecnn.runs import read_run
from edgecnn.spec import BackendRef

Array = npt.NDArray[Any]
Edit = Callable[[onnx.ModelProto], None]
TORCH = BackendRef(backend="torch")
REFERENCES = [pytest.param(TORCH, id="torch"), pytest.param(None, id="goldens")]


def rehash(bundle: Path, name: str) -> None:
    """Write a changed file's size and hash into the manifest, as a faulty exporter would have."""
    data, manifest = (bundle / name).read_bytes(), json.loads((bundle / "manifest.json").read_bytes())
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def plant(bundle: Path, artifact: str, edit: Edit) -> None:
    """Change one ONNX artifact in place."""
    path = bundle / f"{artifact}.onnx"
    model = onnx.load(str(path))
    before = model.SerializeToString(deterministic=True)
    edit(model)
    assert model.SerializeToString(deterministic=True) != before, "the fault was not planted"
    path.write_bytes(model.SerializeToString())
    rehash(bundle, path.name)


def plant_array(bundle: Path, name: str, change: Callable[[Array], Array]) -> None:
    """Change one of the goldens' arrays in place."""
    path = bundle / "goldens" / "arrays.npz"
    with np.load(path) as stored:
        arrays: dict[str, Any] = {key: stored[key] for key in stored.files}
    arrays[name] = change(arrays[name])
    np.savez_compressed(path, **arrays)
    rehash(bundle, "goldens/arrays.npz")


def check(
    bundle: Path, artifact: str, reference: BackendRef | None, data: LabelledImages | None = None
) -> ParityReport:
    """Compare one artifact in ONNX Runtime."""
    return compare(Bundle.open(bundle), reference, [BackendRef(backend="onnxruntime", artifact=artifact)], data)


@pytest.fixture(scope="module")
def digits(bundle_folder: Path) -> LabelledImages:
    """Return the first test images that the bundle was measured on."""
    images, note = find_test_images(Bundle.open(bundle_folder).manifest, None)
    assert images is not None
    assert note is None
    return LabelledImages(images.pixels[:40], images.labels[:40], images.items[:40])


@pytest.fixture(scope="module")
def colour_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle for three channels, of a net that has seen random colours for one epoch. Read only."""
    from edgecnn.training.recipe import Recipe
    from edgecnn.training.run import train

    folder = tmp_path_factory.mktemp("colour")
    rng = np.random.default_rng(4)
    labels = np.arange(120) % 3
    images = (rng.integers(0, 90, (120, 8, 8, 3)) + 150 * np.eye(3)[labels][:, None, None, :]).astype(np.uint8)
    np.savez(folder / "colour.npz", x_train=images[:80], y_train=labels[:80], x_test=images[80:], y_test=labels[80:])
    options = DataOptions()
    dataset = open_data(str(folder / "colour.npz"), options)
    run, out = folder / "run", folder / "bundle"
    train(dataset, options, run, compact_config((8,), depth=1), Recipe(epochs=1), "cpu", lambda epoch: None)
    export_bundle(run, *read_run(run), dataset, out, ExportOptions(exporters=("onnx",)))
    return out


def _initializer(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _change(model: onnx.ModelProto, name: str, change: Callable[[Array], Array]) -> None:
    tensor = _initializer(model, name)
    value = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(np.array(change(value), dtype=value.dtype), name))


def _nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def _largest(value: Array) -> tuple[int, ...]:
    return tuple(int(index) for index in np.unravel_index(np.abs(value).argmax(), value.shape))


def _bump(value: Array, share: float) -> Array:
    value[_largest(value)] += share * np.abs(value).max()
    return value


def _weight(layer: str, change: Callable[[Array], Array]) -> Edit:
    """Change the weights of the `first` or `last` convolution, or of the `head`."""

    def edit(model: onnx.ModelProto) -> None:
        node = _nodes(model, "Gemm")[0] if layer == "head" else _nodes(model, "Conv")[0 if layer == "first" else -1]
        _change(model, node.input[1], change)

    return edit


def _constant(kind: str, change: Callable[[Array], Array]) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        _change(model, _nodes(model, kind)[0].input[1], change)

    return edit


def _set(value: Array, at: tuple[int, ...], to: float) -> Array:
    value[at] = to
    return value


def _swap_classes(model: onnx.ModelProto) -> None:
    order = [1, 0, *range(2, 10)]
    for name in _nodes(model, "Gemm")[0].input[1:3]:
        _change(model, name, lambda value: value[order])


def _drop_class(model: onnx.ModelProto) -> None:
    for name in _nodes(model, "Gemm")[0].input[1:3]:
        tensor = _initializer(model, name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:9].copy(), name))
    for value in model.graph.output:
        value.type.tensor_type.shape.dim[1].dim_value = 9


def _swap_channels(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], dtype=np.int64), "bgr"))
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "image":
                node.input[index] = "swapped"
    model.graph.node.insert(0, helper.make_node("Gather", ["image", "bgr"], ["swapped"], axis=3))


def _drop_probabilities(model: onnx.ModelProto) -> None:
    kept = [value for value in model.graph.output if value.name != "probabilities"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    model.graph.node.remove(_nodes(model, "Softmax")[0])


def _rename(old: str, new: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for value in (*model.graph.output, *model.graph.input):
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    return edit


def _swap_outputs(model: onnx.ModelProto) -> None:
    for old, new in (("logits", "aside"), ("probabilities", "logits"), ("aside", "probabilities")):
        _rename(old, new)(model)


def _softmax_over_the_batch(model: onnx.ModelProto) -> None:
    node = _nodes(model, "Softmax")[0]
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", 0))


def _behind(output: str, kind: str, extra: list[Array], dtype: int | None = None, **attributes: Any) -> Edit:
    """Put one more operator behind an output."""

    def edit(model: onnx.ModelProto) -> None:
        inner = f"{output}_inner"
        for node in model.graph.node:
            node.output[:] = [inner if name == output else name for name in node.output]
            node.input[:] = [inner if name == output else name for name in node.input]
        names = [f"{output}_extra_{index}" for index in range(len(extra))]
        model.graph.initializer.extend(
            numpy_helper.from_array(value, name) for value, name in zip(extra, names, strict=True)
        )
        model.graph.node.append(helper.make_node(kind, [inner, *names], [output], **attributes))
        value = next(value for value in model.graph.output if value.name == output)
        old = value.type.tensor_type.elem_type
        shape = value.type.tensor_type.shape if kind in ("Cast", "Mul", "Gather") else None
        sides = [side.dim_param or side.dim_value for side in shape.dim] if shape else None
        if kind == "Gather" and sides:
            sides[1] = len(extra[0])
        value.CopyFrom(helper.make_tensor_value_info(output, dtype or old, sides))

    return edit


def _int64(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


SHAPE = r"shape|\(None, 10\)"
NOISE = r"times torch float32's own"
SOFTMAX = r"'probabilities' is not the softmax of 'logits'"
FAULTS: dict[str, tuple[Edit, str]] = {
    "first convolution, one weight by 1e-3": (_weight("first", lambda value: _bump(value, 1e-3)), NOISE),
    "last convolution, one weight by 1e-3": (_weight("last", lambda value: _bump(value, 1e-3)), NOISE),
    "head, one weight by 1e-3": (_weight("head", lambda value: _bump(value, 1e-3)), NOISE),
    "all weights rounded to half precision": (_weight("last", lambda value: value.astype(np.float16)), NOISE),
    "kernel transposed": (_weight("last", lambda value: value.transpose(0, 1, 3, 2)), NOISE),
    "input planes swapped inside the net": (_weight("last", lambda value: value[:, ::-1]), NOISE),
    "zero point of the normalisation": (_constant("Sub", lambda value: value + 1), NOISE),
    "scale of the normalisation": (_constant("Mul", lambda value: value * 1.001), NOISE),
    "normalisation to one instead of the data's": (_constant("Mul", lambda value: 0 * value + 1 / 255), NOISE),
    "two classes swapped": (_swap_classes, NOISE),
    "NaN in a weight": (_weight("last", lambda value: _set(value, (0, 0, 0, 0), np.nan)), "not finite"),
    "infinity in a weight": (_weight("head", lambda value: _set(value, (0, 0), np.inf)), "not finite"),
    "probabilities missing": (_drop_probabilities, "'probabilities' is missing"),
    "probabilities renamed": (_rename("probabilities", "scores"), "'probabilities' is missing"),
    "logits renamed": (_rename("logits", "raw"), "'logits' is missing"),
    "the outputs' names swapped": (_swap_outputs, SOFTMAX),
    "softmax over the batch": (_softmax_over_the_batch, SOFTMAX),
    "probabilities scaled": (_behind("probabilities", "Mul", [np.float32(0.99)[None]]), SOFTMAX),
    "logits scaled, probabilities not": (_behind("logits", "Mul", [np.float32(1.5)[None]]), SOFTMAX),
    "one class missing": (_drop_class, SHAPE),
    "one class missing in the logits": (_behind("logits", "Gather", [_int64(*range(9))], axis=1), SHAPE),
    "one class missing in the probabilities": (
        _behind("probabilities", "Gather", [_int64(*range(9))], axis=1),
        "shape|'probabilities'",
    ),
    "one axis too many": (_behind("logits", "Unsqueeze", [_int64(2)]), SHAPE),
    "logits in double": (_behind("logits", "Cast", [], TensorProto.DOUBLE, to=TensorProto.DOUBLE), "float64"),
    "probabilities in half": (
        _behind("probabilities", "Cast", [], TensorProto.FLOAT16, to=TensorProto.FLOAT16),
        "float16",
    ),
    "input renamed": (_rename("image", "pixels"), "pixels|'image'"),
}


# Against torch, which takes half a second each, one fault of every kind.
AGAINST_TORCH = (
    "last convolution, one weight by 1e-3",
    "kernel transposed",
    "zero point of the normalisation",
    "two classes swapped",
    "NaN in a weight",
    "probabilities missing",
    "softmax over the batch",
    "one class missing",
    "logits in double",
)
CASES = [pytest.param(name, None, id=f"{name}-goldens") for name in FAULTS] + [
    pytest.param(name, TORCH, id=f"{name}-torch") for name in AGAINST_TORCH
]


@pytest.mark.parametrize(("fault", "reference"), CASES)
def test_a_planted_fault_fails(
    fault: str, reference: BackendRef | None, bundle_copy: Path, digits: LabelledImages
) -> None:
    """Every fault planted in the float32 artifact is a FAIL of its computation, for a reason that fits."""
    edit, reason = FAULTS[fault]
    plant(bundle_copy, "fp32", edit)
    report = check(bundle_copy, "fp32", reference, digits if reference else None)
    (cell,) = report.cells
    assert cell.computation.verdict is Verdict.FAIL, cell.computation.reason
    assert re.search(reason, cell.computation.reason), cell.computation.reason
    assert report.verdict is Verdict.FAIL


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("artifact", ["fp32", "int8"])
def test_the_clean_bundle_passes(
    artifact: str, reference: BackendRef | None, bundle_folder: Path, digits: LabelledImages
) -> None:
    """Without a planted fault both artifacts pass, so that what fails above fails by its fault."""
    report = check(bundle_folder, artifact, reference, digits if reference else None)
    assert report.cells[0].computation.verdict is Verdict.PASS, report.cells[0].computation.reason
    assert report.decoding.verdict is Verdict.PASS


@pytest.mark.parametrize(("layer", "reference"), [("first", None), ("last", None), ("head", None), ("last", TORCH)])
def test_one_unit_in_the_last_place_passes(
    layer: str, reference: BackendRef | None, bundle_copy: Path, digits: LabelledImages
) -> None:
    """The largest weight of a layer off by the smallest step that float32 has is noise, and no fault."""

    def step(value: Array) -> Array:
        at = _largest(value)
        return _set(value, at, float(np.nextafter(value[at], np.float32(np.inf))))

    plant(bundle_copy, "fp32", _weight(layer, step))
    report = check(bundle_copy, "fp32", reference, digits if reference else None)
    assert report.cells[0].computation.verdict is Verdict.PASS, report.cells[0].computation.reason


def test_the_onnx_evaluator_agrees_and_finds_the_same_fault(bundle_copy: Path) -> None:
    """The evaluator in onnx, written by others, passes the clean artifact and fails a changed weight."""
    other = [BackendRef(backend="reference", artifact="fp32")]
    assert compare(Bundle.open(bundle_copy), None, other).cells[0].computation.verdict is Verdict.PASS
    plant(bundle_copy, "fp32", FAULTS["last convolution, one weight by 1e-3"][0])
    assert compare(Bundle.open(bundle_copy), None, other).cells[0].computation.verdict is Verdict.FAIL


@pytest.mark.parametrize("reference", REFERENCES)
def test_swapped_colours_fail(reference: BackendRef | None, colour_bundle: Path, tmp_path: Path) -> None:
    """BGR fed to a net that was trained on RGB is a FAIL, where the untouched artifact passes."""
    copy = tmp_path / "bundle"
    shutil.copytree(colour_bundle, copy)
    assert check(copy, "fp32", reference).verdict is Verdict.PASS
    plant(copy, "fp32", _swap_channels)
    report = check(copy, "fp32", reference)
    assert report.cells[0].computation.verdict is Verdict.FAIL
    assert re.search(NOISE, report.cells[0].computation.reason)


def _dequantized(model: onnx.ModelProto, kind: str, place: int) -> onnx.NodeProto:
    """Find what dequantizes an input of the last node of a kind: 0 is the activation, 1 the weights."""
    wanted = _nodes(model, kind)[-1].input[place]
    return next(node for node in _nodes(model, "DequantizeLinear") if node.output[0] == wanted)


def _scale(kind: str, place: int, factor: float, everywhere: bool = False) -> Edit:
    """Change the scale of an input of the last node of a kind, in its first channel or in all."""

    def change(value: Array) -> Array:
        flat = value.reshape(-1)
        flat[: flat.size if everywhere else 1] *= factor
        return flat.reshape(value.shape)

    return lambda model: _change(model, _dequantized(model, kind, place).input[1], change)


def _weights(kind: str, change: Callable[[Array], Array]) -> Edit:
    """Change the int8 weights of the last node of a kind."""
    return lambda model: _change(model, _dequantized(model, kind, 1).input[0], change)


INT8_FAULTS: dict[str, Edit] = {
    "scale of an activation": _scale("Gemm", 0, 2.0),
    "scale of the head's weights, one class": _scale("Gemm", 1, 1.2),
    "scale of the head's weights": _scale("Gemm", 1, 1.05, everywhere=True),
    "scale of a convolution's weights": _scale("Conv", 1, 1.1, everywhere=True),
    "one weight's sign": _weights("Gemm", lambda value: _set(value, _largest(value), -value[_largest(value)])),
    "kernel transposed": _weights("Conv", lambda value: value.transpose(0, 1, 3, 2)),
}


@pytest.mark.parametrize("fault", INT8_FAULTS)
def test_a_fault_in_the_int8_artifact_fails(fault: str, bundle_copy: Path) -> None:
    """A changed scale or weight is a FAIL against the artifact's own recorded answers, though accuracy may stay."""
    plant(bundle_copy, "int8", INT8_FAULTS[fault])
    report = check(bundle_copy, "int8", None)
    (cell,) = report.cells
    assert cell.computation.verdict is Verdict.FAIL, cell.computation.reason
    assert "its quantization error" in cell.computation.reason
    assert cell.computation.share is not None
    assert cell.computation.share > 0.5


def test_a_scale_that_is_not_finite_fails(bundle_copy: Path) -> None:
    """A NaN among an int8 artifact's scales is a FAIL."""
    plant(bundle_copy, "int8", _scale("Gemm", 1, float("nan")))
    report = check(bundle_copy, "int8", None)
    assert report.verdict is Verdict.FAIL
    assert "not finite" in report.cells[0].computation.reason


def test_the_float_artifact_in_place_of_int8_fails(bundle_copy: Path) -> None:
    """A file that was never quantized does not pass for the int8 artifact, however right its answers are."""
    shutil.copy(bundle_copy / "fp32.onnx", bundle_copy / "int8.onnx")
    rehash(bundle_copy, "int8.onnx")
    assert check(bundle_copy, "int8", None).cells[0].computation.verdict is Verdict.FAIL


def test_the_int8_artifact_in_place_of_float_fails(bundle_copy: Path) -> None:
    """Quantization error does not pass for float32 noise."""
    shutil.copy(bundle_copy / "int8.onnx", bundle_copy / "fp32.onnx")
    rehash(bundle_copy, "fp32.onnx")
    assert check(bundle_copy, "fp32", None).cells[0].computation.verdict is Verdict.FAIL


def test_a_file_that_is_no_model_fails(bundle_copy: Path) -> None:
    """An artifact of noise whose hash is right is a FAIL that names the file, and not a crash."""
    (bundle_copy / "fp32.onnx").write_bytes(b"not a model" * 100)
    rehash(bundle_copy, "fp32.onnx")
    report = check(bundle_copy, "fp32", None)
    assert report.verdict is Verdict.FAIL
    assert "fp32.onnx" in report.cells[0].computation.reason


def test_an_empty_set_of_images_is_an_error(bundle_folder: Path, digits: LabelledImages) -> None:
    """Zero labelled images are refused, not passed."""
    none = LabelledImages(digits.pixels[:0], digits.labels[:0], ())
    with pytest.raises(DataError, match="empty set"):
        check(bundle_folder, "fp32", TORCH, none)


def _exchange_checkpoint(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from edgecnn.nets import build_net
    from edgecnn.training.checkpoint import Header, load_checkpoint, save_checkpoint

    old = load_checkpoint(bundle / "model.safetensors")
    net = build_net(old.model, old.preprocess, len(old.labels))
    weights = dict(old.weights)
    change(weights)
    net.load_state_dict(weights)
    header = Header(model=old.model, preprocess=old.preprocess, labels=old.labels)
    save_checkpoint(bundle / "model.safetensors", net, header)
    rehash(bundle, "model.safetensors")


def test_an_exchanged_checkpoint_is_an_error(bundle_copy: Path) -> None:
    """A checkpoint with one weight off by a millionth is not the goldens' and cannot be the reference."""

    def change(weights: dict[str, Any]) -> None:
        weights["head.weight"] = weights["head.weight"].clone()
        weights["head.weight"][0, 0] *= 1 + 1e-6

    _exchange_checkpoint(bundle_copy, change)
    with pytest.raises(BackendError, match="does not give the goldens' logits"):
        check(bundle_copy, "fp32", TORCH)
    assert check(bundle_copy, "fp32", None).verdict is Verdict.PASS


def test_a_checkpoint_with_nan_is_an_error(bundle_copy: Path) -> None:
    """A reference with a NaN among its weights is refused by the name of the tensor."""

    def change(weights: dict[str, Any]) -> None:
        weights["head.bias"] = weights["head.bias"] * float("nan")

    _exchange_checkpoint(bundle_copy, change)
    with pytest.raises(CheckpointError, match=r"not finite in head\.bias"):
        check(bundle_copy, "fp32", TORCH)


def test_changed_goldens_fail_both_ways(bundle_copy: Path) -> None:
    """A truth that was changed by one part in a thousand is an error against torch, and a FAIL without it."""
    plant_array(bundle_copy, "logits_float64", lambda value: value * 1.001)
    with pytest.raises(BackendError, match="does not give the goldens' logits"):
        check(bundle_copy, "fp32", TORCH)
    assert check(bundle_copy, "fp32", None).verdict is Verdict.FAIL


def test_changed_recorded_answers_fail(bundle_copy: Path) -> None:
    """Recorded answers of another artifact are a FAIL of the one that does not give them."""
    plant_array(bundle_copy, "recorded_int8", lambda value: value[::-1])
    assert check(bundle_copy, "int8", None).cells[0].computation.verdict is Verdict.FAIL


@pytest.mark.parametrize("name", ["logits_float64", "logits_float32", "recorded_int8"])
def test_goldens_that_are_not_finite_pass_nothing(name: str, bundle_copy: Path) -> None:
    """A NaN among the goldens' own answers is an error in one line or a FAIL, never a PASS and never a crash."""
    plant_array(bundle_copy, name, lambda value: _set(value, (3, 3), np.nan))
    refs = [BackendRef(backend="onnxruntime", artifact=artifact) for artifact in ("fp32", "int8")]
    try:
        verdict = compare(Bundle.open(bundle_copy), None, refs).verdict
    except EdgecnnError:
        return
    assert verdict is Verdict.FAIL


def test_a_unit_that_is_no_noise_passes_nothing(bundle_copy: Path) -> None:
    """Float32 answers that are wrong themselves do not make a wrong candidate pass as sixteen times as wrong."""
    plant_array(bundle_copy, "logits_float32", lambda value: value[::-1])
    plant(bundle_copy, "fp32", _swap_classes)
    try:
        verdict = check(bundle_copy, "fp32", None).verdict
    except BackendError:
        return
    assert verdict is not Verdict.PASS


def _alter_golden(bundle: Path, levels: int) -> None:
    name = json.loads((bundle / "manifest.json").read_bytes())["goldens"]["images"][5]
    with Image.open(io.BytesIO((bundle / name).read_bytes())) as image:
        pixels = np.asarray(image).copy()
    pixels[0, 0] += levels if pixels[0, 0] < 128 else -levels
    Image.fromarray(pixels).save(bundle / name)
    rehash(bundle, name)


@pytest.mark.parametrize(("levels", "reference"), [(1, None), (77, None), (1, TORCH)])
def test_another_decoder_fails_by_itself(levels: int, reference: BackendRef | None, bundle_copy: Path) -> None:
    """One pixel of one golden that decodes differently fails decoding, and the model's own cell still passes."""
    _alter_golden(bundle_copy, levels)
    report = check(bundle_copy, "fp32", reference)
    assert report.decoding.verdict is Verdict.FAIL
    assert f"by up to {levels} of 255 levels on 1 of 32 goldens" in report.decoding.reason
    assert report.cells[0].computation.verdict is Verdict.PASS
    assert report.verdict is Verdict.FAIL


def test_a_golden_that_does_not_decode_is_no_pass(bundle_copy: Path) -> None:
    """A golden image that cannot be decoded here at all is an error that names it."""
    (bundle_copy / "goldens" / "000.png").write_bytes(b"no image")
    rehash(bundle_copy, "goldens/000.png")
    with pytest.raises(ImageError, match=r"goldens/000\.png"):
        check(bundle_copy, "fp32", None)
