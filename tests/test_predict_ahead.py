"""Decoding ahead of the model: order, back pressure, what goes wrong in threads, and the memory they share."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edgecnn import decoding, images
from edgecnn.backends.base import SessionOptions
from edgecnn.bundle import Bundle
from edgecnn.decoding import Ahead, Prepared, Ready, _Room, all_ready, prepare
from edgecnn.errors import ImageError, UsageError
from edgecnn.images import Pixels
from edgecnn.predict import Predictor
from edgecnn.sources import Found, Frame, NoImageError
from edgecnn.spec import BackendRef, Preprocess

SMALL = Preprocess(height=2, width=2, channels=3)
small = partial(all_ready, preprocess=SMALL)
SOON = 30.0  # seconds after which a test that waits has failed


def frame(number: int, before: Callable[[], object] = bool) -> Frame:
    """Make an image whose pixels are all `number`; `before` is called in the thread that decodes it."""

    def pixels() -> Pixels:
        before()
        return np.full((2, 2, 3), number, dtype=np.uint8)

    return Frame(str(number), pixels, 0.0)


def values(taken: list[Ready]) -> list[int]:
    """Read the numbers back, out of names and pixels."""
    found = []
    for one in taken:
        assert isinstance(one.result, Prepared)
        assert (one.result.pixels == int(one.name)).all()
        found.append(int(one.name))
    return found


def drain(ahead: Ahead[Ready], count: int) -> list[list[int]]:
    taken = []
    while batch := ahead.take(count):
        taken.append(values(batch))
    return taken


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_order_is_that_of_the_source(threads: int) -> None:
    """However long each image takes in its thread, they come in the order of the source, in full batches."""
    pauses = np.random.default_rng(threads).uniform(0, 0.004, 60)
    source = [frame(number, lambda pause=pause: time.sleep(pause)) for number, pause in enumerate(pauses)]
    assert drain(Ahead(source, small, threads, 7), 8) == [
        list(range(start, min(start + 8, 60))) for start in range(0, 60, 8)
    ]


def test_images_are_prepared_at_the_same_time() -> None:
    """Two threads work on two images at once: each image waits for the other's."""
    meet = threading.Barrier(2, timeout=SOON)
    source = [frame(number, meet.wait) for number in range(6)]
    assert drain(Ahead(source, small, 2, 4), 3) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (2, 3), (4, 4)])
def test_a_source_is_not_read_faster_than_answers_are_taken(threads: int, ahead: int) -> None:
    """Of a source of any length no more than `ahead` images are in hand, however slow the taker."""
    taken = 0
    most = 0

    def source() -> Iterator[Found]:
        nonlocal most
        for number in range(100):
            most = max(most, number - taken)
            yield frame(number)

    images_ahead = Ahead(source(), small, threads, ahead)
    while batch := images_ahead.take(1):
        taken = int(batch[0].name)  # one less than have been taken: the count comes after the taking
        time.sleep(0.001)
    assert taken == 99
    assert ahead - 1 <= most <= ahead + 1


def test_what_the_source_raises_comes_after_its_images() -> None:
    """An error in the source is raised where the images are taken, when those before it have been, and stays."""

    def source() -> Iterator[Found]:
        yield from (frame(0), frame(1), frame(2))
        raise UsageError("the source broke")

    ahead = Ahead(source(), small, 2, 8)
    assert values(ahead.take(2)) == [0, 1]
    assert values(ahead.take(2)) == [2]
    for _ in range(2):
        with pytest.raises(UsageError, match="the source broke"):
            ahead.take(2)


def test_a_bug_in_a_thread_is_not_lost() -> None:
    """What is no fault of an image but of the program comes out where the images are taken."""
    ahead = Ahead([frame(0), frame(1, lambda: 1 / 0), frame(2)], small, 2, 8)
    assert values(ahead.take(1)) == [0]
    with pytest.raises(ZeroDivisionError):
        ahead.take(1)


def test_bad_images_keep_their_place(tmp_path: Path) -> None:
    """An image that cannot be read, and a place without one, are errors among the others."""
    gone = NoImageError(tmp_path / "empty", "nothing here")
    first, bad, none, last = Ahead([frame(0), tmp_path / "x.png", gone, frame(3)], small, 3, 8).take(4)
    assert values([first, last]) == [0, 3]
    assert isinstance(bad.result, ImageError)
    assert (bad.name, none.name, none.result) == (str(tmp_path / "x.png"), str(tmp_path / "empty"), gone)


def test_without_patience_what_is_there_is_taken() -> None:
    """From a source that has no more for now, what there is comes without waiting for a full batch."""
    more = threading.Event()

    def source() -> Iterator[Found]:
        yield from (frame(0), frame(1))
        assert more.wait(SOON)
        yield frame(2)

    ahead = Ahead(source(), small, 1, 16, patient=False)
    found: list[int] = []
    while len(found) < 2:
        found += values(ahead.take(10))
    assert found == [0, 1]
    more.set()
    assert values(ahead.take(10)) == [2]
    assert ahead.take(10) == []


def test_closing_does_not_wait_for_the_source() -> None:
    """An end in the middle comes at once, also where the source gives nothing for now, and its threads go when it does."""
    more = threading.Event()

    def source() -> Iterator[Found]:
        yield frame(0)
        assert more.wait(SOON)
        yield from (frame(number % 256) for number in range(10**9))

    before = threading.active_count()
    ahead = Ahead(source(), small, 3, 4)
    assert values(ahead.take(1)) == [0]
    ahead.close()
    assert ahead.take(1) == []
    more.set()
    end = time.monotonic() + SOON
    while threading.active_count() > before:
        assert time.monotonic() < end, "threads are left"
        time.sleep(0.005)


def test_a_thread_takes_up_as_many_small_images_as_pay() -> None:
    """Of quick images of a patient source a thread takes many at once, of slow ones and of a live source one by one."""
    for pause, patient, most in ((0.0, True, 16), (0.03, True, 1), (0.0, False, 1)):
        sizes: list[int] = []

        def make(found: Sequence[Found], pause: float = pause, sizes: list[int] = sizes) -> list[Found]:
            sizes.append(len(found))
            time.sleep(pause * len(found))
            return list(found)

        source = [frame(number) for number in range(40)]
        ahead, taken = Ahead(source, make, 1, 64, patient), list[Found]()
        while batch := ahead.take(7):
            taken += batch
        assert taken == source
        assert sizes[0] == 1
        assert max(sizes) == most


def test_what_is_half_made_is_given_before_what_broke() -> None:
    """Of images that a thread took up together, those before the one that broke are still given."""

    def make(found: Sequence[Found]) -> Iterator[str]:
        for one in found:
            assert isinstance(one, Frame)
            if one.name == "30":
                raise ZeroDivisionError
            yield one.name

    ahead = Ahead([frame(number) for number in range(40)], make, 1, 64)
    assert ahead.take(30) == [str(number) for number in range(30)]
    with pytest.raises(ZeroDivisionError):
        ahead.take(1)


def test_closing_waits_for_what_is_being_made() -> None:
    """When it is closed no thread is inside `make` any more, and none goes in: a process that ends may then take all down."""
    inside, go = threading.Semaphore(0), threading.Event()
    made: list[int] = []

    def make(found: Sequence[Found]) -> list[Found]:
        inside.release()
        assert go.wait(SOON)
        made.append(len(found))
        return list(found)

    ahead = Ahead((frame(number % 256) for number in range(10**9)), make, 2, 8)
    for _ in range(2):
        assert inside.acquire(timeout=SOON)
    threading.Timer(0.05, go.set).start()
    ahead.close()
    assert made == [1, 1]
    assert not inside.acquire(timeout=0.05)


def test_what_was_taken_up_when_it_closes_is_not_begun() -> None:
    """A thread that has an image and has not begun with it leaves it when all is over."""
    more, given, made = threading.Event(), threading.Event(), list[Found]()

    def source() -> Iterator[Found]:
        assert more.wait(SOON)
        given.set()
        yield frame(0)

    def make(found: Sequence[Found]) -> Sequence[Found]:
        made.extend(found)
        return found

    ahead = Ahead(source(), make, 1, 4)
    closing = threading.Thread(target=ahead.close)
    with ahead._busy[0]:  # on the way from the source to `make`
        more.set()
        assert given.wait(SOON)
        while ahead._order.empty():
            time.sleep(0.001)
        closing.start()
        while not ahead._over:
            time.sleep(0.001)
    closing.join(SOON)
    assert ahead._order.get().filled.acquire(timeout=SOON)
    assert made == []


def test_closing_waits_for_all_threads_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every thread hangs on a disk that does not answer, their times do not add up."""
    waited: list[float] = []

    class Stuck:
        def acquire(self, timeout: float) -> bool:
            waited.append(timeout)
            return False

    monkeypatch.setattr(decoding, "monotonic", lambda: sum(waited), raising=False)
    ahead = Ahead((), small, 1, 1)
    ahead._busy = [Stuck() for _ in range(20)]  # type: ignore[misc]
    ahead.close()
    assert len(waited) == 20
    assert sum(waited) == decoding._LAST


def test_the_model_runs_in_the_threads_that_decode(bundle_folder: Path) -> None:
    """In batches of one, two threads are inside the model at once; larger batches, and a model that has threads itself, run alone."""
    paths = sorted((bundle_folder / "goldens").glob("*.png"))
    for batch, threads in ((1, 1), (2, 1), (1, 2)):
        with Predictor(Bundle.open(bundle_folder), options=SessionOptions(threads=threads)) as predictor:
            run, seen = predictor.session._run, set[int]()
            meet = threading.Barrier(2, timeout=SOON)

            def together(
                feeds: object,
                run: Callable[..., object] = run,
                seen: set[int] = seen,
                meet: threading.Barrier = meet,
                many: bool = batch == threads == 1,
            ) -> object:
                if many and threading.get_ident() not in seen:
                    seen.add(threading.get_ident())
                    meet.wait()
                seen.add(threading.get_ident())
                return run(feeds)

            predictor.session._run = together  # type: ignore[assignment]
            assert len(list(predictor.predict(paths, batch, decode_threads=2))) == len(paths)
            assert len(seen) == (2 if batch == threads == 1 else 1)
            assert (threading.get_ident() in seen) == (not batch == threads == 1)


def test_a_backend_that_says_nothing_runs_where_answers_are_taken(bundle_folder: Path) -> None:
    """Only a backend that states that its sessions bear it has them run by several threads."""
    paths = sorted((bundle_folder / "goldens").glob("*.png"))[:6]
    with Predictor(Bundle.open(bundle_folder), BackendRef(backend="reference", artifact="fp32")) as predictor:
        run, seen = predictor.session._run, set[int]()

        def watched(feeds: object) -> object:
            seen.add(threading.get_ident())
            return run(feeds)  # type: ignore[arg-type]

        predictor.session._run = watched  # type: ignore[assignment]
        assert len(list(predictor.predict(paths, decode_threads=2))) == 6
    assert seen == {threading.get_ident()}


def test_room_is_never_overbooked() -> None:
    """Whatever threads want at once, no more is held than there is; what is larger than all of it is held alone."""
    room = _Room(10)
    held, most, alone = 0, 0, []
    guard = threading.Lock()

    def use(size: int) -> None:
        nonlocal held, most
        for _ in range(10):
            with room.of(size):
                with guard:
                    held += min(size, 10)
                    most = max(most, held)
                    if size > 10:
                        alone.append(held == 10)
                time.sleep(0.0005)
                with guard:
                    held -= min(size, 10)

    threads = [threading.Thread(target=use, args=(size,)) for size in (3, 3, 4, 5, 99, 1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert not any(thread.is_alive() for thread in threads)
    assert held == 0
    assert 6 < most <= 10
    assert alone == [True] * 10


def test_who_waits_for_much_room_is_not_passed_by() -> None:
    """Small images that come after a large one wait with it: a stream of them would keep it waiting for ever."""
    room, order = _Room(10), list[int]()

    def use(size: int) -> None:
        with room.of(size):
            order.append(size)

    large, after = (threading.Thread(target=use, args=(size,)) for size in (10, 1))
    with room.of(1):
        large.start()
        until = time.monotonic() + SOON
        while not getattr(room.changed, "_waiters") and time.monotonic() < until:  # noqa: B009 -- private
            time.sleep(0.001)
        after.start()
        after.join(0.05)
        assert order == []
    for thread in (large, after):
        thread.join(SOON)
    assert order == [10, 1]


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_answers(bundle_folder: Path, tmp_path: Path, batch: int, threads: int) -> None:
    """Answers with decode threads are bit for bit those without, bad images in their places."""
    bundle = Bundle.open(bundle_folder)
    paths = sorted((bundle_folder / "goldens").glob("*.png"))
    (tmp_path / "bad.png").write_text("no")
    paths[5:5] = [tmp_path / "bad.png", tmp_path / "gone.png"]
    with Predictor(bundle, options=SessionOptions(threads=1)) as predictor:
        plain, ahead = (
            [
                (answer.path, answer.label, answer.top, answer.sha256, answer.error)
                for answer in predictor.predict(paths, batch, decode_threads=count)
            ]
            for count in (0, threads)
        )
    assert ahead == plain
    for path, answer in zip(paths, ahead, strict=True):
        if answer[4] is None:
            assert answer[3] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(answer[4] is not None for answer in ahead) == 2


def test_times_are_those_of_their_steps(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step takes is booked on that step, and a run's time is shared among the images of its batch."""
    bundle = Bundle.open(bundle_folder)
    paths = sorted((bundle_folder / "goldens").glob("*.png"))[:4]
    to_picture, fit = images.to_picture, images.fit

    def slow_picture(*arguments: object) -> object:
        time.sleep(0.020)
        return to_picture(*arguments)  # type: ignore[arg-type]

    def slow_fit(*arguments: object) -> object:
        time.sleep(0.040)
        return fit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "to_picture", slow_picture)
    monkeypatch.setattr(images, "fit", slow_fit)
    with Predictor(bundle, options=SessionOptions(threads=1)) as predictor:
        run = predictor.session._run

        def slow_run(feeds: object) -> object:
            time.sleep(0.080)
            return run(feeds)  # type: ignore[arg-type]

        predictor.session._run = slow_run  # type: ignore[assignment]
        for answer in predictor.predict(paths, batch=4):
            assert answer.ms is not None
            assert answer.ms.decode >= 20
            assert answer.ms.preprocess >= 40
            assert answer.ms.inference >= 20


def test_the_halves_of_preprocessing_are_the_whole() -> None:
    """Decoding and fitting apart, as they are timed, give what `decode` gives."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    data = images.encode_png(pixels)
    for channels in (1, 3):
        wanted = Preprocess(height=9, width=11, channels=channels, fit="crop")
        np.testing.assert_array_equal(prepare(data, wanted).pixels, images.decode(data, wanted))
    assert prepare(data, SMALL).sha256 == hashlib.sha256(data).hexdigest()
