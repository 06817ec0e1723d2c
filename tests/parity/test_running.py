"""Running in batches: every sample once and in order, whatever a session takes at once, and outputs of as many rows."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import pytest

from edgecnn.backends.base import Array, CheckedSession, Tensors
from edgecnn.data import LabelledImages
from edgecnn.errors import ContractError
from edgecnn.parity.running import batch_of, check_rows, join, pixel_batches, rows_of, run_batch
from edgecnn.spec import TensorSpec


class _Doubler:
    """A session that doubles `x`, `at_once` samples at a time or any number of them."""

    device = "cpu"

    def __init__(self, at_once: int | None = None) -> None:
        self.inputs = (TensorSpec(name="x", shape=(at_once, 2), dtype="float32"),)
        self.outputs = (TensorSpec(name="y", shape=(at_once, 2), dtype="float32"),)
        self.sizes: list[int] = []

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        self.sizes.append(len(feeds["x"]))
        return {"y": feeds["x"] * 2}

    def __enter__(self) -> _Doubler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def rows(count: int) -> Array:
    return np.random.default_rng(3).normal(size=(count, 2)).astype(np.float32)


@pytest.mark.parametrize(("at_once", "count", "sizes"), [(None, 7, [7]), (1, 3, [1, 1, 1]), (4, 12, [4, 4, 4]), (5, 5, [5])])  # fmt: skip
def test_a_batch_is_parted_as_the_session_demands(at_once: int | None, count: int, sizes: list[int]) -> None:
    """A session that takes so many at once gets so many, in order; another gets all together."""
    inner, x = _Doubler(at_once), rows(count)
    session = CheckedSession(inner)
    assert batch_of(session) == at_once
    np.testing.assert_array_equal(run_batch(session, {"x": x})["y"], 2 * x)
    assert inner.sizes == sizes


def test_a_batch_that_cannot_be_parted_is_refused_before_it_runs() -> None:
    """Ten samples for a session of four are an error that says what to give, and none is run or left out."""
    inner = _Doubler(4)
    with pytest.raises(ContractError, match="exactly 4 samples at once, and 10 are to be run: give a multiple"):
        run_batch(CheckedSession(inner), {"x": rows(10)})
    assert inner.sizes == []


@pytest.mark.parametrize("array", [np.zeros((3, 2)), np.zeros((5, 2)), np.zeros(()), np.zeros((0, 2))])
def test_outputs_have_a_row_for_each_sample(array: Array) -> None:
    """An output with fewer rows, more, none or no axis at all is refused by its name; one with as many is not."""
    check_rows({"y": np.zeros((4, 2))}, 4)
    with pytest.raises(ContractError, match=r"output 'z' has \d rows for 4 samples"):
        check_rows({"y": np.zeros((4, 2)), "z": array}, 4)


def test_outputs_are_joined_in_order() -> None:
    """Parts are put one after another, each output by itself."""
    x = rows(9)
    parts = [{"a": x[start : start + 4], "b": -x[start : start + 4]} for start in (0, 4, 8)]
    joined = join(parts)
    np.testing.assert_array_equal(joined["a"], x)
    np.testing.assert_array_equal(joined["b"], -x)
    assert join(parts[:1]) is parts[0]
    assert rows_of(joined) == 9


@pytest.mark.parametrize("labelled", [False, True])
def test_images_are_gone_through_once_and_in_order(labelled: bool) -> None:
    """Arrays and labelled images come in parts of the size asked for, the last one smaller, with nothing left out."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 2, 2, 1), dtype=np.uint8)
    items = tuple((f"{index}.png", b"") for index in range(10))
    data: Any = LabelledImages(pixels, np.zeros(10, np.int64), items) if labelled else pixels
    parts = list(pixel_batches(data, 4))
    assert [len(part) for part in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(parts), pixels)
