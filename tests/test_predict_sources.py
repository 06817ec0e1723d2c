"""Where images come from: files, folders, patterns and stdin, against pathlib and by hand."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecnn import images
from edgecnn.sources import Encoded, Found, NoImageError, name_of
from edgecnn.sources import stdin as stdin_module
from edgecnn.sources.files import EmptyFolderError, find, find_images
from edgecnn.sources.stdin import from_stdin


class Pipe:
    """A stream that gives its chunks one at a time, and counts how many were taken."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.taken = 0

    def read1(self, size: int, /) -> bytes:
        """Give the next chunk; nothing at the end."""
        self.taken += 1
        return next(self.chunks, b"")


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def encoded(format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(3).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


NAMES = (
    "b.png", "a.JPG", "a/z.png", "a.b/c.gif", "a-b/c.gif", "notes.txt", "a/b/c/d.webp", ".hidden/x.png", ".y.png",
    "__MACOSX/m.png", "a/__thumbs/t.png", "_one/u.png", "Z.tif", "a/k.pgm", "noext", "a b/sp ace.jpeg",
)  # fmt: skip


def test_a_folder_is_walked_in_the_order_of_sorted_paths(tmp_path: Path) -> None:
    """The walk, one folder at a time, gives what pathlib gives when it lists everything and sorts it."""
    touch(tmp_path, *NAMES)
    (tmp_path / "folder.png").mkdir()
    expected = sorted(
        path for path in tmp_path.rglob("*") if images.is_image_name(path.relative_to(tmp_path)) and path.is_file()
    )
    assert len(expected) == 10
    assert list(find([str(tmp_path)])) == expected


def test_links_are_followed_to_files_and_not_into_folders(tmp_path: Path) -> None:
    """A link to an image counts, and a link to a folder, which may lead in circles, does not."""
    touch(tmp_path, "in/a.png", "out/b.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "out" / "b.png")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in", target_is_directory=True)
    assert [path.name for path in find_images([str(tmp_path / "in")], [])] == ["a.png", "link.png"]  # type: ignore[union-attr]


def test_a_folder_is_read_as_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first image of a tree is there before the second folder has been listed."""
    touch(tmp_path, "a/1.png", "b/2.png")
    listed: list[str] = []
    scandir = os.scandir

    def watched(path: str | Path) -> object:
        listed.append(Path(path).name)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched)
    assert next(find([str(tmp_path)])) == tmp_path / "a" / "1.png"
    assert "b" not in listed


def test_a_folder_that_cannot_be_read_is_said_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder below that may not be listed is an error with its name, and the images around it are found."""
    touch(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    scandir = os.scandir

    def refusing(path: str | Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    first, bad, last = find([str(tmp_path)])
    assert [first, last] == [tmp_path / "a/1.png", tmp_path / "c/3.png"]
    assert str(bad) == f"{tmp_path / 'b'}: the folder cannot be read (Permission denied)"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a1.png", "a2.png", "b.png"]),
        ("a?.png", ["a1.png", "a2.png"]),
        ("[!a]*.png", ["b.png"]),
        ("**/*.jpg", ["sub/a3.jpg", "sub/deep/c.jpg", "top.jpg"]),
        ("sub/*", ["sub/a3.jpg", "sub/deep/c.jpg"]),
        ("x[1].png", ["x[1].png"]),
    ],
)
def test_patterns_that_no_shell_expanded(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    """A quoted pattern stands for the files it matches, sorted, a folder for its images; a file so called wins."""
    touch(tmp_path, "a1.png", "a2.png", "b.png", "top.jpg", "sub/a3.jpg", "sub/deep/c.jpg")
    if pattern.startswith("x"):
        touch(tmp_path, "x[1].png", "x1.png")
    found = list(find([str(tmp_path / pattern)]))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == expected  # type: ignore[union-attr]


def test_a_pattern_that_matches_nothing_is_said(tmp_path: Path) -> None:
    """A pattern without a match is an error in its place, as is an empty folder, and costs nothing else."""
    touch(tmp_path, "a.png")
    (tmp_path / "empty").mkdir()
    none, empty, good = find([str(tmp_path / "*.gif"), str(tmp_path / "empty"), str(tmp_path / "a.png")])
    assert str(none) == f"{tmp_path / '*.gif'}: no file matches this pattern"
    assert isinstance(empty, EmptyFolderError)
    assert name_of(empty) == str(tmp_path / "empty")
    assert good == tmp_path / "a.png"


IMAGES = {
    "png": encoded("PNG"),
    "jpeg": encoded("JPEG"),
    "bmp": encoded("BMP"),
    "gif": encoded("GIF"),
    "tiff": encoded("TIFF"),
    "tiff, big endian": b"MM\0*" + bytes(20),
    "webp": encoded("WEBP"),
    "ppm": encoded("PPM"),
    "pgm with a remark": b"P5\n# made by hand\n2 1\n255\nab",
    "pbm in text": b"P1 2 2\n0 1\n1 0\n",
}


@pytest.mark.parametrize("pieces", [1, 7, 100_000])
@pytest.mark.parametrize("kind", IMAGES)
def test_an_encoded_image_on_stdin_is_one_image(kind: str, pieces: int) -> None:
    """What begins as an image of any format that is read is one image, however it arrives."""
    data = IMAGES[kind]
    chunks = iter([data[start : start + pieces] for start in range(0, len(data), pieces)])
    assert list(from_stdin(Pipe(chunks))) == [Encoded("-", data)]


@pytest.mark.parametrize(
    "name",
    ["BMW.jpg", "BM.bmp", "P5/x.png", "P6.ppm", "GIF87.gif", "II.tif", "II*.png", "RIFF.webp", "Photos/a.png", "MM"],
)
def test_paths_that_begin_like_images_are_paths(name: str) -> None:
    """A path is a path also where its first letters are those that a format begins with."""
    assert list(from_stdin(Pipe(iter([f"{name}\nb.png\n".encode()])))) == [Path(name), Path("b.png")]


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_lines_may_arrive_in_pieces(size: int) -> None:
    """Paths are split at line ends, of Unix or Windows, wherever the pieces are cut; blank lines are passed over."""
    data = b"one.png\n\n  \ntwo three.jpg\r\nfour \xe9\xff.gif\nlast"
    found = list(from_stdin(Pipe(iter([data[at : at + size] for at in range(0, len(data), size)]))))
    expected = [b"one.png", b"two three.jpg", b"four \xe9\xff.gif", b"last"]
    assert [os.fsencode(path) for path in found if isinstance(path, Path)] == expected
    assert len(found) == 4


def test_a_path_is_given_when_its_line_is_complete() -> None:
    """Whoever writes paths one at a time gets each answered before writing the next."""

    def lines() -> Iterator[bytes]:
        yield b"a.png\n"
        yield b"Bb.png\n"
        raise AssertionError("read on before the path was used")

    found = from_stdin(Pipe(lines()))
    assert [next(found), next(found)] == [Path("a.png"), Path("Bb.png")]


def endless(first: bytes, rest: bytes) -> Iterator[bytes]:
    yield first
    while True:
        yield rest


def test_an_endless_line_is_no_path() -> None:
    """A stream without line ends, such as /dev/zero, is refused after a few reads; paths before it are given."""
    pipe = Pipe(endless(b"a.png\n", bytes(1 << 15)))
    path, bad = from_stdin(pipe)
    assert path == Path("a.png")
    assert "is no path; nothing after it is read" in str(bad)
    assert pipe.taken < 6
    assert stdin_module.LONGEST > 4096  # what Linux takes for a path


def test_an_endless_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image on stdin is read up to the limit for files and no further."""
    monkeypatch.setattr(images, "MAX_BYTES", 3 << 20)
    pipe = Pipe(endless(IMAGES["png"], bytes(1 << 20)))
    (bad,) = from_stdin(pipe)
    assert isinstance(bad, NoImageError)
    assert str(bad) == "-: over the limit of 3 MB for an image"
    assert pipe.taken < 6


def test_nothing_on_stdin_is_no_image() -> None:
    """An empty stream and one of blank lines hold no path and no image."""
    assert list(from_stdin(Pipe(iter([])))) == []
    assert list(from_stdin(Pipe(iter([b"\n \n\n"])))) == []


def test_stdin_takes_its_place_among_the_arguments(tmp_path: Path) -> None:
    """`-` stands where it was written, for whatever stdin is."""
    touch(tmp_path, "a.png", "b.png")
    image: list[Found] = [Encoded("-", b"x")]
    found = list(find([str(tmp_path / "a.png"), "-", str(tmp_path / "b.png")], image))
    assert found == [tmp_path / "a.png", image[0], tmp_path / "b.png"]
