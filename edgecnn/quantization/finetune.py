"""Quantization-aware training on the ONNX graph itself: a few epochs of fake quantization, and the layout stays the same."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor
from torch.nn import functional

from edgecnn.errors import QuantizationError, TrainingError
from edgecnn.host import usable_threads
from edgecnn.metrics import distance
from edgecnn.quantization.fake_quantization import FakeQuantization, read_layout
from edgecnn.quantization.graph import layers_of, makers
from edgecnn.quantization.graph_module import GraphModule, write_back
from edgecnn.quantization.qdq import quantize
from edgecnn.quantization.recipe import Recipe

if TYPE_CHECKING:
    from edgecnn.quantization.feeds import FeedSet

Ranges = dict[str, tuple[float, float]]
Indices = npt.NDArray[np.int64]

TEMPERATURE = 3.0  # of the distillation
LABELS_SHARE = 0.5  # of the loss, where there are labels
WARMUP = 0.1  # of all images, during which the steps grow to their full size
SAME_DB = 60.0  # SQNR between torch's logits and ONNX Runtime's above which they compute the same graph
JUDGED = 512  # images on which weights are compared


@dataclass(frozen=True)
class TunedEpoch:
    """One pass over the images, and what the fake-quantized net is like after it, on `JUDGED` of them.

    `loss` is the mean loss, `agreement` the share answered as by the float net; `best` says whether these weights are
    better than all before, those that came in included.
    """

    number: int
    epochs: int
    loss: float
    agreement: float
    best: bool
    seconds: float


@dataclass(frozen=True)
class _Task:
    """What is trained, on what, towards what: `taught` are the float model's logits (n, classes)."""

    module: GraphModule
    fakes: FakeQuantization
    train: FeedSet
    output: str
    taught: Tensor

    def loss(self, where: Indices, feeds: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Sum the loss over a batch that stands at `where` in the set, and count the answers that are the float model's.

        Raises:
            TrainingError: the loss is no finite number.
        """
        logits = self.module(feeds, [self.output], self.fakes.touch)[self.output].flatten(1)
        taught, labels = self.taught[where], self.train.labels
        soft = functional.log_softmax(logits / TEMPERATURE, 1), functional.log_softmax(taught / TEMPERATURE, 1)
        # Its gradient falls with the square of the temperature (Hinton et al. 2015, section 2).
        loss = TEMPERATURE**2 * functional.kl_div(*soft, reduction="sum", log_target=True)
        if labels is not None:
            right = functional.cross_entropy(logits, torch.from_numpy(labels[where]), reduction="sum")
            loss = LABELS_SHARE * right + (1 - LABELS_SHARE) * loss
        if not bool(loss.isfinite()):
            raise TrainingError(f"QAT: the loss became {loss.item()}; use a smaller learning rate")
        return loss, int((logits.argmax(1) == taught.argmax(1)).sum())

    def judge(self) -> tuple[float, float]:
        """Give mean loss and agreement on images that are the same each time."""
        chosen = np.unique(np.linspace(0, self.train.count - 1, JUDGED).astype(np.int64))
        total, agreed, count = 0.0, 0, 0
        with torch.no_grad():
            for where, feeds in _batches(self.train, chosen, 64):
                loss, alike = self.loss(where, feeds)
                total, agreed, count = total + loss.item(), agreed + alike, count + len(where)
        return total / count, agreed / count

    def weights(self) -> dict[str, Tensor]:
        """Copy what is trained."""
        state = {**self.module.state_dict(), "growth": self.fakes.growth.detach()}
        return {name: value.clone() for name, value in state.items()}

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Put back what `weights` gave."""
        with torch.no_grad():
            self.fakes.growth.copy_(weights.pop("growth"))
        self.module.load_state_dict(weights)


def finetune(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    recipe: Recipe,
    floats: Collection[str],
    train: FeedSet,
    *,
    output: str,
    epochs: int = 2,
    lr: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
    learn_ranges: bool = False,
    on_epoch: Callable[[TunedEpoch], None] = lambda epoch: None,
) -> tuple[onnx.ModelProto, Ranges]:
    """Train a float model so that it loses less when `quantize` is called with the same arguments.

    Rounding is put into the forward pass where the quantized model has it, and gradients go straight through it, but
    not through what is clipped (Jacob et al. 2018, section 3). The float model's own logits are followed
    (distillation, Hinton et al. 2015), and the labels where `train` has them.

    Args:
        model: the float model, batch norms folded; it is not changed.
        ranges: least and largest value of every activation.
        recipe: number types.
        floats: nodes that stay in float.
        train: training images.
        output: the tensor of the logits, (n, classes); an output of the graph or not.
        epochs: passes over `train`.
        lr: the largest step of Adam, as a share of each tensor's mean magnitude.
        batch_size: images between two steps; where the model takes fewer at once, their gradients are added up.
        seed: of the order, which is another in each epoch.
        learn_ranges: whether the activations' scales are trained too; zero points stay.
        on_epoch: called after each epoch.

    Returns:
        The float model with the weights of the epoch that was best, or its own if none was better, and the ranges to
        quantize it with.

    Raises:
        QuantizationError: the graph cannot be trained through, or there is nothing to train or to train on.
        TrainingError: the loss is no longer a finite number.
    """
    if not train.count or epochs < 1:
        raise QuantizationError(f"QAT needs training images and epochs; there are {train.count} and {epochs}")
    if output not in makers(model):
        raise QuantizationError(f"QAT: the graph has no tensor {output!r} that could be the logits")
    torch.set_num_threads(usable_threads())
    module = GraphModule(model)
    layout = read_layout(model, quantize(model, ranges, recipe, floats))
    fakes = FakeQuantization(layout, 64 if recipe.reduced_range else 127, learn_ranges)
    taught = torch.from_numpy(_answers(model, train, output, batch_size))
    _check(module, train, output, taught)
    task = _Task(module, fakes, train, output, taught)
    optimizer, (least, _), kept = _optimizer(model, module, fakes), task.judge(), task.weights()
    for number in range(1, epochs + 1):
        began = time.perf_counter()
        for share in _epoch(task, optimizer, batch_size, (seed, number)):
            _step(optimizer, lr * _rate((number - 1 + share) / epochs))
        loss, agreement = task.judge()
        best = loss < least
        if best:
            least, kept = loss, task.weights()
        on_epoch(TunedEpoch(number, epochs, loss, agreement, best, time.perf_counter() - began))
    task.restore(kept)
    return write_back(module, model), fakes.ranges(ranges)


def _epoch(task: _Task, optimizer: torch.optim.Optimizer, batch_size: int, seed: tuple[int, int]) -> Iterator[float]:
    """Go once through all images, and stop for each step at the share of them that was seen before its gradient."""
    order, seen, waiting = np.random.default_rng(seed).permutation(task.train.count), 0, 0
    for where, feeds in _batches(task.train, order, batch_size):
        loss, _ = task.loss(where, feeds)
        (loss / batch_size).backward()  # type: ignore[no-untyped-call]  # torch has not annotated it
        waiting += len(where)
        if waiting >= batch_size or seen + waiting == task.train.count:
            yield seen / task.train.count
            seen, waiting = seen + waiting, 0


def _answers(model: onnx.ModelProto, feeds: FeedSet, output: str, batch_size: int) -> npt.NDArray[np.float32]:
    """Compute the float model's logits (n, classes) in ONNX Runtime."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    if output not in {value.name for value in copy.graph.output}:
        copy.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = usable_threads(), 3
    session = onnxruntime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )  # fmt: skip
    parts = [session.run([output], batch)[0] for batch in feeds.batches(batch_size)]
    logits: npt.NDArray[np.float32] = np.concatenate([part.reshape(len(part), -1) for part in parts])
    return logits


def _check(module: GraphModule, train: FeedSet, output: str, taught: Tensor) -> None:
    """Refuse logits that cannot be followed, labels that do not fit them, and a graph that torch computes differently."""
    classes = taught.shape[1]
    if classes < 2 or not bool(taught.isfinite().all()):
        raise QuantizationError(
            f"QAT needs finite logits of two classes or more; {output!r} has {classes}, or is not finite"
        )
    if train.labels is not None and not 0 <= train.labels.min() <= train.labels.max() < classes:
        raise QuantizationError(
            f"QAT: labels go from {train.labels.min()} to {train.labels.max()}, and the model has {classes} classes"
        )
    batch = next(iter(train.batches(8)))
    with torch.no_grad():
        logits = module(_tensors(batch), [output])[output].flatten(1)
    sqnr = distance(taught[: len(logits)].numpy(), logits.numpy()).sqnr_db
    if sqnr is not None and sqnr < SAME_DB:
        raise QuantizationError(
            f"QAT: torch's logits differ from ONNX Runtime's (SQNR {sqnr:.0f} dB), so an operator is not computed alike; "
            "leave fine-tuning out"
        )


def _optimizer(model: onnx.ModelProto, module: GraphModule, fakes: FakeQuantization) -> torch.optim.Optimizer:
    """Make Adam step in units of each tensor's own size: folded norms make tensors of one net differ a thousandfold."""
    trained = module.trained
    groups: list[dict[str, Any]] = [{"params": [fakes.growth], "unit": 1.0}] if fakes.growth.requires_grad else []
    for layer in layers_of(model):
        unit = 1.0
        for name in (layer.weight, layer.bias):
            if name in trained:
                # A bias that is still zero goes by its weight's size.
                unit = float(trained[name].detach().abs().mean()) or unit
                groups.append({"params": [trained.pop(name)], "unit": unit})
    return torch.optim.Adam(groups)


def _step(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["unit"]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _rate(share: float) -> float:
    """Give the step size at this share of the training: up along a line, down along a cosine."""
    return min(1.0, (share + WARMUP / 10) / WARMUP) * (1 + math.cos(math.pi * share)) / 2


def _batches(train: FeedSet, indices: Indices, batch_size: int) -> Iterator[tuple[Indices, dict[str, Tensor]]]:
    """Go through some images; with each batch comes where it stands in the whole set."""
    start = 0
    for batch in train.subset(indices).batches(batch_size):
        count = len(next(iter(batch.values())))
        yield indices[start : start + count], _tensors(batch)
        start += count


def _tensors(batch: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in batch.items()}
