"""Faults planted into real bundles, each with its hashes made good, so that only parity can find them."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault.faults import ALLOWED, FAULTS, examine, failures
from fault.faults import plant as plant_fault
from fault.planting import bump, plant, plant_array, put, rehash, weight
from PIL import Image

from edgecnn.bundle import Bundle
from edgecnn.data import LabelledImages
from edgecnn.errors import BackendError, CheckpointError, DataError, EdgecnnError, ImageError
from edgecnn.parity import ParityReport, Verdict, compare
from edgecnn.spec import BackendRef

TORCH = BackendRef(backend="torch")
REFERENCES = [pytest.param(TORCH, id="torch"), pytest.param(None, id="goldens")]
# Against torch, which takes half a second each, one fault of every kind.
AGAINST_TORCH = (
    "a weight of the last convolution, by 1e-3",
    "kernel transposed",
    "zero point of the normalisation (mean)",
    "order of colours",
    "two classes swapped",
    "NaN in one channel's weights",
    "probabilities missing",
    "softmax over the batch",
    "outputs truncated: one class missing",
    "logits in double",
    "rows swapped in a batch",
)
PAIRS = [
    f"{bundle}/{backend}:{artifact}"
    for bundle, artifacts in (("digits", ("fp32", "int8")), ("colour", ("fp32",)), ("full range", ("int8",)))
    for artifact in artifacts
    for backend in ("onnxruntime", "reference", "openvino")
]
CASES = [pytest.param(name, None, id=f"{name}-goldens") for name in FAULTS] + [
    pytest.param(name, TORCH, id=f"{name}-torch") for name in AGAINST_TORCH
]


def check(
    bundle: Path, artifact: str, reference: BackendRef | None, data: LabelledImages | None = None
) -> ParityReport:
    """Compare one artifact in ONNX Runtime."""
    return compare(Bundle.open(bundle), reference, [BackendRef(backend="onnxruntime", artifact=artifact)], data)


@pytest.mark.parametrize(("fault", "reference"), CASES)
def test_a_planted_fault_is_caught(
    fault: str,
    reference: BackendRef | None,
    clean: Mapping[str, Path],
    digits: LabelledImages,
    test_images: LabelledImages,
    tmp_path: Path,
) -> None:
    """Every planted fault is a FAIL of the question that is there to catch it, for a reason that fits."""
    planted = FAULTS[fault]
    copy = Path(shutil.copytree(clean[planted.bundle], tmp_path / "bundle"))
    plant_fault(planted, copy)
    data = test_images if planted.labelled else digits if planted.bundle == "digits" else None
    report = examine(planted, copy, data, reference)
    found = failures(report)
    assert set(planted.caught) <= {one.question for one in found}, found
    reasons = [one.reason for one in found if one.question == planted.caught[0]]
    assert re.search(planted.reason, reasons[0]), reasons
    assert report.verdict is Verdict.FAIL


@pytest.mark.parametrize("change", ALLOWED)
def test_what_is_no_fault_passes(change: str, clean: Mapping[str, Path], tmp_path: Path) -> None:
    """A step of float32's last place is noise, and the backends that faults are planted by are right without them."""
    planted = ALLOWED[change]
    copy = Path(shutil.copytree(clean[planted.bundle], tmp_path / "bundle"))
    plant_fault(planted, copy)
    report = examine(planted, copy)
    assert failures(report) == []
    assert report.cells[0].computation.verdict is Verdict.PASS, report.cells[0].computation.reason
    assert report.verdict is Verdict.PASS


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("artifact", ["fp32", "int8"])
def test_the_clean_bundle_passes(
    artifact: str, reference: BackendRef | None, bundle_folder: Path, digits: LabelledImages
) -> None:
    """Without a planted fault both artifacts pass, so that what fails above fails by its fault."""
    report = check(bundle_folder, artifact, reference, digits if reference else None)
    assert report.cells[0].computation.verdict is Verdict.PASS, report.cells[0].computation.reason
    assert report.decoding is not None
    assert report.decoding.verdict is Verdict.PASS


@pytest.mark.parametrize("pair", PAIRS)
def test_no_false_alarm(pair: str, clean: Mapping[str, Path]) -> None:
    """No question of any clean bundle fails in any of three runtimes, by other people, that share no code with each other."""
    name, ref = pair.split("/")
    report = compare(Bundle.open(clean[name]), None, [BackendRef.parse(ref)])
    assert failures(report) == []
    assert report.verdict is Verdict.PASS, report.cells[0].computation.reason


def test_the_onnx_evaluator_agrees_and_finds_the_same_fault(bundle_copy: Path) -> None:
    """The evaluator in onnx, written by others, passes the clean artifact and fails a changed weight."""
    other = [BackendRef(backend="reference", artifact="fp32")]
    assert compare(Bundle.open(bundle_copy), None, other).cells[0].computation.verdict is Verdict.PASS
    plant(bundle_copy, "fp32", weight("last", lambda value: bump(value, 1e-3)))
    assert compare(Bundle.open(bundle_copy), None, other).cells[0].computation.verdict is Verdict.FAIL


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
    plant_array(bundle_copy, name, lambda value: put(value, (3, 3), np.nan))
    refs = [BackendRef(backend="onnxruntime", artifact=artifact) for artifact in ("fp32", "int8")]
    try:
        verdict = compare(Bundle.open(bundle_copy), None, refs).verdict
    except EdgecnnError:
        return
    assert verdict is Verdict.FAIL


def test_a_unit_that_is_no_noise_passes_nothing(bundle_copy: Path) -> None:
    """Float32 answers that are wrong themselves do not make a wrong candidate pass as sixteen times as wrong."""
    plant_array(bundle_copy, "logits_float32", lambda value: value[::-1])
    plant(bundle_copy, "fp32", weight("head", lambda value: value[::-1]))
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
    assert report.decoding is not None
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
