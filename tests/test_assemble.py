"""From a run to a bundle: what is written, what is refused, and what is chosen."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper
from steady import steady_races

from edgecnn import assemble, registry
from edgecnn.assemble import ExportOptions, export_bundle, failures
from edgecnn.bench import latency as latency_module
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.data import DataOptions, Dataset, LabelledImages
from edgecnn.errors import CheckpointError, DataError, ExportError, RegistryError, UsageError, VerdictError
from edgecnn.exporter import Exported, ExportRequest
from edgecnn.host import target_of_host
from edgecnn.images import Pixels
from edgecnn.manifest import Manifest
from edgecnn.parity import ParityReport, Verdict, compare, default_refs
from edgecnn.runs import Metrics, RunConfig, open_run_data, read_run
from edgecnn.spec import Tolerance
from edgecnn_exporters.onnx_int8 import OnnxInt8Exporter

Run = tuple[RunConfig, Metrics, Dataset]
LOOSE = 0.2


@pytest.fixture(scope="module")
def run(run_folder: Path) -> Run:
    config, metrics = read_run(run_folder)
    return config, metrics, open_run_data(config)


class Copying:
    """An exporter that hands out a file made before, so that a test need not wait for torch and the quantizer."""

    def __init__(
        self, artifact: str, source: Path, needs: tuple[str, ...] = (), fault: Exception | None = None
    ) -> None:
        self.name = artifact
        self.artifact = artifact
        self.needs = needs
        self.source = source
        self.fault = fault
        self.requests: list[ExportRequest] = []
        self.details: dict[str, Any] = {"copied": True}

    def export(self, request: ExportRequest) -> Exported:
        self.requests.append(request)
        path = request.folder / f"{self.artifact}.onnx"
        shutil.copy(self.source, path)
        if self.fault is not None:
            raise self.fault
        return Exported(
            path=path, format="onnx", precision=self.artifact[:4], target=request.target, details=self.details
        )


Exporters = dict[str, Copying]


def quick_exporters(bundle_folder: Path, folder: Path, patch: pytest.MonkeyPatch) -> Exporters:
    """Put quick exporters into the registry: good ones, and some whose artifact answers `0` too often."""
    worse = folder / "worse.onnx"
    model = onnx.load(str(bundle_folder / "fp32.onnx"))
    head = next(node for node in model.graph.node if "logits" in node.output)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == head.input[2])
    values = numpy_helper.to_array(bias).copy()
    values[0] += 8
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, str(worse))
    made = {
        "onnx": Copying("fp32", bundle_folder / "fp32.onnx"),
        "onnx-int8": Copying("int8", bundle_folder / "int8.onnx", needs=("fp32",)),
        "worse-fp32": Copying("fp32", worse),
        "worse-int8": Copying("int8", worse, needs=("fp32",)),
        "failing": Copying("int8", worse, fault=ExportError("out of luck")),
    }
    real = registry.get
    patch.setattr(
        registry,
        "get",
        lambda group, name: made[name] if group == registry.EXPORTERS and name in made else real(group, name),
    )
    patch.setattr(assemble, "_LATENCY_SECONDS", 0.01)
    patch.setattr(latency_module, "_ROUND_SECONDS", 0.001)
    patch.setattr(latency_module, "_WARMUP_SECONDS", 0.001)
    return made


@pytest.fixture
def exporters(bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exporters:
    return quick_exporters(bundle_folder, tmp_path, monkeypatch)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "bundles" / "digits"


def export(run_folder: Path, run: Run, out: Path, *names: str, **options: Any) -> tuple[Manifest, ParityReport]:
    chosen = ExportOptions(exporters=names or ("onnx", "onnx-int8"), **{"max_drop": LOOSE, **options})
    return export_bundle(run_folder, *run, out, chosen)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def beside(out: Path) -> set[str]:
    return {path.name for path in out.parent.iterdir()} if out.parent.exists() else set()


@dataclasses.dataclass
class Made:
    """One good export, and what its exporters were asked for."""

    out: Path
    manifest: Manifest
    report: ParityReport
    exporters: Exporters


@pytest.fixture(scope="module")
def good(run_folder: Path, bundle_folder: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Made:
    out = tmp_path_factory.mktemp("good") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        exporters = quick_exporters(bundle_folder, tmp_path_factory.mktemp("worse"), patch)
        return Made(out, *export(run_folder, run, out, target="arm64", opset=20), exporters)


def test_a_good_export_is_a_whole_bundle(good: Made, run_folder: Path, run: Run) -> None:
    """The folder appears with nothing beside it, verifies, and its manifest is the one that was returned."""
    out, manifest, report = good.out, good.manifest, good.report
    assert beside(out) == {"digits"}
    bundle = Bundle.open(out)
    bundle.verify()
    assert json.loads((out / "manifest.json").read_text()) == json.loads(msgspec.json.encode(manifest))
    assert set(manifest.artifacts) == {"fp32", "int8", "checkpoint"}
    assert report.verdict is Verdict.PASS
    assert manifest.name == "digits"
    assert manifest.labels == tuple("0123456789")
    assert (out / "labels.txt").read_text().split() == list("0123456789")
    assert (out / "model.safetensors").read_bytes() == (run_folder / "model.safetensors").read_bytes()
    assert manifest.preprocess == run[0].preprocess
    assert manifest.tolerance.max_drop == LOOSE
    assert manifest.artifacts["int8"].details == {"copied": True}


def test_the_evidence_is_in_the_manifest(good: Made, run: Run) -> None:
    """Parity, latency and test accuracy are recorded as measured, with nothing forced."""
    evidence = json.loads((good.out / "manifest.json").read_text())["evidence"]
    assert evidence["parity"] == json.loads(msgspec.json.encode(good.report))
    assert evidence["forced"] == []
    assert evidence["test_accuracy"]["n"] == len(run[2].test)
    assert set(evidence["latency"]) == {"fp32", "int8"}
    assert all(row["n"] > 0 and row["p50_us"] > 0 for row in evidence["latency"].values())
    assert good.manifest.provenance.test_sha256 == run[2].test.sha256()


def test_goldens_are_test_images_of_every_class(good: Made, run: Run) -> None:
    """The goldens are thirty-two test images with their labels, as many classes as there are among them."""
    goldens = Bundle.open(good.out).goldens()
    test = run[2].test
    known = {image.tobytes(): int(label) for image, label in zip(test.pixels, test.labels, strict=True)}
    assert len(goldens.pixels) == 32
    assert [known[image.tobytes()] for image in goldens.pixels] == goldens.labels.tolist()
    assert set(goldens.labels.tolist()) == set(range(10))
    assert set(goldens.recorded) == {"fp32", "int8"}
    assert not np.array_equal(goldens.recorded["fp32"], goldens.recorded["int8"])


def few(dataset: Dataset, train: int) -> Dataset:
    """Cut the training images down, and give training and test images pixels that tell them apart."""

    def painted(images: LabelledImages, count: int, value: int) -> LabelledImages:
        pixels = np.full_like(images.pixels[:count], value)
        pixels[:, 0, 0, 0] = np.arange(count) % 251
        return dataclasses.replace(images, store=pixels, labels=images.labels[:count], items=images.items[:count])

    return dataclasses.replace(
        dataset,
        train=painted(dataset.train, train, 111),
        val=painted(dataset.val, len(dataset.val), 99),
        test=painted(dataset.test, len(dataset.test), 222),
    )


@pytest.mark.parametrize(("train", "count"), [(1, 1), (100, 100), (256, 256), (800, 256)])
def test_calibration_images_are_training_images(run: Run, train: int, count: int) -> None:
    """At most 256 training images are chosen, each once, and never one for validation or test."""
    dataset = few(run[2], train)
    chosen = assemble._calibration(dataset, seed=0)
    assert chosen.shape == (count, 8, 8, 1)
    assert (chosen[:, 1:] == 111).all()
    if train <= 251:
        assert len(set(chosen[:, 0, 0, 0].tolist())) == count


def test_calibration_is_seeded(run: Run) -> None:
    """One seed always chooses the same images, and another seed others."""
    dataset = run[2]
    first, again, other = (assemble._calibration(dataset, seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_exporter_is_handed_a_test_image(good: Made, run: Run) -> None:
    """The pixels that the exporters were given are all among the training images and none among the test images."""
    exporters, dataset = good.exporters, run[2]
    train, test = ({image.tobytes() for image in part.pixels} for part in (dataset.train, dataset.test))
    for name in ("onnx", "onnx-int8"):
        (request,) = exporters[name].requests
        given = [image.tobytes() for image in request.calibration]
        assert len(given) == 256
        assert set(given) <= train
        assert not set(given) & test
        assert (request.target, request.opset) == ("arm64", 20)
        assert request.validation is not None
        assert not {image.tobytes() for image in request.validation[0]} & test
        assert (request.tolerance.max_drop, request.force) == (LOOSE, False)
    assert exporters["onnx"].requests[0].written == {}
    assert set(exporters["onnx-int8"].requests[0].written) == {"fp32"}


def test_a_failed_parity_writes_nothing(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """An int8 that answers otherwise is refused with its reason, and neither folder nor remains are left."""
    with pytest.raises(VerdictError, match=r"no bundle was written: onnxruntime:int8 decisions: .*--force") as caught:
        export(run_folder, run, out, "onnx", "worse-int8", max_drop=0.01)
    assert caught.value.exit_code == 3
    assert beside(out) == set()


def test_a_wrong_computation_writes_nothing(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """An fp32 whose logits are not the checkpoint's is refused, whatever its accuracy."""
    with pytest.raises(VerdictError, match=r"onnxruntime:fp32 computation: .* times torch float32's own"):
        export(run_folder, run, out, "worse-fp32", max_drop=0.99)
    assert beside(out) == set()


def test_a_failed_parity_leaves_the_old_bundle(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """A bundle that is there already is untouched when its successor is refused, and replaced when it is good."""
    export(run_folder, run, out)
    (out / "note.txt").write_text("left here by hand")
    before = contents(out)
    with pytest.raises(VerdictError):
        export(run_folder, run, out, "onnx", "worse-int8", max_drop=0.01)
    assert contents(out) == before
    export(run_folder, run, out, "onnx")
    assert set(Bundle.open(out).manifest.artifacts) == {"fp32", "checkpoint"}
    assert not (out / "note.txt").exists()
    assert beside(out) == {"digits"}


def test_recorded_answers_are_those_of_the_target(
    run_folder: Path, run: Run, out: Path, exporters: Exporters, bundle_folder: Path, tmp_path: Path
) -> None:
    """Answers recorded for an Arm CPU do not saturate as those of x86 without VNNI do, whatever machine exports."""
    from onnx.reference import ReferenceEvaluator

    request = ExportRequest(
        checkpoint=run_folder,
        folder=tmp_path,
        calibration=assemble._calibration(run[2], 0),
        target="arm64",
        written={"fp32": bundle_folder / "fp32.onnx"},
        tolerance=Tolerance(max_drop=LOOSE),
    )
    with steady_races(host="arm64"):
        path = OnnxInt8Exporter().export(request).path
    path = path.rename(tmp_path / "full-range.onnx")
    exporters["onnx-int8"].source = path
    export(run_folder, run, out, target="arm64")
    goldens = Bundle.open(out).goldens()
    model = onnx.version_converter.convert_version(onnx.load(str(path)), 19)
    exact = ReferenceEvaluator(model).run(["logits"], {"image": goldens.pixels})[0]
    largest = np.abs(exact).max()
    np.testing.assert_allclose(goldens.recorded["int8"], exact, rtol=0, atol=0.02 * largest)


def test_force_writes_and_says_so(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """Forced, the same export is written, the reasons stand in its manifest, and what failed is not the default."""
    manifest, report = export(run_folder, run, out, "onnx", "worse-int8", max_drop=0.01, force=True)
    assert report.verdict is Verdict.FAIL
    forced = json.loads((out / "manifest.json").read_text())["evidence"]["forced"]
    assert len(forced) == 1
    assert forced[0].startswith("onnxruntime:int8 decisions: ")
    assert "the budget is 1.00" in forced[0]
    assert manifest.default_artifact == "fp32"
    Bundle.open(out).verify()


def test_force_without_a_failure_records_none(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """Where nothing failed there is nothing that was forced."""
    manifest, _ = export(run_folder, run, out, force=True)
    assert manifest.evidence["forced"] == []


def test_too_few_images_is_written_and_not_the_default(
    run_folder: Path, run: Run, out: Path, exporters: Exporters
) -> None:
    """An INCONCLUSIVE artifact goes into the bundle, with its verdict, and does not become the default."""
    manifest, report = export(run_folder, run, out, max_drop=1e-5)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert manifest.default_artifact == "fp32"
    assert manifest.evidence["parity"]["verdict"] == "INCONCLUSIVE"
    assert manifest.evidence["forced"] == []


def test_the_cli_exits_with_three_when_parity_fails(run_folder: Path, out: Path, exporters: Exporters) -> None:
    """On the command line a failed parity prints one line and leaves with 3, and --force with 0."""
    arguments = ("export", run_folder, "-o", out, "--exporter", "onnx", "--exporter", "worse-int8", "--json")
    refused = invoke(*arguments)
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert refused.stderr.splitlines()[-1].startswith("edgecnn: parity failed, so no bundle was written: ")
    assert beside(out) == set()
    forced = invoke(*arguments, "--force")
    assert forced.exit_code == 0
    assert len(json.loads(forced.stdout)["evidence"]["forced"]) == 1
    shown = invoke("inspect", out)
    assert "onnxruntime:int8 decisions" in next(row for row in shown.stdout.splitlines() if row.startswith("forced"))


def as_bytes(images: Any) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_images_to_judge_and_to_train_on_are_apart(run: Run) -> None:
    """All validation images judge, and half of the training images with them; the other half trains; none is a test image."""
    dataset = run[2]
    (judged, labels), (trained, taught) = assemble._tuning(dataset, seed=0)
    assert len(judged) == len(labels) == len(dataset.val) + len(dataset.train) // 2
    assert len(trained) == len(taught) == len(dataset.train) - len(dataset.train) // 2
    known = {image: label for part in (dataset.train, dataset.val) for image, label in zip(as_bytes(part.pixels), part.labels.tolist(), strict=True)}  # fmt: skip
    for images, names in ((judged, labels), (trained, taught)):
        assert [known[image] for image in as_bytes(images)] == names.tolist()
    test = set(as_bytes(dataset.test.pixels))
    assert not set(as_bytes(judged)) & test
    assert not set(as_bytes(judged)) & set(as_bytes(trained))


@pytest.mark.parametrize(("most", "judging"), [(10, 10), (200, 200)])
def test_images_to_judge_are_not_without_number(
    most: int, judging: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the number, validation images are left out at random, or as many training images are added as there is room."""
    monkeypatch.setattr(assemble, "VALIDATION_IMAGES", most)
    (judged, _), (trained, _) = assemble._tuning(run[2], seed=0)
    assert len(judged) == judging
    monkeypatch.setattr(assemble, "TUNING_IMAGES", 7)
    assert len(assemble._tuning(run[2], seed=0)[1][1]) == 7
    assert len(trained) > 7


@pytest.mark.usefixtures("exporters")
def test_a_bundle_for_cuda_holds_fp16(run_folder: Path, bundle_folder: Path, out: Path) -> None:
    """For CUDA the fp16 exporter's artifact goes into the bundle, checked like any other, and nothing was forced."""
    words = ("--target", "cuda", "--exporter", "onnx", "--exporter", "onnx-fp16", "--max-drop", "20")
    result = invoke("export", run_folder, "-o", out, *words, "--json")
    assert result.exit_code == 0, result.stderr
    manifest = json.loads(result.stdout)
    assert set(manifest["artifacts"]) == {"fp32", "fp16", "checkpoint"}
    record = manifest["artifacts"]["fp16"]
    assert (record["precision"], record["target"], record["path"]) == ("fp16", "cuda", "fp16.onnx")
    cells = {cell["artifact"]: cell for cell in manifest["evidence"]["parity"]["cells"]}
    assert cells["fp16"]["decisions"]["verdict"] == "PASS"
    assert manifest["evidence"]["forced"] == []
    Bundle.open(out).verify()
    assert (out / "fp16.onnx").stat().st_size < 0.8 * (bundle_folder / "fp32.onnx").stat().st_size
    assert invoke("inspect", out).exit_code == 0


def test_int8_for_cuda_is_one_line(run_folder: Path, out: Path, exporters: Exporters) -> None:
    """int8 for CUDA is the user's mistake, forced or not, and the line says what to export instead."""
    del exporters["onnx-int8"]  # the shipped one takes its place
    for more in ((), ("--force",)):
        result = invoke("export", run_folder, "-o", out, "--target", "cuda", *more)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.splitlines()[-1] == (
            "edgecnn: --target cuda: ONNX Runtime's CUDA provider has no int8 convolutions; use --exporter onnx "
            "--exporter onnx-fp16, or --target tensorrt"
        )
        assert beside(out) == set()


def test_int8_for_tensorrt_is_written(run_folder: Path, out: Path, exporters: Exporters) -> None:
    """For TensorRT the bundle's int8 artifact is for TensorRT, by a recipe without zero points."""
    del exporters["onnx-int8"]
    with steady_races():
        result = invoke("export", run_folder, "-o", out, "--target", "tensorrt", "--max-drop", "20", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)["artifacts"]["int8"]
    assert record["target"] == "tensorrt"
    assert record["details"]["recipe"] == {"activations": "int8", "reduced_range": False, "integer_bias": False}
    assert record["details"]["fusion"] is None
    assert "  int8 fused" not in invoke("inspect", out).stdout


def test_int8_that_does_not_pay_ends_with_three(run_folder: Path, out: Path, exporters: Exporters) -> None:
    """int8 for this machine that is slower on it ends with 3 and nothing written; forced, the manifest has the reason."""
    del exporters["onnx-int8"]
    words = ("export", run_folder, "-o", out, "--target", "host", "--max-drop", "20", "--json")
    with steady_races(ratio=1.2):
        refused = invoke(*words)
    assert (refused.exit_code, refused.stdout) == (3, "")
    line = refused.stderr.splitlines()[-1]
    assert line.startswith(
        f"edgecnn: int8 for {target_of_host()} does not pay: speed: it takes 1.200 of the float model's"
    )
    assert line.endswith("leave it out by --exporter onnx, or --force it")
    assert beside(out) == set()
    with steady_races(ratio=1.2):
        forced = invoke(*words, "--force")
    assert forced.exit_code == 0, forced.stderr
    manifest = json.loads(forced.stdout)
    (reason,) = manifest["evidence"]["forced"]
    assert reason.startswith("int8 speed: it takes 1.200 of the float model's time on this machine")
    assert manifest["artifacts"]["int8"]["details"]["gate"]["checks"][1]["verdict"] == "FAIL"
    assert "int8 speed" in next(row for row in invoke("inspect", out).stdout.splitlines() if row.startswith("forced"))


def test_all_that_was_forced_is_listed(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """What an exporter would have refused and what parity would have refused stand together in the manifest."""
    exporters["worse-int8"].details = {"forced": ["speed: too slow", "size: too large"]}
    manifest, _ = export(run_folder, run, out, "onnx", "worse-int8", max_drop=0.01, force=True)
    forced = manifest.evidence["forced"]
    assert forced[:2] == ["int8 speed: too slow", "int8 size: too large"]
    assert [reason.partition(":")[0] for reason in forced[2:]] == ["onnxruntime"]


def test_export_reports_on_stdout_and_talks_on_stderr(run_folder: Path, out: Path, exporters: Exporters) -> None:
    """`export --json` prints the manifest and nothing else on stdout, and each step on stderr."""
    result = invoke("export", run_folder, "-o", out, "--max-drop", "20", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((out / "manifest.json").read_text())
    steps = ["exporting fp32", "exporting int8", "recording goldens", "checking parity", "measuring latency"]
    assert [line[: len(step)] for line, step in zip(result.stderr.splitlines(), steps, strict=True)] == steps


def test_export_prints_what_it_wrote(run_folder: Path, out: Path, exporters: Exporters) -> None:
    """Without --json every artifact has a line with its size and path, the default is marked, and parity follows."""
    result = invoke("export", run_folder, "-o", out, "--max-drop", "20")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if str(out) in line}
    manifest = Bundle.open(out).manifest
    assert set(rows) == set(manifest.artifacts)
    for name, row in rows.items():
        path = out / manifest.artifacts[name].path
        assert f"{path.stat().st_size / 1000:.1f} kB  {path}" in row
        assert row.endswith("(default)") is (name == manifest.default_artifact)
    assert "onnxruntime:int8" in result.stdout.rpartition(str(out))[2]


@pytest.mark.parametrize("target", ["host", "arm64", "x86-64", "x86-64-vnni", "any"])
def test_the_target_reaches_the_exporters(target: str, run_folder: Path, tmp_path: Path, exporters: Exporters) -> None:
    """The exporters are asked for the target named, `host` standing for the machine this is."""
    exporters["onnx"].fault = ExportError("enough seen")
    assert invoke("export", run_folder, "-o", tmp_path / "out", "--target", target).exit_code == 2
    (request,) = exporters["onnx"].requests
    assert request.target == (target_of_host() if target == "host" else target)


@pytest.mark.parametrize("kind", ["folder with files", "folder with folders", "file"])
def test_what_is_not_a_bundle_is_not_replaced(
    kind: str, run_folder: Path, run: Run, out: Path, exporters: Exporters
) -> None:
    """Something else at the destination is refused before any work is done, and left as it is."""
    out.parent.mkdir()
    kept = {"folder with files": out / "thesis.tex", "folder with folders": out / "a" / "b", "file": out}[kind]
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text("months of work")
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        export(run_folder, run, out, force=True)
    assert kept.read_text() == "months of work"
    assert not exporters["onnx"].requests
    assert beside(out) == {"digits"}


def test_an_empty_folder_is_filled(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """A folder that was made for the bundle beforehand is used."""
    out.mkdir(parents=True)
    export(run_folder, run, out, "onnx")
    Bundle.open(out).verify()
    assert beside(out) == {"digits"}


def test_an_exporter_that_fails_leaves_nothing(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """An error half way takes the files written so far with it."""
    with pytest.raises(ExportError, match="out of luck"):
        export(run_folder, run, out, "onnx", "failing")
    assert exporters["failing"].requests
    assert beside(out) == set()


@pytest.mark.parametrize("names", [("onnx-int8",), ("onnx-int8", "onnx"), ("worse-int8", "onnx")])
def test_a_missing_need_is_said(
    names: tuple[str, ...], run_folder: Path, run: Run, out: Path, exporters: Exporters
) -> None:
    """An exporter in front of the one whose artifact it needs is the user's mistake, and names both."""
    with pytest.raises(UsageError, match=r"needs the artifact fp32, which no exporter before it writes") as caught:
        export(run_folder, run, out, *names)
    assert names[0] in str(caught.value)
    assert beside(out) == set()


def test_the_shipped_int8_exporter_says_what_it_needs(run_folder: Path, out: Path) -> None:
    """On the command line int8 alone is refused in one line with exit 2, and nothing is written."""
    result = invoke("export", run_folder, "-o", out, "--exporter", "onnx-int8")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "edgecnn: exporter onnx-int8 needs the artifact fp32, which no exporter before it writes\n"
    )
    assert beside(out) == set()


def test_an_unknown_exporter_lists_the_known_ones(run_folder: Path, run: Run, out: Path) -> None:
    """A misspelt exporter is an error that names those there are."""
    with pytest.raises(RegistryError, match="no exporter is called 'onxx'; known: onnx, onnx-fp16, onnx-int8"):
        export(run_folder, run, out, "onxx")
    assert beside(out) == set()


def test_no_exporter_at_all_is_an_error(run_folder: Path, run: Run, out: Path) -> None:
    """An export of nothing is refused."""
    with pytest.raises(UsageError, match="nothing to export"):
        export_bundle(run_folder, *run, out, ExportOptions(exporters=()))
    assert beside(out) == set()


def test_an_opset_that_cannot_be_had_is_one_line(run_folder: Path, out: Path) -> None:
    """Opset 17 on the command line is refused with the reason and exit 2."""
    result = invoke("export", run_folder, "-o", out, "--opset", "17")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("edgecnn: opset 17 cannot be exported faithfully")
    assert beside(out) == set()


@pytest.fixture(scope="module")
def report(bundle_folder: Path, run: Run) -> ParityReport:
    bundle = Bundle.open(bundle_folder)
    reference, candidates = default_refs(bundle)
    tolerance = msgspec.structs.replace(bundle.manifest.tolerance, max_drop=LOOSE)
    return compare(bundle, reference, candidates, run[2].test, tolerance)


def verdicts(report: ParityReport, **cells: tuple[str, str | None]) -> ParityReport:
    """Give a report's cells these verdicts: computation and decisions, the latter None where not asked."""
    changed = []
    for cell in report.cells:
        computation, decisions = cells.get(cell.artifact, ("PASS", "PASS"))
        assert cell.decisions is not None
        changed.append(
            msgspec.structs.replace(
                cell,
                computation=msgspec.structs.replace(cell.computation, verdict=Verdict(computation)),
                decisions=None
                if decisions is None
                else msgspec.structs.replace(cell.decisions, verdict=Verdict(decisions)),
            )
        )
    return msgspec.structs.replace(report, cells=tuple(changed))


def latency(low: float, median: float, high: float) -> dict[str, Any]:
    first = {"ratio_to_first": {"median": 1.0, "low": 1.0, "high": 1.0}}
    return {"fp32": first, "int8": {"ratio_to_first": {"median": median, "low": low, "high": high}}}


@pytest.mark.parametrize(
    ("cells", "ratio", "expected"),
    [
        ({}, (0.5, 0.6, 0.7), "int8"),
        ({}, (0.92, 0.94, 0.99), "int8"),
        ({}, (0.96, 0.97, 0.98), "fp32"),
        ({}, (0.8, 0.9, 1.0), "fp32"),
        ({}, (0.5, 0.6, 1.3), "fp32"),
        ({}, (1.1, 1.2, 1.3), "fp32"),
        ({"int8": ("PASS", "INCONCLUSIVE")}, (0.5, 0.6, 0.7), "fp32"),
        ({"int8": ("PASS", "FAIL")}, (0.5, 0.6, 0.7), "fp32"),
        ({"int8": ("FAIL", "PASS")}, (0.5, 0.6, 0.7), "fp32"),
        ({"int8": ("NOT MEASURED", "PASS")}, (0.5, 0.6, 0.7), "fp32"),
        ({"int8": ("PASS", None)}, (0.5, 0.6, 0.7), "fp32"),
        ({"fp32": ("FAIL", "FAIL")}, (0.5, 0.6, 0.7), "int8"),
        ({"fp32": ("FAIL", "FAIL"), "int8": ("FAIL", "FAIL")}, (0.5, 0.6, 0.7), "fp32"),
    ],
)
def test_the_default_is_the_fastest_that_passed(
    cells: dict[str, tuple[str, str | None]], ratio: tuple[float, float, float], expected: str, report: ParityReport
) -> None:
    """Int8 becomes the default only where it passed both questions and is clearly faster than the first."""
    assert assemble._default(verdicts(report, **cells), latency(*ratio)) == expected


def test_a_first_artifact_that_failed_is_not_the_default_beside_one_that_passed(report: ParityReport) -> None:
    """Forced, a bundle whose first artifact failed takes one that passed, even a slower one."""
    broken = verdicts(report, fp32=("FAIL", "FAIL"))
    assert assemble._default(broken, latency(1.1, 1.2, 1.3)) == "int8"


def test_failures_are_listed_one_sentence_each(report: ParityReport) -> None:
    """Every FAIL, and only a FAIL, is listed with candidate, question and reason."""
    assert failures(verdicts(report)) == []
    assert failures(verdicts(report, int8=("PASS", "INCONCLUSIVE"))) == []
    found = failures(verdicts(report, fp32=("FAIL", "PASS"), int8=("FAIL", "FAIL")))
    assert [line.split(":")[1] for line in found] == ["fp32 computation", "int8 computation", "int8 decisions"]
    decoding = msgspec.structs.replace(report.decoding, verdict=Verdict.FAIL, reason="other pixels")
    assert failures(msgspec.structs.replace(report, decoding=decoding)) == ["decoding: other pixels"]


@pytest.fixture
def run_copy(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


@pytest.mark.parametrize("name", ["metrics.json", "config.json"])
def test_an_unfinished_run_is_said(name: str, run_copy: Path, out: Path) -> None:
    """A run without its metrics or configuration is not exported, and the message names what is missing."""
    (run_copy / name).unlink()
    with pytest.raises(
        CheckpointError, match=f"{name} is missing; give a folder in which `edgecnn train` has finished"
    ):
        read_run(run_copy)
    result = invoke("export", run_copy, "-o", out)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert name in result.stderr
    assert beside(out) == set()


def test_a_run_without_its_checkpoint_is_said(run_copy: Path, out: Path) -> None:
    """A run whose weights are gone is one clear line and exit 2."""
    (run_copy / "model.safetensors").unlink()
    result = invoke("export", run_copy, "-o", out)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "model.safetensors" in result.stderr
    assert beside(out) == set()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"edgecnn": 1}'])
def test_a_damaged_configuration_is_said(content: bytes, run_copy: Path) -> None:
    """A configuration that is not one is an error that names the run."""
    (run_copy / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        read_run(run_copy)
    assert str(run_copy) in str(caught.value)


Change = Callable[[dict[str, Any]], None]


def npz(dataset: Dataset, path: Path, change: Change | None = None) -> str:
    """Write a run's data as the arrays that another place might hold."""
    arrays: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        part: LabelledImages = getattr(dataset, name)
        arrays |= {f"x_{name}": part.pixels.copy(), f"y_{name}": part.labels.copy()}
    if change:
        change(arrays)
    np.savez(path, **arrays)
    return str(path)


def one_pixel(arrays: dict[str, Pixels]) -> None:
    arrays["x_test"][3, 4, 4, 0] ^= 1


def one_label(arrays: dict[str, Any]) -> None:
    arrays["y_test"][5] = (arrays["y_test"][5] + 1) % 10


def one_fewer(arrays: dict[str, Any]) -> None:
    arrays["x_test"], arrays["y_test"] = arrays["x_test"][1:], arrays["y_test"][1:]


def other_order(arrays: dict[str, Any]) -> None:
    arrays["x_test"], arrays["y_test"] = arrays["x_test"][::-1], arrays["y_test"][::-1]


def one_more_class(arrays: dict[str, Any]) -> None:
    arrays["y_train"][0] = 10


def test_the_same_data_elsewhere_is_accepted(run: Run, tmp_path: Path) -> None:
    """Data that has moved, even into another container, is known again by its test split."""
    config, _, dataset = run
    moved = open_run_data(config, npz(dataset, tmp_path / "moved.npz"))
    np.testing.assert_array_equal(moved.test.pixels, dataset.test.pixels)


@pytest.mark.parametrize("change", [one_pixel, one_label, one_fewer, other_order, one_more_class])
def test_data_that_changed_is_refused(change: Change, run: Run, tmp_path: Path) -> None:
    """One pixel, one label, one image or one class of difference in the test data stops the export."""
    source = npz(run[2], tmp_path / "changed.npz", change)
    with pytest.raises(DataError, match="not the data this run was trained on"):
        open_run_data(run[0], source)


def test_changed_data_on_the_command_line_is_one_line(run_folder: Path, run: Run, tmp_path: Path, out: Path) -> None:
    """Exporting with other data is refused in one line that says how to name the right data, with exit 2."""
    result = invoke("export", run_folder, "-o", out, "--data", npz(run[2], tmp_path / "changed.npz", one_pixel))
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "--data" in result.stderr
    assert beside(out) == set()


def test_data_that_is_gone_is_one_line(run_copy: Path, tmp_path: Path, out: Path) -> None:
    """A run whose data is no longer where it was is refused with the place that was looked at."""
    config = json.loads((run_copy / "config.json").read_text())
    config["data"] = str(tmp_path / "moved-away")
    (run_copy / "config.json").write_text(json.dumps(config))
    result = invoke("export", run_copy, "-o", out)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "moved-away: is not there" in result.stderr


def test_options_of_the_data_are_those_of_the_run(run: Run) -> None:
    """Size and colour come from the run, so that defaults which have changed since do not matter."""
    config, _, dataset = run
    assert config.data_options == DataOptions()
    assert dataset.preprocess.shape == config.preprocess.shape
    bigger = msgspec.structs.replace(config, preprocess=msgspec.structs.replace(config.preprocess, height=9, width=9))
    with pytest.raises(DataError, match="its test split differs"):
        open_run_data(bigger)
