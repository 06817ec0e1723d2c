"""A folder that is watched: every image that arrives in it, once it has stopped growing.

The folder is listed again and again rather than subscribed to: inotify says nothing of what another machine writes to a
network share, and loses events when many files come at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event

from edgecnn import images
from edgecnn.errors import UsageError
from edgecnn.sources.files import is_below

State = tuple[int, int, int]  # inode, bytes, nanoseconds of the last change: what differs when a file is written again
INTERVAL = 0.5


class Watch:
    """The images that arrive in a folder, or below it, after this was made; goes on until `stop` is called.

    A file is given when it holds something and two looks, `interval` seconds apart, find it the same; again when it is
    written again. What lies in the folder already is not given. A folder that cannot be read for a while, as on a
    network share, is waited for: `tell` gets one line when it goes and one when it is back, and what it held before
    is not given anew.
    """

    def __init__(self, folder: Path, interval: float = INTERVAL, tell: Callable[[str], None] | None = None) -> None:
        self.folder = folder
        self.interval = interval
        self._tell = tell or (lambda text: None)
        self._stopped = Event()
        self._lost = False
        try:
            self._given = self._look()
        except OSError as error:
            raise UsageError(f"{folder}: cannot be watched ({error.strerror})") from None

    def stop(self) -> None:
        """End the iteration, from any thread."""
        self._stopped.set()

    def __iter__(self) -> Iterator[Path]:
        before = self._given
        while not self._stopped.wait(self.interval):
            now = self._again()
            if now is None:
                continue
            ready = [path for path, state in now.items() if before.get(path) == state != self._given.get(path)]
            self._given = {path: state for path, state in self._given.items() if path in now}
            for path in sorted(ready, key=lambda path: (now[path][2], path)):
                self._given[path] = now[path]
                yield Path(path)
            before = now

    def _again(self) -> dict[str, State] | None:
        try:
            found = self._look()
        except OSError as error:
            if not self._lost:
                self._tell(f"{self.folder}: cannot be read for now ({error.strerror}); waiting for it")
            self._lost = True
            return None
        if self._lost:
            self._tell(f"{self.folder}: can be read again")
        self._lost = False
        return found

    def _look(self) -> dict[str, State]:
        """List the images of the folder and below, as they are now; what goes away meanwhile is not there.

        Raises:
            OSError: the watched folder itself cannot be listed.
        """
        found: dict[str, State] = {}
        folders = _list(os.fspath(self.folder), found)
        while folders:
            with suppress(OSError):
                folders += _list(folders.pop(), found)
        return found


def _list(folder: str, found: dict[str, State]) -> list[str]:
    """Note the images of one folder and return the folders in it."""
    with os.scandir(folder) as entries:
        return [entry.path for entry in entries if _is_folder(entry, found)]


def _is_folder(entry: os.DirEntry[str], found: dict[str, State]) -> bool:
    """Say whether to look into an entry; note it where it is an image that holds something."""
    if is_below(entry):
        return True
    with suppress(OSError):  # it was there when the folder was listed, and may be no more
        if images.is_image_name(Path(entry.name)) and entry.is_file():
            seen = entry.stat()
            if seen.st_size:
                found[entry.path] = seen.st_ino, seen.st_size, seen.st_mtime_ns
    return False
