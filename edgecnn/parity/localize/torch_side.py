"""A torch network as the reference: float64 values of its modules' inputs and outputs, by forward hooks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecnn.parity.localize.points import Look, Point

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
OUTPUTS = ("logits", "probabilities")
_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "Identity", "Dropout", "Dropout2d")
_ACTIVATIONS = (
    "ReLU", "ReLU6", "Hardtanh", "LeakyReLU", "PReLU", "ELU", "SELU", "GELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid",
    "Sigmoid", "Tanh",
)  # fmt: skip


@dataclass(frozen=True)
class _Call:
    """One call of a module without children: the tensors that flowed, and copies, for what follows may work in place."""

    name: str
    kind: str
    given: Any
    gave: Any
    before: Array
    after: Array


class TorchSide:
    """A network in float64, which the ONNX file was exported from.

    `net` takes the candidate's one input and gives its `outputs` in order, as `edgecnn.nets.Deployed` does. A layer of
    the file is found by the module that its weight is called after. What such a layer reads is the input of its module,
    whatever was computed on the way there without one; what it makes is its module's output, or that of the norm and the
    activation called right behind it.
    """

    def __init__(self, net: torch.nn.Module, name: str = "torch in float64", outputs: Sequence[str] = OUTPUTS) -> None:
        import copy

        self.name = name
        self._net = copy.deepcopy(net).double().eval()
        self._outputs = tuple(outputs)

    def values(self, look: Look, points: Sequence[Point], feeds: Mapping[str, Array]) -> Arrays:
        """Give the points that a module's input or output is."""
        calls, answers = self._listen(feeds)
        once = {call.name: place for place, call in enumerate(calls)}
        once = {name: place for name, place in once.items() if sum(call.name == name for call in calls) == 1}
        found: Arrays = {}
        for point in points:
            readers = [name for name in point.readers if name in once]
            if point.tensor in answers:
                found[point.tensor] = answers[point.tensor]
            elif readers:
                found[point.tensor] = calls[once[readers[0]]].before
            elif point.maker in once:
                found[point.tensor] = _last(calls, once[point.maker], point.activated)
        return found

    def pool(self, feeds: Mapping[str, Array], shapes: Collection[tuple[int, ...]]) -> list[Array]:
        """Give what torch's operators computed on the way, those called without a module too."""
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode

        kept: list[Array] = []
        wanted = set(shapes)

        class Record(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it without types
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                for one in result if isinstance(result, (tuple, list)) else (result,):
                    if isinstance(one, torch.Tensor) and one.dtype == torch.float64 and tuple(one.shape) in wanted:
                        kept.append(np.array(one.detach().numpy()))
                return result

        with torch.no_grad(), Record():  # type: ignore[no-untyped-call]  # as above
            self._net(self._image(feeds))
        return kept

    def _listen(self, feeds: Mapping[str, Array]) -> tuple[list[_Call], Arrays]:
        import torch

        calls: list[_Call] = []
        kept: dict[str, Array] = {}

        def before(name: str) -> Any:
            def hook(module: Any, inputs: Any) -> None:
                if inputs and isinstance(inputs[0], torch.Tensor):
                    kept[name] = np.array(inputs[0].detach().numpy())

            return hook

        def after(name: str) -> Any:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                if name in kept and isinstance(output, torch.Tensor):
                    array = np.array(output.detach().numpy())
                    calls.append(_Call(name, type(module).__name__, inputs[0], output, kept.pop(name), array))

            return hook

        leaves = [(name, module) for name, module in self._net.named_modules() if not list(module.children())]
        handles = [module.register_forward_pre_hook(before(name)) for name, module in leaves]
        handles += [module.register_forward_hook(after(name)) for name, module in leaves]
        try:
            with torch.no_grad():
                answers = self._net(self._image(feeds))
        finally:
            for handle in handles:
                handle.remove()
        listed = answers if isinstance(answers, (tuple, list)) else (answers,)
        return calls, {name: one.numpy() for name, one in zip(self._outputs, listed, strict=False)}

    def _image(self, feeds: Mapping[str, Array]) -> Any:
        import torch

        image = torch.from_numpy(np.ascontiguousarray(next(iter(feeds.values()))))
        return image.double() if image.is_floating_point() else image


def _last(calls: Sequence[_Call], place: int, activated: bool) -> Array:
    """Follow a layer's output through what is called with that very tensor: its norm, and its activation if asked to."""
    current = calls[place]
    for call in calls[place + 1 :]:
        if call.given is not current.gave:
            continue
        if call.kind in _NORMS:
            current = call
        elif call.kind in _ACTIVATIONS and activated:
            return call.after
        else:
            break
    return current.after
