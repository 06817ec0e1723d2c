"""Signatures of bundles: what is signed, by which keys, and that nothing which differs from it passes for it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from small_bundle import contents, describe, pack, write

from edgecnn import signing
from edgecnn.bundle import Bundle, sign_bundle
from edgecnn.cli import cli
from edgecnn.errors import DamagedError, SignatureError, UsageError
from edgecnn.manifest import MANIFEST, SIGNATURE

PEM, RAW = serialization.Encoding.PEM, serialization.NoEncryption()
PKCS8, SPKI = serialization.PrivateFormat.PKCS8, serialization.PublicFormat.SubjectPublicKeyInfo


def program(name: str) -> str:
    """Find a program, which continuous integration has to have."""
    found = shutil.which(name)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not on the PATH")
    return str(found)


def call(*command: object, **more: Any) -> str:
    return subprocess.run([str(one) for one in command], check=True, capture_output=True, text=True, **more).stdout


def make_key(folder: Path, name: str) -> Path:
    """Write NAME.pem and NAME.pub and return the former."""
    key = ed25519.Ed25519PrivateKey.generate()
    (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(PEM, SPKI))
    (folder / f"{name}.pem").write_bytes(key.private_bytes(PEM, PKCS8, RAW))
    return folder / f"{name}.pem"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Return a private key, the public half of which lies beside it."""
    return make_key(tmp_path, "release")


@pytest.fixture
def signed(tmp_path: Path, key: Path) -> Path:
    """Return the folder of a small bundle, signed by `key`."""
    folder = write(tmp_path / "small")
    sign_bundle(folder, key)
    return folder


def verify(bundle: Path, public: Path) -> Result:
    return CliRunner().invoke(cli, ["verify", str(bundle), "--key", str(public)])


def public_of(key: Path) -> Path:
    return key.with_suffix(".pub")


# Against programs that are not ours


def test_openssl_verifies_what_was_signed(tmp_path: Path, signed: Path, key: Path) -> None:
    """OpenSSL finds the signature good over the prefix and the manifest's bytes, and bad over any other bytes."""
    stored = json.loads((signed / SIGNATURE).read_text())
    (tmp_path / "sig").write_bytes(base64.b64decode(stored["signature"]))
    (tmp_path / "message").write_bytes(b"edgecnn bundle manifest v1\n" + (signed / MANIFEST).read_bytes())
    command = [program("openssl"), "pkeyutl", "-verify", "-pubin", "-inkey", public_of(key), "-rawin", "-in", tmp_path / "message", "-sigfile", tmp_path / "sig"]  # fmt: skip
    assert "Signature Verified Successfully" in call(*command)
    (tmp_path / "message").write_bytes((signed / MANIFEST).read_bytes())
    with pytest.raises(subprocess.CalledProcessError):
        call(*command)


def test_what_openssl_signed_is_good(tmp_path: Path) -> None:
    """Keys and a signature that OpenSSL made, put beside the manifest by hand, are found good."""
    openssl, folder = program("openssl"), write(tmp_path / "small")
    private, public = tmp_path / "k.pem", tmp_path / "k.pub"
    call(openssl, "genpkey", "-algorithm", "ed25519", "-out", private)
    call(openssl, "pkey", "-in", private, "-pubout", "-out", public)
    manifest = (folder / MANIFEST).read_bytes()
    (tmp_path / "message").write_bytes(b"edgecnn bundle manifest v1\n" + manifest)
    call(openssl, "pkeyutl", "-sign", "-inkey", private, "-rawin", "-in", tmp_path / "message", "-out", tmp_path / "sig")  # fmt: skip
    digest = call(openssl, "dgst", "-sha256", "-r", folder / MANIFEST).split()[0]
    signature = {
        "schema_version": 1,
        "algorithm": "ed25519",
        "key": signing.fingerprint(signing.read_public(public)),
        "manifest_sha256": digest,
        "signature": base64.b64encode((tmp_path / "sig").read_bytes()).decode(),
    }
    (folder / SIGNATURE).write_text(json.dumps(signature))
    assert Bundle.open(folder, public).signer == signature["key"]


def test_keys_of_openssh(tmp_path: Path) -> None:
    """A key that ssh-keygen made signs and verifies as it is, and its fingerprint is the one that ssh-keygen shows."""
    keygen, folder = program("ssh-keygen"), write(tmp_path / "small")
    call(keygen, "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id", "-C", "release")
    shown = call(keygen, "-lf", tmp_path / "id.pub").split()[1]
    assert sign_bundle(folder, tmp_path / "id") == shown
    assert Bundle.open(folder, tmp_path / "id.pub").signer == shown
    pem = signing.read_public(tmp_path / "id.pub").public_bytes(PEM, SPKI)
    (tmp_path / "id.pem").write_bytes(pem)
    assert Bundle.open(folder, tmp_path / "id.pem").signer == shown


# What differs from what was signed


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place if place >= 0 else len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def unsign(folder: Path) -> None:
    (folder / SIGNATURE).unlink()


def spoil_signature(document: dict[str, Any]) -> None:
    raw = bytearray(base64.b64decode(document["signature"]))
    raw[7] ^= 1
    document["signature"] = base64.b64encode(raw).decode()


def replace_by_link(folder: Path) -> None:
    (folder / "net.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "net.onnx").symlink_to(folder.parent / "elsewhere.onnx")


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "artifact": (lambda folder: flip(folder / "net.onnx"), r"net\.onnx: the content does not have the recorded SHA-256"),
    "longer": (lambda folder: (folder / "labels.txt").write_bytes(b"x" * 99), r"labels\.txt: 99 bytes, the manifest says"),
    "added": (lambda folder: (folder / "extra.bin").write_bytes(b"x"), r"holds extra\.bin, which the manifest does not know"),
    "removed": (lambda folder: (folder / "goldens/001.png").unlink(), r"goldens/001\.png: missing"),
    "linked": (replace_by_link, r"names 'net\.onnx', which leaves the bundle"),
    "manifest": (lambda folder: edit(folder / MANIFEST, lambda it: it.update(name="other")), "its manifest is not the one that SHA256:"),
    "no manifest": (lambda folder: (folder / MANIFEST).write_bytes(b"{"), "its manifest is not the one that SHA256:"),
    "manifest removed": (lambda folder: (folder / MANIFEST).unlink(), r"holds no manifest\.json"),
    "unsigned": (unsign, "is not signed, and a signature by SHA256:"),
    "signature": (lambda folder: edit(folder / SIGNATURE, spoil_signature), "its signature is damaged; copy"),
    "no signature": (lambda folder: (folder / SIGNATURE).write_bytes(b"x" * 70_000), r"its signature is damaged \("),
    "cut": (lambda folder: (folder / SIGNATURE).write_bytes((folder / SIGNATURE).read_bytes()[:-9]), r"its signature is damaged \("),
    "key": (lambda folder: sign_bundle(folder, make_key(folder.parent, "other")), "is signed by another key, SHA256:"),
    "hash": (lambda folder: edit(folder / SIGNATURE, lambda it: it.update(manifest_sha256="0" * 64)), "its signature is damaged; copy"),
    "signature linked": (
        lambda folder: ((folder / SIGNATURE).rename(folder.parent / "s"), (folder / SIGNATURE).symlink_to(folder.parent / "s")),
        r"manifest\.json\.sig: is a link",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_whatever_differs_is_refused(signed: Path, key: Path, name: str) -> None:
    """Each thing that may differ from what was signed has its own message and exit code 3, and nothing is run."""
    assert Bundle.open(signed, public_of(key)).signer, "what is spoilt was good"
    spoil, message = FAULTS[name]
    spoil(signed)
    found = verify(signed, public_of(key))
    assert found.exit_code == 3, found.output
    assert not found.stdout
    assert len(found.stderr.strip().splitlines()) == 1
    with pytest.raises(SignatureError, match=message):
        Bundle.open(signed, public_of(key))


@pytest.mark.parametrize("name", [*contents(), MANIFEST])
def test_no_byte_can_change(signed: Path, key: Path, name: str) -> None:
    """A bit changed at the beginning, in the middle or at the end of any file is refused, also by who only reads."""
    size = len((signed / name).read_bytes())
    for place in (0, size // 2, size - 1):
        flip(signed / name, place)
        with pytest.raises(SignatureError):
            Bundle.open(signed, public_of(key))
        flip(signed / name, place)
    assert Bundle.open(signed, public_of(key)).signer


def test_damage_after_opening_is_no_lesser_fault(signed: Path, key: Path) -> None:
    """A file that is changed after the signature was checked is refused when it is read, in the same way."""
    bundle = Bundle.open(signed, public_of(key))
    flip(signed / "net.onnx")
    with pytest.raises(SignatureError):
        bundle.read("net.onnx")
    with pytest.raises(DamagedError) as plain:
        Bundle.open(signed).read("net.onnx")
    assert plain.value.exit_code == 2, "where no signature was asked for, damage is what it was"


def test_a_signature_for_something_else_is_none(signed: Path, key: Path) -> None:
    """A signature over the manifest's bare bytes, as any other use of the key might make one, is refused."""
    bare = signing.read_private(key).sign((signed / MANIFEST).read_bytes())
    edit(signed / SIGNATURE, lambda document: document.update(signature=base64.b64encode(bare).decode()))
    with pytest.raises(SignatureError, match="damaged"):
        Bundle.open(signed, public_of(key))


def test_a_good_manifest_of_another_bundle_is_refused(tmp_path: Path, signed: Path, key: Path) -> None:
    """The signature of another bundle by the same key does not pass here."""
    document = describe(contents())
    other = write(tmp_path / "other", manifest={**document, "name": "older"})
    sign_bundle(other, key)
    shutil.copy(other / SIGNATURE, signed / SIGNATURE)
    with pytest.raises(SignatureError, match="its manifest is not the one that"):
        Bundle.open(signed, public_of(key))


# Zips


def zipped(folder: Path, path: Path) -> Path:
    return pack(
        path, {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
    )


def test_a_zip_keeps_the_signature(signed: Path, key: Path, tmp_path: Path) -> None:
    """The zip of a signed folder is as good as the folder, and one with a changed file is refused."""
    good = Bundle.open(zipped(signed, tmp_path / "x.zip"), public_of(key))
    assert good.signer == Bundle.open(signed, public_of(key)).signer
    assert (good.root / MANIFEST).read_bytes() == (signed / MANIFEST).read_bytes()
    flip(signed / "net.onnx")
    assert verify(zipped(signed, tmp_path / "y.zip"), public_of(key)).exit_code == 3


def test_an_unsigned_zip_is_not_unpacked(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a signature is asked for, nothing of a zip without a good one is written to the disk."""
    path = zipped(write(tmp_path / "small"), tmp_path / "x.zip")
    written: list[Path] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    remove = tempfile.TemporaryDirectory.cleanup

    def look(self: tempfile.TemporaryDirectory[str]) -> None:
        written.extend(Path(self.name).rglob("*"))
        remove(self)

    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", look)
    with pytest.raises(SignatureError, match="is not signed"):
        Bundle.open(path, public_of(key))
    assert not written


# The command that signs


def test_signing_leaves_the_bundle_as_it_is(tmp_path: Path, key: Path) -> None:
    """`edgecnn sign` adds the signature and changes nothing else, and a second key's takes the first one's place."""
    folder = write(tmp_path / "small")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = CliRunner().invoke(cli, ["sign", str(folder), str(key)])
    assert done.exit_code == 0, done.output
    first = signing.fingerprint(signing.read_public(public_of(key)))
    assert f"signed by {first}" in done.stdout
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == {folder / SIGNATURE}
    assert Bundle.open(folder).claimed_signer == first
    Bundle.open(folder).verify()
    second = make_key(tmp_path, "second")
    sign_bundle(folder, second)
    assert Bundle.open(folder, public_of(second)).signer != first


def test_a_damaged_bundle_is_not_signed(tmp_path: Path, key: Path) -> None:
    """Whoever signs vouches for every file, so that one which is not what the manifest says keeps the bundle unsigned."""
    folder = write(tmp_path / "small")
    flip(folder / "net.onnx")
    with pytest.raises(DamagedError, match=r"net\.onnx"):
        sign_bundle(folder, key)
    assert not (folder / SIGNATURE).exists()


def test_a_zip_is_not_signed(tmp_path: Path, key: Path) -> None:
    """A zip is not changed: its folder is what can be signed."""
    with pytest.raises(UsageError, match="unpack it, sign the folder"):
        sign_bundle(zipped(write(tmp_path / "small"), tmp_path / "x.zip"), key)


def test_the_manifest_cannot_list_its_own_signature(tmp_path: Path, key: Path) -> None:
    """A manifest that lists itself or its signature, whose hash it could not know, is refused."""
    for name in (MANIFEST, SIGNATURE):
        document = describe(contents())
        document["files"][name] = {"size": 1, "sha256": "0" * 64}
        with pytest.raises(Exception, match="cannot be one of the files"):
            Bundle.open(write(tmp_path / name, manifest=document))


def wrong_keys(folder: Path) -> dict[str, tuple[Path, str]]:
    """Write keys that cannot sign, and say how each is refused."""
    curve = ec.generate_private_key(ec.SECP256R1()).private_bytes(PEM, PKCS8, RAW)
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(
        PEM, PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    content = {
        "curve": (curve, "a key of another kind"),
        "locked": (locked, "has a password: put it into EDGECNN_KEY_PASSWORD"),
        "public": (public_of(make_key(folder, "p")).read_bytes(), "is no private key"),
        "text": (b"hello", "is no private key"),
        "broken": (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "is no key that can be read"),
        "huge": (b"x" * 70_000, "is over 64 kB"),
    }
    for name, (data, _) in content.items():
        (folder / name).write_bytes(data)
    return {name: (folder / name, message) for name, (_, message) in content.items()}


@pytest.mark.parametrize("name", ["curve", "locked", "public", "text", "broken", "huge"])
def test_keys_that_cannot_sign(tmp_path: Path, name: str) -> None:
    """What is no private Ed25519 key is the user's mistake, in one line, and the bundle stays unsigned."""
    folder = write(tmp_path / "small")
    path, message = wrong_keys(tmp_path)[name]
    done = CliRunner().invoke(cli, ["sign", str(folder), str(path)])
    assert done.exit_code == 2
    assert message in done.stderr
    assert str(path) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / SIGNATURE).exists()


def test_a_key_with_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A locked key opens with the password in the environment, and with a wrong one it does not."""
    folder, locked = write(tmp_path / "small"), wrong_keys(tmp_path)["locked"][0]
    monkeypatch.setenv(signing.PASSWORD, "wrong")
    with pytest.raises(UsageError, match="is no key that can be read"):
        sign_bundle(folder, locked)
    monkeypatch.setenv(signing.PASSWORD, "secret")
    assert sign_bundle(folder, locked).startswith("SHA256:")


def test_a_private_key_is_not_taken_to_the_box(signed: Path, key: Path) -> None:
    """Who checks with a private key is told how to get the public one, as a mistake and not as a verdict."""
    found = verify(signed, key)
    assert found.exit_code == 2
    assert "openssl pkey -in KEY -pubout" in found.stderr


HIDDEN = """
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "cryptography" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
from edgecnn.cli import cli
cli(sys.argv[1:], prog_name="edgecnn")
"""


def test_without_cryptography(signed: Path, key: Path) -> None:
    """Where cryptography is not installed, one line says what to install, and a bundle is not taken unchecked."""
    command = [sys.executable, "-c", HIDDEN, "verify", str(signed), "--key", str(public_of(key))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.splitlines() == [
        "edgecnn: signatures need cryptography, which is not installed here: pip install 'edgecnn[sign]'"
    ]


def test_export_signs(run_folder: Path, tmp_path: Path, key: Path, steady: None) -> None:
    """`edgecnn export --sign` writes a bundle that the public key finds good, and says by which key."""
    out = tmp_path / "out"
    command = ["export", str(run_folder), "-o", str(out), "--exporter", "onnx", "--sign", str(key)]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    signer = Bundle.open(out, public_of(key)).signer
    assert signer is not None
    assert f"signed by {signer}" in done.stdout


def test_export_refuses_a_wrong_key_at_once(run_folder: Path, tmp_path: Path) -> None:
    """A key that cannot sign is refused before anything is exported."""
    path, message = wrong_keys(tmp_path)["curve"]
    done = CliRunner().invoke(cli, ["export", str(run_folder), "-o", str(tmp_path / "out"), "--sign", str(path)])
    assert done.exit_code == 2
    assert message in done.stderr
    assert "exporting" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["predict", "serve"])
def test_answers_are_given_only_by_what_was_signed(command: str, bundle_copy: Path, key: Path) -> None:
    """With --key, predict and serve answer by no bundle that is not signed, and say so with exit code 3."""
    image = [str(next((bundle_copy / "goldens").glob("*.png")))] if command == "predict" else ["--port", "0"]
    result = CliRunner().invoke(cli, [command, str(bundle_copy), *image, "--key", str(public_of(key))])
    assert (result.exit_code, result.stdout) == (3, "")
    assert len(result.stderr.splitlines()) == 1
    assert "sign" in result.stderr
    if command == "predict":
        assert CliRunner().invoke(cli, ["sign", str(bundle_copy), str(key)]).exit_code == 0
        answered = CliRunner().invoke(cli, [command, str(bundle_copy), *image, "--key", str(public_of(key))])
        assert answered.exit_code == 0, answered.output
