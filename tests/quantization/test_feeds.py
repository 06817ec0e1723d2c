"""What a model is fed, from data sets, image files and .npz files: held to arithmetic by hand, torch and Pillow."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from PIL import Image
from quantization import zoo
from torch.nn import functional

from edgecnn.data import DataOptions, open_data
from edgecnn.data.dataset import Dataset
from edgecnn.errors import DataError, UsageError
from edgecnn.quantization.conversion import InputOptions, conversion_for
from edgecnn.quantization.feeds import FeedSet, from_arrays, from_dataset_split, from_images, from_npz
from edgecnn.quantization.inputs import image_input
from edgecnn.spec import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def net(
    image: str = "float[N,3,12,12]", turn: str = "Identity", classes: int = 10, channels: int = 3
) -> onnx.ModelProto:
    """Make a small classifier of an image of the shape given, which `turn` brings to planes."""
    graph = f"""net ({image} image) => (float[N,{classes}] scores) {{
        number = Cast<to=1>(image)
        planes = {turn}(number)
        a = Conv(planes, one.weight)
        p = GlobalAveragePool(a)
        scores = Flatten(p)
    }}"""
    return zoo.build(graph, zoo.Weights().conv("one", classes, channels, bias=False))


TO_PLANES = "Transpose<perm=[0,3,1,2]>"


def whole(feeds: FeedSet, size: int = 7) -> npt.NDArray[Any]:
    """Join all batches of one input."""
    return np.concatenate([next(iter(batch.values())) for batch in feeds.batches(size)])


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_data("digits", DataOptions(size=12, channels=3))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of six small pictures of noise, one of them below another folder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(6):
        pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        place = folder / "more" if index == 5 else folder
        Image.fromarray(pixels).save(place / f"{index}.png")
    return folder


def test_labelled_images_become_normalised_planes(digits: Dataset) -> None:
    """A float NCHW input gets what torchvision's arithmetic gives, image by image, with the labels in step."""
    feeds = from_dataset_split(digits, "val", net(), InputOptions(mean=MEAN, std=STD))
    assert feeds.count == len(digits.val)
    assert feeds.labels is not None
    assert feeds.labels.tolist() == digits.val.labels.tolist()
    assert list(feeds.names) == [digits.val.name(index) for index in range(feeds.count)]
    pixels = torch.from_numpy(digits.val.pixels).permute(0, 3, 1, 2).double() / 255
    wanted = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    got = whole(feeds)
    assert (got.dtype, got.shape[1:]) == (np.float32, (3, 12, 12))
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (InputOptions(), lambda p: p / 255),
        (InputOptions(scale=1.0, mean=(128.0,), std=(64.0,)), lambda p: (p - 128) / 64),
        (
            InputOptions(mean=MEAN, std=STD, order="bgr"),
            lambda p: (p[..., ::-1] / 255 - np.array(MEAN)) / np.array(STD),
        ),
    ],
)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_scale_mean_order_and_layout(options: InputOptions, wanted: Any, layout: str, photos: Path) -> None:
    """Each option does its arithmetic, in the order in which the model sees the channels, in both layouts."""
    model = net("float[N,12,12,3]", TO_PLANES) if layout == "nhwc" else net()
    feeds = from_images([photos], model, options)
    pixels = np.stack([np.asarray(Image.open(name)) for name in feeds.names]).astype(np.float64)
    expected = wanted(pixels) if layout == "nhwc" else wanted(pixels).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(whole(feeds), expected, atol=1e-6)


def test_uint8_inputs_get_the_pixels_themselves(photos: Path) -> None:
    """A uint8 NHWC input gets what Pillow reads."""
    feeds = from_images([photos], net("uint8[N,12,12,3]", TO_PLANES))
    wanted = np.stack([np.asarray(Image.open(name)) for name in feeds.names])
    assert np.array_equal(whole(feeds), wanted)
    assert whole(feeds).dtype == np.uint8
    assert feeds.labels is None


def test_pictures_are_brought_to_the_models_own_size(digits: Dataset) -> None:
    """A model that is not square gets pictures made from the original 8x8 digits, not from what they were opened as."""
    feeds = from_dataset_split(digits, "val", net("uint8[N,8,16,1]", TO_PLANES, channels=1))
    original = digits.val.items[3].content
    assert isinstance(original, np.ndarray)
    grey = original.reshape(8, 8)
    wanted = np.asarray(Image.fromarray(grey).resize((16, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(whole(feeds)[3, :, :, 0], wanted)


def test_free_sizes_have_to_be_said(photos: Path) -> None:
    """Height and width that the model leaves free come from the options; without them that is an error."""
    model = zoo.dynamic()
    with pytest.raises(UsageError, match=r"image \(N x 3 x H x W\) leaves its height free"):
        from_images([photos], model)
    feeds = from_images([photos], model, InputOptions(height=10, width=20))
    assert whole(feeds).shape == (6, 3, 10, 20)


def test_batches_are_made_anew_and_never_larger_than_asked(digits: Dataset) -> None:
    """Two rounds give equal batches of the size asked, the last one what is left."""
    feeds = from_dataset_split(digits, "val", net())
    first, second = (list(feeds.batches(50)) for _ in range(2))
    sizes = [len(batch["image"]) for batch in first]
    assert sizes[:-1] == [50] * (len(sizes) - 1)
    assert sum(sizes) == feeds.count
    assert 0 < sizes[-1] <= 50
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one["image"], other["image"])


def test_a_model_of_one_batch_size_gets_only_that(photos: Path) -> None:
    """A model that takes exactly four images gets four of six, in one batch, however many are asked for."""
    feeds = from_images([photos], net("float[4,3,12,12]"))
    assert feeds.count == 4
    assert [len(batch["image"]) for batch in feeds.batches(1)] == [4]
    assert feeds.subset([3, 2, 1, 0]).count == 4
    with pytest.raises(DataError, match="3 samples are too few to feed a model; the model takes exactly 4 at once"):
        feeds.subset([0, 1, 2])
    with pytest.raises(DataError, match="6 samples are too few"):
        from_images([photos], net("float[8,3,12,12]"))


def test_subsets_and_samples(digits: Dataset) -> None:
    """A subset keeps rows, labels and names together; a sample is at random, in order, and the same for one seed."""
    feeds = from_dataset_split(digits, "val", net())
    part = feeds.subset([5, 2]).subset([1, 0])
    assert part.labels is not None
    assert part.labels.tolist() == digits.val.labels[[2, 5]].tolist()
    assert list(part.names) == [digits.val.name(2), digits.val.name(5)]
    assert np.array_equal(whole(part), whole(feeds)[[2, 5]])
    one, same, other = feeds.sample(20, 1), feeds.sample(20, 1), feeds.sample(20, 2)
    assert one.count == 20
    assert np.array_equal(one.indices, np.unique(one.indices))
    assert np.array_equal(one.indices, same.indices)
    assert not np.array_equal(one.indices, other.indices)
    assert feeds.sample(10**6) is feeds
    drawn = np.bincount(np.concatenate([feeds.sample(40, seed).indices for seed in range(200)]), minlength=feeds.count)
    assert drawn.min() > 0.4 * drawn.mean()
    assert drawn.max() < 1.8 * drawn.mean()
    with pytest.raises(DataError, match="0 samples are too few"):
        feeds.subset([])


def test_the_key_changes_with_content_and_preprocessing_only(photos: Path) -> None:
    """Renaming and touching files leaves the key; another pixel, order, label or option gives another."""
    model = net()
    key = from_images([photos], model).key
    assert from_images([photos], model).key == key
    moved = photos.rename(photos.with_name("elsewhere"))
    assert from_images([moved], model).key == key
    feeds = from_images([moved], model)
    keys = {
        key,
        from_images([moved], model, InputOptions(order="bgr")).key,
        from_images([moved], model, InputOptions(mean=(0.5,))).key,
        from_images([moved], net("float[N,3,12,13]")).key,
        feeds.subset([1, 0, 2, 3, 4, 5]).key,
        feeds.subset([0, 1, 2, 3, 4]).key,
        FeedSet(feeds.rows, feeds.indices, np.zeros(6, dtype=np.int64)).key,
        FeedSet(feeds.rows, feeds.indices, np.ones(6, dtype=np.int64)).key,
    }
    with Image.open(moved / "2.png") as image:
        pixels = np.asarray(image).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(moved / "2.png")
    assert len(keys | {from_images([moved], model).key}) == 9


def test_files_and_arrays_of_equal_pixels_have_one_key(photos: Path) -> None:
    """What matters is the pixels: a set that is kept in memory, and one that is streamed, are the same set."""
    for index in range(8):
        name = "ab"[index % 2]
        (photos.parent / "set" / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos.parent / "set" / name / f"{index}.png")
    keys = set()
    for stream in (True, False):
        data = open_data(
            str(photos.parent / "set"), DataOptions(size=12, channels=3, stream=stream, val=0.25, test=0.25)
        )
        keys.add(from_dataset_split(data, "train", net(classes=2)).key)
    assert len(keys) == 1


def test_broken_images_are_left_out_and_listed(photos: Path) -> None:
    """A truncated file and one that is no image are named in `skipped`; the others are fed."""
    data = (photos / "1.png").read_bytes()
    (photos / "1.png").write_bytes(data[: len(data) // 2])
    (photos / "7.jpg").write_text("no image")
    feeds = from_images([photos], net())
    assert [Path(name).name for name in feeds.names] == ["0.png", "2.png", "3.png", "4.png", "5.png"]
    assert [Path(line.partition(":")[0]).name for line in feeds.skipped] == ["1.png", "7.jpg"]
    assert whole(feeds).shape[0] == 5


def test_folders_without_a_usable_image_are_refused(tmp_path: Path) -> None:
    """An empty folder, and one in which nothing can be read, are errors that name it."""
    with pytest.raises(DataError, match="no image in this folder"):
        from_images([tmp_path], net())
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"none of 1 images can be read; the first: .*a\.png"):
        from_images([tmp_path], net())
    with pytest.raises(DataError, match="no images were given"):
        from_images([], net())


def test_a_limit_decodes_no_more_than_it_keeps(photos: Path) -> None:
    """Of six files two are chosen by the seed, in their order, and the broken ones among the rest are not even read."""
    chosen = from_images([photos], net(), limit=2, seed=3)
    assert chosen.count == 2
    assert list(chosen.names) == sorted(chosen.names)
    for path in photos.rglob("*.png"):
        if str(path) not in chosen.names:
            path.write_text("broken")
    again = from_images([photos], net(), limit=2, seed=3)
    assert (again.key, again.skipped) == (chosen.key, ())


def test_streamed_sets_hold_no_more_than_a_batch(tmp_path: Path) -> None:
    """Going through 96 pictures of 192 KB takes no more memory than a few of them."""
    for index in range(96):
        Image.fromarray(np.full((256, 256, 3), index, np.uint8)).save(tmp_path / f"{index}.png", compress_level=1)
    feeds = from_images([tmp_path], net("uint8[N,256,256,3]", TO_PLANES))
    tracemalloc.start()
    seen = sum(len(batch["image"]) for batch in feeds.batches(4))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == 96
    assert peak < 20 * 256 * 256 * 3


def edgecnn_model(classes: int = 10) -> onnx.ModelProto:
    """Make a model with the notes that edgecnn's exporter writes."""
    model = net("uint8[N,12,12,3]", TO_PLANES, classes)
    notes = Preprocess(height=12, width=12, channels=3, fit="pad", background=7, scale=0.5, zero_point=3)
    labels = json.dumps([str(digit) for digit in range(classes)])
    helper.set_model_props(model, {"edgecnn.preprocess": msgspec.json.encode(notes).decode(), "edgecnn.labels": labels})
    return model


def test_edgecnns_own_notes_decide(tmp_path: Path) -> None:
    """A model that edgecnn exported is fed by the preprocessing in its notes: here padded, with its background."""
    Image.fromarray(np.full((4, 8, 3), 200, np.uint8)).save(tmp_path / "wide.png")
    found = whole(from_images([tmp_path], edgecnn_model()))[0]
    assert found[0].tolist() == [[7, 7, 7]] * 12
    assert found[6].tolist() == [[200, 200, 200]] * 12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (InputOptions(mean=MEAN), "mean"),
        (InputOptions(std=STD), "std"),
        (InputOptions(scale=1.0), "scale 1.0"),
        (InputOptions(order="bgr"), "order bgr"),
        (InputOptions(height=24), "height 24"),
        (InputOptions(fit="crop"), "fit crop"),
        (InputOptions(background=0), "background 0"),
    ],
)
def test_options_that_contradict_the_notes_are_refused(options: InputOptions, said: str, photos: Path) -> None:
    """What the model does itself cannot be asked for again, nor otherwise; what agrees with it can."""
    with pytest.raises(UsageError, match=f"prepares its images itself; leave out {said}"):
        from_images([photos], edgecnn_model(), options)
    agreeing = InputOptions(order="rgb", height=12, width=12, fit="pad", background=7)
    assert from_images([photos], edgecnn_model(), agreeing).key == from_images([photos], edgecnn_model()).key


def test_labels_and_classes_must_be_the_models(digits: Dataset) -> None:
    """A set of ten classes does not fit a model of four, nor one whose labels have other names."""
    with pytest.raises(DataError, match="digits: has 10 classes, but of the model's outputs scores has 4"):
        from_dataset_split(digits, "val", net(classes=4))
    from_dataset_split(digits, "val", edgecnn_model())
    renamed = edgecnn_model()
    helper.set_model_props(
        renamed,
        {"edgecnn.preprocess": renamed.metadata_props[0].value, "edgecnn.labels": json.dumps(list("abcdefghij"))},
    )
    with pytest.raises(DataError, match=r"its classes .* are not the model's"):
        from_dataset_split(digits, "val", renamed)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (
            net("uint8[N,12,12,3]", TO_PLANES),
            InputOptions(mean=(0.5,)),
            "takes uint8 pixels as they are; leave out mean",
        ),
        (net("float[N,4,12,12]", channels=4), InputOptions(), "takes 4 channels, and images have 1 or 3"),
        (net(), InputOptions(height=13), "has a height of 12, not 13"),
        (net(), InputOptions(mean=(0.5, 0.5)), "mean has 2 numbers, but image takes 3 channels"),
        (net("float[N,1,12,12]", channels=1), InputOptions(order="bgr"), "takes grey images"),
        (net("int32[N,3,12,12]"), InputOptions(), "takes int32; images become uint8 or float32"),
        (net(), InputOptions(input="picture"), "has no input 'picture'; it has image"),
        (net("float[N,5,12,12]", channels=5), InputOptions(), "no input takes images of 1, 3 or 4 channels"),
    ],
)
def test_impossible_inputs_are_refused(model: onnx.ModelProto, options: InputOptions, said: str, photos: Path) -> None:
    """Each option that a model cannot take is refused in one line that says so."""
    with pytest.raises(UsageError, match=said) as caught:
        from_images([photos], model, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"std": (1.0, 0.0, 1.0)}, {"mean": (float("nan"),)}])
def test_options_without_a_meaning_are_refused(wrong: dict[str, Any]) -> None:
    """A scale or deviation of 0, or a mean that is no number, is refused at once."""
    with pytest.raises(ValueError, match=r"scale|std|mean"):
        InputOptions(**wrong)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_image_input_of_every_model_is_found(name: str) -> None:
    """In every model of the zoo the image input, its layout and its channels are what its author meant."""
    found = image_input(zoo.ZOO[name]())
    assert found.name == "image"
    assert found.layout == ("nhwc" if name.startswith("nhwc") else "nchw")
    assert found.channels == (1 if name == "matmul_head" else 3)
    assert (found.height, found.width) == ((None, None) if name == "dynamic" else (zoo.SIDE, zoo.SIDE))
    assert found.batch == (1 if name == "fixed_batch" else None)


def test_layout_is_told_by_what_reads_the_image() -> None:
    """Sizes that fit both layouts, or none at all, are settled by the first convolution; the option overrules all."""
    assert image_input(net("float[N,3,12,3]")).layout == "nchw"
    assert image_input(net("float[N,3,12,3]", TO_PLANES)).layout == "nhwc"
    free = image_input(net("float[a,b,c,d]", TO_PLANES))
    assert (free.layout, free.channels, free.height) == ("nhwc", 3, None)
    assert image_input(net("float[N,3,12,3]"), layout="nhwc").height == 3
    assert conversion_for(net("float[N,3,12,3]"), InputOptions(layout="nhwc")).image.layout == "nhwc"


def test_two_possible_images_have_to_be_told_apart() -> None:
    """Where two inputs could take images both are named, and the option chooses."""
    graph = "net (float[N,3,12,12] left, float[N,3,12,12] right) => (float[N,4,10,10] y) { s = Add(left, right) y = Conv(s, w) }"
    model = zoo.build(graph, zoo.Weights().normal("w", 4, 3, 3, 3))
    with pytest.raises(UsageError, match=r"left \(N x 3 x 12 x 12\), right \(N x 3 x 12 x 12\); name the one"):
        image_input(model)
    assert image_input(model, "right").name == "right"


def test_further_inputs_ask_for_npz(photos: Path) -> None:
    """Images cannot feed a model that takes numbers too; the message lists them and says what can."""
    with pytest.raises(DataError, match=r"known \(float32 \[None, 5\]\); give \.npz feeds"):
        from_images([photos], zoo.two_inputs())


def write_npz(folder: Path, *sizes: int, labels: bool = True) -> list[dict[str, npt.NDArray[Any]]]:
    """Write one file for each size, for the model of two inputs, and return their arrays."""
    written, random = [], np.random.default_rng(0)
    for index, size in enumerate(sizes):
        arrays = {
            "image": random.normal(size=(size, 3, 12, 12)).astype(np.float32),
            "known": random.normal(size=(size, 5)).astype(np.float32),
        }
        more = {"labels": np.arange(size)} if labels else {}
        np.savez(folder / f"{index}.npz", allow_pickle=False, **arrays, **more)
        written.append({**arrays, **more})
    return written


def test_npz_files_feed_several_inputs(tmp_path: Path) -> None:
    """Rows come in the order of files, batches go on from one file to the next, and labels come along."""
    written = write_npz(tmp_path, 3, 4, 2)
    feeds = from_npz(tmp_path, zoo.two_inputs())
    assert feeds.count == 9
    assert feeds.labels is not None
    assert feeds.labels.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1]
    batches = list(feeds.batches(5))
    assert [len(batch["image"]) for batch in batches] == [5, 4]
    for name in ("image", "known"):
        joined = np.concatenate([batch[name] for batch in batches])
        assert np.array_equal(joined, np.concatenate([arrays[name] for arrays in written]))
    part = feeds.subset([8, 0, 4])
    assert list(part.names) == ["2.npz[1]", "0.npz[0]", "1.npz[1]"]
    wanted = np.stack([written[2]["known"][1], written[0]["known"][0], written[1]["known"][1]])
    assert np.array_equal(next(part.batches())["known"], wanted)


def test_npz_files_of_different_shapes_are_not_mixed(tmp_path: Path) -> None:
    """Where the model leaves the size free a batch ends where the shape changes."""
    for index, side in enumerate((10, 10, 14)):
        np.savez(tmp_path / f"{index}.npz", image=np.zeros((2, 3, side, side), np.float32))
    feeds = from_npz(tmp_path, zoo.dynamic())
    assert [batch["image"].shape for batch in feeds.batches(8)] == [(4, 3, 10, 10), (2, 3, 14, 14)]
    assert feeds.labels is None


def test_the_key_of_npz_feeds_is_of_their_content(tmp_path: Path) -> None:
    """The same rows in other files have the same key; one number changed gives another."""
    parts = write_npz(tmp_path, 2, 2, labels=False)
    key = from_npz(tmp_path, zoo.two_inputs()).key
    joined = tmp_path / "joined"
    joined.mkdir()
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    np.savez(joined / "all.npz", **arrays)
    assert from_npz(joined, zoo.two_inputs()).key == key
    arrays["known"][3, 4] += 1
    np.savez(joined / "all.npz", **arrays)
    assert from_npz(joined, zoo.two_inputs()).key != key


def good() -> dict[str, npt.NDArray[Any]]:
    return {"image": np.zeros((2, 3, 12, 12), np.float32), "known": np.zeros((2, 5), np.float32)}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": good()["image"]}, "misses known"),
        (good() | {"extra": np.zeros(2)}, "has extra besides"),
        (good() | {"known": np.zeros((2, 5))}, "known is float64"),
        (good() | {"known": np.zeros((2, 4), np.float32)}, r"known is float32 \(2, 4\); the model takes float32 N x 5"),
        (good() | {"known": np.zeros((3, 5), np.float32)}, r"its arrays have \[2, 3\] samples"),
        ({name: array[:0] for name, array in good().items()}, r"its arrays have \[0\] samples"),
        (good() | {"known": np.full((2, 5), np.nan, np.float32)}, "known holds NaN or infinity"),
        (good() | {"labels": np.zeros(3, np.int64)}, "labels are int64"),
        (good() | {"labels": np.zeros(2)}, "labels are float64"),
    ],
)
def test_npz_files_that_do_not_fit_are_refused(arrays: dict[str, npt.NDArray[Any]], said: str, tmp_path: Path) -> None:
    """Each way in which a file can miss the model is refused, and the file named."""
    np.savez(tmp_path / "feed.npz", allow_pickle=False, **arrays)
    with pytest.raises(DataError, match=rf"feed\.npz: .*{said}"):
        from_npz(tmp_path, zoo.two_inputs())


def test_damaged_npz_files_and_folders_without_one_are_refused(tmp_path: Path) -> None:
    """No file, a truncated one, and labels in only some of them are errors."""
    with pytest.raises(DataError, match=r"no \.npz file in this folder"):
        from_npz(tmp_path, zoo.two_inputs())
    np.savez(tmp_path / "0.npz", allow_pickle=False, **good())
    np.savez(tmp_path / "1.npz", allow_pickle=False, **good(), labels=np.zeros(2, np.int64))
    with pytest.raises(DataError, match="only 1 of 2 files have labels"):
        from_npz(tmp_path, zoo.two_inputs())
    data = (tmp_path / "1.npz").read_bytes()
    (tmp_path / "1.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"1\.npz: cannot be read as \.npz"):
        from_npz(tmp_path, zoo.two_inputs())


def test_arrays_are_fed_as_they_are() -> None:
    """Arrays in memory come out in batches, with their labels; what does not go together is refused."""
    arrays = good()
    feeds = from_arrays(arrays, np.array([1, 0], dtype=np.int32))
    assert np.array_equal(whole(feeds, 1), arrays["image"])
    assert feeds.labels is not None
    assert (feeds.labels.dtype, feeds.labels.tolist()) == (np.int64, [1, 0])
    with pytest.raises(DataError, match=r"arrays of \[2, 3\] samples"):
        from_arrays({"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(DataError, match="2 samples have 1 labels"):
        from_arrays(arrays, np.array([1]))


def test_a_fed_model_sees_what_torch_sees(digits: Dataset) -> None:
    """End to end: the convolution of a fed batch is what torch computes of the pixels normalised by hand."""
    model = net()
    feeds = from_dataset_split(digits, "val", model, InputOptions(mean=MEAN, std=STD)).subset(range(8))
    session = ReferenceEvaluator(model)
    (got,) = session.run(None, next(feeds.batches(8)))
    pixels = torch.from_numpy(digits.val.take(np.arange(8))).permute(0, 3, 1, 2).float() / 255
    images = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    weight = torch.from_numpy(onnx.numpy_helper.to_array(model.graph.initializer[0]).copy())
    wanted = functional.conv2d(images, weight).mean((2, 3))
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5)
