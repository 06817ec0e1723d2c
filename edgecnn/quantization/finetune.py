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

TEMPERATURE = 3.0  # of the distillation
LABELS_SHARE = 0.5  # of the loss, where there are labels
SAME_DB = 60.0  # SQNR between torch's logits and ONNX Runtime's above which they compute the same graph


@dataclass(frozen=True)
class TunedEpoch:
    """One pass over the images: the mean loss, and the share answered as by the float net, both while training."""

    number: int
    epochs: int
    loss: float
    agreement: float
    seconds: float


def finetune(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    recipe: Recipe,
    floats: Collection[str],
    train: FeedSet,
    *,
    output: str,
    epochs: int = 2,
    lr: float = 3e-3,
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
        lr: the first step size of Adam as a share of each tensor's mean magnitude; it falls to 0 along a cosine.
        batch_size: images between two steps; where the model takes fewer at once, their gradients are added up.
        seed: of the order, which is another in each epoch.
        learn_ranges: whether the activations' scales are trained too; zero points stay.
        on_epoch: called after each epoch.

    Returns:
        The float model with new weights, and the ranges to quantize it with.

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
    optimizer, seen = _optimizer(model, module, fakes), 0
    for number in range(1, epochs + 1):
        began, total, agreed, waiting = time.perf_counter(), 0.0, 0, 0
        for where, feeds in _shuffled(train, batch_size, (seed, number)):
            logits = module(feeds, [output], fakes.touch)[output].flatten(1)
            loss = _loss(logits, taught[where], None if train.labels is None else torch.from_numpy(train.labels[where]))
            if not math.isfinite(loss.item()):
                raise TrainingError(
                    f"QAT: the loss became {loss.item()} in epoch {number} of {epochs}: use a smaller learning rate "
                    f"(it is {lr:g})"
                )
            (loss / batch_size).backward()  # type: ignore[no-untyped-call]  # torch has not annotated it
            total, waiting, seen = total + loss.item(), waiting + len(where), seen + len(where)
            agreed += int((logits.argmax(1) == taught[where].argmax(1)).sum())
            if waiting >= batch_size or seen == number * train.count:
                _step(optimizer, lr * (1 + math.cos(math.pi * (seen - waiting) / (epochs * train.count))) / 2)
                waiting = 0
        seconds = time.perf_counter() - began
        on_epoch(TunedEpoch(number, epochs, total / train.count, agreed / train.count, seconds))
    return write_back(module, model), fakes.ranges(ranges)


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


def _shuffled(
    train: FeedSet, batch_size: int, seed: tuple[int, int]
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, Tensor]]]:
    """Go through all images in a random order; with each batch comes where it stands in the set."""
    order = np.random.default_rng(seed).permutation(train.count)
    start = 0
    for batch in train.subset(order).batches(batch_size):
        count = len(next(iter(batch.values())))
        yield order[start : start + count], _tensors(batch)
        start += count


def _tensors(batch: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in batch.items()}


def _loss(logits: Tensor, taught: Tensor, labels: Tensor | None) -> Tensor:
    """Sum the loss over the images."""
    soft = functional.log_softmax(logits / TEMPERATURE, 1), functional.log_softmax(taught / TEMPERATURE, 1)
    # Its gradient falls with the square of the temperature (Hinton et al. 2015, section 2).
    followed = TEMPERATURE**2 * functional.kl_div(*soft, reduction="sum", log_target=True)
    if labels is None:
        return followed
    return LABELS_SHARE * functional.cross_entropy(logits, labels, reduction="sum") + (1 - LABELS_SHARE) * followed
