"""Read, write and verify a bundle: a folder, or that folder as a zip, in which every byte is accounted for."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecnn import signing
from edgecnn.errors import BundleError, DamagedError, EscapeError, SignatureError, UsageError
from edgecnn.files import folder_atomic, write_atomic
from edgecnn.images import Pixels
from edgecnn.manifest import (
    LARGEST,
    LARGEST_FILE,
    MANIFEST,
    SIGNATURE,
    FileRecord,
    Manifest,
    is_inside,
    is_manifest,
    parse_manifest,
)
from edgecnn.spec import Artifact, to_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_CHUNK = 1 << 20
_SLACK = 1 << 20  # bytes that the goldens' arrays may take beyond their numbers
_LISTED = 5  # of the files that are too many


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
    """An opened bundle; every file is compared with its recorded hash when it is read.

    `signer` is the fingerprint of the key whose signature was asked for and found good, None where none was asked for.
    `where` is what messages name: the folder, which is `root` too, or the zip that is unpacked into `root`, of which `unknown`
    is what it holds besides that its manifest does not name.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        holder: Any = None,
        signer: str | None = None,
        unknown: Sequence[str] = (),
        where: Path | None = None,
    ) -> None:
        self.root = root
        self.where, self._unknown = where or root, unknown
        self._resolved = os.path.join(os.path.realpath(root), "")  # noqa: PTH118 -- with the separator at its end
        self.manifest = manifest
        self.signer = signer
        self._holder = holder  # keeps an unpacked zip's temporary folder alive

    @classmethod
    def open(cls, path: Path, key: Path | None = None) -> Bundle:
        """Open a bundle's folder or zip and validate its manifest.

        With a public `key` the manifest must be signed by it, and then every file be there as signed and no other.

        Raises:
            BundleError: it is not a bundle, or one of its records cannot be trusted; the message says which.
            SignatureError: it is not what the key's owner signed.
            UsageError: the key cannot be used.
            MissingPackageError: a key is given and cryptography is not installed.
        """
        bundle = cls._of_zip(path, key) if path.is_file() else None
        bundle = bundle or cls._of_folder(path, key)
        for name, record in bundle.manifest.files.items():
            bundle.path_of(name)
            if record.size > LARGEST_FILE:
                raise BundleError(f"{path}: {name} is over {LARGEST_FILE >> 30} GB, which no file of a bundle is")
        if key is not None:
            bundle.verify()
        return bundle

    @classmethod
    def _of_zip(cls, path: Path, key: Path | None) -> Bundle | None:
        from edgecnn import archive  # what unpacks zips is not imported for a folder

        return cls(*archive.unpack(path, key), where=path) if archive.is_archive(path) else None

    @classmethod
    def _of_folder(cls, path: Path, key: Path | None) -> Bundle:
        file = path / MANIFEST
        signed = key is not None
        data = _read_own(path, MANIFEST, LARGEST, signed)
        if data is None:
            kind = SignatureError if signed and path.is_dir() else BundleError
            what = "is not there" if not path.exists() else f"holds no {MANIFEST}" if path.is_dir() else "is no bundle"
            raise kind(f"{path}: {what}; give a folder (or its zip) that `edgecnn export` wrote")
        if len(data) > LARGEST:
            raise BundleError(f"{file}: over {LARGEST >> 20} MB, which no manifest is")
        signer = None
        if key is not None:  # before anything that the manifest says is believed
            signer = signing.check(data, _read_own(path, SIGNATURE, signing.LARGEST, signed), key, str(path))
        return cls(path, parse_manifest(data, str(file)), signer=signer)

    @property
    def claimed_signer(self) -> str | None:
        """The fingerprint of the key that the signature's file names, unchecked; None where there is no such file."""
        return signing.claimed(_read_own(self.root, SIGNATURE, signing.LARGEST))

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
            raise self._kind(EscapeError)(
                f"{self.where}: the manifest names {name!r}, which leaves the bundle; do not use it"
            )
        return self.root / name

    def read(self, name: str) -> bytes:
        """Read one recorded file, whole and verified.

        Raises:
            DamagedError: it is missing, or its size or hash is not what was recorded.
        """
        return b"".join(self._chunks(name))

    def verify(self) -> None:
        """Read and hash every file, a piece at a time, and refuse files that the manifest does not know.

        Raises:
            DamagedError: a file is not what was recorded, missing, or one too many; a SignatureError, which is one, where a
                signature was asked for.
        """
        for name in self.manifest.files:
            for _ in self._chunks(name):
                pass
        _read_own(self.root, SIGNATURE, 0, self.signer is not None)  # a link in its place is refused
        known = {*self.manifest.files, MANIFEST, SIGNATURE}
        extra = [
            *self._unknown,
            *(
                name
                for file in self.root.rglob("*")
                if (file.is_symlink() or not file.is_dir())
                and ((name := file.relative_to(self.root).as_posix()) not in known)
            ),
        ]
        if extra:
            more = f" and {len(extra) - _LISTED} more" if len(extra) > _LISTED else ""
            raise self._kind(DamagedError)(
                f"{self.where}: holds {', '.join(sorted(extra)[:_LISTED])}{more}, which the manifest does not know; remove it"
            )

    def _chunks(self, name: str) -> Iterator[bytes]:
        """Read a recorded file in pieces; whoever takes them all knows then that they are the file that was recorded."""
        record, path, damaged = self.manifest.files.get(name), self.path_of(name), self._kind(DamagedError)
        where = self.where / name
        if record is None:
            raise BundleError(f"{self.where}: {name} is not in the manifest")
        try:
            if not path.is_file():
                raise damaged(f"{where}: missing; copy the bundle again")
            size = path.stat().st_size
            if size != record.size:
                raise damaged(f"{where}: {size} bytes, the manifest says {record.size}; copy it again")
            digest, left = hashlib.sha256(), record.size
            with path.open("rb") as file:
                while left and (chunk := file.read(min(left, _CHUNK))):
                    digest.update(chunk)
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise damaged(f"{where}: {_unreadable(error)}") from None
        if digest.hexdigest() != record.sha256:
            raise damaged(f"{where}: the content does not have the recorded SHA-256; copy the bundle again")

    def _kind(self, error: type[BundleError]) -> type[BundleError]:
        """Where a signature was asked for, whatever differs from what was signed is one thing: not what was signed."""
        return SignatureError if self.signer is not None else error

    def artifact(self, name: str | None = None) -> Artifact:
        """Return the artifact of this name, or the default one.

        Raises:
            UsageError: there is none of this name.
        """
        name = name or self.manifest.default_artifact
        record = self.manifest.artifacts.get(name)
        if record is None:
            known = ", ".join(self.manifest.artifacts)
            raise UsageError(f"{self.where}: no artifact is called {name!r}; it has {known}")
        return Artifact(
            name=name,
            format=record.format,
            path=self.path_of(record.path),
            precision=record.precision,
            target=record.target,
            sha256=self.manifest.files[record.path].sha256,
            size=self.manifest.files[record.path].size,
        )

    def goldens(self) -> Goldens:
        """Read the golden images and their expected answers.

        Raises:
            DamagedError: the arrays are not those that the manifest describes.
        """
        from edgecnn.archive import UNREADABLE, read_arrays

        record = self.manifest.goldens
        shape = (len(record.images), len(self.manifest.labels))
        # Pixels, the truth in two precisions, and what each artifact answered, in float32.
        wanted = shape[0] * math.prod(self.manifest.preprocess.shape)
        wanted += (8 + 4 + 4 * len(self.manifest.artifacts)) * math.prod(shape)
        try:
            stored = read_arrays(self.read(record.arrays), wanted + _SLACK)
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
        except UNREADABLE as error:
            raise DamagedError(f"{self.where / record.arrays}: not the goldens' arrays ({error})") from None
        alike = all(array.shape == shape for array in (truth, goldens.logits_float32, *goldens.recorded.values()))
        types = (
            goldens.pixels.dtype,
            truth.dtype,
            *(array.dtype for array in (goldens.logits_float32, *goldens.recorded.values())),
        )
        if types != ("uint8", "float64", *["float32"] * (len(types) - 2)):
            raise DamagedError(f"{self.where / record.arrays}: the arrays are not uint8 pixels and float logits")
        if not alike or goldens.pixels.shape != (shape[0], *self.manifest.preprocess.shape):
            raise DamagedError(f"{self.where / record.arrays}: the arrays do not have the shapes of {shape[0]} goldens")
        if not all(np.isfinite(array).all() for array in (truth, goldens.logits_float32, *goldens.recorded.values())):
            raise DamagedError(
                f"{self.where / record.arrays}: holds logits that are not finite; export the bundle again"
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
        own = (self.root / MANIFEST, self.root / SIGNATURE)
        names = sorted(path for path in self.root.rglob("*") if path.is_file() and path not in own)
        return {
            path.relative_to(self.root).as_posix(): FileRecord(
                size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
            )
            for path in names
        }

    def finish(self, manifest: Manifest, key: Ed25519PrivateKey | None = None) -> Bundle:
        """Write the manifest, with its signature where there is a key, and read the bundle back, whole."""
        data = to_json(manifest)
        (self.root / MANIFEST).write_bytes(data)
        if key is not None:
            (self.root / SIGNATURE).write_bytes(signing.sign(data, key))
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


def sign_bundle(path: Path, key: Path) -> str:
    """Sign a bundle's folder, after it was verified whole, in place of a signature that it has; return the key's fingerprint.

    Raises:
        UsageError: it is a zip, or the key cannot be used.
        BundleError: it is not a bundle, or a file is not what the manifest recorded.
        MissingPackageError: cryptography is not installed.
    """
    private = signing.read_private(key)
    if path.is_file():
        raise UsageError(f"{path}: is a file; unpack it, sign the folder, and zip that")
    bundle = Bundle.open(path)
    bundle.verify()
    data = _read_own(path, MANIFEST, LARGEST)
    write_atomic(path / SIGNATURE, signing.sign(data or b"", private))
    return signing.fingerprint(private.public_key())


def _read_own(root: Path, name: str, largest: int, signed: bool = False) -> bytes | None:
    """Read a file at a bundle's top, at most one byte more than `largest`; None where there is no such file.

    Raises:
        EscapeError: it is a link; a SignatureError where a signature is asked for (`signed`).
        DamagedError: it cannot be read.
    """
    path = root / name
    try:
        if os.path.realpath(path) != os.path.join(os.path.realpath(root), name):  # noqa: PTH118 -- a cheap join
            if not path.is_file():
                return None
            raise (SignatureError if signed else EscapeError)(
                f"{path}: is a link, which is not followed; do not use this bundle"
            )
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            return file.read(largest + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedError(f"{path}: {_unreadable(error)}") from None


def _unreadable(error: OSError) -> str:
    advice = (
        "give the person who runs this the right to read it"
        if isinstance(error, PermissionError)
        else "copy the bundle again"
    )
    return f"cannot be read ({error.strerror}); {advice}"


def _is_bundle(path: Path) -> bool:
    file = path / MANIFEST
    return file.is_file() and is_manifest(file.read_bytes())
