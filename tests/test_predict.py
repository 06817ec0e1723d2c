"""Predictions against bare Pillow and ONNX Runtime, and the order of everything."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from click.testing import CliRunner
from PIL import Image

from edgecnn.backends.base import SessionOptions
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.errors import BackendError, ContractError, DamagedError, DeviceError, RegistryError, UsageError
from edgecnn.predict import Predictor, artifact_for, find_images
from edgecnn.spec import BackendRef

ONE_THREAD = SessionOptions(threads=1)
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif", "WEBP": ".webp", "PPM": ".ppm"}


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return colour and grey images of many sizes, none of them the model's."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(11)
    paths = []
    for number, (height, width) in enumerate([(16, 16), (40, 30), (9, 50), (8, 7), (120, 160), (5, 5), (1, 1)]):
        shape = (height, width, 3) if number % 2 else (height, width)
        paths.append(folder / f"{number}.png")
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1])
    return paths


@pytest.fixture(scope="module", params=["fp32", "int8"])
def artifact(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def predictor(bundle: Bundle, artifact: str) -> Iterator[Predictor]:
    with Predictor(bundle, BackendRef(backend="onnxruntime", artifact=artifact), ONE_THREAD) as opened:
        yield opened


def bare(root: Path, artifact: str, path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Predict one image as anybody would who had only the ONNX file: Pillow, numpy and ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(root / f"{artifact}.onnx"), options, providers=["CPUExecutionProvider"])
    grey = Image.open(path).convert("L")
    pixels = np.asarray(grey.resize((8, 8), Image.Resampling.BILINEAR) if grey.size != (8, 8) else grey)
    logits, probabilities = session.run(["logits", "probabilities"], {"image": pixels.reshape(1, 8, 8, 1)})
    return logits[0], probabilities[0]


def test_answers_are_those_of_bare_onnxruntime(
    predictor: Predictor, artifact: str, bundle: Bundle, photos: list[Path]
) -> None:
    """Labels, their order and their probabilities are bit for bit those of Pillow and ONNX Runtime by hand."""
    paths = [*sorted((bundle.root / "goldens").glob("*.png"))[:10], *photos]
    answers = list(predictor.predict(paths, top=10))
    assert [answer.path for answer in answers] == [str(path) for path in paths]
    for path, answer in zip(paths, answers, strict=True):
        _, probabilities = bare(bundle.root, artifact, path)
        order = sorted(range(10), key=lambda index: (-probabilities[index], index))
        assert answer.error is None
        assert [guess.label for guess in answer.top] == [str(index) for index in order]
        assert [guess.probability for guess in answer.top] == [float(probabilities[index]) for index in order]


@pytest.mark.parametrize("batch", [2, 3, 17, 4096])
def test_batches_do_not_change_the_answers(
    predictor: Predictor, bundle: Bundle, photos: list[Path], batch: int
) -> None:
    """Every batch size gives the same labels in the same order as one image at a time."""
    paths = [*sorted((bundle.root / "goldens").glob("*.png")), *photos]
    single = list(predictor.predict(paths, batch=1))
    grouped = list(predictor.predict(paths, batch=batch))
    assert [answer.path for answer in grouped] == [str(path) for path in paths]
    assert [answer.top[0].label for answer in grouped] == [answer.top[0].label for answer in single]
    for one, other in zip(single, grouped, strict=True):
        a, b = ([guess.probability for guess in answer.top] for answer in (one, other))
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_bad_images_are_answered_in_their_place(
    predictor: Predictor, bundle: Bundle, tmp_path: Path, batch: int
) -> None:
    """Good images around bad ones are answered as if these were not there, and each bad one says what and where."""
    good = sorted((bundle.root / "goldens").glob("*.png"))[:3]
    text, cut, gone = tmp_path / "text.png", tmp_path / "cut.png", tmp_path / "gone.png"
    text.write_text("not an image")
    cut.write_bytes(good[0].read_bytes()[:-30])
    paths = [text, good[0], cut, good[1], gone, tmp_path, good[2]]
    answers = list(predictor.predict(paths, batch=batch))
    assert [answer.path for answer in answers] == [str(path) for path in paths]
    expected = {answer.path: answer for answer in predictor.predict(good)}
    for path, answer in zip(paths, answers, strict=True):
        if path in good:
            assert answer.error is None
            assert answer.top[0].label == expected[str(path)].top[0].label
        else:
            assert answer.top == ()
            assert str(path) in (answer.error or "")
            assert len((answer.error or "").splitlines()) == 1


@pytest.mark.parametrize("batch", [1, 4])
def test_bad_images_alone_never_reach_the_model(bundle: Bundle, tmp_path: Path, batch: int) -> None:
    """A batch without one good image is answered without running the model."""
    (tmp_path / "a.png").write_text("a")
    with Predictor(bundle) as predictor:
        predictor.session._run = None  # running it would now fail
        answers = list(predictor.predict([tmp_path / "a.png", tmp_path / "b.png"] * 2, batch=batch))
    assert all(answer.error and not answer.top for answer in answers)
    assert len(answers) == 4


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_is_read(format_: str, predictor: Predictor, bundle: Bundle, tmp_path: Path) -> None:
    """The same picture is answered alike in every format that the rules name."""
    golden = bundle.root / "goldens" / "000.png"
    path = tmp_path / f"image{FORMATS[format_]}"
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(format_, {})
    Image.open(golden).save(path, format_, **options)
    answer, expected = predictor.predict([path, golden])
    assert answer.error is None
    assert [guess.label for guess in answer.top][:1] == [guess.label for guess in expected.top][:1]


def test_a_file_that_is_no_image_is_called_so(predictor: Predictor, tmp_path: Path) -> None:
    """Text with an image's suffix is reported as not an image, with the formats that would be."""
    path = tmp_path / "notes.jpg"
    path.write_text("buy milk")
    (answer,) = predictor.predict([path])
    assert "not an image" in (answer.error or "")
    assert all(name in (answer.error or "") for name in FORMATS)


@pytest.mark.parametrize(("top", "shown"), [(1, 1), (3, 3), (10, 10), (11, 10), (1000, 10)])
def test_top_shows_that_many_labels(predictor: Predictor, photos: list[Path], top: int, shown: int) -> None:
    """As many labels are shown as asked for, at most all of them, likeliest first."""
    (answer,) = predictor.predict(photos[:1], top=top)
    assert len(answer.top) == shown
    probabilities = [guess.probability for guess in answer.top]
    assert probabilities == sorted(probabilities, reverse=True)
    assert len({guess.label for guess in answer.top}) == shown


def test_ties_go_to_the_first_label(predictor: Predictor) -> None:
    """Among labels of equal probability the one that comes first in the bundle's list is shown first."""
    probabilities = np.array([0.1, 0.2, 0.1, 0.2, 0.0, 0.2, 0.1, 0.0, 0.1, 0.0], dtype=np.float32)
    shown = [guess.label for guess in predictor.rank(probabilities, 10)[1]]
    assert shown == ["1", "3", "5", "0", "2", "6", "8", "4", "7", "9"]
    label, guesses = predictor.rank(np.full(10, 0.1, dtype=np.float32), 3)
    assert (label, [guess.label for guess in guesses]) == ("0", ["0", "1", "2"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_probabilities_that_are_not_finite_are_no_answer(bundle: Bundle, photos: list[Path], value: float) -> None:
    """A model that gives NaN or infinity is an error and never a label."""
    broken = {name: np.full((1, 10), value, dtype=np.float32) for name in ("logits", "probabilities")}
    with Predictor(bundle) as predictor:
        predictor.session._run = lambda feeds: broken
        with pytest.raises(ContractError, match="not finite"):
            list(predictor.predict(photos[:1]))


@pytest.mark.parametrize(("batch", "top"), [(0, 3), (-1, 3), (1, 0), (1, -2)])
def test_a_batch_or_top_below_one_is_refused(predictor: Predictor, photos: list[Path], batch: int, top: int) -> None:
    """Neither the batch nor the number of labels can be less than one."""
    with pytest.raises(UsageError, match="at least 1"):
        list(predictor.predict(photos, batch=batch, top=top))


def test_images_are_read_as_they_are_needed(predictor: Predictor, photos: list[Path]) -> None:
    """With a batch of two, no more than two paths have been taken when the first answer is there."""
    taken: list[Path] = []

    def paths() -> Iterator[Path]:
        for path in photos:
            taken.append(path)
            yield path

    next(predictor.predict(paths(), batch=2))
    assert taken == photos[:2]


def test_the_same_answers_come_from_torch(bundle: Bundle) -> None:
    """Torch, running the checkpoint, gives the labels that the fp32 artifact gives."""
    paths = sorted((bundle.root / "goldens").glob("*.png"))
    answers = {}
    for name in ("torch", "onnxruntime:fp32"):
        with Predictor(bundle, BackendRef.parse(name)) as predictor:
            answers[name] = [answer.top[0].label for answer in predictor.predict(paths, batch=8)]
    assert answers["torch"] == answers["onnxruntime:fp32"]
    assert len(set(answers["torch"])) > 5


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("onnxruntime", None),
        ("onnxruntime:fp32", "fp32"),
        ("onnxruntime:int8", "int8"),
        ("torch", "checkpoint"),
        ("torch:fp32", "fp32"),
        ("reference", None),
    ],
)
def test_the_artifact_is_the_named_or_the_default_or_the_first_that_fits(
    ref: str, expected: str | None, bundle: Bundle
) -> None:
    """Without a name the bundle's default is taken where the backend reads it, else the first that it reads."""
    chosen = artifact_for(bundle, BackendRef.parse(ref))
    assert chosen.name == (expected or bundle.manifest.default_artifact)


@pytest.mark.parametrize(
    ("ref", "kind", "told"),
    [
        ("onnxruntime:int9", UsageError, "it has fp32, int8, checkpoint"),
        ("onnxruntim", RegistryError, "known: emulated, onnxruntime"),
        ("torch:fp32", BackendError, "torch reads safetensors, and fp32.onnx is onnx"),
        ("onnxruntime@npu:0", DeviceError, "no device 'npu:0'"),
    ],
)
def test_what_cannot_be_loaded_is_said(ref: str, kind: type[Exception], told: str, bundle: Bundle) -> None:
    """An unknown artifact, backend or device, and an artifact of another format, are told apart."""
    with pytest.raises(kind) as caught:
        Predictor(bundle, BackendRef.parse(ref))
    assert told in str(caught.value)


def test_a_damaged_artifact_gives_no_answer(bundle_copy: Path) -> None:
    """A changed model file is refused when the predictor is made, and the other artifact still answers."""
    path = bundle_copy / "fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    bundle = Bundle.open(bundle_copy)
    with pytest.raises(DamagedError, match=r"fp32\.onnx"):
        Predictor(bundle, BackendRef.parse("onnxruntime:fp32"))
    with Predictor(bundle, BackendRef.parse("onnxruntime:int8")) as predictor:
        (answer,) = predictor.predict([bundle_copy / "goldens" / "000.png"])
    assert answer.error is None


def test_an_artifact_with_another_signature_is_refused(bundle: Bundle, bundle_copy: Path) -> None:
    """A manifest whose inputs are not the model's own is not followed."""
    import msgspec

    other = msgspec.structs.replace(bundle.manifest.inputs[0], name="picture")
    manifest = msgspec.structs.replace(bundle.manifest, inputs=(other,))
    with pytest.raises(ContractError, match="not those that the manifest states"):
        Predictor(Bundle(bundle_copy, manifest))


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_folders_give_every_image_below_sorted(tmp_path: Path) -> None:
    """A folder stands for all images in it and below, in sorted order, whatever the case of the suffix."""
    touch(
        tmp_path,
        "b.png",
        "a.JPG",
        "c.txt",
        "sub/z.jpeg",
        "sub/a.webp",
        "B.tiff",
        "noext",
        "sub/deep/k.pgm",
        ".DS_Store",
    )
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images([str(tmp_path)], [])]
    assert found == ["B.tiff", "a.JPG", "b.png", "sub/a.webp", "sub/deep/k.pgm", "sub/z.jpeg"]


def test_arguments_keep_their_order(tmp_path: Path) -> None:
    """Files, folders and the lines of `-` come out in the order they were given, files whatever they are called."""
    touch(tmp_path, "one/1.png", "two/2.png", "x.dat")
    lines = io.StringIO("b.png\n\n  \nwith space.jpg \n/abs/c.png")
    arguments = [str(tmp_path / "two"), str(tmp_path / "x.dat"), "-", str(tmp_path / "one"), "missing.png"]
    found = list(find_images(arguments, lines))
    expected = [
        tmp_path / "two/2.png",
        tmp_path / "x.dat",
        "b.png",
        "with space.jpg ",
        "/abs/c.png",
        tmp_path / "one/1.png",
    ]
    assert found == [*map(Path, expected), Path("missing.png")]


def test_lines_are_read_lazily() -> None:
    """Paths from stdin are given out before the stream has ended."""

    def endless() -> Iterator[str]:
        yield "a.png\n"
        raise AssertionError("read on before the first path was used")

    assert next(find_images(["-"], endless())) == Path("a.png")


@pytest.mark.parametrize(
    ("threshold", "label"), [(0.0, "7"), (0.5, "7"), (0.6, "7"), (0.61, "unknown"), (1.0, "unknown")]
)
def test_below_the_threshold_the_label_is_unknown(predictor: Predictor, threshold: float, label: str) -> None:
    """An image whose highest probability is below the threshold is `unknown`, and its likeliest labels are still told."""
    probabilities = np.zeros(10, dtype=np.float64)
    probabilities[[7, 2]] = 0.6, 0.4
    found, guesses = predictor.rank(probabilities, 2, threshold)  # type: ignore[arg-type]  # 0.6 has no float32
    assert found == label
    assert [(guess.label, guess.probability) for guess in guesses] == [("7", 0.6), ("2", 0.4)]


@pytest.mark.parametrize(("top", "threshold"), [(0, 0.0), (-1, 0.5), (3, -0.1), (3, 1.01), (3, float("nan"))])
def test_a_rank_that_makes_no_sense_is_refused(predictor: Predictor, top: int, threshold: float) -> None:
    """Fewer than one label, and a threshold that is no probability, are refused."""
    told = (
        rf"--top\) must be at least 1, not {top}$"
        if top < 1
        else rf"--threshold\) is a probability .* not {threshold}$"
    )
    with pytest.raises(UsageError, match=told):
        predictor.rank(np.full(10, 0.1, dtype=np.float32), top, threshold)


@pytest.mark.parametrize(
    ("arguments", "threads"), [(["FOLDER"], 1), (["ONE"], None), (["FOLDER", "--decode-threads", "0"], None), (["FOLDER", "--threads", "2"], 2)]
)  # fmt: skip
def test_the_model_takes_one_thread_beside_those_that_decode(
    arguments: list[str], threads: int | None, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder the cores decode, so the model runs on one thread; for one file, or where the person says so, it does not."""
    from edgecnn import predict

    asked = []
    real = predict.Predictor.__init__

    def noted(self: Predictor, bundle: Bundle, ref: Any = None, options: Any = None) -> None:
        asked.append(options.threads)
        real(self, bundle, ref, options)

    monkeypatch.setattr(predict.Predictor, "__init__", noted)
    goldens = bundle_folder / "goldens"
    places = {"FOLDER": str(goldens), "ONE": str(next(goldens.glob("*.png")))}
    result = CliRunner().invoke(cli, ["predict", str(bundle_folder), *(places.get(word, word) for word in arguments)])
    assert result.exit_code == 0, result.output
    assert asked == [threads]
