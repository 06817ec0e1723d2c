"""The same models by ONNX Runtime's defaults, by NNCF and by `edgecnn quantize`: accuracy, latency and size, in one run.

The nets are trained on Fashion-MNIST, five epochs each, where no run is there yet (`RUNS`, by default demo/runs); the
IDX files are looked for in `../shared/data`, the text classifier in `../shared/models`, or where DATA and MODELS say.
NNCF is asked for only where `NNCF_PYTHON` names an interpreter that has it. MODELS_WANTED chooses some, as in `resnet8,text`.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import ROOT, print_machine
from onnxruntime.quantization import quantize_static
from text_images import HEIGHT, WIDTH, write_text_images

from edgecnn import registry
from edgecnn.exporter import ExportRequest
from edgecnn.parity.decisions import Decisions
from edgecnn.quantization.conversion import InputOptions
from edgecnn.quantization.evaluation import Evaluation
from edgecnn.quantization.feeds import FeedSet, from_arrays, from_images
from edgecnn.quantization.fusion import prove_fusion
from edgecnn.quantization.race import race
from edgecnn.quantization.run import QuantizeOptions, quantize_model
from edgecnn.quantization.source import Source, read_source
from edgecnn.quantization.yardstick import Yardstick, open_model
from edgecnn.spec import Tolerance

SHARED = ROOT.parent / "shared"
DATA = Path(os.environ.get("DATA", SHARED / "data")) / "fashion-mnist"
MODELS = Path(os.environ.get("MODELS", SHARED / "models"))
RUNS = Path(os.environ.get("RUNS", ROOT / "demo" / "runs"))
NETS = {"resnet8": ("--net", "resnet8"), "edge_s": ("--size", "s"), "depthwise": ("--net", "depthwise")}
TRAINING = ("--epochs", "5", "--val", "0.05", "--augment", "light,no-turn,no-zoom,shift=0.07")
RACE_SECONDS = float(os.environ.get("RACE_SECONDS", "4"))
BUDGET = 0.005
NNCF_SCRIPT = """
import sys, numpy, onnx, nncf
source, feeds, out = sys.argv[1:4]
rows = dict(numpy.load(feeds))
count = len(next(iter(rows.values())))
samples = [{name: array[index : index + 1] for name, array in rows.items()} for index in range(count)]
quantized = nncf.quantize(onnx.load(source), nncf.Dataset(samples), subset_size=count)
onnx.save(quantized, out)
"""


def main() -> None:
    """Print a table a model."""
    print_machine()
    wanted = os.environ.get("MODELS_WANTED", ",".join([*NETS, "text", "hard"])).split(",")
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            if name == "hard":
                climb_hard(Path(folder))
                continue
            found = text_model(Path(folder)) if name == "text" else trained(name, Path(folder))
            if found is None:
                print(f"\n{name}: skipped, its model or data are not there; set DATA and MODELS")
                continue
            compare(name, *found, Path(folder))


def climb_hard(folder: Path) -> None:
    """Climb the ladder for resnet8 made hard on purpose: inside each block one channel is 100 times the others."""
    found = trained("resnet8", folder)
    if found is None:
        print("\nhard: skipped, the data are not there; set DATA")
        return
    path, calibration, test = found
    source = read_source(path)
    print(
        f"\nhard: resnet8 with a channel 100 times the others in {harden(source.model)} places; the same function in float"
    )
    options = QuantizeOptions(target=_host(), tolerance=Tolerance(max_drop=BUDGET))
    _, report = quantize_model(source, calibration, test, options)
    print("| rung | right | drop below | verdict | int8 / float time | SQNR dB |\n|---|---|---|---|---|---|")
    for rung in report.rungs:
        if rung.decisions is None or rung.speed is None:
            print(f"| {rung.name} | {rung.note} | | | | |")
            continue
        right, drop = rung.decisions.candidate_accuracy.value, rung.decisions.drop_high * 100
        print(
            f"| {rung.name} | {right:.2%} | {drop:.2f} | {rung.decisions.verdict.value} | {rung.speed.ratio:.2f} | {rung.sqnr_db:.1f} |"
        )
    print(f"taken: {report.rungs[report.best].name}; refusals: {report.gate.refusals or 'none'}")


def harden(model: onnx.ModelProto, loud: float = 100.0) -> int:
    """Scale, in place, one channel between each convolution and the only one that reads it through ReLU."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    reading: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            reading.setdefault(name, []).append(node)
    done = 0
    for node in model.graph.node:
        after = reading.get(node.output[0], [])
        if node.op_type != "Conv" or len(after) != 1 or after[0].op_type != "Relu":
            continue
        after = reading.get(after[0].output[0], [])
        if len(after) == 1 and after[0].op_type == "Conv":
            for name, where, factor in (
                (node.input[1], np.s_[0], loud), (node.input[2], np.s_[0], loud), (after[0].input[1], np.s_[:, 0], 1 / loud),
            ):  # fmt: skip
                array = onnx.numpy_helper.to_array(weights[name]).copy()
                array[where] *= factor
                weights[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
            done += 1
    return done


def trained(name: str, folder: Path) -> tuple[Path, FeedSet, FeedSet] | None:
    """Train a net if there is no run of it, export it to float ONNX, and give it with its images."""
    if not DATA.is_dir():
        return None
    run = RUNS / f"q-{name}"
    if not (run / "metrics.json").exists():
        command = [sys.executable, "-m", "edgecnn", "train", str(DATA), "-o", str(run), *NETS[name], *TRAINING]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    request = ExportRequest(
        checkpoint=run / "model.safetensors", folder=folder, calibration=np.zeros((0, 28, 28, 1), np.uint8)
    )
    path = registry.get(registry.EXPORTERS, "onnx").export(request).path.rename(folder / f"{name}.onnx")
    chosen = np.sort(np.random.default_rng(0).choice(60_000, 256, replace=False))
    calibration = from_arrays({"image": idx("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28, 1)[chosen]})
    labels = idx("t10k-labels-idx1-ubyte.gz", 8).astype(np.int64)
    test = from_arrays({"image": idx("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28, 1)}, labels)
    return path, calibration, test


def idx(name: str, offset: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read the bytes behind an IDX file's header."""
    with gzip.open(DATA / name) as file:
        return np.frombuffer(file.read(), np.uint8, offset=offset)


def text_model(folder: Path) -> tuple[Path, FeedSet, FeedSet] | None:
    """Give the text direction classifier with made images; it has no labels, so its own float answers are the truth."""
    path = MODELS / "rapidocr_cls.onnx"
    if not path.is_file():
        return None
    write_text_images(folder / "calibrate", 256, seed=0)
    write_text_images(folder / "evaluate", 2000, seed=1)
    model = read_source(path).model
    half = (0.5, 0.5, 0.5)
    options = InputOptions(mean=half, std=half, order="bgr", height=HEIGHT, width=WIDTH)
    return path, from_images([folder / "calibrate"], model, options), from_images([folder / "evaluate"], model, options)


def compare(name: str, path: Path, calibration: FeedSet, test: FeedSet, folder: Path) -> None:
    """Quantize in three ways and measure all of them together."""
    source = read_source(path)
    made: dict[str, onnx.ModelProto] = {"float": source.model}
    made["ORT's defaults"] = by_default(source, calibration, folder)
    if "NNCF_PYTHON" in os.environ:
        made["NNCF"] = by_nncf(source, calibration, folder)
    tolerance = Tolerance(max_drop=BUDGET)
    made["edgecnn"], report = quantize_model(
        source, calibration, test, QuantizeOptions(target=_host(), tolerance=tolerance)
    )
    evaluation, yardstick = Evaluation.of(source.model, test, tolerance), Yardstick(source.model, calibration)
    with ExitStack() as stack:
        sessions = {way: stack.enter_context(open_model(model)) for way, model in made.items()}
        speeds = race(sessions, "float", yardstick.one(), RACE_SECONDS)
    before = len(path.read_bytes())
    told = "labels" if evaluation.labelled else "the float model's answers"
    print(f"\n{name}: {before:,} bytes in float; {test.count:,} images judged by {told}; batch 1, 1 thread")
    print("| by | right | lost, gained | verdict at 0.5 | float / int8 time | size | fused convolutions | SQNR dB |")
    print("|---|---|---|---|---|---|---|---|")
    for way, model in made.items():
        print(
            row(
                way, evaluation.judge(model), speeds.get(way), len(model.SerializeToString()) / before, model, yardstick
            )
        )
    floats = ", ".join(report.rungs[report.best].floats) or "none"
    print(
        f"edgecnn: rung {report.rungs[report.best].name}, in float: {floats}; refusals: {report.gate.refusals or 'none'}"
    )


def row(way: str, decisions: Decisions, speed: Any, share: float, model: onnx.ModelProto, yardstick: Yardstick) -> str:
    """Write a line of the table; the ratio is float over int8, so that more is better."""
    fusion = prove_fusion(model)
    convolutions = f"{fusion.count('Conv', True)} of {fusion.count('Conv', True) + fusion.count('Conv', False)}"
    faster = (
        "1"
        if speed is None
        else f"{1 / speed.ratio:.2f} ({1 / speed.high:.2f} to {1 / speed.low:.2f}), {speed.p50_us:.0f} us"
    )
    sqnr = "" if way == "float" else f"{yardstick.sqnr_db(model):.1f}"
    return (
        f"| {way} | {decisions.candidate_accuracy.value:.2%} | {decisions.lost}, {decisions.gained} | {decisions.verdict.value} "
        f"| {faster} | {share:.3f} | {convolutions} | {sqnr} |"
    )


class Reader:
    """Hands ONNX Runtime's calibrator one sample at a time."""

    def __init__(self, feeds: FeedSet) -> None:
        self.batches: Iterator[dict[str, Any]] = feeds.batches(1)

    def get_next(self) -> dict[str, Any] | None:
        """Give the next feeds."""
        return next(self.batches, None)


def by_default(source: Source, calibration: FeedSet, folder: Path) -> onnx.ModelProto:
    """Quantize as `quantize_static` does when it is told nothing."""
    onnx.save(source.model, folder / "ready.onnx")
    quantize_static(str(folder / "ready.onnx"), str(folder / "default.onnx"), Reader(calibration))
    return onnx.load(folder / "default.onnx")


def by_nncf(source: Source, calibration: FeedSet, folder: Path) -> onnx.ModelProto:
    """Quantize as `nncf.quantize` does when it is told nothing, in an interpreter that has it."""
    onnx.save(source.model, folder / "ready.onnx")
    batches = list(calibration.batches(1))
    np.savez(folder / "feeds.npz", **{name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]})
    files = [str(folder / name) for name in ("ready.onnx", "feeds.npz", "nncf.onnx")]
    subprocess.run([os.environ["NNCF_PYTHON"], "-c", NNCF_SCRIPT, *files], check=True, stdout=subprocess.DEVNULL)
    return onnx.load(folder / "nncf.onnx")


def _host() -> Any:
    from edgecnn.host import target_of_host

    return target_of_host()


if __name__ == "__main__":
    main()
