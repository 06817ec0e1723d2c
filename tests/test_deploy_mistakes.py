"""Mistakes made with `edgecnn deploy`: each is told before anything is copied, in one line that says what to do."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from loopback import Loopback, pretend_edgecnn, whole_bundle

from edgecnn.bundle import sign_bundle
from edgecnn.cli import cli
from edgecnn.device.wheel import chosen_extras, pack_wheel
from edgecnn.errors import UsageError

pytestmark = pytest.mark.slow


@pytest.fixture
def box(box: Loopback, tmp_path: Path) -> Loopback:
    """Have a stand-in for edgecnn on the box, which finds nothing wrong."""
    box.plant(pretend_edgecnn(tmp_path / "packages"))
    return box


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """Give a private and a public key, by openssl's own formats."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    private.write_bytes(
        key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    )  # fmt: skip
    public.write_bytes(key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def deploy(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["deploy", *map(str, arguments)])


def refused(result: Result) -> str:
    """Hold a mistake to exit code 2 and one line at the end, which is returned."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert not result.stdout
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["bundle", "box"], "--rollback takes no BUNDLE"),
        (["box", "--install"], "--install is for a deployment; --rollback takes none of it"),
        (["box", "--force"], "--force is for a deployment"),
        (["box", "-o", "report.json"], "--out is for a deployment"),
        ([], "Missing argument 'user@host[:path]'."),
    ],
)
def test_rollback_passes_nothing_over_in_silence(asked: list[str], told: str, box: Loopback) -> None:
    """A bundle, or an option that only a deployment heeds, is refused beside --rollback, and no box is asked."""
    assert told in refused(deploy("--rollback", *asked))
    assert not list(box.home.iterdir())


def test_rollback_of_nothing_leaves_nothing(box: Loopback) -> None:
    """A folder that is mistyped is told as one in which nothing is deployed, and is not made by that."""
    assert f"nothing is deployed in {box.home / 'edgecm'}" in refused(deploy("--rollback", "box:edgecm"))
    assert not list(box.home.iterdir())


def test_a_signature_that_cannot_be_checked_there_is_told_first(
    box: Loopback, bundle_copy: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """Where --key is given and the box lacks the package for it, nothing is copied, and the line says how it gets there."""
    sign_bundle(bundle_copy, keys[0])
    (tmp_path / "packages" / "sitecustomize.py").write_text(
        "import importlib.util as u\nreal = u.find_spec\nu.find_spec = lambda name: None if name == 'cryptography' else real(name)\n"
    )
    line = refused(deploy(bundle_copy, "box", "--key", keys[1]))
    assert "has no cryptography: `edgecnn deploy --install` puts it there" in line
    assert not [path for path in (box.home / "edgecnn").rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_report_that_cannot_be_written_deploys_nothing(box: Loopback, bundle_folder: Path, tmp_path: Path) -> None:
    """-o below what is no folder is told before the box is connected to, not after the bundle is in place."""
    (tmp_path / "file").write_text("")
    line = refused(deploy(bundle_folder, "box", "-o", str(tmp_path / "file" / "deeper" / "report.json")))
    assert f"{tmp_path / 'file'} is no folder to write in; choose another -o" in line
    assert not list(box.home.iterdir())


def test_a_reports_folder_is_made(box: Loopback, bundle_folder: Path, tmp_path: Path) -> None:
    """-o into a folder that is not there yet makes it, as every other command does."""
    report = tmp_path / "new" / "deeper" / "report.json"
    result = deploy(bundle_folder, "box", "-o", str(report))
    assert result.exit_code == 0, result.output
    assert json.loads(report.read_text()) == {"from": "the box"}


def test_an_empty_interpreter_is_none(box: Loopback, bundle_folder: Path) -> None:
    """--python '' is not taken for the default: an unset variable in a script must not choose another Python."""
    assert "'' is no interpreter" in refused(deploy(bundle_folder, "box", "--python", ""))


def test_a_disk_that_fills_up_says_where_and_that_the_copy_goes_on(
    box: Loopback, bundle_folder: Path, tmp_path: Path
) -> None:
    """The line names the folder and what to do, though the file system names none; then the same command goes on."""
    (tmp_path / "packages" / "sitecustomize.py").write_text(
        "import errno, hashlib\nreal = hashlib.sha256\n"
        "def full(*asked): raise OSError(errno.ENOSPC, 'No space left on device')\nhashlib.sha256 = full\n"
    )
    line = refused(deploy(bundle_folder, "box"))
    assert f"{box.home / 'edgecnn'}: No space left on device: make room there, or name another folder" in line
    assert "what runs there is as before, and the same command goes on" in line
    (tmp_path / "packages" / "sitecustomize.py").unlink()
    assert deploy(bundle_folder, "box", "--json").exit_code == 0


def test_an_interpreter_named_by_what_is_current_holds_after_the_next_swap(
    box: Loopback, bundle_folder: Path, tmp_path: Path
) -> None:
    """--python FOLDER/current/venv/bin/python is recorded as the environment that it is, which every release is linked to."""
    venv = box.home / "edgecnn" / "venvs" / "made"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    (venv / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\n")
    (box.home / "by").symlink_to("edgecnn/venvs/made")
    for _ in range(2):
        result = deploy(bundle_folder, "box", "--python", "by/bin/python", "--json")
        assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["python"] == str(venv / "bin" / "python")
    assert (box.home / "edgecnn" / "current" / "venv" / "bin" / "python").exists()


def test_extras_are_those_of_the_wheel(tmp_path: Path) -> None:
    """An extra that the wheel has not got is refused here, and a key brings what checks signatures along."""
    wheel = pack_wheel(tmp_path)
    assert chosen_extras(wheel, "serve, cpu,") == "cpu,serve"
    assert chosen_extras(wheel, "cpu", signed=True) == "cpu,sign"
    for wrong in ("nosuch", "cpu;rm"):
        with pytest.raises(UsageError, match=r"has no extra '.*'; it has cpu, gpu, .*sign"):
            chosen_extras(wheel, wrong)
    (tmp_path / "a.whl").write_bytes(b"no zip")
    with zipfile.ZipFile(tmp_path / "b.whl", "w") as archive:
        archive.writestr("x", "")
    data = bytearray(wheel.read_bytes())
    with zipfile.ZipFile(wheel) as archive:
        about = next(one for one in archive.infolist() if one.filename.endswith("METADATA"))
    start = about.header_offset + 30 + len(about.filename)
    data[start : start + 20] = bytes(range(200, 220))
    (tmp_path / "c.whl").write_bytes(data)  # what is packed in it is damaged
    for name in ("a.whl", "b.whl", "c.whl"):
        with pytest.raises(UsageError, match="is no wheel"):
            chosen_extras(tmp_path / name, "cpu")


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_broken_off_after_its_last_byte_is_taken_or_sent_anew(
    whole: bool, box: Loopback, bundle_folder: Path
) -> None:
    """All bytes came but not the end of the copy: the next one takes them where they are right, and is not stopped by them."""
    data = (bundle_folder / "fp32.onnx").read_bytes()
    part = box.home / "edgecnn" / "partial" / f"{hashlib.sha256(data).hexdigest()}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(data if whole else bytes(len(data)))
    result = deploy(bundle_folder, "box", "--json")
    assert result.exit_code == 0, result.output
    sent = sum(path.stat().st_size for path in bundle_folder.rglob("*") if path.is_file())
    assert json.loads(result.stdout)["copied"]["bytes"] == sent - whole * len(data)
    assert whole_bundle(box.home / "edgecnn" / "current" / "bundle")
