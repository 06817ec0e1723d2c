"""The emulated devices: what they are called, what they need, and that they answer as the real ones."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from once import made_once

from edgecnn.backends.base import SessionOptions, open_session
from edgecnn.backends.emulated import EmulatedBackend
from edgecnn.bundle import Bundle
from edgecnn.device import emulate
from edgecnn.device.emulate import CPUS, INSTALL, QEMU, QEMU_ARM
from edgecnn.device.sysroot import RECORD, Sysroot, installed_version, make_sysroot, sysroot_folder
from edgecnn.errors import BackendError, DeviceError, EdgecnnError, MissingPackageError
from edgecnn.spec import TARGETS, Artifact, BackendRef, Target
from edgecnn.testing import ROW_TOLERANCE, check_backend, make_feeds

ARM = ("arm64", "arm64-dotprod")
X86 = ("haswell", "nehalem")
ROADS = ("nehalem", "arm64-dotprod")  # of each qemu the CPU that is imitated fastest


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


def lacking(what: str) -> None:
    """Skip, but not in continuous integration: there everything has to be installed."""
    say = pytest.fail if os.environ.get("CI") else pytest.skip
    say(what)


@pytest.fixture(scope="session")
def sysroot(shared_tmp: Path) -> Path:
    """Return the sysroot of EDGECNN_SYSROOT or, once for all workers, one made from Debian's archive and PyPI."""
    if os.environ.get("EDGECNN_SYSROOT"):
        return Path(os.environ["EDGECNN_SYSROOT"])

    def make(folder: Path) -> None:
        versions = [installed_version(name) or "" for name in ("onnxruntime", "numpy")]
        make_sysroot(folder, versions[0], versions[1], lambda line: None)

    for program in ("apt-get", QEMU_ARM):
        if shutil.which(program) is None:
            lacking(f"{program} is not on the PATH")
    try:
        return made_once(shared_tmp, "sysroot", make)
    except EdgecnnError as error:  # without a network, for example
        lacking(str(error))
        raise


@pytest.fixture
def ready(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a device, given by the test's parameter, when all that it needs is there."""
    device: str = request.param
    if shutil.which(CPUS[device].qemu) is None:
        lacking(f"{CPUS[device].qemu} is not on the PATH: {INSTALL}")
    if device in ARM:
        monkeypatch.setenv("EDGECNN_SYSROOT", str(request.getfixturevalue("sysroot")))
    return device


def answer(ref: str, bundle: Bundle, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    parsed = BackendRef.parse(ref)
    backend = EmulatedBackend() if parsed.backend == "emulated" else None
    with open_session(parsed, bundle.artifact(parsed.artifact), SessionOptions(threads=1), backend) as session:
        logits = session.run({"image": pixels})["logits"]
        for rows in (slice(None), slice(2, 3)):
            again = session.run({"image": pixels[rows]})["logits"]
            np.testing.assert_allclose(again, logits[rows], rtol=0, atol=ROW_TOLERANCE * np.abs(logits).max())
        return logits


@pytest.mark.slow
@pytest.mark.parametrize("ready", ROADS, indirect=True)
def test_every_device_keeps_the_contract(ready: str, bundle: Bundle) -> None:
    """The shared conformance suite passes on each road: this machine's Python under qemu, and the sysroot's.

    Devices on one road share all that is ours; what is a CPU's own are its answers, which the next test holds to theirs.
    """
    check_backend(EmulatedBackend(), bundle.artifact("fp32"), ready)


@pytest.mark.slow
@pytest.mark.parametrize("ready", CPUS, indirect=True)
def test_devices_answer_as_this_machine(ready: str, bundle: Bundle) -> None:
    """Float32 differs from the native answers by rounding only, and int8 by a step in one logit of a hundred at most.

    Both are the same when they are run again, and of an image alone.
    """
    noise = np.random.default_rng(5).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    pixels = np.concatenate([bundle.goldens().pixels, noise])
    native = answer("onnxruntime:fp32", bundle, pixels)
    scale = np.abs(native).max()
    emulated = answer(f"emulated:fp32@{ready}", bundle, pixels)
    assert 0 < np.abs(emulated - native).max() < 1e-5 * scale, "equal to the last bit is this machine's own answer"
    native = answer("onnxruntime:int8", bundle, pixels)
    emulated = answer(f"emulated:int8@{ready}", bundle, pixels)
    off = np.abs(emulated - native)
    assert (off > 1e-5 * scale).mean() <= 0.01
    assert off.max() < 0.02 * scale
    assert len(np.unique(native.round(3), axis=0)) == len(pixels)


@pytest.mark.slow
def test_a_sysroot_from_the_archives_has_this_machines_versions(sysroot: Path) -> None:
    """What apt-get and pip gave runs, records a hash of every file, and differs from this machine in the CPU only."""
    import msgspec

    made = msgspec.json.decode((sysroot / RECORD).read_bytes(), type=Sysroot)
    if not os.environ.get("EDGECNN_SYSROOT"):
        assert (made.onnxruntime, made.numpy) == (installed_version("onnxruntime"), installed_version("numpy"))
    assert all(len(bytes.fromhex(digest)) == 32 for digest in made.files.values())
    names = " ".join(made.files)
    assert f"python{made.python}-minimal_" in names
    assert f"onnxruntime-{made.onnxruntime}-" in names
    python = next((sysroot / "usr" / "bin").glob("python3.*[0-9]"))
    assert python.name == f"python{made.python}"
    assert python.read_bytes()[18:20] == (183).to_bytes(2, "little"), "ELF: e_machine is EM_AARCH64"


@pytest.fixture
def native(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put stand-ins for both qemus, and a sysroot, where they are looked for; they run natively and know every CPU."""
    folder = tmp_path / "bin"
    folder.mkdir()
    known = " ".join(cpu.name for cpu in CPUS.values())
    for name, words in ((QEMU, 2), (QEMU_ARM, 4)):
        help_text = f'test "$2" = help && printf "%s\\n" {known} && exit'
        (folder / name).write_text(f'#!/bin/sh\n{help_text}\necho $$ > {tmp_path}/pid\nshift {words}\nexec "$@"\n')
        (folder / name).chmod(0o755)
    python = tmp_path / "sysroot" / "usr" / "bin" / "python3.11"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nunset PYTHONHOME PYTHONPATH\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("EDGECNN_SYSROOT", str(tmp_path / "sysroot"))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return folder


def test_devices_are_those_that_can_run(native: Path) -> None:
    """All four are listed where all is there, and one less for each thing that is not, with the way to get it."""
    backend = EmulatedBackend()
    assert set(backend.devices()) == {"arm64", "arm64-dotprod", "haswell", "nehalem"}
    assert not backend.missing()
    shutil.rmtree(native.parent / "sysroot")
    assert set(backend.devices()) == set(X86)
    assert set(backend.missing()) == set(ARM)
    assert all("`edgecnn sysroot arm64`" in told and "MB" in told for told in backend.missing().values())


@pytest.mark.usefixtures("native")
def test_devices_that_an_old_qemu_does_not_know_are_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A qemu without the Neoverse N1 leaves the other Arm device."""
    old = tmp_path / "old"
    old.mkdir()
    (old / QEMU_ARM).write_text("#!/bin/sh\necho Available CPUs:\necho '  cortex-a72'\n")
    (old / QEMU_ARM).chmod(0o755)
    monkeypatch.setenv("PATH", str(old), prepend=":")
    assert set(EmulatedBackend().devices()) == {"arm64", *X86}
    assert "does not know neoverse-n1" in EmulatedBackend().missing()["arm64-dotprod"]


def test_x86_devices_need_an_x86_machine(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an Arm machine the interpreter at hand is not for x86, and only the sysroot's can run."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert EmulatedBackend().devices() == ARM
    assert set(EmulatedBackend().missing()) == set(X86)


def test_without_qemu_it_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no emulator nothing is listed; asking for the list, or for a device, is one line with the remedy."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingPackageError, match=INSTALL):
        EmulatedBackend().devices()
    with pytest.raises(DeviceError, match=f"^emulated@haswell: {QEMU} is not on the PATH: {INSTALL}$"):
        EmulatedBackend().load(bundle.artifact("fp32"), "haswell", SessionOptions())


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("device", ["cpu", "Haswell", "arm", "arm64:0"])
def test_a_device_of_another_name_is_refused(device: str, bundle: Bundle) -> None:
    """Names are exact, there is no default device, and the message lists those there are."""
    ref = BackendRef.parse(f"emulated:fp32@{device}")
    with pytest.raises(DeviceError, match=f"no device '{device}'.*arm64, arm64-dotprod, haswell, nehalem"):
        open_session(ref, bundle.artifact("fp32"), None, EmulatedBackend())
    with pytest.raises(DeviceError, match="there is no such device"):
        EmulatedBackend().load(bundle.artifact("fp32"), device, SessionOptions())


@pytest.mark.parametrize("device", CPUS)
def test_names_are_parsed_and_written_alike(device: str) -> None:
    """A device is what follows the first @, hyphens and all."""
    ref = BackendRef.parse(f"emulated:int8@{device}")
    assert (ref.backend, ref.artifact, ref.device) == ("emulated", "int8", device)
    assert str(ref) == f"emulated:int8@{device}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("device", CPUS)
@pytest.mark.usefixtures("native")
def test_full_range_weights_are_computed_precisely_on_x86(
    device: str, target: Target, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a real CPU without VNNI: x64quantprecision for weights made for VNNI or Arm, and for nothing else."""
    seen: list[dict[str, str]] = []

    def start(cpu: Any, model: Path, config: dict[str, str], **rest: Any) -> None:
        seen.append(config)
        raise BackendError("far enough")

    monkeypatch.setattr(emulate, "EmulatedProcess", start)
    artifact = replace(bundle.artifact("int8"), target=target)
    with pytest.raises(BackendError, match="far enough"):
        EmulatedBackend().load(artifact, device, SessionOptions())
    precise = device in X86 and target in ("x86-64-vnni", "arm64")
    assert seen == [{"session.x64quantprecision": "1"} if precise else {}]


@pytest.mark.usefixtures("native")
def test_a_file_that_is_no_model_is_one_clear_line(tmp_path: Path) -> None:
    """The message names the file that was given, not the copy that the process read."""
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"not a model at all")
    ref = BackendRef.parse("emulated@haswell")
    with pytest.raises(BackendError, match=r"Protobuf parsing") as caught:
        open_session(ref, Artifact(name="bad", format="onnx", path=path), None, EmulatedBackend())
    assert str(caught.value).startswith(f"{path} on an emulated Haswell failed: ")
    assert "\n" not in str(caught.value)
    assert "edgecnn-emulated-" not in str(caught.value)


@pytest.mark.parametrize("device", ["haswell", "arm64"])
def test_a_killed_process_fails_the_run_and_no_more(device: str, bundle: Bundle, native: Path) -> None:
    """A session whose process is killed is a BackendError at every later run, and still closes."""
    ref = BackendRef.parse(f"emulated@{device}")
    with open_session(ref, bundle.artifact("fp32"), None, EmulatedBackend()) as session:
        feeds = make_feeds(session.inputs, 2)
        assert session.run(feeds)["logits"].shape == (2, 10)
        os.kill(int((native.parent / "pid").read_text()), 9)
        for told in ("it was ended by SIGKILL", "ended before"):
            with pytest.raises(BackendError, match=f"failed while running on {device}: .*{told}") as caught:
                session.run(feeds)
            assert "\n" not in str(caught.value)


def test_a_process_that_hangs_is_not_waited_for(native: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that gives no answer in the backend's time is a BackendError, and nothing is left in the temporary folder."""
    (native / QEMU).write_text('#!/bin/sh\ntest "$2" = help && echo Haswell && exit\nexec sleep 60\n')
    temporary = native.parent / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    backend = EmulatedBackend()
    backend.timeout_s = 0.3
    with pytest.raises(BackendError, match=r"no answer in 0\.3 s"):
        open_session(BackendRef.parse("emulated@haswell"), bundle.artifact("fp32"), None, backend)
    assert not list(temporary.iterdir())


def test_the_end_of_a_session_is_the_end_of_its_process(native: Path, bundle: Bundle) -> None:
    """After the with block there is no process, and the session refuses to run."""
    with open_session(
        BackendRef.parse("emulated@haswell"), bundle.artifact("fp32"), None, EmulatedBackend()
    ) as session:
        pid = int((native.parent / "pid").read_text())
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(BackendError, match="closed"):
        session.run(make_feeds(session.inputs, 1))


def test_the_sysroot_of_the_environment_is_the_one_that_runs(native: Path) -> None:
    """EDGECNN_SYSROOT is where the Arm devices run from."""
    assert sysroot_folder() == native.parent / "sysroot"
