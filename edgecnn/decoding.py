"""From encoded bytes to pixels that a model takes, timed and hashed; and work on the images of a source ahead in threads."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import Generic, TypeVar

from edgecnn import images
from edgecnn.errors import ImageError
from edgecnn.images import Pixels
from edgecnn.sources import Found, Frame, NoImageError, name_of
from edgecnn.spec import Preprocess

Made = TypeVar("Made")
_SPELL = 0.02  # seconds
_MOST = 16  # images
_BLOCKS = 32  # of 16 MB, however many threads there are
_LAST = 5.0  # seconds that all threads have for their last images, which may be on a disk that does not answer


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


def all_ready(found: Iterable[Found], preprocess: Preprocess) -> Iterator[Ready]:
    """Read and prepare images of a source, one after the other."""
    return (ready(one, preprocess) for one in found)


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
        with _BYTES.of(0) as held:
            return prepare(images.read(found, held.take), preprocess, str(found))
    if not isinstance(found, Frame):
        return prepare(found.data, preprocess, found.name)
    start = perf_counter()
    frame = found.pixels()
    decoded = perf_counter()
    pixels = images.fit_array(frame, preprocess)
    took = found.decode_ms + 1e3 * (decoded - start), 1e3 * (perf_counter() - decoded)
    return Prepared(pixels, images.hash_pixels(frame), *took)


class _Room:
    """Room in memory that all threads share, first come, first served: for any number of small images, or one of the largest."""

    def __init__(self, size: int) -> None:
        self.free = self.all = size
        self.changed = threading.Condition()
        self.turn = threading.Lock()  # of who waits: small images that pass a large one would have it wait for ever

    def of(self, size: int) -> _Held:
        """Wait, on the way into a `with`, until there is that much room, at most all of it, and hold it inside."""
        return _Held(self, size)


class _Held:
    """What is held of a room."""

    def __init__(self, room: _Room, size: int) -> None:
        self._room = room
        self._size = size

    def __enter__(self) -> _Held:
        if self._size:
            self.take(self._size)
        return self

    def take(self, size: int) -> None:
        """Hold this much where nothing was held yet."""
        room, size = self._room, min(size, self._room.all)
        with room.turn, room.changed:
            if room.free < size:
                room.changed.wait_for(lambda: room.free >= size)
            room.free -= size
        self._size = size

    def __exit__(self, *_: object) -> None:
        room = self._room
        with room.changed:
            room.free += self._size
            room.changed.notify_all()


_PIXELS = _Room(images.MAX_PIXELS)
_BYTES = _Room(images.MAX_BYTES)


class _Slot(Generic[Made]):
    """The place, in the order of a source, of the images that a thread takes up together."""

    def __init__(self) -> None:
        self.filled = threading.Lock()
        self.filled.acquire()
        self.content: list[Made] = []
        self.last = False  # nothing comes after the content but `error`, if there is one
        self.error: BaseException | None = None

    def end(self, error: BaseException | None) -> None:
        self.last, self.error = True, error


class Ahead(Generic[Made]):
    """What `make` makes of the images of a source, in threads ahead of whoever takes it, in the order of the source.

    `make` is given some images that follow each other and gives something for each, in order.

    At most `ahead` images are taken from the source and not yet from here: a source is not read faster than it is
    answered. The source is read by the threads in turn; what it or `make` raises is raised here, after what was before.
    A `patient` source has its next image at once, if it has one. Of such a source a thread takes up as many images as
    make `_SPELL` seconds of work: threads that wake each other for every small one cost a tenth of the time.
    """

    def __init__(
        self,
        found: Iterable[Found],
        make: Callable[[Sequence[Found]], Iterable[Made]],
        threads: int,
        ahead: int,
        patient: bool = True,
    ) -> None:
        from queue import SimpleQueue

        self._found = iter(found)
        self._make = make
        self._patient = patient
        self._reading = threading.Lock()
        self._room = threading.Semaphore(ahead)
        self._order: SimpleQueue[_Slot[Made]] = SimpleQueue()
        self._made: deque[Made] = deque()  # of the slots that were taken
        self._ended = self._over = False
        self._error: BaseException | None = None
        self._busy = [threading.Lock() for _ in range(threads)]
        # Each thread holds an image as decoded and the same in the model's colours, of which most are far below a block.
        images.keep_memory(min(2 * threads, _BLOCKS))
        for busy in self._busy:
            threading.Thread(target=self._work, args=(busy,), daemon=True).start()

    def take(self, count: int) -> list[Made]:
        """Return what was made of the next `count` images; fewer at the end and where the source has no more for now.

        It waits for the first one in any case; none is the end.
        """
        from queue import Empty

        taken: list[Made] = []
        while len(taken) < count:
            if self._made:
                taken.append(self._made.popleft())
                self._room.release()
                continue
            if self._over:
                break
            try:
                slot = self._order.get(block=self._patient or not taken)
            except Empty:
                break
            slot.filled.acquire()
            self._made += slot.content
            if slot.last:
                self._over, self._error = True, slot.error
        if not taken and self._error is not None:
            raise self._error
        return taken

    def close(self) -> None:
        """Let the threads end: those that make something when that is made, one that waits for its source when it gives."""
        self._ended = self._over = True
        self._made.clear()
        self._room.release()
        # A thread in a runtime's native code, when the process ends, takes it down with an abort.
        until = monotonic() + _LAST
        for busy in self._busy:
            if busy.acquire(timeout=max(0.0, until - monotonic())):
                busy.release()

    def _work(self, busy: threading.Lock) -> None:
        size = 1
        while (taken := self._next(size)) is not None:
            found, slot = taken
            start = perf_counter()
            with busy:
                try:
                    for made in () if self._over else self._make(found):
                        slot.content.append(made)
                        if self._over:
                            break
                except BaseException as error:  # it is raised where the images are taken
                    slot.end(error)
            slot.filled.release()
            if self._patient:
                size = max(1, min(_MOST, int(_SPELL * len(found) / (perf_counter() - start))))
        self._room.release()  # for the next thread, to end as well

    def _next(self, size: int) -> tuple[list[Found], _Slot[Made]] | None:
        """Take up the next images of the source, at most `size` and at least one; None is the end."""
        self._room.acquire()
        with self._reading:
            if self._ended:
                return None
            slot, found = _Slot[Made](), list[Found]()
            try:
                found.append(next(self._found))
                while len(found) < size and self._room.acquire(blocking=False):
                    found.append(next(self._found))
            except BaseException as error:
                self._ended = True
                slot.end(None if isinstance(error, StopIteration) else error)
            if not found:
                slot.filled.release()
            self._order.put(slot)
            return (found, slot) if found else None
