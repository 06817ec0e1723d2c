"""The pictures of a video or a camera, through PyAV, which carries FFmpeg."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn import images
from edgecnn.errors import MissingPackageError, UsageError
from edgecnn.images import Pixels
from edgecnn.sources import Found, Frame, NoImageError

if TYPE_CHECKING:
    import av

INSTALL = "pip install 'edgecnn[video]'"
CAMERA = "/dev/video"


@dataclass(frozen=True)
class Video:
    """A video file, a camera (`/dev/video0`) or an address that FFmpeg reads, such as `rtsp://...`.

    Of its pictures every `every`-th is given or, with `fps`, the first in each 1/fps seconds of the video's own time.
    A picture's name is that of the video with its time in it, as a media fragment (W3C Media Fragments URI 1.0, 4.2.1):
    `gate.mp4#t=12.480`. Its milliseconds of decoding are those from asking for it, so a camera's hold the waiting.
    """

    source: str
    every: int = 1
    fps: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be counted by."""
        if self.every < 1 or (self.fps is not None and not 0 < self.fps <= 1000):
            raise UsageError("--every takes 1 or more, and --fps a number above 0 and up to 1000")
        if self.every > 1 and self.fps is not None:
            raise UsageError("of --every and --fps only one can be given")

    def __iter__(self) -> Iterator[Found]:
        """Give the pictures until the video ends; damage is a NoImageError after those before it."""
        container = _open(self.source)
        try:
            with closing(container):
                yield from self._frames(container.decode(video=0))
        except _errors() as error:
            yield NoImageError(self.source, f"the video cannot be read any further ({_reason(error)})")

    def _frames(self, frames: Iterator[av.VideoFrame]) -> Iterator[Frame]:
        asked, due = perf_counter(), -math.inf
        for index, frame in enumerate(frames):
            time = frame.time if frame.time is not None else float(index)
            if time >= due if self.fps is not None else index % self.every == 0:
                yield self._frame(frame, time, 1e3 * (perf_counter() - asked))
                asked = perf_counter()
                if self.fps is not None:
                    due = (math.floor(time * self.fps) + 1) / self.fps

    def _frame(self, frame: av.VideoFrame, time: float, took: float) -> Frame:
        return Frame(f"{self.source}#t={time:.3f}", lambda: _pixels(frame, self.source), took)


def _open(source: str) -> Any:
    """Open a source of video.

    Raises:
        MissingPackageError: PyAV is not installed.
        UsageError: it is not there, or is no video.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"videos and cameras need PyAV, which is not installed here: {INSTALL}") from error
    camera = source.startswith(CAMERA)
    if not camera and "://" not in source and not Path(source).is_file():
        raise UsageError(f"{source}: no such video file")
    try:
        container = av.open(source, format="v4l2" if camera else None)
    except (OSError, ValueError, av.FFmpegError) as error:
        raise UsageError(
            f"{source}: cannot be opened as a {'camera' if camera else 'video'} ({_reason(error)})"
        ) from None
    if not container.streams.video:
        container.close()
        raise UsageError(f"{source}: holds no video")
    container.streams.video[0].thread_type = "AUTO"
    return container


def _errors() -> tuple[type[Exception], ...]:
    import av

    return (av.FFmpegError,)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _pixels(frame: av.VideoFrame, name: str) -> Pixels:
    """Turn a frame into RGB (H, W, 3), upright.

    Raises:
        ImageError: it has more pixels than an image may have.
    """
    if frame.width * frame.height > images.MAX_PIXELS:
        raise NoImageError(name, f"{frame.width}x{frame.height} pixels are over the limit of an image")
    pixels: Pixels = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # of a phone's, counted against the clock
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
