"""Read, write and verify a bundle: a folder, or that folder as a zip, in which every byte is accounted for."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.errors import BundleError, DamagedError, EscapeError, UsageError
from edgecnn.files import folder_atomic
from edgecnn.images import Pixels
from edgecnn.manifest import LARGEST, MANIFEST, FileRecord, Manifest, is_inside, is_manifest, parse_manifest
from edgecnn.spec import Artifact, to_json


@dataclass(frozen=True)
class Goldens:
    """Golden images with their answers; arrays are in the order of `names`.

    `pixels` uint8 (N, H, W, C); `labels` int64 (N,); `logits_float64` and `logits_float32` (N, classes);
    `recorded` maps an artifact's name to the float32 logits it gave where it was exported.
    """

    names: tuple[str, ...]
    encoded: tuple[bytes, ...]
    pixels: Pixels
    labels: npt.NDArray[np.int64]
    logits_float64: npt.NDArray[np.float64]
    logits_float32: npt.NDArray[np.float32]
    recorded: dict[str, npt.NDArray[np.float32]]


class Bundle:
    """An opened bundle; every file is compared with its recorded hash when it is read."""

    def __init__(self, root: Path, manifest: Manifest, holder: Any = None) -> None:
        self.root = root
        self._resolved = os.path.join(os.path.realpath(root), "")  # noqa: PTH118 -- with the separator at its end
        self.manifest = manifest
        self._holder = holder  # keeps an unpacked zip's temporary folder alive

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open a bundle's folder or zip and validate its manifest.

        Raises:
            BundleError: it is not a bundle, or one of its records cannot be trusted; the message says which.
        """
        if path.is_file():
            from edgecnn import archive  # what unpacks zips is not imported for a folder

            if archive.is_archive(path):
                return cls(*archive.unpack(path))
        file = path / MANIFEST
        if not file.is_file():
            what = "is not there" if not path.exists() else f"holds no {MANIFEST}" if path.is_dir() else "is no bundle"
            raise BundleError(f"{path}: {what}; give a folder (or its zip) that `edgecnn export` wrote")
        if file.stat().st_size > LARGEST:
            raise BundleError(f"{file}: over {LARGEST >> 20} MB, which no manifest is")
        bundle = cls(path, parse_manifest(file.read_bytes(), str(file)))
        for name in bundle.manifest.files:
            bundle.path_of(name)
        return bundle

    def path_of(self, name: str) -> Path:
        """Return the path of a file named in the manifest.

        Raises:
            EscapeError: it leads out of the bundle, by its name or through a link.
        """
        try:
            inside = is_inside(name) and os.path.realpath(self.root / name).startswith(self._resolved)
        except (OSError, RuntimeError):  # a link in circles
            inside = False
        if not inside:
            raise EscapeError(f"{self.root}: the manifest names {name!r}, which leaves the bundle; do not use it")
        return self.root / name

    def read(self, name: str) -> bytes:
        """Read one recorded file, whole and verified.

        Raises:
            DamagedError: it is missing, or its size or hash is not what was recorded.
        """
        record, path = self.manifest.files.get(name), self.path_of(name)
        if record is None:
            raise BundleError(f"{self.root}: {name} is not in the manifest")
        try:
            if not path.is_file():
                raise DamagedError(f"{path}: missing; copy the bundle again")
            if path.stat().st_size != record.size:
                raise DamagedError(
                    f"{path}: {path.stat().st_size} bytes, the manifest says {record.size}; copy it again"
                )
            data = path.read_bytes()
        except OSError as error:
            raise DamagedError(f"{path}: cannot be read ({error.strerror}); copy the bundle again") from None
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise DamagedError(f"{path}: the content does not have the recorded SHA-256; copy the bundle again")
        return data

    def verify(self) -> None:
        """Read and hash every file, and refuse files that the manifest does not know."""
        for name in self.manifest.files:
            self.read(name)
        here = {
            file.relative_to(self.root).as_posix()
            for file in self.root.rglob("*")
            if file.is_symlink() or not file.is_dir()
        }
        extra = sorted(here - set(self.manifest.files) - {MANIFEST})
        if extra:
            raise DamagedError(f"{self.root}: holds {', '.join(extra)}, which the manifest does not know; remove it")

    def artifact(self, name: str | None = None) -> Artifact:
        """Return the artifact of this name, or the default one.

        Raises:
            UsageError: there is none of this name.
        """
        name = name or self.manifest.default_artifact
        record = self.manifest.artifacts.get(name)
        if record is None:
            known = ", ".join(self.manifest.artifacts)
            raise UsageError(f"{self.root}: no artifact is called {name!r}; it has {known}")
        return Artifact(
            name=name,
            format=record.format,
            path=self.path_of(record.path),
            precision=record.precision,
            target=record.target,
            sha256=self.manifest.files[record.path].sha256,
        )

    def goldens(self) -> Goldens:
        """Read the golden images and their expected answers.

        Raises:
            DamagedError: the arrays are not those that the manifest describes.
        """
        record = self.manifest.goldens
        try:
            with np.load(io.BytesIO(self.read(record.arrays)), allow_pickle=False) as arrays:
                stored = {name: arrays[name] for name in arrays.files}
            truth = stored["logits_float64"]
            goldens = Goldens(
                names=record.images,
                encoded=tuple(self.read(name) for name in record.images),
                pixels=stored["pixels"],
                labels=np.array(record.labels, dtype=np.int64),
                logits_float64=truth,
                logits_float32=stored["logits_float32"],
                recorded={name[9:]: array for name, array in stored.items() if name.startswith("recorded_")},
            )
        except _unreadable() as error:
            raise DamagedError(f"{self.root / record.arrays}: not the goldens' arrays ({error})") from None
        shape = (len(record.images), len(self.manifest.labels))
        alike = all(array.shape == shape for array in (truth, goldens.logits_float32, *goldens.recorded.values()))
        types = (
            goldens.pixels.dtype,
            truth.dtype,
            *(array.dtype for array in (goldens.logits_float32, *goldens.recorded.values())),
        )
        if types != ("uint8", "float64", *["float32"] * (len(types) - 2)):
            raise DamagedError(f"{self.root / record.arrays}: the arrays are not uint8 pixels and float logits")
        if not alike or goldens.pixels.shape != (shape[0], *self.manifest.preprocess.shape):
            raise DamagedError(f"{self.root / record.arrays}: the arrays do not have the shapes of {shape[0]} goldens")
        if not all(np.isfinite(array).all() for array in (truth, goldens.logits_float32, *goldens.recorded.values())):
            raise DamagedError(
                f"{self.root / record.arrays}: holds logits that are not finite; export the bundle again"
            )
        return goldens


class BundleWriter:
    """Collects files in a temporary folder; `finish` writes the manifest with the hash of each."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, name: str, data: bytes) -> str:
        """Write one file and return its name in the bundle."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return name

    def files(self) -> dict[str, FileRecord]:
        """Hash all that was written so far."""
        names = sorted(path for path in self.root.rglob("*") if path.is_file() and path.name != MANIFEST)
        return {
            path.relative_to(self.root).as_posix(): FileRecord(
                size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
            )
            for path in names
        }

    def finish(self, manifest: Manifest) -> Bundle:
        """Write the manifest and read the bundle back, whole."""
        (self.root / MANIFEST).write_bytes(to_json(manifest))
        bundle = Bundle.open(self.root)
        bundle.verify()
        bundle.goldens()
        return bundle


@contextmanager
def create_bundle(path: Path) -> Iterator[BundleWriter]:
    """Write a bundle beside `path` and put it there only when the block ends well.

    Raises:
        UsageError: something that is not a bundle is there already.
    """
    if path.name in ("", ".."):
        raise UsageError(f"{path}: cannot be replaced by a bundle; name a folder to write")
    if path.exists() and not _is_bundle(path) and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path}: exists and is not a bundle, so it will not be replaced; choose another folder")
    with folder_atomic(path) as temporary:
        yield BundleWriter(temporary)


def _unreadable() -> tuple[type[Exception], ...]:
    from edgecnn.archive import UNREADABLE

    return UNREADABLE


def _is_bundle(path: Path) -> bool:
    file = path / MANIFEST
    return file.is_file() and is_manifest(file.read_bytes())
