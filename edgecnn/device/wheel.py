"""The wheel of the edgecnn that runs here, made without a build, a network or its sources: what is installed is packed.

An editable install is packed too, as its files are now (Binary distribution format, packaging.python.org).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from email.parser import HeaderParser
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from edgecnn.errors import UsageError

PACKAGES = ("edgecnn", "edgecnn_exporters")
WHEEL = "Wheel-Version: 1.0\nGenerator: edgecnn\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_THEN = (1980, 1, 1, 0, 0, 0)  # the same files give the same wheel


def pack_wheel(folder: Path) -> Path:
    """Write the wheel into a folder and return its path.

    Raises:
        UsageError: edgecnn runs from files that no installation describes.
    """
    try:
        distribution = metadata.distribution("edgecnn")
    except metadata.PackageNotFoundError:
        raise UsageError("edgecnn is not installed here, so there is nothing to pack: give --wheel") from None
    about = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO")
    entries = distribution.read_text("entry_points.txt")
    if not about or not entries:
        raise UsageError("this installation of edgecnn does not describe itself, so it cannot be packed: give --wheel")
    stem = f"edgecnn-{distribution.version}"
    files = dict(_modules())
    info = {"METADATA": about, "WHEEL": WHEEL, "entry_points.txt": entries, "top_level.txt": "\n".join(PACKAGES) + "\n"}
    files |= {f"{stem}.dist-info/{name}": text.encode() for name, text in info.items()}
    files |= {f"{stem}.dist-info/licenses/{name}": data for name, data in _licences(distribution)}
    files[f"{stem}.dist-info/RECORD"] = _record(files, f"{stem}.dist-info/RECORD")
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _THEN)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return path


def chosen_extras(wheel: Path, asked: str, signed: bool = False) -> str:
    """Hold extras to those that a wheel of edgecnn offers, in one order; `signed` adds the one that checks signatures.

    Raises:
        UsageError: the file is no wheel, or has no such extra.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            about = HeaderParser().parsestr(archive.read(name).decode())
    except (
        OSError,
        StopIteration,
        UnicodeDecodeError,
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
    ):  # also if encrypted
        raise UsageError(f"{wheel}: is no wheel; give one that `pip wheel --no-deps` made") from None
    offered = about.get_all("Provides-Extra") or []
    wanted = {word.strip() for word in asked.split(",")} - {""}
    unknown = sorted(wanted - set(offered))
    if unknown:
        raise UsageError(f"{wheel.name} has no extra {unknown[0]!r}; it has {', '.join(offered) or 'none'}")
    return ",".join(sorted(wanted | ({"sign"} & set(offered) if signed else set())))


def _modules() -> Iterator[tuple[str, bytes]]:
    """Read the packages where Python finds them."""
    for package in PACKAGES:
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(place).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    yield f"{package}/{path.relative_to(place).as_posix()}", path.read_bytes()


def _licences(distribution: metadata.Distribution) -> Iterator[tuple[str, bytes]]:
    """Read the licence where the installation has it, or else beside the sources, from which it runs then."""
    found = [file for file in distribution.files or () if file.parent.name == "licenses"]
    for file in found:
        yield file.name, file.read_binary()
    beside = Path(__file__).parents[2] / "LICENSE"
    if not found and beside.is_file():
        yield beside.name, beside.read_bytes()


def _record(files: dict[str, bytes], own: str) -> bytes:
    """List every file with its hash, RECORD itself without one."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.writerow([name, f"sha256={digest}", len(data)])
    lines.writerow([own, "", ""])
    return out.getvalue().encode()
