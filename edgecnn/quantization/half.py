"""float16 for CUDA: weights and computation in half the bytes, inputs and outputs as they were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgecnn.errors import QuantizationError
from edgecnn.quantization.graph import weights_of

LARGEST = float(np.finfo(np.float16).max)  # 65504
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)  # 2 ** -24


@dataclass(frozen=True)
class HalfLoss:
    """What float16 cannot hold of one weight: how many values are too large, and how many that are not 0 would become 0."""

    weight: str
    too_large: int
    too_small: int
    of: int


def half_losses(model: onnx.ModelProto) -> tuple[HalfLoss, ...]:
    """List the float32 weights of which float16 loses values, in graph order.

    Values too small round to 0, as float16 arithmetic would have it; those are weights that hardly count, but a net
    with many of them deserves a look. Values too large have no float16 at all.
    """
    found = []
    for name, tensor in weights_of(model).items():
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16)
        large, small = int(np.isinf(rounded).sum()), int(((rounded == 0) & (values != 0)).sum())
        if large or small:
            found.append(HalfLoss(name, large, small, values.size))
    return tuple(found)


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a float32 model to float16, by the converter that comes with ONNX Runtime.

    Inputs and outputs keep their types: float32 ones are cast inside. A few operators that have no float16 kernels,
    such as Min and Max, and the scales of Resize stay in float32 between casts. A weight too small for float16 becomes the
    smallest that float16 has, 6e-8, because 0 could be a divisor. Whether activations stay within float16's range only
    running it on CUDA tells: the CPU provider computes in float32 between casts.

    Raises:
        QuantizationError: a weight is larger than 65504, or the result is no valid model.
    """
    too_large = [loss for loss in half_losses(model) if loss.too_large]
    if too_large:
        listed = ", ".join(f"{loss.weight} ({loss.too_large} of {loss.of})" for loss in too_large[:5])
        raise QuantizationError(
            f"float16 ends at {LARGEST:.0f}, and these weights go beyond it: {listed}; keep float32"
        )
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    copy = onnx.ModelProto.FromString(model.SerializeToString())  # the converter writes into what it is given
    try:
        half: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True)
        OnnxModel.graph_topological_sort(half.graph)  # its casts come last in the list of nodes
        onnx.checker.check_model(half, full_check=True)
    except Exception as error:  # the converter asserts, and onnx's checker and inference have types of their own
        raise QuantizationError(f"converting to float16 failed ({' '.join(str(error).split())[:300]})") from None
    left = [name for name, tensor in weights_of(half).items() if tensor.data_type == TensorProto.FLOAT]
    if len(left) == len(weights_of(half)):
        raise QuantizationError("converting to float16 left every weight as it was")
    return half
