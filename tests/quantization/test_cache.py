"""What was observed once is not observed again, unless something is another; a damaged, full or absent cache does no harm."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecnn.errors import QuantizationError
from edgecnn.quantization import cache
from edgecnn.quantization.cache import cached_observations, observe_cached
from edgecnn.quantization.observe import Observed

Array = npt.NDArray[Any]


class Images:
    """Feeds that count how often they were run."""

    def __init__(self, key: str = "k", count: int = 5) -> None:
        self.key, self.count, self.runs = key, count, 0

    def batches(self, size: int = 32) -> Iterator[dict[str, Array]]:
        self.runs += 1
        rng = np.random.default_rng(0)
        for at in range(0, self.count, size):
            yield {"x": rng.normal(size=(min(size, self.count - at), 2, 3, 3)).astype(np.float32)}


def net(scale: float = 1.0) -> onnx.ModelProto:
    weight = np.full((4, 2, 1, 1), scale, dtype=np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node("ReduceMax", ["y"], ["top"], keepdims=0)]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 3, 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def observed(low: float = 0.0) -> Observed:
    return Observed(low, 1.0, 0.5, 0.6, 3, np.array([1, 2], dtype=np.int64), 1, 1, 1)


def same(a: dict[str, Observed], b: dict[str, Observed]) -> bool:
    """Say whether all fields are equal to the bit, order of tensors included."""
    return list(a) == list(b) and all(
        np.array_equal(getattr(a[name], field.name), getattr(b[name], field.name))
        for name in a
        for field in fields(Observed)
    )


def never() -> dict[str, Observed]:
    raise AssertionError("was made again")


def test_second_call_observes_nothing(tmp_path: Path) -> None:
    """The same model and images are run once, and what comes from the file is equal to the bit."""
    first, second = Images(), Images()
    made = observe_cached(net(), first, ["y", "x", "top"], folder=tmp_path)
    kept = observe_cached(net(), second, ["y", "x", "top"], folder=tmp_path)
    assert first.runs == 3
    assert second.runs == 0
    assert same(made, kept)
    assert kept["y"].histogram.dtype == np.int64
    assert kept["top"].channel_mean is None
    assert kept["y"].channel_mean is not None
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "again",
    [
        lambda feeds, folder: observe_cached(net(1.5), feeds, ["y"], 64, folder),
        lambda feeds, folder: observe_cached(net(), feeds, ["y", "x"], 64, folder),
        lambda feeds, folder: observe_cached(net(), feeds, None, 64, folder),
        lambda feeds, folder: observe_cached(net(), feeds, ["y"], 65, folder),
    ],
)
def test_another_question_is_asked_anew(tmp_path: Path, again: Callable[[Images, Path], dict[str, Observed]]) -> None:
    """Another weight, other tensors, all tensors or other bins find nothing kept."""
    observe_cached(net(), Images(), ["y"], 64, tmp_path)
    feeds = Images()
    again(feeds, tmp_path)
    assert feeds.runs == 3


def test_no_tensor_is_not_every_tensor(tmp_path: Path) -> None:
    """What was kept for all tensors does not answer for an empty list of them, which is an error."""
    observe_cached(net(), Images(), None, folder=tmp_path)
    with pytest.raises(QuantizationError, match="0 tensors"):
        observe_cached(net(), Images(), [], folder=tmp_path)


def test_other_images_are_observed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feeds of another key, which is other images or another preprocessing, find nothing kept; nor does another format."""
    observe_cached(net(), Images("a"), ["y"], folder=tmp_path)
    other, same_again = Images("b"), Images("a")
    observe_cached(net(), other, ["y"], folder=tmp_path)
    observe_cached(net(), same_again, ["y"], folder=tmp_path)
    assert (other.runs, same_again.runs) == (3, 0)
    monkeypatch.setattr(cache, "FORMAT", "another")
    observe_cached(net(), same_again, ["y"], folder=tmp_path)
    assert same_again.runs == 3


def test_parts_do_not_run_together(tmp_path: Path) -> None:
    """Keys of the same letters, parted elsewhere, are two keys."""
    cached_observations(["ab", "c"], tmp_path, lambda: {"t": observed(0.0)})
    assert cached_observations(["a", "bc"], tmp_path, lambda: {"t": observed(-1.0)})["t"].low == -1.0
    assert cached_observations(["ab", b"c"], tmp_path, never)["t"].low == 0.0


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\0" * len(data), _flipped]
)
def test_damaged_file_is_replaced(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """A file that is cut off, empty, overwritten or one bit pattern off is made anew and then serves again."""
    made = cached_observations(["k"], tmp_path, lambda: {"t": observed()})
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert cached_observations(["k"], tmp_path, lambda: {"t": observed(-2.0)})["t"].low == -2.0
    assert cached_observations(["k"], tmp_path, never)["t"].low == -2.0
    assert made["t"].low == 0.0


def test_file_that_contradicts_itself_is_replaced(tmp_path: Path) -> None:
    """A sound file whose histogram does not add up to its count is not believed."""
    cached_observations(["k"], tmp_path, lambda: {"t": observed()})
    (path,) = tmp_path.iterdir()
    arrays = dict(np.load(path))
    arrays["histograms"] = arrays["histograms"] + 1
    np.savez_compressed(path, **arrays)
    assert cached_observations(["k"], tmp_path, lambda: {"t": observed(-2.0)})["t"].low == -2.0


class _Trap:
    """Unpickles by leaving a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    """A planted file with Python objects in it runs nothing and is made anew."""
    folder, sprung = tmp_path / "cache", tmp_path / "sprung"
    cached_observations(["k"], folder, lambda: {"t": observed()})
    (path,) = folder.iterdir()
    arrays = dict(np.load(path))
    arrays["names"] = np.array([_Trap(sprung)], dtype=object)
    np.savez_compressed(path, allow_pickle=True, **arrays)
    assert cached_observations(["k"], folder, lambda: {"t": observed(-2.0)})["t"].low == -2.0
    path.write_bytes(pickle.dumps(_Trap(sprung)))
    assert cached_observations(["k"], folder, lambda: {"t": observed(-3.0)})["t"].low == -3.0
    assert not sprung.exists()


def test_without_a_folder_to_write_to(tmp_path: Path) -> None:
    """No folder, and a file where it should be, keep nothing and fail nothing."""
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for folder in (None, blocked, Path(os.devnull)):
        for low in (0.0, -1.0):
            assert cached_observations(["k"], folder, lambda low=low: {"t": observed(low)})["t"].low == low  # type: ignore[misc]
    assert blocked.read_text() == "in the way"


def test_failure_keeps_nothing(tmp_path: Path) -> None:
    """Where observing fails nothing is kept, and the error is the caller's."""
    with pytest.raises(AssertionError, match="was made again"):
        cached_observations(["k"], tmp_path, never)
    assert not list(tmp_path.iterdir())


def test_files_used_longest_ago_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more files are kept than allowed; reading one keeps it, and files of other names are not touched."""
    monkeypatch.setattr(cache, "MOST_FILES", 3)
    (tmp_path / "other.npz").write_bytes(b"")
    os.utime(tmp_path / "other.npz", (1, 1))
    for number in range(3):
        cached_observations([str(number)], tmp_path, lambda: {"t": observed()})
        (newest,) = (path for path in tmp_path.glob("observed-*") if path.stat().st_mtime > 1e9)
        os.utime(newest, (1000 + number, 1000 + number))
    cached_observations(["0"], tmp_path, never)
    cached_observations(["3"], tmp_path, lambda: {"t": observed()})
    assert len(list(tmp_path.glob("observed-*"))) == 3
    for kept in ("0", "2", "3"):
        cached_observations([kept], tmp_path, never)
    with pytest.raises(AssertionError):
        cached_observations(["1"], tmp_path, never)
    assert (tmp_path / "other.npz").exists()


def test_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go where all together take more than allowed, but never the newest, however large."""
    for number in range(3):
        cached_observations([str(number)], tmp_path, lambda: {"t": observed()})
    size = max(path.stat().st_size for path in tmp_path.iterdir())
    monkeypatch.setattr(cache, "MOST_BYTES", 2 * size)
    cached_observations(["3"], tmp_path, lambda: {"t": observed()})
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(cache, "MOST_BYTES", 1)
    cached_observations(["4"], tmp_path, lambda: {"t": observed()})
    assert len(list(tmp_path.iterdir())) == 1
    cached_observations(["4"], tmp_path, never)


def test_default_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder given, the cache's own is made and written to."""
    monkeypatch.setenv("EDGECNN_CACHE", str(tmp_path / "made" / "anew"))
    observe_cached(net(), Images(), ["y"])
    again = Images()
    observe_cached(net(), again, ["y"])
    assert again.runs == 0
    assert len(list((tmp_path / "made" / "anew").iterdir())) == 1
