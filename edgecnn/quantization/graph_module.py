"""A float ONNX graph run by torch, node by node, so that its weights can be trained where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edgecnn.errors import QuantizationError, TrainingError
from edgecnn.quantization.graph import layers_of, weights_of
from edgecnn.quantization.operator_call import Call
from edgecnn.quantization.operators import read_call, run


class GraphModule(nn.Module):
    """A float graph as a module.

    Weights and biases of the graph's layers (`layers_of`) are parameters, all other initializers buffers; `trained`
    gives the parameters by their ONNX names. Floats are computed in the parameters' type, so that `.double()` gives
    the graph in float64.

    Raises:
        QuantizationError: the graph holds an operator without a gradient here; it names operator and node.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
        self._calls = [read_call(node, opset) for node in model.graph.node]
        self._slots: dict[str, str] = {}  # a module's own names may hold no dots
        self._orders: dict[tuple[str, ...], list[Call]] = {}
        layers = layers_of(model)
        trained = {name for layer in layers for name in (layer.weight, layer.bias) if name}
        for index, (name, tensor) in enumerate(weights_of(model).items()):
            value, slot = torch.from_numpy(np.array(numpy_helper.to_array(tensor))), f"tensor_{index}"
            value = value.float() if value.is_floating_point() else value
            if name in trained and value.is_floating_point():
                self.register_parameter(slot, nn.Parameter(value))
            else:
                self.register_buffer(slot, value)
            self._slots[name] = slot

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Give the parameters by the names of their initializers."""
        own = dict(self.named_parameters())
        return {name: own[slot] for name, slot in self._slots.items() if slot in own}

    def forward(
        self,
        feeds: Mapping[str, Tensor],
        outputs: Sequence[str],
        touch: Callable[[str, Tensor], Tensor] = lambda name, value: value,
    ) -> dict[str, Tensor]:
        """Compute the tensors named in `outputs`, and no more than they need.

        Args:
            feeds: the graph's inputs by name.
            outputs: any tensors of the graph.
            touch: may change any input, initializer or computed tensor before it is read; it gets name and value.

        Raises:
            QuantizationError: an input is missing, a tensor unknown, or a node asks for what is not supported.
        """
        values = {name: touch(name, self._real(value)) for name, value in feeds.items()}
        for call in self._order(tuple(outputs)):
            inputs = [self._read(name, values, touch) if name else None for name in call.inputs]
            for name, value in zip(call.outputs, run(call, inputs), strict=False):
                values[name] = touch(name, self._real(value))
        return {name: self._read(name, values, touch) for name in outputs}

    def _real(self, value: Tensor) -> Tensor:
        """Bring a float tensor to the type the module computes in."""
        own = next(self.parameters(), None)
        return value.to(own.dtype) if own is not None and value.is_floating_point() else value

    def _read(self, name: str, values: Mapping[str, Tensor], touch: Callable[[str, Tensor], Tensor]) -> Tensor:
        if name in values:
            return values[name]
        if name in self._slots:
            return touch(name, getattr(self, self._slots[name]))
        raise QuantizationError(f"QAT: the graph needs a tensor {name!r} that is neither fed nor computed")

    def _order(self, outputs: tuple[str, ...]) -> list[Call]:
        """List the nodes that these outputs need, in graph order."""
        if outputs not in self._orders:
            needed, kept = set(outputs), []
            for call in reversed(self._calls):
                if needed & set(call.outputs):
                    kept.append(call)
                    needed |= set(call.inputs)
            self._orders[outputs] = kept[::-1]
        return self._orders[outputs]


def write_back(module: GraphModule, model: onnx.ModelProto) -> onnx.ModelProto:
    """Give a copy of the model that the module was made of, with the module's weights.

    Raises:
        TrainingError: a weight is not a finite number.
        QuantizationError: the model is another one.
    """
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    weights = weights_of(copy)
    for name, parameter in module.trained.items():
        value = parameter.detach().cpu().numpy()
        if name not in weights or tuple(weights[name].dims) != value.shape:
            raise QuantizationError(f"QAT: the model has no weight {name!r} of shape {value.shape}: it is another one")
        if not np.isfinite(value).all():
            raise TrainingError(f"QAT: weight {name!r} is no longer finite; use a smaller learning rate")
        kind = numpy_helper.to_array(weights[name]).dtype
        weights[name].CopyFrom(numpy_helper.from_array(value.astype(kind), name))
    return copy
