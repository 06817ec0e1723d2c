"""Images that mean harm: bombs, giants, pipes, devices and names; memory stays bounded and the others are answered."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecnn import images
from edgecnn.errors import ImageError
from edgecnn.images import Pixels
from edgecnn.spec import Preprocess

GREY = Preprocess(height=8, width=8, channels=1)
COLOUR = Preprocess(height=8, width=8, channels=3)

# Runs the command in this very process and prints its peak of resident memory at the end.
MEASURED = """
import pathlib, sys
from edgecnn.cli import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as done:
    code = done.code
print(pathlib.Path("/proc/self/status").read_text(), file=sys.stderr)
sys.exit(code)
"""


def zeros(count: int) -> bytes:
    """Compress so many zero bytes without ever holding them."""
    packer, piece = zlib.compressobj(1), bytes(1 << 20)
    parts = [packer.compress(piece) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & 0xFFFFF)), packer.flush()])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, colour: int, body: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiled_tiff(tile: int) -> bytes:
    """Lay out a TIFF (revision 6.0, section 15) of 10x10 pixels in one deflated tile of `tile` squared."""
    body = zeros(tile * tile)
    entries = [
        (256, 10), (257, 10), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile), (324, 8), (325, len(body)),
    ]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(entries)) + table + bytes(4)


def webp(side: int) -> bytes:
    """Lay out a lossless WebP whose header states `side` squared and whose body is nothing."""
    body = b"\x2f" + struct.pack("<I", (side - 1) | ((side - 1) << 14)) + bytes(51)
    piece = b"VP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(piece)) + b"WEBP" + piece


SQUARE = np.zeros((8, 8), dtype=np.uint8)


def many_scans(count: int) -> bytes:
    """Repeat the last scan of a progressive JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)).save(
        buffer, "JPEG", progressive=True
    )
    data = buffer.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + b"\xff\xd9"


def plane_scans(count: int, planes: tuple[Pixels, Pixels, Pixels]) -> bytes:
    """Lay out a JPEG that is not progressive with a scan for each of three planes of colour, the last `count` times."""
    alone = []
    for plane in planes:
        buffer = io.BytesIO()
        Image.fromarray(plane).save(buffer, "JPEG", quality=95)
        alone.append(buffer.getvalue())
    frame, scan = alone[0].index(b"\xff\xc0"), alone[0].index(b"\xff\xda")
    size = alone[0][frame + 5 : frame + 9]
    of_three = b"\xff\xc0\0\x11\x08" + size + b"\x03" + bytes((1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0))
    tables = alone[0][:frame] + of_three + alone[0][frame + 13 : scan]
    scans = [
        b"\xff\xda\0\x08\x01" + bytes((number, 0, 0, 63, 0)) + one[one.index(b"\xff\xda") + 10 : -2]
        for number, one in enumerate(alone, 1)
    ]
    return tables + scans[0] + scans[1] + scans[2] * count + b"\xff\xd9"


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a PNG of 20,000 squared": (lambda: png(20_000, 20_000, 2, zeros(1 << 20)), "limit of 64 million"),
    "a GIF of 60,000 squared": (lambda: b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0) + b";", "limit of|damaged|not an image"),
    "a WebP of 16,383 squared": (lambda: webp(16_383), "limit of 64 million"),
    "a BMP of 30,000 squared": (
        lambda: b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "limit of 64 million",
    ),
    "a PPM of 50,000 squared": (lambda: b"P6 50000 50000 255\n", "limit of 64 million"),
    "a TIFF of one huge tile": (lambda: tiled_tiff(8_208), "tiles of 8208x8208"),
    "a JPEG of 600 scans": (lambda: many_scans(600), "over 500 scans"),
    "a JPEG of 600 scans, not progressive": (lambda: plane_scans(598, (SQUARE,) * 3), "over 500 scans"),
    "a PNG with a text of 200 MB": (
        lambda: png(8, 8, 0, zlib.compress(bytes(72)), chunk(b"zTXt", b"k\0\0" + zeros(200 << 20))),
        "damaged or truncated",
    ),
    "a PNG with a colour profile of 200 MB": (
        lambda: png(8, 8, 0, zlib.compress(bytes(71)), chunk(b"iCCP", b"k\0\0" + zeros(200 << 20))),
        "damaged or truncated",
    ),
}  # fmt: skip


def measured(*arguments: str | Path) -> tuple[list[dict[str, object]], int, str, int]:
    """Run predict in a new process; return its answers, exit code, stderr without the status, and peak megabytes."""
    command = [sys.executable, "-c", MEASURED, "predict", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
    assert peak is not None, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines, done.returncode, re.split(r"^Name:", done.stderr, flags=re.M)[0], int(peak.group(1)) // 1024


def test_bombs_are_refused_within_little_memory(bundle_folder: Path, tmp_path: Path) -> None:
    """Each bomb in a folder is a line with its reason, the good images around them are answered, memory stays low."""
    for number, (make, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.png").write_bytes(make())
    golden = bundle_folder / "goldens" / "000.png"
    _, code, _, alone = measured(bundle_folder, golden)
    assert code == 0
    found, code, _, peak = measured(bundle_folder, golden, tmp_path, golden, "--decode-threads", "3")
    assert code == 2
    assert ["error" in answer for answer in found] == [False, *[True] * len(BOMBS), False]
    for answer, (name, (_, told)) in zip(found[1:-1], BOMBS.items(), strict=True):
        assert re.search(told, str(answer["error"])), (name, answer)
    assert peak < alone + 100, "one of them took the memory it asked for"


def test_the_largest_images_are_taken_one_at_a_time(bundle_folder: Path, tmp_path: Path) -> None:
    """Images of just the limit, which need 64 MB and as RGB 256, are answered, and never two of them at once."""
    side = 8_000
    palette, clear = chunk(b"PLTE", bytes(range(6))), chunk(b"tRNS", b"\x80")
    data = png(side, side, 3, zeros((side + 1) * side), palette, clear)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(data)
    found, code, err, peak = measured(bundle_folder, tmp_path, "--decode-threads", "3")
    assert (code, err.strip()) == (0, "")
    assert [answer["sha256"] for answer in found] == [hashlib.sha256(data).hexdigest()] * 3
    assert peak < 700, "one takes 64 MB decoded, 256 as RGB, 64 in grey; the program 60, what Pillow keeps up to 96"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB with a key", "L with a key"])
def test_strips_do_not_change_what_is_composited(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image composited in strips, the last one cut short, gives the pixels of one composited at once."""
    rng = np.random.default_rng(5)
    buffer = io.BytesIO()
    if mode == "P":
        image = Image.fromarray(rng.integers(0, 200, (37, 29), dtype=np.uint8)).convert("P")
        image.save(buffer, "PNG", transparency=bytes(rng.integers(0, 256, 200, dtype=np.uint8)))
    elif "key" in mode:
        shape = (37, 29, 3) if mode.startswith("RGB") else (37, 29)
        image = Image.fromarray((rng.integers(0, 2, shape) * 99).astype(np.uint8))
        image.save(buffer, "PNG", transparency=(99, 0, 99) if mode.startswith("RGB") else 99)
    else:
        shape = (37, 29, len(mode))
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode).save(buffer, "PNG")
    for wanted in (GREY, COLOUR):
        whole = images.decode(buffer.getvalue(), wanted)
        with monkeypatch.context() as patch:
            patch.setattr(images, "_STRIP", 29 * 5)
            np.testing.assert_array_equal(images.decode(buffer.getvalue(), wanted), whole)
    assert len(np.unique(whole)) > 5


def test_jpegs_of_many_scans_but_not_too_many_are_read() -> None:
    """A progressive JPEG with a few dozen scans is an image like any other."""
    expected = images.decode(many_scans(0), GREY)
    assert images.decode(many_scans(0), GREY).shape == expected.shape == (8, 8, 1)
    data = many_scans(0)
    assert 3 < data.count(b"\xff\xda") < 20


def test_planes_in_scans_of_their_own_are_read() -> None:
    """A JPEG with one scan a plane is those planes; that of one scan for all three is not counted, and these are."""
    rng = np.random.default_rng(1)
    planes = [rng.integers(100, 156, (16, 24), dtype=np.uint8) for _ in range(3)]
    data = plane_scans(1, (planes[0], planes[1], planes[2]))
    with Image.open(io.BytesIO(data)) as image:
        seen = np.asarray(image.convert("YCbCr")).astype(int)
    assert np.abs(seen - np.stack(planes, axis=-1)).mean() < 6  # it is JPEG, after all
    for colours, scans in ((data, False), (jpeg(progressive=False), True), (jpeg(progressive=True), False)):
        with Image.open(io.BytesIO(colours)) as image:
            assert images._in_one_scan(image, colours) == scans


def jpeg(progressive: bool) -> bytes:
    """Encode some colours, with blocks of other things before the first scan in which a marker of one can be read."""
    buffer = io.BytesIO()
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    picture.save(buffer, "JPEG", progressive=progressive, icc_profile=b"\xff\xda\0\x0c\x03" * 300)
    return buffer.getvalue()


def test_pipes_and_devices_are_refused_at_once(bundle_folder: Path, tmp_path: Path) -> None:
    """A pipe that nobody writes to, an endless device and an empty one are lines with their reason; none is waited for."""
    os.mkfifo(tmp_path / "pipe.png")
    places = [tmp_path / "pipe.png", Path("/dev/zero"), Path("/dev/null")]
    golden = bundle_folder / "goldens" / "000.png"
    found, code, _, peak = measured(bundle_folder, *places, golden)
    assert code == 2
    for place, answer in zip(places, found[:-1], strict=True):
        assert str(answer["error"]).startswith(f"{place}: a pipe or device and no file")
    assert found[-1]["path"] == str(golden)
    assert peak < 300


def test_a_pipe_in_a_folder_is_not_looked_at(bundle_folder: Path, tmp_path: Path) -> None:
    """A pipe that is called like an image is not among the images of a folder."""
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((bundle_folder / "goldens" / "000.png").read_bytes())
    found, code, _, _ = measured(bundle_folder, tmp_path)
    assert (code, [answer["path"] for answer in found]) == (0, [str(tmp_path / "b.png")])


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    """A file of ten gigabytes, which takes no room on the disk, is refused by its size."""
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(10 << 30)
    with pytest.raises(ImageError, match=r"big\.png: over the limit of 256 MB for an image"):
        images.read(path)


@pytest.mark.parametrize("stated", [0, 5, 100])
def test_a_file_that_grows_while_it_is_read_is_held_to_the_limit(
    stated: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file is said to hold is not believed, as /proc says nothing and a file may grow: what is read counts."""
    path = tmp_path / "a.png"
    path.write_bytes(bytes(200_000))
    fstat = os.fstat

    def state(descriptor: int) -> os.stat_result:
        fields = list(fstat(descriptor))
        fields[6] = stated
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", state)
    told: list[int] = []
    assert images.read(path, told.append) == bytes(200_000)
    assert told == [stated]
    monkeypatch.setattr(images, "MAX_BYTES", 199_999)
    with pytest.raises(ImageError, match="over the limit"):
        images.read(path)


def test_memory_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image for which memory runs out is called too large, and not damaged."""

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "to_picture", full)
    with pytest.raises(ImageError, match="not enough memory for an image of this size"):
        images.decode(images.encode_png(np.zeros((4, 4, 1), dtype=np.uint8)), GREY, "x")


def test_any_name_is_one_line(bundle_folder: Path, tmp_path: Path) -> None:
    """A name that holds line ends, a terminal's commands or no text at all stays on one line, good or bad."""
    names = (b"two\nlines.png", b"\x1b[31mred.png", b"tab\t.png", b"caf\xe9.png", "a\u202eb.png".encode())
    good, bad = os.fsencode(tmp_path / "good"), os.fsencode(tmp_path / "bad")
    for folder, data in ((good, (bundle_folder / "goldens" / "000.png").read_bytes()), (bad, b"no image")):
        os.mkdir(folder)  # noqa: PTH102 -- pathlib has no bytes
        for name in names:
            with open(folder + b"/" + name, "wb") as file:  # noqa: PTH123
                file.write(data)
    command = [sys.executable, "-m", "edgecnn", "predict", bundle_folder, good, bad]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2
    answers, errors = done.stdout.decode().splitlines(), done.stderr.decode().splitlines()
    assert (len(answers), len(errors)) == (len(names), len(names) + 1), answers + errors
    assert all(line.replace("\t", "").isprintable() for line in answers + errors)
    assert all(len(line.split("\t")) == 2 for line in answers)
    found = subprocess.run([*command, "--json"], capture_output=True, check=False).stdout.splitlines()
    assert ["error" in json.loads(line) for line in found] == [False] * len(names) + [True] * len(names)
