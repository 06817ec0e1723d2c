"""The whole comparison: what is measured, what is not, whose verdict wins, and that one failure stops no other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from parity import fakes
from sklearn.metrics import accuracy_score

from edgecnn import host
from edgecnn.backends.base import Array, CheckedSession, Tensors
from edgecnn.bundle import Bundle
from edgecnn.data import LabelledImages
from edgecnn.data.of_bundle import find_test_images
from edgecnn.errors import BackendError, DataError, EdgecnnError, RegistryError, UsageError
from edgecnn.images import Pixels
from edgecnn.parity import ParityReport, Verdict, compare, default_refs
from edgecnn.parity.compare import run_all
from edgecnn.parity.computation import softmax
from edgecnn.runs import read_run
from edgecnn.spec import BackendRef, TensorSpec, Tolerance, to_json

TORCH = BackendRef(backend="torch")
FP32 = BackendRef(backend="onnxruntime", artifact="fp32")
INT8 = BackendRef(backend="onnxruntime", artifact="int8")
PLUGGED = BackendRef(backend="plugged", artifact="fp32")
PLUGGED_INT8 = BackendRef(backend="plugged", artifact="int8")
Change = Callable[[Pixels, Tensors], Tensors]


Plug = Callable[..., None]


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Plug:
    """Return a function that registers the backend `plugged`."""

    def install(
        change: Change = lambda pixels, outputs: outputs,
        outputs: tuple[TensorSpec, ...] | None = None,
        refusal: Exception | None = None,
    ) -> None:
        fakes.plug(monkeypatch, lambda call, given: change(call.feeds["image"], given), outputs, refusal)

    return install


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    """Return the opened bundle."""
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def digits(bundle: Bundle) -> LabelledImages:
    """Return all test images of the bundle."""
    images, _ = find_test_images(bundle.manifest, None)
    assert images is not None
    return images


@pytest.fixture(scope="module")
def full(bundle: Bundle, digits: LabelledImages) -> ParityReport:
    """Return the report on both artifacts against torch with all test images."""
    return compare(bundle, TORCH, [FP32, INT8], digits)


def first(images: LabelledImages, count: int) -> LabelledImages:
    """Take the first images of a split."""
    return LabelledImages(images.pixels[:count], images.labels[:count], images.items[:count])


def test_a_clean_bundle_passes_both_questions(full: ParityReport) -> None:
    """With all test images every candidate has both answers, on the images they say, and all pass."""
    assert full.verdict is Verdict.PASS
    assert [cell.candidate for cell in full.cells] == ["onnxruntime:fp32", "onnxruntime:int8"]
    assert [cell.artifact for cell in full.cells] == ["fp32", "int8"]
    assert full.reference == "torch"
    assert full.data == "719 labelled images"
    assert full.host == host.fingerprint()
    for cell in full.cells:
        assert cell.decisions is not None
        assert cell.decisions.n == 719
    assert full.cells[0].computation.n == 256
    assert full.cells[1].computation.n == 32


def test_accuracies_are_those_of_a_plain_session(
    full: ParityReport, bundle: Bundle, digits: LabelledImages, run_folder: Path
) -> None:
    """Each side's accuracy is what the run measured, and what ONNX Runtime gives when it is called by hand."""
    _, metrics = read_run(run_folder)
    answers = {}
    for cell in full.cells:
        session = onnxruntime.InferenceSession(
            bundle.root / f"{cell.artifact}.onnx", providers=["CPUExecutionProvider"]
        )
        answers[cell.artifact] = session.run(["logits"], {"image": digits.pixels})[0].argmax(axis=1)
        assert cell.decisions is not None
        assert cell.decisions.reference_accuracy == metrics.test_accuracy
        assert cell.decisions.candidate_accuracy.value == accuracy_score(digits.labels, answers[cell.artifact])
    assert full.cells[1].decisions is not None
    assert full.cells[1].decisions.changed == int((answers["fp32"] != answers["int8"]).sum())


def test_a_float32_backend_changes_no_answer(full: ParityReport) -> None:
    """Float32 in another backend is within a few units of noise, agrees on every image and flips none."""
    cell = full.cells[0]
    assert cell.decisions is not None
    assert (cell.decisions.changed, cell.decisions.drop) == (0, 0.0)
    assert cell.computation.multiple is not None
    assert cell.computation.multiple < 8
    assert cell.computation.distance is not None
    assert cell.computation.distance.top1_agreement == 1.0


def test_a_report_survives_json(full: ParityReport) -> None:
    """A report written as JSON and read back is the same report, so that it can be judged again elsewhere."""
    assert msgspec.json.decode(to_json(full), type=ParityReport) == full


def test_without_images_decisions_are_not_measured(bundle: Bundle) -> None:
    """Without labelled images there are no decisions, and the computations alone may pass."""
    report = compare(bundle, TORCH, [FP32, INT8])
    assert [cell.decisions for cell in report.cells] == [None, None]
    assert report.data is None
    assert report.verdict is Verdict.PASS
    assert "torch in float64 on 32 images" in report.cells[0].computation.truth


def test_without_a_reference_the_goldens_are_the_truth(bundle: Bundle) -> None:
    """Without torch the goldens answer the first question, and the second stays open."""
    report = compare(bundle, None, [FP32, INT8])
    assert report.reference == "goldens"
    assert report.cells[0].computation.truth == "float64 in the goldens"
    assert report.cells[0].computation.n == len(bundle.manifest.goldens.images)
    assert [cell.decisions for cell in report.cells] == [None, None]
    assert report.verdict is Verdict.PASS


def test_another_backend_can_be_the_reference(bundle: Bundle, digits: LabelledImages) -> None:
    """With ONNX Runtime's float32 as the reference, decisions are paired with its answers."""
    report = compare(bundle, FP32, [INT8], digits)
    assert report.reference == "onnxruntime:fp32"
    assert report.cells[0].decisions is not None
    assert report.cells[0].computation.truth == "its own recorded answers"


def _forget_recorded(folder: Path) -> Bundle:
    path = folder / "goldens" / "arrays.npz"
    with np.load(path) as stored:
        arrays: dict[str, Any] = {key: stored[key] for key in stored.files if key != "recorded_int8"}
    np.savez_compressed(path, **arrays)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    data = path.read_bytes()
    manifest["files"]["goldens/arrays.npz"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(folder)


def test_nothing_measured_is_no_pass(bundle_copy: Path) -> None:
    """A quantized artifact without recorded answers and without images is NOT MEASURED, as a cell and over all."""
    report = compare(_forget_recorded(bundle_copy), None, [INT8])
    assert report.cells[0].computation.verdict is Verdict.NOT_MEASURED
    assert report.verdict is Verdict.NOT_MEASURED


def test_a_candidate_that_was_not_measured_is_not_carried_by_another(bundle_copy: Path) -> None:
    """Float32 that passes says nothing of an int8 artifact of which nothing was measured: that is no PASS."""
    report = compare(_forget_recorded(bundle_copy), None, [FP32, INT8])
    assert [cell.computation.verdict for cell in report.cells] == [Verdict.PASS, Verdict.NOT_MEASURED]
    assert report.verdict is not Verdict.PASS


def test_decisions_alone_can_pass(bundle_copy: Path, digits: LabelledImages) -> None:
    """A quantized artifact whose computation cannot be measured passes by the second question."""
    report = compare(_forget_recorded(bundle_copy), TORCH, [INT8], digits, Tolerance(max_drop=0.2))
    assert report.cells[0].computation.verdict is Verdict.NOT_MEASURED
    assert report.cells[0].decisions is not None
    assert report.cells[0].decisions.verdict is Verdict.PASS
    assert report.verdict is Verdict.PASS


def test_few_images_are_inconclusive(bundle: Bundle, digits: LabelledImages) -> None:
    """Twenty images cannot show a drop below one point, even for float32 that flips none, and that is no PASS."""
    report = compare(bundle, FP32, [FP32], first(digits, 20), Tolerance(max_drop=0.01))
    cell = report.cells[0]
    assert cell.computation.verdict is Verdict.PASS
    assert cell.decisions is not None
    assert cell.decisions.verdict is Verdict.INCONCLUSIVE
    assert cell.decisions.images_needed == 300
    assert report.verdict is Verdict.INCONCLUSIVE


def _turned(pixels: Pixels, outputs: Tensors) -> Tensors:
    """Give every image the answer of the next class."""
    logits = np.roll(outputs["logits"], 1, axis=1)
    return {"logits": logits, "probabilities": softmax(logits).astype(np.float32)}


def _wrong_elsewhere(bundle: Bundle) -> Change:
    """Answer as before on the goldens, and with the next class on every other image."""
    known = {image.tobytes() for image in bundle.goldens().pixels}

    def change(pixels: Pixels, outputs: Tensors) -> Tensors:
        here = np.array([image.tobytes() in known for image in pixels])[:, None]
        return {name: np.where(here, outputs[name], wrong) for name, wrong in _turned(pixels, outputs).items()}

    return change


def test_wrong_decisions_fail_where_the_computation_passes(bundle: Bundle, digits: LabelledImages, plug: Plug) -> None:
    """An int8 artifact that is right on the goldens alone fails by the second question."""
    plug(_wrong_elsewhere(bundle))
    report = compare(bundle, FP32, [PLUGGED_INT8], digits, Tolerance(max_drop=0.01))
    cell = report.cells[0]
    assert cell.computation.verdict is Verdict.PASS
    assert cell.decisions is not None
    assert cell.decisions.drop > 0.5
    assert cell.decisions.verdict is Verdict.FAIL
    assert report.verdict is Verdict.FAIL


def test_a_fail_outweighs_everything(bundle: Bundle, digits: LabelledImages, plug: Plug) -> None:
    """One cell that fails makes the whole FAIL, beside others that pass or are inconclusive, in any order."""
    plug(_turned)
    for candidates in ([FP32, PLUGGED], [PLUGGED, FP32]):
        report = compare(bundle, FP32, candidates, first(digits, 20), Tolerance(max_drop=0.01))
        by_name = {cell.candidate: cell for cell in report.cells}
        assert [cell.candidate for cell in report.cells] == [str(ref) for ref in candidates]
        assert by_name["plugged:fp32"].computation.verdict is Verdict.FAIL
        assert by_name["onnxruntime:fp32"].computation.verdict is Verdict.PASS
        assert by_name["onnxruntime:fp32"].decisions is not None
        assert by_name["onnxruntime:fp32"].decisions.verdict is Verdict.INCONCLUSIVE
        assert report.verdict is Verdict.FAIL


def _crash(pixels: Pixels, outputs: Tensors) -> Tensors:
    raise RuntimeError("out of registers")


def _not_finite(pixels: Pixels, outputs: Tensors) -> Tensors:
    return {**outputs, "logits": np.where(np.arange(10) == 3, np.float32(np.nan), outputs["logits"])}


def _without_probabilities(pixels: Pixels, outputs: Tensors) -> Tensors:
    return {"logits": outputs["logits"]}


def _too_few_rows(pixels: Pixels, outputs: Tensors) -> Tensors:
    return {name: array[:-1] for name, array in outputs.items()}


def _nothing(pixels: Pixels, outputs: Tensors) -> Tensors:
    return {name: array[:0] for name, array in outputs.items()}


def _narrow(pixels: Pixels, outputs: Tensors) -> Tensors:
    return {name: array.astype(np.float16) for name, array in outputs.items()}


FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "does not load": ({"refusal": BackendError("no such kernel")}, "no such kernel"),
    "crashes": ({"change": _crash}, "out of registers"),
    "is not finite": ({"change": _not_finite}, "values that are not finite"),
    "lacks an output": ({"change": _without_probabilities}, "the outputs are named"),
    "gives too few rows": ({"change": _too_few_rows}, "31"),
    "gives nothing": ({"change": _nothing}, "output 'logits'"),
    "gives another dtype": ({"change": _narrow}, "float16"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_one_failing_candidate_stops_no_other(failure: str, bundle: Bundle, plug: Plug) -> None:
    """A candidate that fails in any way is a FAIL with its reason, and those before and after it are judged."""
    arguments, reason = FAILURES[failure]
    plug(**arguments)
    report = compare(bundle, None, [FP32, PLUGGED, INT8])
    assert [cell.computation.verdict for cell in report.cells] == [Verdict.PASS, Verdict.FAIL, Verdict.PASS]
    assert reason in report.cells[1].computation.reason
    assert report.cells[1].computation.distance is None
    assert report.cells[1].decisions is None
    assert report.verdict is Verdict.FAIL


def test_a_device_that_is_not_there_fails_its_candidate_alone(bundle: Bundle) -> None:
    """A candidate on a device that this machine lacks is a FAIL, never a quiet run on the CPU."""
    report = compare(bundle, None, [BackendRef(backend="onnxruntime", artifact="fp32", device="cuda:7"), FP32])
    assert [cell.computation.verdict for cell in report.cells] == [Verdict.FAIL, Verdict.PASS]
    assert "cuda:7" in report.cells[0].computation.reason


def test_a_candidate_whose_weights_are_not_finite_fails_alone(bundle_copy: Path) -> None:
    """A checkpoint with NaN weights is, as a candidate, a FAIL that stops no other."""
    from edgecnn.training.checkpoint import Header, load_checkpoint, save_checkpoint

    path = bundle_copy / "model.safetensors"
    checkpoint = load_checkpoint(path)
    net = checkpoint.build()
    next(net.parameters()).data.fill_(float("nan"))
    header = Header(model=checkpoint.model, preprocess=checkpoint.preprocess, labels=checkpoint.labels)
    save_checkpoint(path, net, header)
    manifest, data = json.loads((bundle_copy / "manifest.json").read_bytes()), path.read_bytes()
    manifest["files"]["model.safetensors"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    report = compare(Bundle.open(bundle_copy), None, [TORCH, FP32])
    assert [cell.computation.verdict for cell in report.cells] == [Verdict.FAIL, Verdict.PASS]
    assert "not finite" in report.cells[0].computation.reason


def test_a_candidate_that_fails_on_later_images_only_fails(bundle: Bundle, digits: LabelledImages, plug: Plug) -> None:
    """Values that are not finite on the labelled images alone are a FAIL of the candidate, and not an answer."""
    known = {image.tobytes() for image in bundle.goldens().pixels}

    def change(pixels: Pixels, outputs: Tensors) -> Tensors:
        return outputs if pixels[0].tobytes() in known and len(pixels) == len(known) else _not_finite(pixels, outputs)

    plug(change)
    report = compare(bundle, FP32, [PLUGGED], first(digits, 70))
    assert report.cells[0].computation.verdict is Verdict.FAIL
    assert "not finite" in report.cells[0].computation.reason
    assert report.cells[0].decisions is None


def test_a_quantized_candidate_that_fails_on_the_goldens_only_fails(
    bundle: Bundle, digits: LabelledImages, plug: Plug
) -> None:
    """Values that are not finite on the goldens alone are a FAIL of an int8 candidate, and no crash."""
    calls: list[int] = []

    def change(pixels: Pixels, outputs: Tensors) -> Tensors:
        calls.append(len(pixels))
        return _not_finite(pixels, outputs) if len(calls) > 2 else outputs  # the goldens are asked last

    plug(change)
    report = compare(bundle, TORCH, [PLUGGED_INT8], first(digits, 70))
    assert calls[:2] == [64, 6]
    assert report.cells[0].computation.verdict is Verdict.FAIL
    assert "not finite" in report.cells[0].computation.reason


def test_an_output_of_another_type_than_the_manifest_states_fails(bundle: Bundle, plug: Plug) -> None:
    """A session that announces and gives float64 is not the float32 artifact of the manifest, though it is close."""
    plug(
        lambda pixels, outputs: {name: array.astype(np.float64) for name, array in outputs.items()},
        outputs=tuple(TensorSpec(name=name, shape=(None, 10), dtype="float64") for name in ("logits", "probabilities")),
    )
    report = compare(bundle, None, [PLUGGED])
    assert report.verdict is Verdict.FAIL
    assert "float64" in report.cells[0].computation.reason


def test_an_output_that_the_manifest_does_not_state_fails(bundle: Bundle, plug: Plug) -> None:
    """Outputs are matched by exact name: one too many is a FAIL as one too few is."""
    specs = tuple(TensorSpec(name=name, shape=(None, 10), dtype="float32") for name in ("logits", "probabilities", "x"))
    plug(lambda pixels, outputs: {**outputs, "x": outputs["logits"]}, outputs=specs)
    report = compare(bundle, None, [PLUGGED])
    assert report.verdict is Verdict.FAIL
    assert "x" in report.cells[0].computation.reason


@pytest.mark.parametrize("failure", ["does not load", "crashes", "is not finite", "lacks an output"])
def test_a_failing_reference_is_an_error(failure: str, bundle: Bundle, digits: LabelledImages, plug: Plug) -> None:
    """Without its reference there is nothing to compare with, and that is an error and no verdict."""
    arguments, reason = FAILURES[failure]
    plug(**arguments)
    with pytest.raises(BackendError, match=reason):
        compare(bundle, PLUGGED, [FP32], first(digits, 8))


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        (BackendRef(backend="onnxruntime", artifact="nothing"), UsageError),
        (BackendRef(backend="nobody"), RegistryError),
        (BackendRef(backend="onnxruntime", artifact="fp32", device="cuda:7"), BackendError),
    ],
)
def test_a_reference_that_is_not_there_is_an_error(
    reference: BackendRef, kind: type[EdgecnnError], bundle: Bundle
) -> None:
    """A report never names a reference that was not there, also where no images ask for it."""
    with pytest.raises(kind):
        compare(bundle, reference, [INT8])


@pytest.mark.parametrize(
    ("candidate", "kind"),
    [
        (BackendRef(backend="onnxruntime", artifact="nothing"), UsageError),
        (BackendRef(backend="nobody"), RegistryError),
    ],
)
def test_a_candidate_that_no_one_knows_is_the_users_mistake(
    candidate: BackendRef, kind: type[EdgecnnError], bundle: Bundle
) -> None:
    """A backend or artifact that does not exist is an error that names what is known."""
    with pytest.raises(kind, match=r"fp32|onnxruntime"):
        compare(bundle, None, [candidate])


def test_no_candidates_is_an_error(bundle: Bundle) -> None:
    """Comparing nothing is refused, not passed."""
    with pytest.raises(UsageError, match="at least one candidate"):
        compare(bundle, TORCH, [])


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_out_of_range_are_an_error(label: int, bundle: Bundle, digits: LabelledImages) -> None:
    """Images with a label that the bundle has no class for are refused."""
    some = first(digits, 5)
    labels = some.labels.copy()
    labels[2] = label
    with pytest.raises(DataError, match="10 classes do not cover"):
        compare(bundle, FP32, [FP32], LabelledImages(some.pixels, labels, some.items))


def test_images_of_another_size_are_an_error(bundle: Bundle, digits: LabelledImages) -> None:
    """Labelled images that are not of the model's size are refused with both shapes."""
    some = first(digits, 5)
    with pytest.raises(EdgecnnError, match=r"\(5, 8, 7, 1\).*\(N, 8, 8, 1\)"):
        compare(bundle, FP32, [FP32], LabelledImages(some.pixels[:, :, :7], some.labels, some.items))


def test_the_tolerance_is_the_bundles_unless_given(bundle: Bundle) -> None:
    """The report carries the tolerance it was judged by, the manifest's or the caller's."""
    assert compare(bundle, None, [FP32]).tolerance == bundle.manifest.tolerance
    strict = Tolerance(noise_multiple=1e-9)
    report = compare(bundle, None, [FP32], tolerance=strict)
    assert report.tolerance == strict
    assert report.verdict is Verdict.FAIL


def test_defaults_are_torch_and_every_onnx_artifact(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is torch where it is installed and the goldens elsewhere; the checkpoint is no candidate."""
    assert default_refs(bundle) == (TORCH, [FP32, INT8])
    monkeypatch.setattr(import_module("edgecnn.parity.compare"), "find_spec", lambda name: None)
    assert default_refs(bundle) == (None, [FP32, INT8])


class _Counter:
    """A session whose logits are the sum of each image's pixels."""

    device = "cpu"
    inputs = (TensorSpec(name="picture", shape=(None, 2, 2, 1), dtype="uint8"),)
    outputs = (TensorSpec(name="logits", shape=(None, 1), dtype="float32"),)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        self.batches.append(len(feeds["picture"]))
        return {"logits": feeds["picture"].reshape(-1, 4).sum(axis=1, keepdims=True).astype(np.float32)}

    def __enter__(self) -> _Counter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


@pytest.mark.parametrize("count", [1, 64, 65, 130])
def test_images_run_in_batches_and_come_back_in_order(count: int) -> None:
    """All images are run, none twice, in batches of 64 at most, by the session's own input name."""
    inner = _Counter()
    pixels = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 1), dtype=np.uint8)
    outputs = run_all(CheckedSession(inner), pixels)
    assert np.array_equal(outputs["logits"][:, 0], pixels.sum(axis=(1, 2, 3)))
    assert sum(inner.batches) == count
    assert max(inner.batches) <= 64


def test_running_no_images_is_an_error() -> None:
    """An empty set is refused before anything runs."""
    inner = _Counter()
    with pytest.raises(DataError, match="no images"):
        run_all(CheckedSession(inner), np.zeros((0, 2, 2, 1), dtype=np.uint8))
    assert inner.batches == []


def test_the_exporting_machine_is_held_to_more(bundle_copy: Path) -> None:
    """On the exporting CPU and runtime an int8 artifact may differ by 5 % of its error, elsewhere by half."""
    bundle = Bundle.open(bundle_copy)
    tolerance = bundle.manifest.tolerance
    assert (tolerance.recorded_share_here, tolerance.recorded_share) == (0.05, 0.5)
    here = compare(bundle, None, [INT8]).cells[0].computation
    assert "0.05 is allowed" in here.reason
    elsewhere = {**bundle.manifest.provenance.host, "cpu": "another"}
    provenance = msgspec.structs.replace(bundle.manifest.provenance, host=elsewhere)
    moved = Bundle(bundle.root, msgspec.structs.replace(bundle.manifest, provenance=provenance))
    assert "0.5 is allowed" in compare(moved, None, [INT8]).cells[0].computation.reason
