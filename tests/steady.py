"""Exports without a stopwatch: races whose outcome a test decides, the same on every machine and in every run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import onnx

from edgecnn.spec import Target

FAST, SLOW = 0.8, 0.9  # of the float model's time


def layers_in_float(model: onnx.ModelProto) -> tuple[int, ...]:
    """Count out the layers, in graph order from 0, that multiply with float weights."""
    floats = {one.name for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return tuple(number for number, node in enumerate(layers) if node.input[1] in floats)


@contextlib.contextmanager
def steady_races(
    in_float: tuple[int, ...] = (), slow: float = SLOW, ratio: float = FAST, host: Target | None = None
) -> Iterator[None]:
    """Race without a clock: the placement with these layers in float takes `FAST` of the float model's time.

    Every other placement takes `slow`, and what is made in the end `ratio`. `host` is what this machine is to be taken
    for. Nothing is profiled, and the search ends with its first generation.
    """
    from edgecnn.quantization import ladder, placement, run
    from edgecnn.quantization.race import Speed

    def speed(value: float) -> Speed:
        return Speed(ratio=value, low=value - 0.01, high=value + 0.01, rounds=12, p50_us=value * 100, reference_us=100)

    def placed(models: Mapping[str, Any], reference: str, *rest: Any) -> dict[str, Speed]:
        floats = {name: layers_in_float(model) for name, model in models.items() if name != reference}
        return {name: speed(FAST if found == in_float else slow) for name, found in floats.items()}

    def timed(sessions: Mapping[str, Any], reference: str, *rest: Any) -> dict[str, Speed]:
        return {name: speed(ratio) for name in sessions if name != reference}

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(placement, "open_model", contextlib.nullcontext))
        stack.enter_context(mock.patch.object(placement, "race", placed))
        stack.enter_context(mock.patch.object(placement, "layer_times", return_value={}))
        stack.enter_context(mock.patch.object(placement, "_GENERATIONS", 1))
        stack.enter_context(mock.patch.object(ladder, "race", timed))
        if host is not None:
            stack.enter_context(mock.patch.object(run, "target_of_host", return_value=host))
        yield
