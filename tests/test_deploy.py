"""`edgecnn deploy` against OpenSSH's own server: what lies on the box at each moment, whatever goes wrong on the way.

Most tests have a stand-in for edgecnn on the box, whose verify says what the test wants; test_deploy_real.py has none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from loopback import Loopback, Relay, pretend_edgecnn, whole_bundle

from edgecnn import ssh
from edgecnn.bundle import sign_bundle
from edgecnn.cli import cli
from edgecnn.device import box_store
from edgecnn.device.box_channel import RefusalError
from edgecnn.ssh import Connection

pytestmark = pytest.mark.slow  # a deployment takes a second, and most tests make two

CRASH = """
import os
real = os.replace
def replace(source, target, **asked):
    if str(target).endswith("/current"):
        {before}
        real(source, target, **asked)
        os.kill(os.getpid(), 9)
    else:
        real(source, target, **asked)
os.replace = replace
"""


@pytest.fixture
def box(box: Loopback, tmp_path: Path) -> Loopback:
    """Have a stand-in for edgecnn on the box, which finds nothing wrong."""
    box.plant(pretend_edgecnn(tmp_path / "packages"))
    return box


def deploy(bundle: Path, *arguments: str, to: str = "box") -> Result:
    return CliRunner().invoke(cli, ["deploy", str(bundle), to, *arguments])


def good(result: Result) -> Any:
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def refused(result: Result, code: int = 2) -> str:
    """Hold a failure to its exit code and one line, which is returned; lines before it say what was going on."""
    assert result.exit_code == code, (result.output, result.exception)
    assert not result.stdout or code == 3
    line = result.stderr.splitlines()[-1]
    assert line.startswith("edgecnn: ")
    return line


def current(box: Loopback, folder: str = "edgecnn") -> str:
    """Say which bundle is in place, by its manifest's hash, after hashing it whole."""
    bundle = box.home / folder / "current" / "bundle"
    return whole_bundle(bundle.resolve())  # a swap that is under way may move the link between two files


def of(bundle: Path) -> str:
    return hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()


@pytest.fixture
def second(bundle_folder: Path, tmp_path: Path) -> Path:
    """Give a bundle that has two files in common with no other: an artifact of 400 kB of noise, and the manifest."""
    return changed(bundle_folder, tmp_path / "second", os.urandom(400_000))


def changed(bundle: Path, target: Path, noise: bytes) -> Path:
    shutil.copytree(bundle, target)
    (target / "int8.onnx").write_bytes(noise)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["files"]["int8.onnx"] = {"size": len(noise), "sha256": hashlib.sha256(noise).hexdigest()}
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def test_a_bundle_is_copied_verified_and_put_in_place(box: Loopback, bundle_folder: Path, tmp_path: Path) -> None:
    """On an empty box every byte arrives, verify is asked for the new bundle before it is current, and its report comes back."""
    noted = f"import os\nopen({str(tmp_path / 'then')!r}, 'w').write(str(os.path.lexists({str(box.home / 'edgecnn/current')!r})))\n"
    (tmp_path / "packages" / "edgecnn" / "__init__.py").write_text(noted)
    result = deploy(bundle_folder, "-o", str(tmp_path / "report.json"))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((tmp_path / "report.json").read_text()) == {"from": "the box"}
    assert current(box) == of(bundle_folder)
    asked = eval((tmp_path / "packages" / "asked").read_text())
    release = (box.home / "edgecnn" / "current").resolve()
    assert asked == ["verify", str(release / "bundle"), "--json"]
    assert (tmp_path / "then").read_text() == "False"
    assert f"{release.name} is in place as {box.home}/edgecnn/current/bundle" in result.stderr
    assert not list((box.home / "edgecnn" / "partial").iterdir())


def test_only_what_differs_is_copied_and_rollback_puts_the_old_back(
    box: Loopback, bundle_folder: Path, second: Path
) -> None:
    """A second bundle sends its own two files, shares the others, and keeps the first, which one rename brings back."""
    first = good(deploy(bundle_folder, "--json"))
    found = good(deploy(second, "--json"))
    size = sum((second / name).stat().st_size for name in ("int8.onnx", "manifest.json"))
    assert (found["copied"]["files"], found["copied"]["bytes"]) == (2, size)
    assert found["previous"] == first["release"]
    assert found["copied"]["there"] == sum(path.stat().st_size for path in second.rglob("*") if path.is_file()) - size
    assert current(box) == of(second)
    releases = box.home / "edgecnn" / "releases"
    assert (releases / first["release"] / "bundle" / "fp32.onnx").samefile(
        releases / found["release"] / "bundle" / "fp32.onnx"
    )
    back = CliRunner().invoke(cli, ["deploy", "--rollback", "box"])
    assert back.exit_code == 0, back.output
    assert f"{first['release']} is current again" in back.stdout
    assert current(box) == of(bundle_folder)
    assert "holds no release before" in refused(CliRunner().invoke(cli, ["deploy", "--rollback", "box"]))
    assert good(deploy(second, "--json"))["copied"]["bytes"] == 0, "what was rolled back from is still there"


def test_the_same_bundle_twice_keeps_what_was_before(box: Loopback, bundle_folder: Path, second: Path) -> None:
    """Deploying again what is in place copies nothing, and rollback still leads to the other bundle."""
    good(deploy(bundle_folder, "--json"))
    for copied in (2, 0):
        assert good(deploy(second, "--json"))["copied"]["files"] == copied
    assert len(list((box.home / "edgecnn" / "releases").iterdir())) == 2
    assert CliRunner().invoke(cli, ["deploy", "--rollback", "box"]).exit_code == 0
    assert current(box) == of(bundle_folder)


def test_a_damaged_previous_bundle_is_not_put_back(box: Loopback, bundle_folder: Path, second: Path) -> None:
    """Rollback hashes what it would put back: one changed byte is one line, and the current bundle stays."""
    first = good(deploy(bundle_folder, "--json"))["release"]
    good(deploy(second, "--json"))
    (box.home / "edgecnn" / "releases" / first / "bundle" / "int8.onnx").write_bytes(b"x")
    line = refused(CliRunner().invoke(cli, ["deploy", "--rollback", "box"]))
    assert "int8.onnx is damaged or missing" in line
    assert current(box) == of(second)


def test_nothing_deployed_cannot_be_rolled_back(box: Loopback) -> None:
    """On an empty box rollback is one line."""
    assert "nothing is deployed in" in refused(CliRunner().invoke(cli, ["deploy", "--rollback", "box"]))


def test_what_verify_refuses_is_not_put_in_place(
    box: Loopback, bundle_folder: Path, second: Path, tmp_path: Path
) -> None:
    """Exit code 3 of verify leaves the old bundle, prints the report, and is this command's too; --force overrules it."""
    good(deploy(bundle_folder, "--json"))
    no = "edgecnn: photos: must not be used here: int8"
    box.plant(pretend_edgecnn(tmp_path / "no", 3, {"verdict": "no"}, f"timing\n{no}"))
    result = deploy(second, "-o", str(tmp_path / "report.json"))
    assert refused(result, 3) == "edgecnn: box: not put in place: photos: must not be used here: int8"
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(result.stdout) == {"verdict": "no"}
    assert current(box) == of(bundle_folder)
    forced = deploy(second, "--force")
    assert forced.exit_code == 0
    assert "put in place by --force, although photos: must not be used here: int8" in forced.stderr
    assert current(box) == of(second)


@pytest.mark.parametrize(("code", "report"), [(2, {}), (1, {}), (0, "no report"), (0, [1])])
def test_a_verify_that_fails_is_no_verdict(
    code: int, report: object, box: Loopback, bundle_folder: Path, tmp_path: Path
) -> None:
    """A crash, a mistake, or a success without a report puts nothing in place, not even by --force."""
    box.plant(pretend_edgecnn(tmp_path / "bad", code, report, "edgecnn: onnxruntime is broken"))
    line = refused(deploy(bundle_folder, "--force"))
    assert "did not come to a verdict there: onnxruntime is broken" in line
    assert not os.path.lexists(box.home / "edgecnn" / "current")


def test_a_connection_cut_at_any_byte_leaves_the_old_bundle(
    box: Loopback, bundle_folder: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many bytes come through before the line is cut, the old bundle is whole and current; then it goes on."""
    good(deploy(bundle_folder, "--json"))
    sent = 0
    for most in (10, 4_000, 14_000, 22_000, 60_000, 150_000, 150_000):
        relay = Relay(box.port, most)
        monkeypatch.setenv(ssh.OPTIONS, f"-F '{box.write_config('cut', relay.port)}'")
        assert refused(deploy(second)).startswith("edgecnn: box: ")
        relay.close()
        sent += relay.carried
        assert current(box) == of(bundle_folder), most
    monkeypatch.setenv(ssh.OPTIONS, f"-F '{box.config}'")
    found = good(deploy(second, "--json"))
    assert current(box) == of(second)
    assert 0 < found["copied"]["bytes"] < 400_000, "it went on where it was cut"
    assert sent > 300_000


def test_half_a_file_is_gone_on_with(box: Loopback, second: Path) -> None:
    """Of a file whose beginning came before, exactly the rest is sent."""
    partial = box.home / "edgecnn" / "partial"
    partial.mkdir(parents=True)
    data = (second / "int8.onnx").read_bytes()
    (partial / f"{hashlib.sha256(data).hexdigest()}.part").write_bytes(data[:250_001])
    copied = good(deploy(second, "--json"))["copied"]
    assert copied["there"] == 250_001
    assert copied["bytes"] + 250_001 == sum(path.stat().st_size for path in second.rglob("*") if path.is_file())
    assert current(box) == of(second)


def test_half_a_file_that_is_damaged_is_sent_anew(box: Loopback, second: Path) -> None:
    """Bytes that came before and are wrong cost one more copy, as do more of them than the file has, and no damage."""
    partial = box.home / "edgecnn" / "partial"
    partial.mkdir(parents=True)
    digest = hashlib.sha256((second / "int8.onnx").read_bytes()).hexdigest()
    (partial / f"{digest}.part").write_bytes(b"wrong" * 100)
    golden = hashlib.sha256((second / "goldens" / "arrays.npz").read_bytes()).hexdigest()
    (partial / f"{golden}.part").write_bytes(b"x" * ((second / "goldens" / "arrays.npz").stat().st_size + 1))
    label = hashlib.sha256((second / "labels.txt").read_bytes()).hexdigest()
    (partial / label).write_bytes(b"y" * (second / "labels.txt").stat().st_size)
    good(deploy(second, "--json"))
    assert current(box) == of(second)


@pytest.mark.parametrize(("before", "now"), [("os.kill(os.getpid(), 9)", "first"), ("pass", "second")])
def test_a_box_that_dies_at_the_swap_has_one_whole_bundle(
    before: str, now: str, box: Loopback, bundle_folder: Path, second: Path, tmp_path: Path
) -> None:
    """Killed just before the rename the old bundle is current, just after it the new one; the next deployment is as ever."""
    good(deploy(bundle_folder, "--json"))
    (tmp_path / "packages" / "sitecustomize.py").write_text(CRASH.format(before=before))
    assert "was put in place, so that it may be" in refused(deploy(second))
    assert current(box) == {"first": of(bundle_folder), "second": of(second)}[now]
    (tmp_path / "packages" / "sitecustomize.py").unlink()
    good(deploy(second, "--json"))
    assert current(box) == of(second)
    assert sorted(path.name for path in (box.home / "edgecnn").iterdir()) == [".lock", "current", "partial", "releases"]
    assert CliRunner().invoke(cli, ["deploy", "--rollback", "box"]).exit_code == 0
    assert current(box) == of(bundle_folder)


def killing(monkeypatch: pytest.MonkeyPatch, step: str, ready: Callable[[], bool]) -> None:
    """Kill ssh with SIGKILL once a step was sent and the box is ready."""
    plain = Connection._message

    def message(self: Connection, timeout_s: float) -> tuple[bytes, bytes, bytes]:
        if getattr(self, "step", "") == step:
            until = time.monotonic() + 20
            while not ready() and time.monotonic() < until:
                time.sleep(0.02)
            self._process.kill()
        return plain(self, timeout_s)

    request = Connection.request

    def noted(self: Connection, header: Any, *arguments: Any, **named: Any) -> dict[str, Any]:
        self.step = header["do"]  # type: ignore[attr-defined]
        return request(self, header, *arguments, **named)

    monkeypatch.setattr(Connection, "_message", message)
    monkeypatch.setattr(Connection, "request", noted)


def test_what_runs_there_ends_with_the_connection(
    box: Loopback, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When ssh is killed while the box verifies, the process there is ended too, and its lock is free again."""
    pid = tmp_path / "pid"
    (tmp_path / "packages" / "edgecnn" / "__main__.py").write_text(
        f"import os, time\nopen({str(pid) + '~'!r}, 'w').write(str(os.getpid()))\nos.rename({str(pid) + '~'!r}, {str(pid)!r})\ntime.sleep(600)\n"
    )
    killing(monkeypatch, "verify", pid.exists)
    assert "ssh was ended by SIGKILL" in refused(deploy(bundle_folder))
    until = time.monotonic() + 20
    while Path(f"/proc/{pid.read_text()}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid.read_text()}").exists()
    assert not os.path.lexists(box.home / "edgecnn" / "current")
    monkeypatch.undo()
    monkeypatch.setenv(ssh.OPTIONS, f"-F '{box.config}'")
    box.plant(pretend_edgecnn(tmp_path / "again"))
    assert good(deploy(bundle_folder, "--json"))["copied"]["bytes"] == 0


def test_ssh_killed_at_the_swap_leaves_one_whole_bundle(
    box: Loopback, bundle_folder: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the swap was asked for, either bundle is current and whole, and the line says that it is not known which."""
    good(deploy(bundle_folder, "--json"))
    killing(monkeypatch, "swap", lambda: True)
    assert "the same command again tells" in refused(deploy(second))
    assert current(box) in (of(bundle_folder), of(second))


def test_two_deployments_do_not_meet(box: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that another process holds is refused in one line, and one that it has left is not."""
    monkeypatch.setattr(box_store, "WAIT_S", 0.2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with (tmp_path / "here" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RefusalError, match=r"another deployment into .*here is under way"):
            box_store.Store("here")
    box_store.Store("here")


@pytest.mark.parametrize("folder", ['it\'s "a b"/$(touch pwned) `touch pwned`;x\ny üひ', "-rf", "~/tilde", "a:b@c"])
def test_a_folder_may_have_any_name(folder: str, box: Loopback, bundle_folder: Path) -> None:
    """Spaces, quotes, what a shell would run, and a leading dash are a folder's name and nothing else."""
    home = Path.home() if folder.startswith("~") else box.home
    if folder.startswith("~"):
        box.plant(f'export HOME="{box.home}"\n{pretend_edgecnn(box.home.parent / "packages")}')
        home, folder = box.home, "tilde"
        good(deploy(bundle_folder, "--json", to="box:~/tilde"))
    else:
        good(deploy(bundle_folder, "--json", to=f"box:{folder}"))
    assert whole_bundle(home / folder / "current" / "bundle") == of(bundle_folder)
    assert not list(box.home.rglob("pwned"))
    assert not list(Path.cwd().glob("pwned"))


NOISES = {
    "a banner": "echo Welcome to the box; echo edgecnn-box of Lab 3",
    "half a line": "printf 'no newline at the end of this'",
    "binary": "head -c 20000 /dev/urandom",
    "errors": "echo all is well >&2",
    "another shell": "export SHELL_OF_BOX=/bin/bash; set -u",
}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_what_a_login_shell_prints_is_no_answer(noise: str, box: Loopback, bundle_folder: Path, tmp_path: Path) -> None:
    """A shell there that prints before it runs a command, which breaks scp, is read over."""
    box.plant(pretend_edgecnn(tmp_path / "packages") + noise)
    good(deploy(bundle_folder, "--json"))
    assert current(box) == of(bundle_folder)


PLANTED = {
    "no python": ("export PATH=/nowhere; SHELL_OF_BOX=/bin/sh", "python3 cannot be run there"),
    "a read-only disk": (
        "import errno, os\ndef mkdir(path, *_, **__): raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))\nos.mkdir = mkdir",
        "edgecnn/releases: Read-only file system",
    ),
    "a full disk": (
        "import os\nreal = os.statvfs\nos.statvfs = lambda path: os.statvfs_result((*real(path)[:3], 10, 10, *real(path)[5:10]))",
        "MB are needed in edgecnn, and 0.0",
    ),
    "a disk that fills up": ("ulimit -f 100", "File too large"),
    "no edgecnn": ("unset PYTHONPATH", "has no edgecnn and onnxruntime: `edgecnn deploy --install` puts it there"),
    "something else in the way": ("mkdir -p edgecnn/current", "edgecnn/current is not a link that deploy made"),
    "a file in the way": ("touch edgecnn", "edgecnn/releases: Not a directory"),
    "a python that dies": ("import os\nos._exit(9)", "what ran there has ended with exit code 9"),
}


@pytest.mark.parametrize(("plant", "told"), PLANTED.values(), ids=PLANTED)
def test_what_a_box_may_lack_is_one_line(plant: str, told: str, box: Loopback, second: Path, tmp_path: Path) -> None:
    """Whatever is wrong with the box is told in one line that names it and says what to do, and nothing is in place."""
    hook = pretend_edgecnn(tmp_path / "packages")
    if plant.startswith("import"):
        (tmp_path / "packages" / "sitecustomize.py").write_text(plant)
        plant = ""
    box.plant(hook + plant)
    line = refused(deploy(second))
    assert line.startswith("edgecnn: box: ")
    assert told in line
    assert not (box.home / "edgecnn" / "current").is_symlink()


def test_a_host_key_that_is_unknown_or_another_is_refused(box: Loopback, bundle_folder: Path) -> None:
    """A server with no recorded key, and one with another than recorded, are two different lines, and nothing is copied."""
    known = box.folder / f"known.{box.port}"
    recorded = known.read_text()
    try:
        known.write_text("")
        assert "its host key is not known here: connect once by `ssh box`" in refused(deploy(bundle_folder))
        known.write_text(f"[127.0.0.1]:{box.port} {(box.folder / 'user.pub').read_text()}")
        assert "its host key is not the one recorded here" in refused(deploy(bundle_folder))
    finally:
        known.write_text(recorded)
    assert not list(box.home.iterdir())


def test_a_refused_login_and_a_closed_port_say_so(box: Loopback, bundle_folder: Path) -> None:
    """A key that the box does not know, and a port where nothing listens, are one line each; so is a bad option of ssh."""
    options = ("-F", str(box.config), "--ssh-option")
    other = box.write_config("other", box.port, "host")
    assert "it refuses the login" in refused(deploy(bundle_folder, "-F", str(other)))
    assert "nothing listens for ssh there" in refused(deploy(bundle_folder, *options, "Port=1"))
    assert "Bad configuration option: nonsense" in refused(deploy(bundle_folder, *options, "nonsense=1"))


def test_options_reach_ssh(box: Loopback, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-F` and `--ssh-option` alone lead to the box, and the master connection that they ask for is left running."""
    monkeypatch.delenv(ssh.OPTIONS)
    socket = box.folder / "master"
    options = ("ControlMaster=auto", f"ControlPath={socket}", "ControlPersist=20")
    arguments = [word for option in options for word in ("--ssh-option", option)]
    good(deploy(bundle_folder, "-F", str(box.config), *arguments, "--json"))
    assert socket.is_socket()
    os.system(f"ssh -F '{box.config}' -o ControlPath='{socket}' -O exit box 2> /dev/null")


def test_a_signed_bundle_is_held_to_its_key_there_too(box: Loopback, bundle_copy: Path, tmp_path: Path) -> None:
    """With --key the public key is copied and given to verify there; a bundle that is not signed does not leave here."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    (tmp_path / "key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    assert refused(deploy(bundle_copy, "--key", str(tmp_path / "key.pub")), 3)
    assert not list(box.home.iterdir())
    sign_bundle(bundle_copy, tmp_path / "key")
    good(deploy(bundle_copy, "--key", str(tmp_path / "key.pub"), "--json"))
    assert current(box) == of(bundle_copy)
    asked = eval((tmp_path / "packages" / "asked").read_text())
    assert asked[-2] == "--key"
    assert Path(asked[-1]).read_bytes() == public
    assert (box.home / "edgecnn" / "current" / "bundle" / "manifest.json.sig").is_file()


def test_a_bundle_that_is_damaged_here_does_not_leave(box: Loopback, bundle_copy: Path) -> None:
    """One changed byte is found before anything is connected to."""
    data = bytearray((bundle_copy / "int8.onnx").read_bytes())
    data[50] ^= 1
    (bundle_copy / "int8.onnx").write_bytes(data)
    assert "int8.onnx" in refused(deploy(bundle_copy))
    assert not list(box.home.iterdir())


def test_a_zip_is_deployed_as_its_folder(box: Loopback, bundle_folder: Path, tmp_path: Path) -> None:
    """A zipped bundle arrives unpacked."""
    shutil.make_archive(str(tmp_path / "zipped"), "zip", bundle_folder)
    good(deploy(tmp_path / "zipped.zip", "--json"))
    assert current(box) == of(bundle_folder)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{bundle}"], "Missing argument"),
        (["{bundle}", "-oProxyCommand=touch pwned"], "Missing argument"),
        (["{bundle}", "--", "-oProxyCommand=touch pwned"], "is not user@host"),
        (["{bundle}", "box;touch pwned"], "is not user@host"),
        (["{tmp}/nowhere", "box"], "nowhere"),
        (["{bundle}", "box", "--wheel", "{bundle}/labels.txt"], "are for --install"),
        (["{bundle}", "box", "--install", "--wheel", "{bundle}/labels.txt"], "is no wheel"),
        (["--rollback"], "Missing argument"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(
    arguments: list[str], told: str, box: Loopback, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be meant is exit code 2 and one line; nothing is connected to, nothing run."""
    monkeypatch.chdir(tmp_path)
    words = [word.format(bundle=bundle_folder, tmp=tmp_path) for word in arguments]
    result = CliRunner().invoke(cli, ["deploy", *words])
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (tmp_path / "pwned").exists()
    assert not list(box.home.iterdir())


def test_a_file_that_changes_while_it_is_copied_is_noticed(
    box: Loopback, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is shortened after it was hashed is one line, and nothing is in place."""
    request = Connection.request

    def shortening(self: Connection, header: Any, *arguments: Any, **named: Any) -> dict[str, Any]:
        if header["do"] == "put":
            os.truncate(second / "int8.onnx", 1000)
        return request(self, header, *arguments, **named)

    monkeypatch.setattr(Connection, "request", shortening)
    assert "has changed while it was copied" in refused(deploy(second))
    assert not os.path.lexists(box.home / "edgecnn" / "current")
