"""Sets whose images are decoded on each use: the same as in memory, and in memory that does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecnn.data import DataOptions, Dataset, LabelledImages, open_data
from edgecnn.data import open as open_module
from edgecnn.data.dataset import Item
from edgecnn.data.stream import ImageFiles, in_threads
from edgecnn.errors import DataError
from edgecnn.parity.compare import run_all
from edgecnn.spec import Preprocess, TensorSpec


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 60 colour JPEGs of different sizes in three classes. Read only."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(60):
        path = root / "abc"[index % 3] / f"{index:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (20 + index % 5, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def both(photos: Path) -> tuple[Dataset, Dataset]:
    """Return the set opened in memory and streamed."""
    memory, streamed = (open_data(str(photos), DataOptions(size=16, stream=stream)) for stream in (False, True))
    return memory, streamed


def parts(dataset: Dataset) -> list[LabelledImages]:
    """List the three splits."""
    return [dataset.train, dataset.val, dataset.test]


def test_streamed_and_in_memory_are_the_same(both: tuple[Dataset, Dataset]) -> None:
    """Both ways give the same splits, names, labels, hashes, pixels and encoded files."""
    memory, streamed = both
    assert memory.split == streamed.split
    for kept, decoded in zip(parts(memory), parts(streamed), strict=True):
        assert (kept.in_memory, decoded.in_memory) == (True, False)
        assert len(kept) == len(decoded)
        assert [kept.name(index) for index in range(len(kept))] == [decoded.name(index) for index in range(len(kept))]
        np.testing.assert_array_equal(kept.labels, decoded.labels)
        np.testing.assert_array_equal(kept.pixels, decoded.pixels)
        assert kept.sha256() == decoded.sha256()
        assert kept.encoded(2) == decoded.encoded(2)


def test_streamed_pixels_are_pillows(both: tuple[Dataset, Dataset], photos: Path) -> None:
    """What is taken is what Pillow decodes and resizes, in the order asked for, repeats and all."""
    train = both[1].train
    order = np.array([5, 0, 5, len(train) - 1])
    taken = train.take(order)
    assert taken.dtype == np.uint8
    for pixels, index in zip(taken, order, strict=True):
        with Image.open(photos / train.name(int(index))) as image:
            np.testing.assert_array_equal(pixels, np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)))
    assert train.take(order[:0]).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("size", [1, 7, 1000, None])
def test_chunks_go_through_all_in_order(both: tuple[Dataset, Dataset], size: int | None) -> None:
    """The chunks put together are all pixels, whatever their size, and none is larger than asked for."""
    for part in (both[0].train, both[1].train):
        chunks = list(part.chunks(size))
        np.testing.assert_array_equal(np.concatenate(chunks), both[0].train.pixels)
        assert size is None or max(map(len, chunks)) <= size


def test_statistics_are_numpys_and_the_same_both_ways(both: tuple[Dataset, Dataset]) -> None:
    """Mean and standard deviation are numpy's in float64, and equal to the bit however the pixels are held."""
    memory, streamed = both
    pixels = memory.train.pixels.astype(np.float64)
    mean, std = memory.train.statistics()
    assert (mean, std) == streamed.train.statistics()
    assert mean == pytest.approx(pixels.mean(), rel=1e-12)
    assert std == pytest.approx(pixels.std(), rel=1e-12)


def test_statistics_of_extremes_are_exact() -> None:
    """Pixels of one value have a deviation of exactly nothing, and black and white in halves one of exactly 127.5."""
    for low, high, expected in ((7, 7, (7.0, 0.0)), (0, 255, (127.5, 127.5))):
        pixels = np.full((4, 3, 2, 1), low, dtype=np.uint8)
        pixels[:2] = high
        items = tuple(Item(str(index), 0, pixels[index]) for index in range(4))
        assert LabelledImages(pixels, np.zeros(4, dtype=np.int64), items).statistics() == expected


def test_streaming_keeps_no_pixels(both: tuple[Dataset, Dataset]) -> None:
    """A streamed split holds paths and nothing decoded."""
    store = both[1].train.store
    assert isinstance(store, ImageFiles)
    assert not [value for value in vars(store).values() if isinstance(value, np.ndarray)]
    assert all(isinstance(item.content, Path) for item in both[1].train.items)


@pytest.mark.parametrize(("memory", "in_memory"), [(60 * 768 * 4, True), (60 * 768 * 4 - 1, False), (0, False)])
def test_little_memory_streams_by_itself(
    photos: Path, memory: int, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels that would take more than a quarter of the memory at hand are streamed unless the options say otherwise."""
    monkeypatch.setattr(open_module, "available_memory", lambda: memory)
    assert open_data(str(photos), DataOptions(size=16)).train.in_memory == in_memory
    assert open_data(str(photos), DataOptions(size=16, stream=False)).train.in_memory
    assert not open_data(str(photos), DataOptions(size=16, stream=True)).train.in_memory


def test_arrays_are_never_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes as arrays is in memory already and stays there, whatever is asked for."""
    monkeypatch.setattr(open_module, "available_memory", lambda: 0)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(40) % 2)
    for stream in (None, True):
        assert open_data(str(tmp_path / "a.npz"), DataOptions(stream=stream)).train.in_memory


@pytest.mark.parametrize("damage", ["gone", "cut", "text"])
def test_a_file_that_breaks_in_use_is_named(photos: Path, tmp_path: Path, damage: str) -> None:
    """A file that vanishes or breaks after the set was opened is an error of one line that names it."""
    for path in photos.rglob("*.jpg"):
        copy = tmp_path / path.relative_to(photos)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    train = open_data(str(tmp_path), DataOptions(size=16, stream=True)).train
    broken = tmp_path / train.name(3)
    whole = train.take(np.array([2, 4]))
    if damage == "gone":
        broken.unlink()
    else:
        broken.write_bytes(broken.read_bytes()[:200] if damage == "cut" else b"text")
    with pytest.raises(DataError, match=rf"{train.name(3)}: .*it was whole when the set was opened") as caught:
        train.take(np.arange(8))
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(train.take(np.array([2, 4])), whole)
    with pytest.raises(DataError, match=train.name(3)):
        train.sha256()


def test_broken_files_and_duplicates_are_found_without_keeping_pixels(photos: Path, tmp_path: Path) -> None:
    """Opening a streamed set lists broken files and warns of duplicates just as opening it in memory does."""
    for split in ("train", "val", "test"):
        for path in photos.rglob("*.jpg"):
            if int(path.stem) % 4 == ("train", "val", "test").index(split):
                copy = tmp_path / split / path.relative_to(photos)
                copy.parent.mkdir(exist_ok=True, parents=True)
                copy.write_bytes(path.read_bytes())
    twin = next((tmp_path / "train" / "a").iterdir())
    (tmp_path / "test" / "a" / "twin.jpg").write_bytes(twin.read_bytes())
    (tmp_path / "train" / "b" / "empty.jpg").touch()
    memory, streamed = (open_data(str(tmp_path), DataOptions(stream=stream)) for stream in (False, True))
    assert memory.skipped == streamed.skipped
    assert memory.warnings == streamed.warnings
    assert len(streamed.skipped) == 1
    assert f"(test/a/twin.jpg = {twin.relative_to(tmp_path)})" in streamed.warnings[0]


@pytest.mark.parametrize("stream", [False, True])
def test_broken_files_do_not_shift_the_others(photos: Path, tmp_path: Path, stream: bool) -> None:
    """After broken files are left out, every name still has its own pixels and label."""
    for path in photos.rglob("*.jpg"):
        copy = tmp_path / path.relative_to(photos)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(b"" if path.stem in ("00", "21") else path.read_bytes())
    dataset = open_data(str(tmp_path), DataOptions(size=16, stream=stream))
    assert len(dataset.skipped) == 2
    assert sum(map(len, parts(dataset))) == 58
    for part in parts(dataset):
        for pixels, label, index in zip(part.pixels, part.labels, range(len(part)), strict=True):
            assert dataset.labels[label] == part.name(index)[0]
            with Image.open(tmp_path / part.name(index)) as image:
                np.testing.assert_array_equal(pixels, np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)))


def test_every_row_is_worked_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads there are, each row goes to exactly one of them, and an error in one comes out."""
    for threads in (1, 2, 5):
        monkeypatch.setattr("edgecnn.data.stream.usable_threads", lambda threads=threads: threads)
        for count in (0, 1, 4, 23):
            seen: list[int] = []
            in_threads(seen.extend, count)
            assert sorted(seen) == list(range(count))
        with pytest.raises(ZeroDivisionError):
            in_threads(lambda rows: [1 // (row - 2) for row in rows], 5)


class _Mean:
    """A session that answers with the mean of each image, and remembers the batches it was given."""

    inputs = (TensorSpec(name="image", shape=(None, 16, 16, 3), dtype="uint8"),)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.batches.append(len(feeds["image"]))
        return {"mean": feeds["image"].mean(axis=(1, 2, 3))}


def test_parity_runs_streamed_images_in_bounded_batches(
    both: tuple[Dataset, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that are streamed give the outputs that they give in memory, in the same batches."""
    monkeypatch.setitem(run_all.__globals__, "BATCH", 16)
    outputs, batches = [], []
    for images in (both[0].train, both[1].train, both[0].train.pixels):
        session = _Mean()
        outputs.append(run_all(session, images)["mean"])  # type: ignore[arg-type]
        batches.append(session.batches)
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert batches[0] == batches[1] == batches[2]
    assert max(batches[1]) == 16


# The kernel's own mark of this process: getrusage would begin with that of the process that started it.
CHILD = """
import json, re, sys
from edgecnn.data import DataOptions, open_data
train = open_data(sys.argv[1], DataOptions(size=256, channels=3, stream=sys.argv[2] == "stream")).train
total = sum(int(chunk.sum()) for chunk in train.chunks(8))
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps([peak, total]))
"""


def test_memory_does_not_grow_with_the_pixels(tmp_path: Path) -> None:
    """A set of 118 MB of pixels is gone through in far less memory than in memory, with the same sum."""
    rng = np.random.default_rng(1)
    for index in range(600):
        path = tmp_path / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    found = {}
    for way in ("stream", "memory"):
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(tmp_path), way], capture_output=True, text=True, check=True
        )
        found[way] = json.loads(done.stdout)
    assert found["stream"][1] == found["memory"][1]
    assert found["memory"][0] - found["stream"][0] > 100_000  # kB, of the 600 * 256 * 256 * 3 bytes


def test_image_files_have_the_shape_of_their_pixels(tmp_path: Path) -> None:
    """The shape is told without decoding anything."""
    files = ImageFiles((tmp_path / "not there.png",) * 3, Preprocess(height=5, width=6, channels=3))
    assert files.shape == (3, 5, 6, 3)
    assert files.subset(np.array([2, 0])).shape == (2, 5, 6, 3)
