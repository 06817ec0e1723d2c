"""From a float model to a judged one, end to end: every figure of the report is computed again from the two models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto
from quantization import graphs, hard, small, zoo

from edgecnn.errors import QuantizationError, UsageError
from edgecnn.host import target_of_host
from edgecnn.parity import Verdict
from edgecnn.quantization import ladder, placement, run
from edgecnn.quantization.evaluation import Evaluation
from edgecnn.quantization.feeds import FeedSet, from_arrays
from edgecnn.quantization.graph import layers_of, makers, weights_of
from edgecnn.quantization.qdq import quantized_layers
from edgecnn.quantization.run import QuantizeOptions, Report, quantize_model, verdict_of
from edgecnn.quantization.saturation import saturation
from edgecnn.quantization.source import Source, read_source
from edgecnn.spec import Target, Tolerance, to_json

Array = npt.NDArray[Any]
WIDE = Tolerance(max_drop=0.5)
ELSEWHERE: Target = "arm64" if target_of_host() != "arm64" else "x86-64-vnni"  # nothing is timed there


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept from one test to another, and no wall time counts: int8 always takes half of the time."""
    monkeypatch.setenv("EDGECNN_CACHE", "/dev/null")

    def race(sessions: Mapping[str, Any], reference: str, *rest: Any) -> dict[str, Any]:
        return {name: small.speed(0.5) for name in sessions if name != reference}

    for module in (ladder, placement):
        monkeypatch.setattr(module, "race", race)


def fed(model: onnx.ModelProto, count: int = 48, seed: int = 0, labels: bool = False) -> FeedSet:
    batch = 1 if model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1 else None
    arrays = zoo.feeds(model, count, seed)
    if batch:
        one = [zoo.feeds(model, 1, seed * 1000 + number) for number in range(count)]
        arrays = {name: np.concatenate([feeds[name] for feeds in one]) for name in arrays}
    truth = scores(model, from_arrays(arrays, batch=batch)).argmax(axis=1) if labels else None
    return from_arrays(arrays, truth, batch)


def scores(model: onnx.ModelProto, feeds: FeedSet) -> Array:
    """Run a model by ONNX Runtime and give its first output, (N, values)."""
    name = model.graph.output[0].name
    parts = [graphs.run(model, batch)[name] for batch in feeds.batches(16)]
    return np.concatenate([part.reshape(len(part), -1) for part in parts])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return read_source(zoo.save(zoo.plain(), tmp_path_factory.mktemp("source") / "plain.onnx"))


def made(source: Source, **changes: Any) -> tuple[onnx.ModelProto, Report]:
    options = {"target": ELSEWHERE, "tolerance": WIDE, "qat_epochs": 0, **changes}
    more = {name: options.pop(name) for name in ("train", "folder", "say") if name in options}
    return quantize_model(
        source, fed(source.model, 32, 1), fed(source.model, 48, 2), QuantizeOptions(**options), **more
    )


def checked(source: Source, built: onnx.ModelProto, report: Report) -> None:
    """Compute the report's figures anew, and send it through JSON."""
    evaluation = fed(source.model, 48, 2)
    before, after = scores(source.model, evaluation), scores(built, evaluation)
    assert report.decisions.changed == int((before.argmax(axis=1) != after.argmax(axis=1)).sum())
    assert report.decisions.n == report.evaluation_images == 48
    assert report.calibration_images == 32
    assert report.bytes == len(built.SerializeToString())
    assert report.source_bytes == len(source.model.SerializeToString())
    assert report.source_sha256 == source.sha256
    size = report.gate.checks[2]
    assert size.verdict is (Verdict.PASS if report.bytes < report.source_bytes else Verdict.FAIL)
    assert to_json(msgspec.json.decode(to_json(report), type=Report)) == to_json(report)
    onnx.checker.check_model(built, full_check=True)
    assert list(built.graph.input) == list(source.model.graph.input)
    assert [value.name for value in built.graph.output] == [value.name for value in source.model.graph.output]


@pytest.mark.parametrize("name", zoo.ZOO)
def test_any_float_cnn_goes_through(name: str, tmp_path: Path) -> None:
    """Whatever wrote the model, it ends as int8 layers, each proved or with its reason, and a report that can be recomputed."""
    source = read_source(zoo.save(zoo.ZOO[name](), tmp_path / "model.onnx"))
    built, report = made(source, precision="int8", stop_after="min-max")
    checked(source, built, report)
    assert (report.precision, report.evaluated_on) == ("int8", "the float model's own answers")
    assert [rung.name for rung in report.rungs] == ["min-max"]
    assert report.search is None
    assert report.sqnr_db is not None
    assert report.sqnr_db > 20
    assert report.fusion is not None
    layers = [layer.node for layer in layers_of(source.model)]
    assert [layer.node for layer in report.fusion.layers] == layers
    assert list(quantized_layers(built)) == layers
    fused = [layer.op for layer in report.fusion.layers if layer.int8]
    assert fused == [layer.op for layer in layers_of(source.model) if layer.op != "ConvTranspose"]
    assert all(layer.int8 or layer.why for layer in report.fusion.layers)
    assert report.gate.checks[1].verdict is Verdict.NOT_MEASURED


def test_float16_for_cuda(source: Source) -> None:
    """CUDA gets fp16 unless asked otherwise: weights of two bytes, float outside, nothing timed and nothing to fuse."""
    built, report = made(source, target="cuda")
    checked(source, built, report)
    assert report.precision == "fp16"
    weights = weights_of(built)
    assert {weights[layer.weight].data_type for layer in layers_of(built)} == {TensorProto.FLOAT16}
    assert report.sqnr_db is not None
    assert report.sqnr_db > 55
    assert (report.speed, report.fusion, report.recipe, report.rungs) == (None, None, None, ())
    assert {check.what: check.verdict for check in report.gate.checks}["speed"] is Verdict.NOT_MEASURED
    assert report.decisions.changed <= 1


def test_float16_tells_what_it_loses(tmp_path: Path) -> None:
    """Weights too small for float16 are listed in the report."""
    model = zoo.plain()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "one.bias")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(8, 1e-9, np.float32), tensor.name))
    _, report = made(read_source(zoo.save(model, tmp_path / "model.onnx")), target="cuda")
    assert len(report.losses) == 1
    assert "one.bias" in report.losses[0]


def test_tensorrt_gets_symmetric_int8_and_float_biases(tmp_path: Path) -> None:
    """All zero points are 0 and int8, biases stay float32, also for a model whose pixels edgecnn normalises."""
    for name in ("plain", "nhwc_uint8"):
        source = read_source(zoo.save(zoo.ZOO[name](), tmp_path / "model.onnx"))
        built, report = made(source, target="tensorrt", precision="int8", stop_after="min-max")
        checked(source, built, report)
        arrays, made_by = graphs.arrays(built), makers(built)
        pairs = [node for node in built.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert pairs
        for node in pairs:
            assert arrays[node.input[2]].dtype == np.int8
            assert not arrays[node.input[2]].any()
        biased = [node for node in built.graph.node if node.op_type in ("Conv", "Gemm")]
        assert biased
        for node in biased:
            assert node.input[2] not in made_by
            assert arrays[node.input[2]].dtype == np.float32
        assert report.fusion is None


@pytest.mark.parametrize(("target", "most"), [("x86-64", 64), ("any", 64), ("x86-64-vnni", 127), ("arm64", 127)])
def test_weights_have_seven_bits_where_sums_saturate(target: Target, most: int, source: Source) -> None:
    """The integers themselves end at 64 on x86 without VNNI and where the machine is not known, and at 127 elsewhere."""
    built, report = made(source, target=target, precision="int8", stop_after="min-max")
    checked(source, built, report)
    arrays = graphs.arrays(built)
    weights = [arrays[name] for name in quantized_layers(built).values()]
    assert len(weights) == 3
    assert all(weight.dtype == np.int8 and np.abs(weight.astype(int)).max() == most for weight in weights)
    if target == "x86-64":
        # Foretold is what weights of all eight bits would do, those of the same net made for VNNI.
        full, _ = made(source, target="x86-64-vnni", precision="int8", stop_after="min-max")
        calibration = fed(source.model, 32, 1)
        told, own, foretold = (
            {layer.name: (layer.worst, layer.saturated) for layer in layers}
            for layers in (report.saturation, saturation(built, calibration), saturation(full, calibration))
        )
        assert told == foretold
        assert len(told) == 3
        assert all(saturated == 0 and 0 < worst < 2**15 for worst, saturated in own.values())
        assert all(told[name][0] > 1.5 * own[name][0] for name in told)
    else:
        assert report.saturation == ()


def test_speed_is_asked_for_on_this_machine_alone(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the model must be faster; for any CPU it is timed but binds nobody; for another it is not timed."""
    verdicts = {}
    for target in (target_of_host(), "any", ELSEWHERE):
        _, report = made(source, target=target, stop_after="min-max")
        verdicts[target] = report.gate.checks[1].verdict
        assert (report.speed is None) == (target == ELSEWHERE)
        assert report.search is not None
        assert (report.search.chosen.speed is None) == (target == ELSEWHERE)
    assert verdicts == {
        target_of_host(): Verdict.PASS,
        "any": Verdict.NOT_MEASURED,
        ELSEWHERE: Verdict.NOT_MEASURED,
    } or (target_of_host() == "any")
    monkeypatch.setattr(ladder, "race", lambda *rest: {"quantized": small.speed(1.2)})
    _, slow = made(source, target=target_of_host(), precision="int8", stop_after="min-max")
    assert slow.gate.checks[1].verdict is (Verdict.FAIL if target_of_host() != "any" else Verdict.NOT_MEASURED)


def test_a_refused_model_is_told_as_refused(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """PASS is said only where nothing refuses; too few images for a narrow budget do."""
    _, narrow = made(source, tolerance=Tolerance(max_drop=1e-6), precision="int8", stop_after="min-max")
    assert narrow.gate.checks[0].verdict is not Verdict.PASS
    assert verdict_of(narrow) is Verdict.FAIL
    monkeypatch.setattr(run, "judge", lambda decisions, speed, here, before, after: run.Gate(checks=()))
    _, unrefused = made(source, precision="int8", stop_after="min-max")
    assert verdict_of(unrefused) is Verdict.PASS


def test_labels_are_judged_by_where_there_are_any(source: Source) -> None:
    """With labels the report says so, and accuracy is against them."""
    evaluation = fed(source.model, 48, 2, labels=True)
    options = QuantizeOptions(target=ELSEWHERE, precision="int8", tolerance=WIDE, stop_after="min-max")
    _, report = quantize_model(source, fed(source.model, 32, 1), evaluation, options)
    assert report.evaluated_on == "labels"
    assert report.decisions.reference_accuracy.value == 1


def test_what_no_target_runs_is_refused_before_any_work(source: Source) -> None:
    """int8 on CUDA and fp16 on a CPU end with a clear sentence."""
    with pytest.raises(UsageError, match="no int8 convolutions"):
        made(source, target="cuda", precision="int8")
    with pytest.raises(UsageError, match="in float32, with casts"):
        made(source, target="arm64", precision="fp16")


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often a quantized model is judged."""
    looks: list[int] = []
    real: Callable[..., Any] = Evaluation.judge

    def judge(self: Evaluation, quantized: onnx.ModelProto, look: int = 1) -> Any:
        looks.append(look)
        return real(self, quantized, look)

    monkeypatch.setattr(Evaluation, "judge", judge)
    return looks


NARROW = Tolerance(max_drop=1e-6)


def test_the_same_command_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run in the same folder judges nothing again and gives the same bytes; stopped early, it goes on."""
    source = read_source(zoo.save(hard.hard_net(0), tmp_path / "hard.onnx"))
    sets = [from_arrays({"image": hard.images(100, seed)}) for seed in (0, 1)]
    looks = counted(monkeypatch)

    def climbed(stop_after: str) -> tuple[onnx.ModelProto, Report]:
        options = QuantizeOptions(target=ELSEWHERE, tolerance=NARROW, stop_after=stop_after)
        return quantize_model(source, *sets, options, folder=tmp_path / "climb")

    first, report = climbed("entropy")
    assert looks == [1, 2]
    again, same = climbed("entropy")
    assert looks == [1, 2]
    assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)
    assert same.rungs == report.rungs
    assert same.search == report.search
    _, further = climbed("mse")
    assert looks == [1, 2, 3, 4]
    assert further.rungs[:2] == report.rungs


@pytest.mark.parametrize("change", ["tolerance", "target", "precision", "train", "evaluation", "calibration", "model"])
def test_a_climb_of_something_else_does_not_count(
    change: str, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another budget, target, precision, model or set of images, those to train on included, is another climb."""
    looks = counted(monkeypatch)

    def climb(changed: str) -> None:
        options = QuantizeOptions(
            target="tensorrt" if changed == "target" else ELSEWHERE,
            precision="mixed" if changed == "precision" else "int8",
            tolerance=Tolerance(max_drop=1e-5) if changed == "tolerance" else NARROW,
            stop_after="min-max",
        )
        other = Source(source.model, "0" * 64, ()) if changed == "model" else source
        seeds = {
            name: 9 if changed == name else seed for seed, name in enumerate(("calibration", "evaluation", "train"))
        }
        sets = {name: fed(source.model, 24, seed) for name, seed in seeds.items()}
        quantize_model(other, sets["calibration"], sets["evaluation"], options, train=sets["train"], folder=tmp_path)

    climb("")
    climb("")
    assert looks == [1]
    climb(change)
    assert looks == [1, 1]


def test_calibration_that_gives_no_numbers_is_one_clear_line(source: Source) -> None:
    """Images that make the float model overflow are an error of ours, on one line."""
    arrays = {
        name: np.full((16, *array.shape[1:]), 3e38, np.float32) for name, array in zoo.feeds(source.model).items()
    }
    with pytest.raises(QuantizationError) as caught:
        quantize_model(source, from_arrays(arrays), from_arrays(arrays), QuantizeOptions(target=ELSEWHERE))
    assert "not finite" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_progress_is_told(source: Source) -> None:
    """Each rung says how it fared."""
    said: list[str] = []
    made(source, precision="int8", stop_after="min-max", say=said.append)
    assert len([line for line in said if line.startswith("min-max: ")]) == 1
