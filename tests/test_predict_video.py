"""The pictures of videos and cameras: which are given, their pixels, and what cannot be opened."""

from __future__ import annotations

import json
import os
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from edgecnn import images
from edgecnn.cli import cli
from edgecnn.errors import ImageError, MissingPackageError, UsageError
from edgecnn.sources import Frame, NoImageError
from edgecnn.sources import video as video_module
from edgecnn.sources.video import Video

COUNT, RATE = 24, 10


@pytest.fixture(autouse=True, scope="module")
def lane() -> None:
    """Skip where the extra is not installed; in CI it must be."""
    try:
        import av  # noqa: F401
    except ModuleNotFoundError:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("PyAV is not installed")


def picture(number: int) -> npt.NDArray[np.uint8]:
    """Make the pixels of one picture, (32, 48, 3), each other than the others."""
    return np.random.default_rng(number).integers(0, 256, (32, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip(lane: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a video of 24 pictures, ten a second, in a codec without loss."""
    import av

    path = tmp_path_factory.mktemp("video") / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "bgr0"
        stream.time_base = Fraction(1, 1000)
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(source: Video) -> list[int]:
    """Return which pictures a video gave, by their pixels."""
    found = []
    for frame in source:
        assert isinstance(frame, Frame)
        (number,) = [number for number in range(COUNT) if np.array_equal(frame.pixels(), picture(number))]
        assert frame.name == f"{source.source}#t={number / RATE:.3f}"
        assert frame.decode_ms > 0
        found.append(number)
    return found


@pytest.mark.parametrize(
    ("every", "fps", "expected"),
    [
        (1, None, list(range(24))),
        (5, None, [0, 5, 10, 15, 20]),
        (100, None, [0]),
        (1, 2.0, [0, 5, 10, 15, 20]),
        (1, 4.0, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23]),
        (1, 0.5, [0, 20]),
        (1, 100.0, list(range(24))),
    ],
)
def test_the_pictures_asked_for_are_given(clip: Path, every: int, fps: float | None, expected: list[int]) -> None:
    """Every so many-th picture, or the first in each part of a second, with its very pixels and its time as name."""
    assert numbers(Video(str(clip), every, fps)) == expected


@pytest.mark.parametrize(("every", "fps"), [(0, None), (-1, None), (1, 0.0), (1, -1.0), (1, float("nan")), (2, 2.0)])
def test_what_cannot_be_counted_by_is_refused(every: int, fps: float | None) -> None:
    """No picture, no rate, or both ways of choosing at once, are refused before anything is opened."""
    with pytest.raises(UsageError, match="--every"):
        Video("x.mkv", every, fps)


def test_a_cut_video_gives_what_it_holds(clip: Path, tmp_path: Path) -> None:
    """Of a video that was cut off the pictures before the cut are given, in order, and it is not a crash."""
    path = tmp_path / "cut.mkv"
    data = clip.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    found = [frame for frame in Video(str(path)) if isinstance(frame, Frame)]
    assert 5 < len(found) < COUNT - 5
    for number, frame in enumerate(found):
        np.testing.assert_array_equal(frame.pixels(), picture(number))


def test_an_error_while_decoding_is_one_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """When FFmpeg gives up in the middle, that is said after the pictures before it."""
    import av

    def decode(**_: int) -> Any:
        yield SimpleNamespace(time=0.0)
        raise av.InvalidDataError(1094995529, "Invalid data found when processing input", "x.mkv")

    container = SimpleNamespace(decode=decode, close=lambda: None)
    monkeypatch.setattr(video_module, "_open", lambda source: container)
    first, last = Video("x.mkv")
    assert isinstance(first, Frame)
    assert isinstance(last, NoImageError)
    assert str(last) == "x.mkv: the video cannot be read any further (Invalid data found when processing input)"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gone.mp4", "no such video file"),
        ("text.mp4", "cannot be opened as a video (Invalid data found when processing input)"),
        ("/dev/video97", "cannot be opened as a camera (No such file or directory)"),
    ],
)
def test_what_is_no_video_is_said(tmp_path: Path, name: str, told: str) -> None:
    """A file that is not there or no video, and a camera that is not plugged in, are told apart in one line."""
    (tmp_path / "text.mp4").write_text("not a video at all")
    source = name if name.startswith("/") else str(tmp_path / name)
    with pytest.raises(UsageError) as caught:
        next(iter(Video(source)))
    assert str(caught.value) == f"{source}: {told}"


def test_a_camera_is_opened_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of Video4Linux is opened through that, and files and addresses as FFmpeg finds."""
    import av

    asked = []

    def refuse(source: str, format: str | None = None) -> None:
        asked.append((source, format))
        raise ValueError("enough")

    monkeypatch.setattr(av, "open", refuse)
    for source in ("/dev/video0", "rtsp://camera/stream"):
        with pytest.raises(UsageError, match="enough"):
            next(iter(Video(source)))
    assert asked == [("/dev/video0", "v4l2"), ("rtsp://camera/stream", None)]


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyAV is missing the error names the extra."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'edgecnn\[video\]'"):
        next(iter(Video("x.mkv")))


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (-90, 3), (180, 2), (-180, 2)])
def test_a_turned_phone_is_turned_back(degrees: int, turns: int) -> None:
    """A picture is turned by the angle that its video states, against the clock as FFmpeg counts."""
    frame: Any = SimpleNamespace(width=48, height=32, rotation=degrees, to_ndarray=lambda format: picture(0))
    np.testing.assert_array_equal(video_module._pixels(frame, "x"), np.rot90(picture(0), turns))


def test_a_picture_over_the_limit_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A video of more pixels than an image may have gives no picture, before memory is taken for one."""
    frame: Any = SimpleNamespace(width=16000, height=16000)
    with pytest.raises(ImageError, match="16000x16000 pixels are over the limit"):
        video_module._pixels(frame, "x")


def predict(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["predict", *map(str, arguments)])


def test_pictures_are_answered_as_the_same_pictures_in_files(clip: Path, bundle_folder: Path, tmp_path: Path) -> None:
    """A picture of a video gets bit for bit the answer of the same pixels in a PNG, and its hash is of its pixels."""
    for number in (0, 10, 20):
        Image.fromarray(picture(number)).save(tmp_path / f"{number:02d}.png")
    done = predict(bundle_folder, "--video", clip, "--fps", "1", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    files = [json.loads(line) for line in predict(bundle_folder, tmp_path, "--json").stdout.splitlines()]
    assert [answer["path"] for answer in found] == [f"{clip}#t={second}.000" for second in range(3)]
    assert [answer["top"] for answer in found] == [answer["top"] for answer in files]
    assert [answer["sha256"] for answer in found] == [images.hash_pixels(picture(number)) for number in (0, 10, 20)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--video", "x.mkv", "a.png"], "--video takes the place of"),
        (["--fps", "2", "a.png"], "--every and --fps choose among the pictures of a --video"),
        (["--every", "3", "a.png"], "--every and --fps choose among the pictures of a --video"),
        (["--video", "{tmp}/gone.mp4"], "gone.mp4: no such video file"),
        (["--video", "x.mkv", "--fps", "2", "--every", "2"], "only one can be given"),
        ([], "nothing to predict"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    bundle_folder: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    """What contradicts itself, or holds nothing to predict, is one line and exit 2."""
    done = predict(bundle_folder, *(word.format(tmp=tmp_path) for word in arguments))
    (line,) = done.stderr.splitlines()
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in line
