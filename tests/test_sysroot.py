"""Making the sysroot: what goes into it, in what versions, and that whatever fails leaves nothing behind."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgecnn.cli import cli
from edgecnn.device import sysroot
from edgecnn.device.sysroot import Sysroot, installed_version, make_sysroot, sysroot_folder
from edgecnn.errors import BackendError, EdgecnnError, MissingPackageError

# Stand-ins: apt-get "downloads" two packages, dpkg "unpacks" this interpreter, pip two wheels, and qemu runs natively.
APT = """#!/bin/sh
work=$(dirname "$3")
echo "$4" >> "$NOTES/apt"
cp "$3" "$NOTES/apt.conf"
test "$4" = update && exit 0
for name in python3.11-minimal_3.11.2-6 libc6_2.36-9+deb12u14; do
  echo "$name" > "$work/cache/archives/${name}_arm64.deb"
done
"""
DPKG = """#!/bin/sh
test "$1" = -x || exit 9
mkdir -p "$3/usr/bin" "$3/usr/lib" "$3/usr/share/doc"
ln -sf /etc/passwd "$3/usr/lib/absolute"; ln -sf nowhere "$3/usr/lib/dangling"; ln -sf python3.11 "$3/usr/bin/python3"
printf '#!/bin/sh\\nunset PYTHONHOME PYTHONPATH\\nexec PYTHON "$@"\\n' > "$3/usr/bin/python3.11"
chmod 755 "$3/usr/bin/python3.11"
"""
PIP = """import os, pathlib, sys, zipfile
pathlib.Path(os.environ["NOTES"], "pip").write_text("\\n".join(sys.argv[1:]))
to = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
to.mkdir(parents=True)
for wanted in sys.argv[-2:]:
    name = wanted.partition("==")[0]
    with zipfile.ZipFile(to / f"{name}-1-cp311-cp311-manylinux_2_28_aarch64.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
"""
QEMU = '#!/bin/sh\nshift 4\nexec "$@"\n'
VERSIONS = {"onnxruntime": "1.30.1", "numpy": "2.3.4"}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.fixture
def programs(tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-ins where the real ones are looked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {"apt-get": APT, "dpkg": DPKG.replace("PYTHON ", f"{sys.executable} "), "qemu-aarch64-static": QEMU}
    for name, script in scripts.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(PIP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("NOTES", str(notes))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "arm"


def make(folder: Path) -> Sysroot:
    return make_sysroot(folder, VERSIONS["onnxruntime"], VERSIONS["numpy"], lambda line: None)


@pytest.mark.usefixtures("programs")
def test_the_folder_holds_what_was_asked_for_and_says_so(folder: Path) -> None:
    """The record has the versions, and each package's and wheel's own sha256; the wheels lie where Python looks."""
    made = make(folder)
    assert json.loads((folder / "sysroot.json").read_text()) == {
        "architecture": "arm64",
        "python": "3.11",
        **VERSIONS,
        "files": made.files,
    }
    debs = ("python3.11-minimal_3.11.2-6", "libc6_2.36-9+deb12u14")
    wheels = {f"{name}-1-cp311-cp311-manylinux_2_28_aarch64.whl" for name in VERSIONS}
    assert set(made.files) == {f"{name}_arm64.deb" for name in debs} | wheels
    assert all(made.files[f"{name}_arm64.deb"] == hashlib.sha256(f"{name}\n".encode()).hexdigest() for name in debs)
    assert all((folder / "opt" / "site" / name / "__init__.py").is_file() for name in VERSIONS)
    assert [path.name for path in folder.parent.iterdir()] == ["arm"]


@pytest.mark.usefixtures("programs")
def test_the_folder_leads_nowhere_else(folder: Path) -> None:
    """Links into this machine and into nothing are gone, others are kept, and `lib` is there as Debian 13 has it."""
    make(folder)
    assert {path.name for path in (folder / "usr" / "lib").iterdir()} == set()
    assert (folder / "usr" / "bin" / "python3").readlink() == Path("python3.11")
    assert (folder / "lib").readlink() == Path("usr/lib")
    assert not (folder / "usr" / "share").exists()


@pytest.mark.usefixtures("programs")
def test_pip_is_asked_for_the_sysroots_python_not_for_this_one(folder: Path, notes: Path) -> None:
    """The wheels are for aarch64, for the Python that apt gave, and for no newer glibc than its own."""
    make(folder)
    words = (notes / "pip").read_text().splitlines()
    assert words[words.index("--python-version") + 1] == "3.11"
    assert words[-2:] == ["onnxruntime==1.30.1", "numpy==2.3.4"]
    platforms = {after for word, after in itertools.pairwise(words) if word == "--platform"}
    assert platforms == {"manylinux2014_aarch64"} | {f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)}
    assert {"--no-deps", "--only-binary"} <= set(words)


@pytest.mark.usefixtures("programs")
def test_apt_is_kept_away_from_this_machines_state(folder: Path, notes: Path) -> None:
    """Lists, status and cache are in a folder of their own, hooks are off, and it is told arm64."""
    make(folder)
    assert (notes / "apt").read_text().split() == ["update", "install"]
    lines = (notes / "apt.conf").read_text().splitlines()
    own = {line.split()[0]: line.split('"')[1] for line in lines if line.startswith("Dir::")}
    assert set(own) == {"Dir::State", "Dir::State::lists", "Dir::State::status", "Dir::Cache"}
    assert all(place.startswith(own["Dir::State"]) and not place.startswith("/var") for place in own.values())
    assert {'APT::Architecture "arm64";', "#clear APT::Update;", "#clear DPkg;"} <= set(lines)
    assert not Path(own["Dir::State"]).exists()


# What is put in a stand-in's place, and what of it has to be told.
FAILURES = {
    "no network": (
        "apt-get", "#!/bin/sh\necho W: slow >&2\necho 'E: Could not resolve host' >&2\necho more >&2\nexit 100\n",
        "apt-get update for arm64 failed: Could not resolve host; ",
    ),
    "no such package": (
        "apt-get", "#!/bin/sh\ntest $4 = update && exit 0\necho 'E: Unable to locate package x' >&2\nexit 100\n",
        "failed: Unable to locate package x; ",
    ),
    "nothing came": ("apt-get", "#!/bin/sh\n", "apt-get downloaded 0 packages, and none begins with python3.; "),
    "a broken package": (
        "dpkg", "#!/bin/sh\necho 'not a Debian format archive' >&2\nexit 2\n",
        "dpkg -x of libc6_2.36-9+deb12u14_arm64.deb failed: not a Debian format archive; ",
    ),
    "no such wheel": (
        "../pip/__main__.py", "import sys; sys.exit('ERROR: No matching distribution found for numpy==2.3.4')",
        "pip download of onnxruntime==1.30.1 and numpy==2.3.4 for Python 3.11 failed: No matching distribution",
    ),
    "a wheel that is none": (
        "../pip/__main__.py", PIP + "for wheel in to.iterdir(): wheel.write_text(name)",
        "File is not a zip file",
    ),
    "qemu fails": (
        "qemu-aarch64-static", "#!/bin/sh\necho 'Illegal instruction' >&2\nexit 132\n",
        "trial.onnx on an emulated cortex-a72 failed: Illegal instruction; ",
    ),
    "Python cannot be run": (
        "dpkg", '#!/bin/sh\nmkdir -p "$3/usr"\n', "an emulated cortex-a72 needs a sysroot",
    ),
}  # fmt: skip


@pytest.mark.parametrize("before", ["nothing", "an older one"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_one_line_and_leaves_what_was(failure: str, before: str, folder: Path, programs: Path) -> None:
    """Whatever fails is told in one line with a way out; there is no folder then, or still the older one."""
    program, script, told = FAILURES[failure]
    (programs / program).write_text(script)
    if before == "an older one":
        folder.mkdir(parents=True)
        (folder / "old").touch()
    with pytest.raises(EdgecnnError) as caught:
        make(folder)
    assert told in str(caught.value)
    assert str(caught.value).endswith(f"a sysroot made on a Debian machine can be copied to {folder}")
    assert "\n" not in str(caught.value)
    left = [path.relative_to(folder.parent).as_posix() for path in sorted(folder.parent.rglob("*"))]
    assert left == ([] if before == "nothing" else ["arm", "arm/old"])


@pytest.mark.usefixtures("programs")
def test_a_wrong_answer_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sysroot that computes something else than the known answer is not kept."""
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "x"], ["y"])], "g", shape[:1], shape[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    monkeypatch.setattr(sysroot, "TRIAL", model.SerializeToString())
    with pytest.raises(BackendError, match=r"answers \[\[1\.0, 4\.0\], \[9\.0, 16\.0\]\] where"):
        make(folder)
    assert not folder.exists()


def test_the_trial_is_what_it_is_said_to_be() -> None:
    """The model that is run at the end is valid, and onnx's own evaluator gives the known answer."""
    model = onnx.load_model_from_string(sysroot.TRIAL)
    onnx.checker.check_model(model, full_check=True)
    (answer,) = ReferenceEvaluator(model).run(None, {"x": np.array([[1, 2], [3, 4]], np.float32)})
    assert answer.tolist() == [[7, 10], [15, 22]]


@pytest.mark.parametrize("program", ["apt-get", "dpkg", "qemu-aarch64-static"])
def test_a_missing_program_is_named_before_anything_is_done(
    program: str, folder: Path, programs: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not on the PATH is named, with the way out, and nothing is downloaded."""
    (programs / program).unlink()
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(MissingPackageError, match=rf"{program} is not on the PATH.*can be copied to"):
        make(folder)
    assert not folder.parent.exists()
    assert not list(notes.iterdir())


@pytest.mark.usefixtures("programs")
def test_a_place_that_cannot_be_written_is_one_line() -> None:
    """A cache that keeps nothing, and so has no room for a folder, is named."""
    with pytest.raises(BackendError, match=r"/dev/null/arm could not be made: .*\(/dev/null\)"):
        make(Path("/dev/null/arm"))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"EDGECNN_SYSROOT": "/s", "EDGECNN_CACHE": "/a"}, "/s"),
        ({"EDGECNN_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/sysroot-arm64"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/edgecnn/sysroot-arm64"),
        ({"XDG_CACHE_HOME": "relative"}, "/h/.cache/edgecnn/sysroot-arm64"),
        ({"EDGECNN_SYSROOT": "", "EDGECNN_CACHE": ""}, "/h/.cache/edgecnn/sysroot-arm64"),
    ],
)
def test_where_the_folder_lies(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """EDGECNN_SYSROOT comes first, then edgecnn's cache folder, wherever that is."""
    for name in ("EDGECNN_SYSROOT", "EDGECNN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/h")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert sysroot_folder() == Path(expected)


def test_installed_versions_are_those_of_the_modules() -> None:
    """The versions that are put in by default are those that this interpreter imports."""
    import onnxruntime

    assert installed_version("onnxruntime") == onnxruntime.__version__
    assert installed_version("numpy") == np.__version__
    assert installed_version("no-such-package") is None


@pytest.mark.usefixtures("programs")
def test_the_command_says_the_size_first_and_the_versions_at_the_end(
    folder: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`edgecnn sysroot` takes this machine's versions, tells the size before anything, and prints its record."""
    monkeypatch.setenv("EDGECNN_SYSROOT", str(folder))
    done = CliRunner().invoke(cli, ["sysroot", "arm64"])
    assert (done.exit_code, done.stdout) == (
        0,
        f"{folder}: Python 3.11, onnxruntime {installed_version('onnxruntime')}, numpy {np.__version__}\n",
    )
    assert done.stderr.splitlines()[0] == f"making {folder}: {sysroot.SIZE}"
    done = CliRunner().invoke(cli, ["sysroot", "arm64", "--numpy", "2.0.1", "--json"])
    assert json.loads(done.stdout) == json.loads((folder / "sysroot.json").read_text())
    assert (notes / "pip").read_text().splitlines()[-1] == "numpy==2.0.1"


def test_the_command_asks_for_a_version_that_it_cannot_know(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ONNX Runtime is not installed its version has to be said, and where no folder can be named, that too."""
    monkeypatch.setenv("EDGECNN_SYSROOT", str(folder))
    monkeypatch.setattr(sysroot, "installed_version", lambda package: None)
    done = CliRunner().invoke(cli, ["sysroot", "arm64"])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "onnxruntime is not installed here: say which version to put in with --onnxruntime" in done.stderr
    monkeypatch.setattr(sysroot, "sysroot_folder", lambda: None)
    done = CliRunner().invoke(cli, ["sysroot", "arm64"])
    assert (done.exit_code, "EDGECNN_SYSROOT" in done.stderr) == (2, True)
