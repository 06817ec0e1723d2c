"""The same faults given to edgecnn, to Polygraphy and to ONNX Runtime's qdq_loss_debug: what each says, and what it names.

One net trained on Fashion-MNIST, in float and quantized by ONNX Runtime's own `quantize_static`; in the middle of it a 3x3
kernel is transposed, or the scale of its output doubled or halved. Each tool is given the right float model and the candidate,
and the faultless candidates too, for a tool that always complains has found nothing. RUNS and BUNDLES name folders of
runs and of bundles that are there already; POLYGRAPHY names its command, which is left out otherwise.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench_quantization import idx
from bench_saturation import Reader, quantized
from common import print_machine
from fashion import bundle_of, bundles_folder
from onnx import numpy_helper
from onnxruntime.quantization import qdq_loss_debug as debug

from edgecnn.parity import judge, record
from edgecnn.parity.localize import OnnxSide, localize
from edgecnn.parity.samples import fed_samples
from edgecnn.parity.subject import Subject
from edgecnn.quantization.feeds import from_arrays
from edgecnn.spec import BackendRef

NET, CALIBRATION, FED, JUDGED = "resnet8", 100, 16, 2_000
LOADER = """
import numpy
def load_data():
    yield {{"{name}": numpy.load({path!r})}}
"""
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def main() -> None:
    """Print a table: for each candidate what each tool says of it."""
    print_machine()
    with bundles_folder() as bundles, tempfile.TemporaryDirectory() as name:
        found = bundle_of(NET, bundles)
        if found is None:
            print(f"{NET}: skipped, the data are not there; set DATA")
            return
        pixels, folder = found[1].pixels, Path(name)
        right = found[0].artifact("fp32").path
        candidates, planted = plant_all(right, folder, idx("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28, 1))
        labels = found[1].labels[:JUDGED].astype(np.int64)
        print(f"\n{NET}; planted in {planted}\n| candidate | tool | says | names |\n|---|---|---|---|")
        for what, path in candidates.items():
            print(f"| {what} | edgecnn parity | {by_edgecnn(right, path, pixels[:JUDGED], labels)} |")
            for title, marked in (("answers", False), ("every tensor", True)):
                said = by_polygraphy(right, path, pixels[:FED], marked, folder)
                print(f"| | Polygraphy, {title} | {said} |")
            print(f"| | qdq_loss_debug | {by_debug(right, path, pixels[:FED], folder)} |", flush=True)


def plant_all(right: Path, folder: Path, pixels: Pixels) -> tuple[dict[str, Path], str]:
    """Write the candidates, and say where their faults are."""
    int8 = quantized(right, folder / "int8.onnx", pixels[:CALIBRATION], reduced=False)
    node = middle(onnx.load(right))
    made = {
        "float, no fault": right,
        "float, kernel transposed": edited(right, folder / "f.onnx", lambda model: transpose(model, node.input[1])),
        "int8, no fault": int8,
        "int8, kernel transposed": edited(int8, folder / "k.onnx", lambda model: transpose(model, node.input[1])),
        "int8, scale doubled": edited(int8, folder / "s.onnx", lambda model: rescale(model, node.name, 2.0)),
        "int8, scale halved": edited(int8, folder / "h.onnx", lambda model: rescale(model, node.name, 0.5)),
    }
    return made, f"{node.name}: weight {node.input[1]}, output {node.output[0]}"


def middle(model: onnx.ModelProto) -> onnx.NodeProto:
    """Choose the middle one of the convolutions by 3x3."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    square = [node for node in model.graph.node if node.op_type == "Conv" and shapes[node.input[1]][2:] == (3, 3)]
    chosen: onnx.NodeProto = square[len(square) // 2]
    return chosen


def edited(path: Path, out: Path, edit: Callable[[onnx.ModelProto], int]) -> Path:
    """Write a changed copy of a model."""
    model = onnx.load(path)
    if edit(model) != 1:
        raise SystemExit(f"{path}: the fault fits in no place, or in several")
    onnx.save(model, out)
    return out


def transpose(model: onnx.ModelProto, weight: str) -> int:
    """Swap the two axes of a kernel, in float or as it is quantized."""
    return _change(model, (weight, f"{weight}_quantized"), lambda array: array.swapaxes(2, 3))


def rescale(model: onnx.ModelProto, layer: str, factor: float) -> int:
    """Multiply the scale by which a layer's output is quantized, and read again."""
    made = next(node.output[0] for node in model.graph.node if node.name == layer)
    quantizer = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == made)
    return _change(model, (quantizer.input[1],), lambda array: array * np.float32(factor))


def _change(model: onnx.ModelProto, names: tuple[str, ...], change: Callable[[Any], Any]) -> int:
    found = [tensor for tensor in model.graph.initializer if tensor.name in names]
    for tensor in found:
        array = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return len(found)


def by_edgecnn(right: Path, path: Path, pixels: Pixels, labels: Any) -> str:
    """Check parity of the candidate with the float model in float64, then localize, whatever the verdict was."""
    subject, ref = Subject.of_model(right), BackendRef(backend="onnxruntime", artifact=str(path))
    name = subject.inputs[0].name
    samples = fed_samples(from_arrays({name: pixels}, labels), "Fashion-MNIST", len(np.unique(labels)))
    cell = judge(record(subject, None, [ref], samples)).cells[0]
    computation, decisions = cell.computation, cell.decisions
    said = f"computation {computation.verdict.value}"
    if decisions is not None:
        said += f", decisions {decisions.verdict.value} ({decisions.lost} lost, {decisions.gained} gained)"
    found = localize(OnnxSide(onnx.load(right)), onnx.load(path), {name: pixels[:FED]})
    culprits = [one.name for one in found.blocks if one.culprit]
    more = f"; {len(culprits)} of {len(found.blocks)} blocks" if len(culprits) > 1 else ""
    return f"{said} | {'nothing' if found.first is None else f'{found.first.name}: {found.first.why}{more}'}"


def by_polygraphy(right: Path, path: Path, pixels: Pixels, marked: bool, folder: Path) -> str:
    """Let `polygraphy run` compare the two files' outputs, or all tensors that have the same names, by its own limits."""
    if "POLYGRAPHY" not in os.environ:
        return "skipped: POLYGRAPHY names no command |"
    np.save(folder / "fed.npy", pixels)
    loader, kept = folder / "loader.py", folder / "kept.json"
    loader.write_text(LOADER.format(name=Subject.of_model(right).inputs[0].name, path=str(folder / "fed.npy")))
    command = [os.environ["POLYGRAPHY"], "run", "--onnxrt", "--log-format", "no-colors", "--data-loader-script", str(loader)]  # fmt: skip
    marks = ["--onnx-outputs", "mark", "all"] if marked else []
    subprocess.run([*command, str(right), *marks, "--save-outputs", str(kept)], check=True, capture_output=True)
    done = subprocess.run(
        [*command, str(path), *marks, "--load-outputs", str(kept)], check=False, capture_output=True, text=True
    )
    text = done.stdout + done.stderr
    compared = len(re.findall(r"Comparing Output:", text))
    failed = re.search(r"Mismatched outputs: \[(.*)\]", text)
    names = [name.strip(" '") for name in failed.group(1).split(",")] if failed else []
    if done.returncode and not names:
        return f"error | {(text.strip().splitlines() or ['nothing said'])[-1]}"
    return f"{'FAILED' if done.returncode else 'PASSED'}, {len(names)} of {compared} | {listed(names)}"


def by_debug(right: Path, path: Path, pixels: Pixels, folder: Path) -> str:
    """Follow qdq_loss_debug's own documentation: weights, then activations; it gives figures and no verdict."""
    if not any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node):
        return "does not apply: it takes a QDQ model |"
    name = Subject.of_model(right).inputs[0].name
    weights = debug.compute_weight_error(debug.create_weight_matching(str(right), str(path)))
    collected = []
    for file in (path, right):
        debug.modify_model_output_intermediate_tensors(str(file), str(folder / "augmented.onnx"))
        collected.append(debug.collect_activations(str(folder / "augmented.onnx"), Reader(name, pixels)))
    errors = debug.compute_activation_error(debug.create_activation_matching(*collected))
    own = {tensor: found["qdq_err"] for tensor, found in errors.items()}
    across = {tensor: found["xmodel_err"] for tensor, found in errors.items() if "xmodel_err" in found}
    told = [
        f"{what} {lowest(figures)}"
        for what, figures in (("weights", weights), ("own QDQ", own), ("against float", across))
    ]
    return f"figures for {len(weights)} weights, {len(own)} activations | lowest: {'; '.join(told)}"


def lowest(figures: dict[str, float]) -> str:
    """Name the two with the lowest SQNR."""
    return ", ".join(f"{name} {figures[name]:.1f} dB" for name in sorted(figures, key=figures.__getitem__)[:2])


def listed(names: list[str]) -> str:
    """List the first three."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"


if __name__ == "__main__":
    main()
