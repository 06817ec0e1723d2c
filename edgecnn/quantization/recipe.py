"""Which number types a target's kernels want: the recipe follows the target."""

from __future__ import annotations

from typing import Literal

from edgecnn.errors import UsageError
from edgecnn.host import target_of_host
from edgecnn.spec import Frozen, Target

Precision = Literal["int8", "fp16", "mixed"]


class Recipe(Frozen, frozen=True):
    """How tensors become eight bits wide.

    Weights are int8, symmetric, with a scale for each output channel. `activations` "uint8" has a zero point,
    "int8" has none. `reduced_range` keeps weights to seven bits, so that sums of two products fit into 16 bits.
    `integer_bias` stores biases as int32 at the scale of the products, which ONNX Runtime's CPU kernels want and
    TensorRT does not.
    """

    activations: Literal["uint8", "int8"] = "uint8"
    reduced_range: bool = False
    integer_bias: bool = True


def resolve_target(name: str) -> Target:
    """Read a target's name; `host` is what this machine is."""
    return target_of_host() if name == "host" else name  # type: ignore[return-value]  # click has checked the names


def precision_for(target: Target, asked: Precision | None) -> Precision:
    """Choose the precision a target runs fastest in, where none is asked for.

    Raises:
        UsageError: the target has no kernels for it.
    """
    if target == "cuda" and asked in ("int8", "mixed"):
        raise UsageError(
            f"--target cuda --precision {asked}: ONNX Runtime's CUDA provider has no int8 convolutions; use --precision "
            "fp16, or --target tensorrt"
        )
    if target not in ("cuda", "tensorrt") and asked == "fp16":
        raise UsageError(
            f"--target {target} --precision fp16: ONNX Runtime computes fp16 convolutions on a CPU in float32, with casts "
            "around them; use --precision int8, or --target cuda"
        )
    return asked or ("fp16" if target == "cuda" else "mixed")


def recipe_for(target: Target) -> Recipe:
    """Give the recipe of a CPU target or of TensorRT.

    uint8 activations with int8 weights (U8S8) are what VNNI and Arm's dot products multiply; ONNX Runtime's own
    default, S8S8, is slower than float on x86. Without VNNI the sums of two products saturate in 16 bits
    (`edgecnn.quantization.saturation`), so there, and for `any`, weights keep to seven bits. TensorRT takes
    symmetric int8 and float biases only.
    """
    if target == "tensorrt":
        return Recipe(activations="int8", integer_bias=False)
    return Recipe(reduced_range=target in ("any", "x86-64"))
