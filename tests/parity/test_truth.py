"""The truth of an ONNX file: float64 by numpy and by onnx's evaluator, what it is not known for, and goldens that were changed."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.version_converter
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from parity.fakes import ORT, chain_file, fed, half_file, int8_file, unsorted
from quantization import graphs, small

from edgecnn.bundle import Bundle
from edgecnn.errors import BackendError
from edgecnn.parity import Verdict, judge, record
from edgecnn.parity.samples import golden_samples
from edgecnn.parity.subject import Subject, model_artifact
from edgecnn.parity.truth import exact_of, of_checkpoint, of_goldens, of_graph, specified
from edgecnn.spec import BackendRef

Array = npt.NDArray[Any]
RNG = np.random.default_rng(11)
WEIGHT, BIAS = RNG.normal(size=(6, 4)), RNG.normal(size=4)


def saved(folder: Path, model: onnx.ModelProto, name: str = "net.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def gemm(folder: Path, kind: Any = np.float32) -> Path:
    """Write y = softmax(x W + b), (N, 6) to (N, 4), all of it of one type."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    values = [helper.make_tensor_value_info(name, element, ["n", size]) for name, size in (("x", 6), ("y", 4))]
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"]), helper.make_node("Softmax", ["z"], ["y"], axis=1)]
    weights = [numpy_helper.from_array(value.astype(kind), name) for name, value in (("w", WEIGHT), ("b", BIAS))]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], weights)
    return saved(folder, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def by_hand(x: Array, kind: Any) -> Array:
    """Compute it in float64 by numpy, with the weights as the file has them."""
    z = x.astype(np.float64) @ WEIGHT.astype(kind).astype(np.float64) + BIAS.astype(kind).astype(np.float64)
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("torch", [True, False], ids=["torch", "onnx's evaluator"])
def test_a_graphs_truth_is_numpys(kind: Any, torch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The float64 answers, of float16 weights too, are numpy's to 1e-12; by torch's operators or without torch by onnx's."""
    if not torch:
        module = import_module("edgecnn.parity.truth")
        monkeypatch.setattr(module, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    x = np.random.default_rng(2).normal(size=(12, 6)).astype(kind)
    exact, why = exact_of(Subject.of_model(gemm(tmp_path, kind)), None)
    assert exact is not None, why
    found = of_graph(exact, fed(x))
    np.testing.assert_allclose(found.float64, by_hand(x, kind), rtol=1e-12, atol=1e-15)
    off = float(np.abs(found.float32 - found.float64).max())
    assert 0 < off < (1e-2 if kind is np.float16 and not torch else 1e-6)
    assert found.places.tolist() == list(range(12))
    assert ("torch" in found.origin) == torch
    assert not found.on_goldens


def quantized_gemm(folder: Path, op: str = "") -> Path:
    """Write x, rounded to uint8 by 0.02, times weights of int8 by 0.01; with `op` that operator beside it."""
    scales = {"s": np.float32(0.02), "z": np.uint8(128), "t": np.float32(0.01), "o": np.int8(0)}
    whole = np.clip(np.rint(WEIGHT / 0.01), -127, 127).astype(np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "t", "o"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    if op:
        nodes.append(helper.make_node(op, ["xq", "w"], ["i"]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 6), ("y", 4))]  # fmt: skip
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in {**scales, "w": whole}.items()]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], weights)
    return saved(folder, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "q.onnx")


def test_a_quantized_graphs_truth_rounds_weights_and_nothing_else(tmp_path: Path) -> None:
    """Of a file with quantizers the truth is x times the rounded weights by numpy, x itself not rounded."""
    x = np.random.default_rng(2).uniform(-2, 2, (9, 6)).astype(np.float32)
    exact, why = exact_of(Subject.of_model(quantized_gemm(tmp_path)), None)
    assert exact is not None, why
    found = of_graph(exact, fed(x)).float64
    whole = np.clip(np.rint(WEIGHT / 0.01), -127, 127) * np.float64(np.float32(0.01))
    np.testing.assert_allclose(found, x.astype(np.float64) @ whole, rtol=1e-6, atol=1e-9)
    rounded = np.rint(x / 0.02) * 0.02
    assert np.abs(found - rounded @ whole).max() > 1e-3, "or rounding x would not show"


def test_without_a_float_graph_there_is_no_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that rounds inside an operator has none, with the option that helps; and without torch and onnx nothing has one."""
    exact, why = exact_of(Subject.of_model(quantized_gemm(tmp_path, "MatMulInteger")), None)
    assert exact is None
    assert "it holds MatMulInteger, which rounds inside; name its float model with -r onnxruntime:FLOAT.onnx" in why
    subject = Subject.of_model(chain_file(tmp_path))
    monkeypatch.setattr(import_module("edgecnn.parity.truth"), "find_spec", lambda name: None)
    assert exact_of(subject, None) == (None, "no float64 without torch or onnx: pip install 'edgecnn[train]'")


def test_a_float_reference_is_the_truth_of_what_has_none(tmp_path: Path) -> None:
    """The float file named as the reference is evaluated in place of a quantized subject, and not of a float one."""
    reference = model_artifact(chain_file(tmp_path, seed=1, name="other.onnx"))
    images = small.images(4)
    wanted = {seed: graphs.run(small.chain(seed), {"x": images})["y"] for seed in (0, 1)}
    for path, seed in ((int8_file(tmp_path, seed=1), 1), (chain_file(tmp_path), 0)):
        exact, _ = exact_of(Subject.of_model(path), reference)
        assert exact is not None
        np.testing.assert_allclose(of_graph(exact, fed(images)).float64, wanted[seed], rtol=1e-3, atol=1e-5)


def test_answers_that_are_not_finite_are_no_truth(tmp_path: Path) -> None:
    """A model that divides by zero has no truth, and its candidate is not measured but told why."""
    model = graphs.graph([graphs.node("Div", "x none", "y")], (4,), none=np.zeros(4))
    subject = Subject.of_model(saved(tmp_path, model))
    exact, _ = exact_of(subject, None)
    assert exact is not None
    x = np.ones((3, 4), np.float32)
    with pytest.raises(BackendError, match="not finite on these samples"):
        of_graph(exact, fed(x))


@pytest.mark.parametrize("keep_io", [True, False], ids=["float32 outside", "float16 outside"])
def test_float16_is_judged_in_its_own_unit(keep_io: bool, tmp_path: Path) -> None:
    """What ONNX Runtime's converter writes, casts last and all, passes; with a weight off by a fifth in the file that runs, it fails."""
    right = half_file(tmp_path, keep_io=keep_io)
    images = small.images(24).astype(np.float32 if keep_io else np.float16)
    found = judge(record(Subject.of_model(right), None, [ORT], fed(images)))
    assert found.cells[0].computation.verdict is Verdict.PASS, found.cells[0].computation.reason
    assert "in float16" in found.cells[0].computation.reason
    wrong = onnx.load(right)
    tensor = next(one for one in wrong.graph.initializer if one.name == "c.weight")
    value = numpy_helper.to_array(tensor).copy()
    value[np.unravel_index(np.abs(value).argmax(), value.shape)] *= 1.2
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    ref = BackendRef(backend="onnxruntime", artifact=str(saved(tmp_path, wrong, "wrong.onnx")))
    subject = Subject.of_model(right)
    recording = record(subject, ORT, [ref], fed(images))
    side = recording.sides[str(ref)]
    own = record(subject, None, [ORT], fed(images)).sides["onnxruntime"]
    planted = replace(recording, sides={**recording.sides, str(ref): replace(side, recorded=own.recorded)})
    cell = judge(planted).cells[0]
    assert cell.computation.verdict is Verdict.FAIL
    assert cell.computation.multiple is not None
    truth = recording.float64
    assert truth is not None
    assert own.recorded is not None
    few = truth[: len(own.recorded)]
    answered = side.answers["y"][: len(own.recorded)].astype(np.float64)
    unit = own.recorded.astype(np.float64) - few
    by_numpy = max(
        float(np.sqrt(((answered - few) ** 2).mean()) / np.sqrt((unit**2).mean())),
        float(np.abs(answered - few).max() / np.abs(unit).max()),
    )
    assert cell.computation.multiple == pytest.approx(by_numpy, rel=1e-6)


def test_the_evaluators_answers_are_its_own(tmp_path: Path) -> None:
    """What a quantized file should answer is what onnx's evaluator gives when called by hand, batch by batch, in any order of nodes."""
    path, images = int8_file(tmp_path), small.images(7)
    newer = onnx.version_converter.convert_version(onnx.load(path), 19)  # the evaluator has no older quantizers
    (expected,) = ReferenceEvaluator(newer).run(["y"], {"x": images})
    shuffled = saved(tmp_path, unsorted(onnx.load(path)), "unsorted.onnx")
    for file in (path, shuffled):
        found = specified(model_artifact(file), "y", iter([{"x": images[:3]}, {"x": images[3:]}]))
        np.testing.assert_array_equal(found, expected)


def test_goldens_that_were_changed_are_found(bundle_folder: Path) -> None:
    """The checkpoint in float64 gives the recorded logits; where one of them is off by a millionth, that is an error."""
    bundle = Bundle.open(bundle_folder)
    goldens = bundle.goldens()
    samples = golden_samples(goldens.pixels, goldens.names, "image")
    places, double = of_checkpoint(bundle, BackendRef(backend="torch"), samples, goldens)
    np.testing.assert_allclose(double, goldens.logits_float64[places], rtol=1e-9, atol=1e-9)
    changed = goldens.logits_float64.copy()
    changed[5, 3] += 1e-6
    with pytest.raises(BackendError, match="one of the two was changed"):
        of_checkpoint(bundle, BackendRef(backend="torch"), samples, replace(goldens, logits_float64=changed))
    recorded = of_goldens(goldens)
    assert recorded.on_goldens
    assert recorded.float64 is goldens.logits_float64
