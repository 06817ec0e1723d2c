"""A tiny data set whose classes are told apart by brightness, and a net for it: what the tests of training train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgecnn.data import Dataset, LabelledImages
from edgecnn.data.dataset import Item
from edgecnn.nets import build_net
from edgecnn.nets.compact import compact_config
from edgecnn.spec import Preprocess
from edgecnn.training import loop


def split(
    count: int, seed: int, side: int = 6, classes: int = 3, labels: Sequence[int] | None = None
) -> LabelledImages:
    """Make images of noise, the brighter the higher the label."""
    rng = np.random.default_rng(seed)
    truth = np.arange(count, dtype=np.int64) % classes if labels is None else np.array(labels, dtype=np.int64)
    pixels = rng.integers(0, 60, (count, side, side, 1)) + 60 * truth[:, None, None, None]
    items = tuple(Item(f"{seed}-{index}", int(label), pixels[index]) for index, label in enumerate(truth))
    return LabelledImages(pixels.astype(np.uint8), truth, items)


def dataset(train: int = 48, side: int = 6, classes: int = 3, val: int = 24) -> Dataset:
    """Make three splits."""
    return Dataset(
        source="greys",
        labels=tuple("abcdefgh"[:classes]),
        preprocess=Preprocess(height=side, width=side, channels=1, scale=0.02, zero_point=60),
        train=split(train, 1, side, classes),
        val=split(val, 2, side, classes),
        test=split(24, 3, side, classes),
        split="by hand",
    )


def net(data: Dataset, seed: int = 0, dropout: float = 0.1, widths: Sequence[int] = (6,)) -> nn.Module:
    """Make a net with the weights of a seed."""
    torch.manual_seed(seed)
    return build_net(compact_config(widths, depth=1, dropout=dropout), data.preprocess, len(data.labels))


def write_npz(path: Path, data: Dataset) -> str:
    """Write the three splits as one file, which a process opens faster than the digits, and return its name."""
    arrays = {}
    for name, part in (("train", data.train), ("val", data.val), ("test", data.test)):
        arrays[f"x_{name}"], arrays[f"y_{name}"] = part.pixels, part.labels
    np.savez(path, **arrays)  # type: ignore[arg-type]  # the stubs take the arrays for its flag
    return str(path)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copy all that a net holds."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Say whether two nets hold the same to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train on one thread, in the files that import this: for images this small, a second one only waits."""
    monkeypatch.setattr(loop, "usable_threads", lambda: 1)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
