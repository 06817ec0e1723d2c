"""Signatures of bundles: Ed25519 (RFC 8032) over the manifest, which holds the hash of every other file.

What is signed is `PREFIX` and then the bytes of `manifest.json` as they are, so that a signature made for anything else is
none of a bundle. The signature lies beside the manifest, as JSON: the key's fingerprint, which is the one `ssh-keygen -lf`
shows, the manifest's SHA-256, by which a changed manifest is told from a damaged signature, and the signature in base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from edgecnn.errors import MissingPackageError, SignatureError, UsageError
from edgecnn.spec import Frozen, to_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PREFIX = b"edgecnn bundle manifest v1\n"
LARGEST = 1 << 16  # bytes of a signature's file, and of a key's
PASSWORD = "EDGECNN_KEY_PASSWORD"
INSTALL = "pip install 'edgecnn[sign]'"
_MAKE = "`openssl genpkey -algorithm ed25519` or `ssh-keygen -t ed25519` makes one"
_PUBLIC = "`openssl pkey -in KEY -pubout` gives the public half"


class Signature(Frozen, frozen=True):
    """The content of `manifest.json.sig`; `signature` is 64 bytes in base64."""

    schema_version: Literal[1]
    algorithm: Literal["ed25519"]
    key: Annotated[str, msgspec.Meta(pattern="^SHA256:[A-Za-z0-9+/]{43}$")]
    manifest_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    signature: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9+/=]{88}$")]


def sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """Sign a manifest's bytes and give the content of the signature's file."""
    return to_json(
        Signature(
            schema_version=1,
            algorithm="ed25519",
            key=fingerprint(key.public_key()),
            manifest_sha256=hashlib.sha256(manifest).hexdigest(),
            signature=base64.b64encode(key.sign(PREFIX + manifest)).decode(),
        )
    )


def check(manifest: bytes, signature: bytes | None, key: Path, where: str) -> str:
    """Hold a manifest's bytes to its signature and a public key, and return the key's fingerprint.

    `signature` is the content of the signature's file, None where there is none; `where` names the bundle.

    Raises:
        SignatureError: there is no signature, it is damaged, by another key, or of another manifest.
        UsageError: the key cannot be used.
        MissingPackageError: cryptography is not installed.
    """
    public = read_public(key)
    ours = fingerprint(public)
    if signature is None:
        raise SignatureError(f"{where}: is not signed, and a signature by {ours} is asked for; do not use it")
    stated = _parse(signature, where)
    fits = _fits(public, stated.signature, manifest)
    if fits and (stated.key, stated.manifest_sha256) == (ours, hashlib.sha256(manifest).hexdigest()):
        return ours
    if not fits and stated.key != ours:
        raise SignatureError(f"{where}: is signed by another key, {stated.key}, not by {ours} ({key}); do not use it")
    if not fits and stated.manifest_sha256 != hashlib.sha256(manifest).hexdigest():
        raise SignatureError(f"{where}: its manifest is not the one that {ours} signed: it was changed; do not use it")
    raise SignatureError(f"{where}: its signature is damaged; copy the bundle again")


def claimed(signature: bytes | None) -> str | None:
    """Say which key a signature's file names, unchecked; None where there is no such file, or no reading it."""
    try:
        return None if signature is None else msgspec.json.decode(signature, type=Signature).key
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def fingerprint(key: Ed25519PublicKey) -> str:
    """Give a key's fingerprint as OpenSSH writes it: SHA-256, in base64, of the key in the form of RFC 8709."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def read_private(path: Path) -> Ed25519PrivateKey:
    """Read a private Ed25519 key, PEM (PKCS #8) or OpenSSH's; one with a password wants it in `EDGECNN_KEY_PASSWORD`.

    Raises:
        UsageError: it cannot be read, or is something else.
        MissingPackageError: cryptography is not installed.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    data = _read(path)
    if b"PRIVATE KEY-----" not in data:
        raise UsageError(f"{path}: is no private key; signing needs one ({_MAKE})")
    load = load_ssh_private_key if b"BEGIN OPENSSH" in data else load_pem_private_key
    password = os.environ.get(PASSWORD, "").encode() or None
    key: Ed25519PrivateKey = _loaded(path, load, (data, password), Ed25519PrivateKey)
    return key


def read_public(path: Path) -> Ed25519PublicKey:
    """Read a public Ed25519 key, PEM or OpenSSH's line.

    Raises:
        UsageError: it cannot be read, or is something else: a private key, too, which has no business where bundles are checked.
        MissingPackageError: cryptography is not installed.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

    data = _read(path)
    if b"PRIVATE KEY-----" in data:
        raise UsageError(f"{path}: is a private key, which stays where bundles are signed; {_PUBLIC}")
    load = load_ssh_public_key if data.startswith(b"ssh-") else load_pem_public_key
    key: Ed25519PublicKey = _loaded(path, load, (data,), Ed25519PublicKey)
    return key


def _loaded(path: Path, load: Any, arguments: tuple[Any, ...], kind: type[Any]) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        key = load(*arguments)
    except TypeError:  # cryptography's word for a password that is missing, or that none was needed
        wanted = "has a password: put it into" if PASSWORD not in os.environ else "has no password: unset"
        raise UsageError(f"{path}: the key {wanted} {PASSWORD}") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path}: is no key that can be read ({error}); {_MAKE}") from None
    if not isinstance(key, kind):
        raise UsageError(f"{path}: is a key of another kind; bundles are signed with Ed25519 ({_MAKE})")
    return key


def _fits(public: Ed25519PublicKey, signature: str, manifest: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(base64.b64decode(signature, validate=True), PREFIX + manifest)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _parse(data: bytes, where: str) -> Signature:
    try:
        return msgspec.json.decode(data, type=Signature)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SignatureError(f"{where}: its signature is damaged ({error}); copy the bundle again") from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{path}: the key cannot be read ({error.strerror})") from None
    if len(data) > LARGEST:
        raise UsageError(f"{path}: is no key, for it is over {LARGEST >> 10} kB")
    return data


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401 -- only whether it is there
    except ModuleNotFoundError:
        raise MissingPackageError(f"signatures need cryptography, which is not installed here: {INSTALL}") from None
