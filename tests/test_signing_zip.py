"""A signed bundle as a zip: whatever differs from what was signed is refused with exit code 3, as in a folder."""

from __future__ import annotations

import errno
import io
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from small_bundle import entries, pack, write

from edgecnn.bundle import Bundle, sign_bundle
from edgecnn.cli import cli
from edgecnn.errors import BundleError, DamagedError, EdgecnnError, SignatureError
from edgecnn.manifest import MANIFEST

PEM = serialization.Encoding.PEM
IMAGE = "goldens/001.png"
CHANGES = {
    "removed": ({IMAGE: None}, r"lacks a file of the bundle, or is damaged \(.*goldens/001\.png"),
    "changed": ({IMAGE: lambda data: data[:-1] + bytes([data[-1] ^ 1])}, r"001\.png: the content does not have the recorded SHA-256"),
    "longer": ({IMAGE: lambda data: data + b"x"}, r"001\.png is larger than recorded"),
    "shorter": ({IMAGE: lambda data: data[:-1]}, r"001\.png: \d+ bytes, the manifest says \d+"),
    "added": ({"extra.bin": b"x"}, r"holds extra\.bin, which the manifest does not know"),
    "added beside": ({"../x/extra.bin": b"x"}, r"holds .*extra\.bin, which the manifest does not know"),
    "unsigned": ({"manifest.json.sig": None}, r"is not signed, and a signature by SHA256:\S+ is asked for"),
    "another manifest": ({"other/manifest.json": b"{}"}, r"holds (2 manifests|other/manifest\.json)"),
    "no manifest": ({MANIFEST: None}, r"holds 0 manifests"),
}  # fmt: skip


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Path]:
    """Return the files of a small signed bundle, and the public key."""
    folder, key = tmp_path_factory.mktemp("signed"), ed25519.Ed25519PrivateKey.generate()
    private, public = folder / "key.pem", folder / "key.pub"
    pkcs8, raw = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(PEM, pkcs8, raw))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    bundle = write(folder / "small")
    sign_bundle(bundle, private)
    files = {one.relative_to(bundle).as_posix(): one.read_bytes() for one in bundle.rglob("*") if one.is_file()}
    return files, public


def changed(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    """Return the files with one of the changes made."""
    files = dict(files)
    for file, change in CHANGES[name][0].items():
        if change is None:
            del files[file]
        else:
            files[file] = change(files[file]) if callable(change) else change
    return files


def verify(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["verify", *map(str, arguments)])


@pytest.mark.parametrize("prefix", ["", "small/"])
@pytest.mark.parametrize("name", CHANGES)
def test_whatever_differs_is_refused(
    signed: tuple[dict[str, bytes], Path], tmp_path: Path, name: str, prefix: str
) -> None:
    """Each thing that may differ in a zip has its message, which names the zip, and exit code 3 where a key is given."""
    files, key = signed
    packed = pack(tmp_path / "b.zip", {prefix + file: data for file, data in changed(files, name).items()})
    result = verify(packed, "--key", key)
    assert result.exit_code == 3, result.output
    with pytest.raises(SignatureError, match=f"^{packed}.*{CHANGES[name][1]}"):
        Bundle.open(packed, key)


def test_as_it_was_signed_it_is_good(signed: tuple[dict[str, bytes], Path], tmp_path: Path) -> None:
    """The zip of what was signed is good, with entries for its folders, too."""
    files, key = signed
    packed = pack(tmp_path / "b.zip", {"small/": b"", "small/goldens/": b"", **{f"small/{name}": files[name] for name in files}})  # fmt: skip
    assert (Bundle.open(packed, key).signer or "").startswith("SHA256:")


def test_no_byte_of_the_zip_can_change(signed: tuple[dict[str, bytes], Path], tmp_path: Path) -> None:
    """A changed byte anywhere in the zip's file is refused, or changes nothing of what is signed; it is never a crash."""
    files, key = signed
    packed = pack(tmp_path / "b.zip", files)
    whole = packed.read_bytes()
    kinds = set()
    for place in range(0, len(whole), 37):
        packed.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            bundle = Bundle.open(packed, key)
            assert all(bundle.read(name) == files[name] for name in bundle.manifest.files)
        except EdgecnnError as error:
            kinds.add(type(error))
    assert SignatureError in kinds
    assert kinds <= {SignatureError, BundleError}  # the latter where it is no zip any more


def test_what_the_manifest_does_not_know_is_refused_unsigned(tmp_path: Path) -> None:
    """Verifying a zip refuses what lies in it besides the bundle, by its name, as verifying a folder does."""
    packed = pack(tmp_path / "b.zip", {**entries("b/"), "b/extra.bin": b"x", "__MACOSX/b/._net.onnx": b"x"})
    bundle = Bundle.open(packed)  # running it reads none of that
    with pytest.raises(DamagedError, match=rf"^{packed}: holds __MACOSX/b/\._net\.onnx, extra\.bin, which"):
        bundle.verify()


def test_a_full_disk_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room to unpack, that is said and not that the zip is damaged, and nothing is left."""
    packed, folder = pack(tmp_path / "b.zip", entries()), tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    real = io.open

    def full(file: object, mode: str = "r", *rest: object, **more: object) -> object:
        if str(file).endswith("net.onnx") and "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, mode, *rest, **more)  # type: ignore[call-overload]  # as it came

    monkeypatch.setattr(io, "open", full)
    with pytest.raises(BundleError, match=rf"cannot be unpacked \({folder}: No space left on device\); make room") as caught:  # fmt: skip
        Bundle.open(packed)
    assert not isinstance(caught.value, DamagedError)
    assert list(folder.iterdir()) == []
