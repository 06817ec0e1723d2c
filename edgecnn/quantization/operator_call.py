"""One node as an operator in torch is called: its attributes, and why it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from edgecnn.errors import QuantizationError


@dataclass(frozen=True)
class Call:
    """One node as it is called: its operator, names of tensors ("" for one left out), and attributes as Python values."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    def get(self, attribute: str, default: Any) -> Any:
        """Give an attribute's value, text as str."""
        value = self.attributes.get(attribute, default)
        return value.decode() if isinstance(value, bytes) else value

    def refusal(self, reason: str) -> QuantizationError:
        """Say that this node cannot be trained through, and why."""
        name = self.name or (self.outputs[0] if self.outputs else "?")
        return QuantizationError(
            f"QAT cannot run {self.op} (node {name}): {reason}; leave fine-tuning out, or keep more layers in float"
        )


def integers(values: Tensor) -> list[int]:
    """Give a tensor of whole numbers as a list."""
    return [int(value) for value in values.reshape(-1).tolist()]


def padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes; a negative number cuts off."""
    if not any(before) and not any(after):
        return x
    flat = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
    return functional.pad(x, flat, value=value)
