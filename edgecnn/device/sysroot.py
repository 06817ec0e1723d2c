"""A folder with the Python, numpy and ONNX Runtime of another architecture: what qemu needs to imitate an Arm device.

It is made once, by one command, out of Debian's packages and the wheels of PyPI, without root; qemu runs what lies in it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from edgecnn.device.emulate import CPUS, INSTALL, QEMU_ARM, SITE, EmulatedProcess
from edgecnn.errors import BackendError, EdgecnnError, MissingPackageError
from edgecnn.files import cache_folder, folder_atomic, write_atomic
from edgecnn.spec import Frozen, to_json

SIZE = "about 65 MB to download, 180 MB on the disk"
RECORD = "sysroot.json"
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
# What comes along and is of no use to an interpreter that only computes.
_USELESS = ("usr/share", "usr/sbin", "bin", "sbin", "var")
_OLDEST_GLIBC = 17  # of the manylinux tags, 2.17: that of the oldest wheels for aarch64 (PEP 599 and 600)
# y = x @ x for 2x2 float32, opset 13: run at the end, to see that the folder works.
TRIAL = base64.b64decode(
    "CAc6QAoRCgF4CgF4EgF5IgZNYXRNdWwSAWdaEwoBeBIOCgwIARIICgIIAgoCCAJiEwoBeRIOCgwIARIICgIIAgoCCAJCBAoAEA0="
)


class Sysroot(Frozen, frozen=True):
    """What a sysroot was made of, kept in it; `files` are the packages and wheels with their sha256."""

    architecture: str
    python: str
    onnxruntime: str
    numpy: str
    files: dict[str, str]


def sysroot_folder() -> Path | None:
    """Name the place of the arm64 sysroot: `EDGECNN_SYSROOT`, or `sysroot-arm64` in edgecnn's cache folder; None without a home."""
    own, cache = os.environ.get("EDGECNN_SYSROOT"), cache_folder()
    if own:
        return Path(own)
    return None if cache is None else cache / "sysroot-arm64"


def installed_version(package: str) -> str | None:
    """Return the version of ONNX Runtime or numpy that is installed here; the CUDA build of the former has the same."""
    for name in (package, f"{package}-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def make_sysroot(folder: Path, onnxruntime: str, numpy: str, say: Callable[[str], None]) -> Sysroot:
    """Make the arm64 sysroot in `folder`, in place of one that is there; whatever fails leaves what was before.

    Args:
        folder: where to; everything is made beside it and renamed at the end.
        onnxruntime: the version to put in.
        numpy: the version to put in.
        say: is told what is going on, a line at a time.

    Raises:
        MissingPackageError: apt-get, dpkg, pip or qemu is not there.
        BackendError: something could not be got, or does not run.
    """
    hint = f"a sysroot made on a Debian machine can be copied to {folder}"
    pip = _programs(hint)
    say(f"making {folder}: {SIZE}")
    try:
        with folder_atomic(folder) as root, tempfile.TemporaryDirectory(prefix="edgecnn-sysroot-") as work:
            debs = _get_debs(Path(work))
            python, glibc = _minor(debs, "python3.", "-minimal_"), _minor(debs, "libc6_2.", "-")
            say(f"{len(debs)} Debian packages with Python 3.{python}; now onnxruntime {onnxruntime} and numpy {numpy}")
            wheels = _get_wheels(pip, Path(work) / "wheels", python, glibc, (onnxruntime, numpy))
            _unpack(debs, wheels, root)
            say(f"running a model on an emulated {CPUS['arm64'].name}")
            _try(root, Path(work) / "trial.onnx")
            files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (*debs, *wheels)}
            made = Sysroot(
                architecture="arm64", python=f"3.{python}", onnxruntime=onnxruntime, numpy=numpy, files=files
            )
            write_atomic(root / RECORD, to_json(made))
    except EdgecnnError as error:
        raise type(error)(f"{error}; {hint}") from error
    except OSError as error:
        raise BackendError(f"{folder} could not be made: {error.strerror or error} ({error.filename})") from error
    return made


def _programs(hint: str) -> list[str]:
    """Check that what is needed is there, before anything is fetched, and return the command that is pip."""
    needed = {"apt-get": "a Debian machine", "dpkg": "a Debian machine", QEMU_ARM: INSTALL}
    for program, remedy in needed.items():
        if shutil.which(program) is None:
            raise MissingPackageError(f"{program} is not on the PATH, and a sysroot needs it: {remedy}; or {hint}")
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    pip = shutil.which("pip3") or shutil.which("pip")
    if pip is None:
        raise MissingPackageError(f"pip is neither installed here nor on the PATH: python -m ensurepip; or {hint}")
    return [pip]


def _get_debs(work: Path) -> list[Path]:
    """Let apt find the packages' newest versions for arm64 and all that they depend on, and download them."""
    for name in ("lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()  # nothing is installed yet, so that everything they depend on comes along
    (work / "apt.conf").write_text(_apt_settings(work))
    apt = ["apt-get", "-qq", "-c", str(work / "apt.conf")]
    _call([*apt, "update"], "apt-get update for arm64")
    _call([*apt, "install", "--yes", "--download-only", *PACKAGES], f"apt-get download of {' and '.join(PACKAGES)}")
    return sorted((work / "cache" / "archives").glob("*.deb"))


def _apt_settings(work: Path) -> str:
    """Keep apt to its sources and its signatures, and away from this machine's own state, locks, hooks and language."""
    return f"""#clear APT::Architectures;
#clear APT::Update;
#clear DPkg;
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "0";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Debug::NoLocking "1";
Dir::State "{work}";
Dir::State::lists "{work}/lists";
Dir::State::status "{work}/status";
Dir::Cache "{work}/cache";
"""


def _get_wheels(pip: list[str], to: Path, python: str, glibc: str, versions: tuple[str, str]) -> list[Path]:
    """Download the wheels for the sysroot's Python; onnxruntime's other dependencies are not needed to run a model."""
    tags = [f"manylinux_2_{minor}_aarch64" for minor in range(_OLDEST_GLIBC, int(glibc) + 1)]
    wanted = [f"onnxruntime=={versions[0]}", f"numpy=={versions[1]}"]
    target = ["--python-version", f"3.{python}", "--implementation", "cp", "--only-binary", ":all:", "--no-deps"]
    platforms = [word for tag in ("manylinux2014_aarch64", *tags) for word in ("--platform", tag)]
    command = [*pip, "download", "--quiet", "--no-input", "--disable-pip-version-check", *target, *platforms]
    _call([*command, "--dest", str(to), *wanted], f"pip download of {' and '.join(wanted)} for Python 3.{python}")
    return sorted(to.glob("*.whl"))


def _minor(debs: Sequence[Path], before: str, after: str) -> str:
    """Read a minor version out of the name of a package's file."""
    pattern = f"{re.escape(before)}(\\d+){re.escape(after)}"
    found = [match.group(1) for match in (re.match(pattern, deb.name) for deb in debs) if match]
    if not found:
        raise BackendError(f"apt-get downloaded {len(debs)} packages, and none begins with {before}")
    return found[0]


def _unpack(debs: Sequence[Path], wheels: Sequence[Path], root: Path) -> None:
    for deb in debs:
        _call(["dpkg", "-x", str(deb), str(root)], f"dpkg -x of {deb.name}")
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(root / SITE)
        except zipfile.BadZipFile as error:
            raise BackendError(f"{wheel.name} is damaged: {error}") from error
    for name in _USELESS:
        shutil.rmtree(root / name, ignore_errors=True)
    for link in [entry for entry in root.rglob("*") if entry.is_symlink()]:
        if link.readlink().is_absolute() or not link.exists():
            link.unlink()  # it would lead into this machine, or nowhere
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")  # Debian 13 leaves that to the package of an installed system


def _try(root: Path, model: Path) -> None:
    """Run a model whose answer is known; the modules' bytecode is written on the way, and later starts are quicker."""
    model.write_bytes(TRIAL)
    square = np.array([[1, 2], [3, 4]], np.float32)
    process = EmulatedProcess(CPUS["arm64"], model, sysroot=root)
    try:
        answer = process.run({"x": square})["y"]
    finally:
        process.close()
    if not np.array_equal(answer, [[7, 10], [15, 22]]):
        raise BackendError(
            f"the sysroot answers {answer.tolist()} where [[7, 10], [15, 22]] is right; is qemu too old?"
        )


def _call(command: Sequence[str], what: str) -> None:
    """Run a program to its end; of what a failing one says, its first line of error is told."""
    plain = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=plain)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if line.startswith(("E: ", "ERROR: "))), lines[-1])
        raise BackendError(f"{what} failed: {reason.partition(': ')[2] or reason}")
