"""From encoded bytes to pixels that a model takes, timed and hashed; and work on the images of a source ahead in threads."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Generic, TypeVar

from edgecnn import images
from edgecnn.errors import ImageError
from edgecnn.images import Pixels
from edgecnn.sources import Found, Frame, NoImageError, name_of
from edgecnn.spec import Preprocess

Made = TypeVar("Made")
_LAST = 5.0  # seconds that a thread has for its last image, which may be on a disk that does not answer


@dataclass(frozen=True)
class Prepared:
    """One image ready for the model: uint8 (H, W, C), the SHA-256 of its encoded bytes, and what it took in milliseconds."""

    pixels: Pixels
    sha256: str
    decode_ms: float
    preprocess_ms: float


@dataclass
class Ready:
    """What has become of one image of a source: prepared, or why it cannot be; `name` is that of its answer."""

    name: str
    result: Prepared | ImageError


def prepare(data: bytes, preprocess: Preprocess, name: str = "image") -> Prepared:
    """Decode, then flatten and resize, one encoded image by the rules of `images`.

    Raises:
        ImageError: it is not an image by those rules; the message begins with `name`.
    """
    start = perf_counter()
    with images.opened(data, name) as image, _PIXELS.of(image.width * image.height):
        picture = images.to_picture(image, name)
        decoded = perf_counter()
        pixels = images.fit(picture, preprocess)
        end = perf_counter()
    return Prepared(pixels, hashlib.sha256(data).hexdigest(), 1e3 * (decoded - start), 1e3 * (end - decoded))


def ready(found: Found, preprocess: Preprocess) -> Ready:
    """Read and prepare one image of a source."""
    try:
        result: Prepared | ImageError = _prepare(found, preprocess)
    except ImageError as error:
        result = error
    return Ready(name_of(found), result)


def _prepare(found: Found, preprocess: Preprocess) -> Prepared:
    if isinstance(found, NoImageError):
        raise found
    if isinstance(found, Path):
        with _BYTES.of(_size_of(found)):
            return prepare(images.read(found), preprocess, str(found))
    if not isinstance(found, Frame):
        return prepare(found.data, preprocess, found.name)
    start = perf_counter()
    frame = found.pixels()
    decoded = perf_counter()
    pixels = images.fit_array(frame, preprocess)
    took = found.decode_ms + 1e3 * (decoded - start), 1e3 * (perf_counter() - decoded)
    return Prepared(pixels, images.hash_pixels(frame), *took)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # reading it says so
        return 0


class _Room:
    """Room in memory that all threads share: for any number of small images, or one of the largest."""

    def __init__(self, size: int) -> None:
        self._free = self._all = size
        self._changed = threading.Condition()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Wait until there is that much room, at most all of it, and hold it."""
        size = min(size, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


_PIXELS = _Room(images.MAX_PIXELS)
_BYTES = _Room(images.MAX_BYTES)


class _Slot(Generic[Made]):
    """The place of one image in the order of its source, from when a thread takes it up."""

    def __init__(self) -> None:
        self.filled = threading.Lock()
        self.filled.acquire()
        self.content: list[Made] = []
        self.end: BaseException | None = None  # what ended the source or the work, where there is no content


class Ahead(Generic[Made]):
    """What `make` makes of the images of a source, in threads ahead of whoever takes it, in the order of the source.

    At most `ahead` images are taken from the source and not yet from here: a source is not read faster than it is
    answered. The source is read by the threads in turn; what it or `make` raises is raised here, after what was before.
    """

    def __init__(self, found: Iterable[Found], make: Callable[[Found], Made], threads: int, ahead: int) -> None:
        from queue import SimpleQueue

        self._found = iter(found)
        self._make = make
        self._reading = threading.Lock()
        self._room = threading.Semaphore(ahead)
        self._order: SimpleQueue[_Slot[Made]] = SimpleQueue()
        self._ended = self._over = False
        self._error: BaseException | None = None
        self._busy = [threading.Lock() for _ in range(threads)]
        images.keep_memory(2 * threads)  # each holds an image as decoded and the same in the model's colours
        for busy in self._busy:
            threading.Thread(target=self._work, args=(busy,), daemon=True).start()

    def batches(self, count: int, patient: bool = True) -> Iterator[list[Made]]:
        """Take until the end, as `take` does, and close."""
        try:
            while taken := self.take(count, patient):
                yield taken
        finally:
            self.close()

    def take(self, count: int, patient: bool = True) -> list[Made]:
        """Return what was made of the next `count` images; fewer at the end and, if not `patient`, where no more is there.

        It waits for the first one in any case; none is the end.
        """
        from queue import Empty

        taken: list[Made] = []
        while len(taken) < count and not self._over:
            try:
                slot = self._order.get(block=patient or not taken)
            except Empty:
                break
            slot.filled.acquire()
            self._room.release()
            if slot.content:
                taken += slot.content
            else:
                self._over = True
                self._error = slot.end
        if not taken and self._error is not None:
            raise self._error
        return taken

    def close(self) -> None:
        """Let the threads end: those that make something when that is made, one that waits for its source when it gives."""
        self._ended = self._over = True
        self._room.release()
        for (
            busy
        ) in self._busy:  # a thread in a runtime's native code, when the process ends, takes it down with an abort
            if busy.acquire(timeout=_LAST):
                busy.release()

    def _work(self, busy: threading.Lock) -> None:
        while (slot := self._next()) is not None:
            found, place = slot
            with busy:
                if self._over:
                    break
                try:
                    place.content.append(self._make(found))
                except BaseException as error:  # it is raised where the images are taken
                    place.end = error
                place.filled.release()
        self._room.release()  # for the next thread, to end as well

    def _next(self) -> tuple[Found, _Slot[Made]] | None:
        """Take up the next image of the source; None is the end."""
        self._room.acquire()
        with self._reading:
            if self._ended:
                return None
            slot = _Slot[Made]()
            try:
                found = next(self._found)
            except BaseException as error:
                self._ended = True
                slot.end = None if isinstance(error, StopIteration) else error
                slot.filled.release()
                self._order.put(slot)
                return None
            self._order.put(slot)
            return found, slot
