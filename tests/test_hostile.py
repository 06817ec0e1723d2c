"""Bundles made to harm: nothing outside them is read, nothing waits for ever, and memory stays bounded.

Whether a file outside was opened is asked of the kernel, by inotify, which sees native code too; memory is bounded by
RLIMIT_AS in a process of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from small_bundle import contents, describe, entries, pack, record, write

from edgecnn import archive, protobuf
from edgecnn.backends.base import open_session
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.errors import BackendError, BundleError, DamagedError, EdgecnnError, EscapeError
from edgecnn.manifest import MANIFEST, SIGNATURE
from edgecnn.spec import Artifact, BackendRef

IN_ACCESS, IN_OPEN = 0x1, 0x20
SECONDS = 60  # that a child may take before it counts as waiting for ever


class Canary:
    """A file outside of every bundle, and whether anybody has opened or read it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(np.arange(4, dtype=np.float32).tobytes())
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watch = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._watch >= 0
        assert self._libc.inotify_add_watch(self._watch, os.fsencode(path), IN_OPEN | IN_ACCESS) >= 0

    def touched(self) -> bool:
        try:
            return bool(os.read(self._watch, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._watch)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    made = Canary(tmp_path / "secret")
    yield made
    made.close()


def test_the_canary_sees_who_opens_it(canary: Canary) -> None:
    """A file that is opened, by Python or by native code, is noticed, and one that is only asked about is not."""
    assert canary.path.stat().st_size == 16
    os.path.realpath(canary.path)
    assert not canary.touched()
    canary.path.read_bytes()
    assert canary.touched()
    assert not canary.touched()
    subprocess.run(["cat", str(canary.path)], check=True, capture_output=True)
    assert canary.touched()


# Names and links


def run_all_commands(bundle: Path, image: Path) -> list[str]:
    """Give a bundle to every command that a box runs; all refuse it in one line."""
    lines = []
    for command in (
        ["verify", bundle],
        ["predict", bundle, image],
        ["inspect", bundle],
        ["parity", bundle],
        ["bench", bundle],
    ):
        done = CliRunner().invoke(cli, [str(one) for one in command])
        assert done.exit_code in (2, 3), (command, done.output)
        assert not isinstance(done.exception, (MemoryError, RecursionError))
        assert not done.stdout
        lines.append(done.stderr.strip().splitlines()[-1])
    return lines


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "one.png"
    path.write_bytes(contents()["goldens/000.png"])
    return path


@pytest.mark.parametrize("name", ["../secret", "goldens/../../secret", "ABSOLUTE"])
@pytest.mark.parametrize("place", ["files", "artifact", "goldens"])
def test_names_that_lead_out(tmp_path: Path, canary: Canary, image: Path, name: str, place: str) -> None:
    """A manifest that names a file outside, for whatever purpose, is refused by every command, and the file stays closed."""
    name = str(canary.path) if name == "ABSOLUTE" else name
    document = describe(contents())
    document["files"][name] = record(canary.path.read_bytes())
    assert canary.touched()
    if place == "artifact":
        document["artifacts"]["net"]["path"] = name
    if place == "goldens":
        document["goldens"]["images"][0] = name
    lines = run_all_commands(write(tmp_path / "small", None, document), image)
    assert all("leaves the bundle" in line for line in lines), lines
    assert not canary.touched()


@pytest.mark.parametrize("name", ["net.onnx", "goldens/000.png", "goldens/arrays.npz", MANIFEST, SIGNATURE])
def test_links_that_lead_out(tmp_path: Path, canary: Canary, image: Path, name: str) -> None:
    """A link out of the bundle in any file's place, the manifest's and the signature's too, is refused unopened."""
    folder = write(tmp_path / "small")
    if name == MANIFEST:  # what it leads to is a manifest in its own right
        canary.path.write_bytes((folder / MANIFEST).read_bytes())
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../" * (1 + name.count("/")) + "secret")
    canary.touched()
    if name == SIGNATURE:
        with pytest.raises(EscapeError, match="is a link"):
            Bundle.open(folder).verify()
    else:
        lines = run_all_commands(folder, image)
        assert all("leaves the bundle" in line or "is a link" in line for line in lines), lines
    assert not canary.touched()


def test_a_linked_folder(tmp_path: Path, canary: Canary, image: Path) -> None:
    """A folder of the bundle that is a link out of it is refused, and what lies in it stays closed."""
    folder = write(tmp_path / "small")
    (folder / "goldens").rename(tmp_path / "outside")
    (folder / "goldens").symlink_to("../outside")
    (tmp_path / "outside" / "000.png").unlink()
    os.link(canary.path, tmp_path / "outside" / "000.png")
    assert all("leaves the bundle" in line for line in run_all_commands(folder, image))
    assert not canary.touched()


@pytest.mark.parametrize("name", ["net.onnx", "goldens/000.png", "goldens/arrays.npz", MANIFEST, SIGNATURE])
def test_pipes_keep_nobody_waiting(tmp_path: Path, name: str) -> None:
    """A named pipe in any file's place, which would keep a reader for ever, is refused at once."""
    folder = write(tmp_path / "small")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    code = "from edgecnn.cli import cli; import sys; cli(['verify', sys.argv[1]], prog_name='edgecnn')"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, timeout=SECONDS, check=False)
    # A pipe called like the signature is none, and the small bundle's artifact is no model: it fails on that.
    assert done.returncode in (2, 3), done.stderr


def test_a_pipe_in_an_artifacts_place_after_opening(tmp_path: Path) -> None:
    """An artifact that becomes a pipe after the bundle was opened is refused when it is read, and nobody waits."""
    folder = write(tmp_path / "small")
    artifact = Bundle.open(folder).artifact()
    (folder / "net.onnx").unlink()
    os.mkfifo(folder / "net.onnx")
    with pytest.raises(DamagedError):
        artifact.read_bytes()


# Models that have other files read


def external(location: str) -> TensorProto:
    """Describe four floats that lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def inner(tensor: TensorProto) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["w"], ["z"])], "g", [], [helper.make_tensor_value_info("z", 1, [4])], [tensor])  # fmt: skip


def in_initializer(tensor: TensorProto) -> onnx.ModelProto:
    return model([helper.make_node("Add", ["x", "w"], ["y"])], [tensor])


def in_constant(tensor: TensorProto) -> onnx.ModelProto:
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Add", ["x", "w"], ["y"])]
    return model(nodes)


def in_subgraph(tensor: TensorProto) -> onnx.ModelProto:
    flag = numpy_helper.from_array(np.array(True), "flag")
    nodes = [helper.make_node("If", ["flag"], ["v"], then_branch=inner(tensor), else_branch=inner(tensor)), helper.make_node("Add", ["x", "v"], ["y"])]  # fmt: skip
    return model(nodes, [flag])


def in_function(tensor: TensorProto) -> onnx.ModelProto:
    body = [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Add", ["x", "w"], ["y"])]
    function = helper.make_function("own", "F", ["x"], ["y"], body, [helper.make_opsetid("", 18)])
    made = model([helper.make_node("F", ["x"], ["y"], domain="own")])
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid("own", 1))
    return made


def in_sparse(tensor: TensorProto) -> onnx.ModelProto:
    made = model([helper.make_node("Identity", ["x"], ["y"])])
    indices = numpy_helper.from_array(np.arange(4))
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [8]))
    return made


def model(nodes: list[onnx.NodeProto], weights: list[TensorProto] | None = None) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], weights or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


PLACES: dict[str, Callable[[TensorProto], onnx.ModelProto]] = {
    "initializer": in_initializer,
    "constant": in_constant,
    "subgraph": in_subgraph,
    "function": in_function,
    "sparse": in_sparse,
}


def bundle_of(folder: Path, data: bytes, more: dict[str, bytes] | None = None) -> Path:
    """Write a bundle whose artifact is these bytes, recorded as they are; `more` lies in it unrecorded."""
    write(folder, {**contents(), "net.onnx": data})
    for name, content in (more or {}).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_refused_wherever_it_hides(tmp_path: Path, canary: Canary, place: str) -> None:
    """Weights outside the file, in any place of the format, are refused before any backend sees the model."""
    data = PLACES[place](external("../secret")).SerializeToString()
    artifact = Bundle.open(bundle_of(tmp_path / "small", data)).artifact()
    with pytest.raises(EscapeError, match=r"net\.onnx: has '\.\./secret' read from outside itself"):
        open_session(BackendRef(backend="onnxruntime"), artifact)
    assert not canary.touched()


@pytest.mark.parametrize("location", ["../secret", "ABSOLUTE", "link", "unrecorded.bin", "goldens/../../secret", ""])
def test_external_data_is_refused_whatever_it_names(
    tmp_path: Path, canary: Canary, image: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is named by dots, absolutely, by a link or lies inside unrecorded: no command reads it, wherever it stands."""
    location = str(canary.path) if location == "ABSOLUTE" else location
    data = in_initializer(external(location)).SerializeToString()
    floats = np.arange(4, dtype=np.float32).tobytes()
    folder = bundle_of(tmp_path / "small", data)
    monkeypatch.chdir(folder)  # where ONNX Runtime would look for it
    artifact = Bundle.open(folder).artifact()
    if location == "link":
        (folder / "link").symlink_to(canary.path)
    if location == "unrecorded.bin":
        (folder / location).write_bytes(floats)
    inside = Canary(folder / location) if location == "unrecorded.bin" else None
    with pytest.raises(EscapeError, match="read from outside itself"):
        artifact.read_bytes()
    done = CliRunner().invoke(cli, ["predict", str(folder), str(image)])
    assert done.exit_code == 2
    assert "read from outside itself" in done.stderr
    assert not canary.touched()
    if inside is not None:
        assert not inside.touched()
        inside.close()


def test_programs_for_a_device_are_refused(tmp_path: Path, canary: Canary) -> None:
    """A node that would have a provider load a compiled program from another file is refused likewise."""
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="../secret")  # fmt: skip
    artifact = Bundle.open(bundle_of(tmp_path / "small", model([node]).SerializeToString())).artifact()
    with pytest.raises(EscapeError, match="a program of its own"):
        artifact.read_bytes()
    assert not canary.touched()


def test_the_same_model_with_its_weights_inside_is_read(tmp_path: Path) -> None:
    """The word alone refuses nothing: a model that has it in a name, and its weights in itself, is loaded."""
    weights = numpy_helper.from_array(np.arange(4, dtype=np.float32), "location")
    made = model([helper.make_node("Add", ["x", "location"], ["y"], name="EPContext.location")], [weights])
    path = tmp_path / "a.onnx"
    path.write_bytes(made.SerializeToString())
    with open_session(BackendRef(backend="onnxruntime"), Artifact(name="a", format="onnx", path=path)) as session:
        np.testing.assert_array_equal(session.run({"x": np.ones(4, np.float32)})["y"], [1, 2, 3, 4])


def test_parity_of_a_plain_file_refuses_it_too(tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX file that is no bundle's has no other file read either."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(in_initializer(external("secret")).SerializeToString())
    done = CliRunner().invoke(cli, ["parity", "m.onnx"])
    assert done.exit_code == 2
    assert "read from outside itself" in done.stderr
    assert not canary.touched()


# The little reader of protobuf, against protobuf


def outside_by_onnx(made: onnx.ModelProto) -> bool:
    """Say by onnx's own classes whether any tensor of any graph or function has its values outside."""
    text = made.SerializeToString()
    return any(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data for tensor in tensors_by_onnx(made)) and bool(text)  # fmt: skip


def tensors_by_onnx(message: Any) -> Iterator[TensorProto]:
    """Walk any protobuf message by its descriptor."""
    if isinstance(message, TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                yield from tensors_by_onnx(one)


@pytest.mark.parametrize("place", PLACES)
def test_operators_are_those_that_onnx_counts(place: str) -> None:
    """Nodes are found in graphs, subgraphs and functions, as a walk by protobuf's own descriptors finds them."""
    made = PLACES[place](external("elsewhere"))
    assert outside_by_onnx(made)

    def nodes(message: Any) -> Iterator[str]:
        if isinstance(message, onnx.NodeProto):
            yield message.op_type
        for field, value in message.ListFields():
            if field.message_type is not None:
                for one in value if field.is_repeated else [value]:
                    yield from nodes(one)

    data = made.SerializeToString()
    assert protobuf.outside(data) == "elsewhere"
    # A node is given whole, and those of its subgraphs are in it.
    assert protobuf.operators(data) == dict(sorted(Counter(nodes(made)).items()))


@pytest.mark.parametrize("values", [[-128, 3], [127, -5], [1, 64], [0, 0]])
@pytest.mark.parametrize("raw", [True, False])
def test_the_largest_weight_is_numpys(values: list[int], raw: bool) -> None:
    """The largest magnitude of int8 tensors is NumPy's, whether they are stored as bytes or as numbers; zeros are no weights."""
    array = np.array(values, dtype=np.int8)
    tensor = numpy_helper.from_array(array, "w") if raw else helper.make_tensor("w", TensorProto.INT8, [2], values)
    floats = numpy_helper.from_array(np.full(3, 99, np.float32), "f")
    data = model([helper.make_node("Identity", ["x"], ["y"])], [tensor, floats]).SerializeToString()
    assert protobuf.largest_int8(data) == (int(np.abs(array.astype(int)).max()) or None)


def test_damaged_models_are_read_or_refused() -> None:
    """Whatever bytes change, the reader ends with an answer or a ValueError; what protobuf reads as outside is never missed."""
    rng = np.random.default_rng(0)
    originals = [place(external("../secret")).SerializeToString() for place in PLACES.values()]
    refused = missed = seen = 0
    for number in range(2000):
        data = bytearray(originals[number % len(originals)])
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        try:
            found = protobuf.outside(bytes(data))
            protobuf.operators(bytes(data))
        except ValueError:
            refused += 1
            continue
        try:
            made = onnx.ModelProto.FromString(bytes(data))
        except Exception:  # protobuf's DecodeError, which has no public name
            continue
        located = any(entry.key == "location" for tensor in tensors_by_onnx(made) for entry in tensor.external_data)
        seen += located
        missed += located and found is None
    assert refused > 100
    assert seen > 300
    assert not missed


def test_endless_nesting_is_refused() -> None:
    """Graphs within graphs, deeper than protobuf itself reads, end in an error and not in a crash."""
    data = in_initializer(external("x")).graph.SerializeToString()
    for _ in range(300):
        attribute = b"\x32" + _length(data) + data
        node = b"\x2a" + _length(attribute) + attribute
        data = b"\x0a" + _length(node) + node
    with pytest.raises(ValueError, match="deep"):
        protobuf.outside(b"\x3a" + _length(data) + data)


def _length(data: bytes) -> bytes:
    value, out = len(data), bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


# Memory


LIMITED = """
import os, resource, sys
import numpy as np
import onnxruntime
from pathlib import Path
from edgecnn.archive import read_arrays
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.errors import EdgecnnError
status = Path("/proc/self/status").read_text()
mapped = int(status.partition("VmSize:")[2].split()[0]) << 10
limit = mapped + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    exec(sys.argv[1], {**globals(), "path": Path(sys.argv[2])})
except EdgecnnError as error:
    print(type(error).__name__, error)
except MemoryError:
    print("MemoryError")
else:
    print("fine")
"""


def limited(code: str, path: Path) -> str:
    """Run code with 300 MB more than the process has when all is imported, and return its last line."""
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, code, str(path)], capture_output=True, text=True, env=env, timeout=SECONDS, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_limit_holds(tmp_path: Path) -> None:
    """In the process of these tests half a gigabyte is not to be had, and a good bundle is read all the same."""
    assert limited("np.ones(1 << 29, np.uint8)", tmp_path) == "MemoryError"
    assert limited("bundle = Bundle.open(path); bundle.verify(); bundle.goldens()", write(tmp_path / "a")) == "fine"


def zeros_deflated(size: int) -> Iterator[bytes]:
    block = b"\0" * (1 << 20)
    for _ in range(size >> 20):
        yield block


@contextmanager
def large_entry(path: Path, name: str, files: dict[str, bytes]) -> Iterator[Any]:
    """Write a zip of small entries and one that is written a piece at a time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for entry, data in files.items():
            packed.writestr(entry, data)
        with packed.open(name, "w", force_zip64=True) as file:
            yield file


def test_a_zip_that_is_a_bomb(tmp_path: Path) -> None:
    """A zip of some megabytes that unpacks to half a gigabyte, honestly recorded, is refused before it is unpacked."""
    size, digest = 1 << 29, hashlib.sha256()
    for block in zeros_deflated(size):
        digest.update(block)
    files = {**describe(contents())["files"], "huge.bin": {"size": size, "sha256": digest.hexdigest()}}
    path = tmp_path / "x.zip"
    with large_entry(path, "huge.bin", entries(files=files)) as file:
        for block in zeros_deflated(size):
            file.write(block)
    assert path.stat().st_size < 8 << 20
    before = set(tmp_path.iterdir())
    code = "import tempfile; tempfile.tempdir = str(path.parent); Bundle.open(path)"
    assert "times its size, as no bundle does" in limited(code, path)
    assert set(tmp_path.iterdir()) == before


def test_a_zip_whose_entry_is_a_bomb(tmp_path: Path) -> None:
    """An entry that unpacks to half a gigabyte where the manifest records some bytes is given up after those."""
    files = {name: data for name, data in entries().items() if name != "net.onnx"}
    path = tmp_path / "x.zip"
    with large_entry(path, "net.onnx", files) as file:
        for block in zeros_deflated(1 << 29):
            file.write(block)
    assert "net.onnx is larger than recorded" in limited("Bundle.open(path)", path)


def test_a_manifest_that_is_a_bomb(tmp_path: Path) -> None:
    """A zipped manifest of half a gigabyte is given up at the largest size that a manifest may have."""
    path = tmp_path / "x.zip"
    with large_entry(path, MANIFEST, contents()) as file:
        for block in zeros_deflated(1 << 29):
            file.write(block)
    assert "manifest.json is larger than recorded" in limited("Bundle.open(path)", path)


def test_a_zip_with_an_endless_list_of_files(tmp_path: Path) -> None:
    """A zip whose own list of files claims gigabytes, in the plain form and in that of ZIP64, is not read into memory."""
    size = 3 << 30
    for name, end in (
        ("plain", struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, size, 0, 0)),
        ("zip64", _zip64_end(size)),
    ):
        path = tmp_path / f"{name}.zip"
        with path.open("wb") as file:
            file.truncate(size)  # a hole: no disk is taken
            file.seek(size)
            file.write(end)
        line = limited("Bundle.open(path)", path)
        assert line.startswith("DamagedError"), line
        assert "longer than any bundle's" in line


def _zip64_end(size: int) -> bytes:
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 9, 9, size, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, size, 1)
    return end + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


def test_goldens_that_are_a_bomb(tmp_path: Path) -> None:
    """Golden arrays that unpack to half a gigabyte are given up, though their hash fits; NumPy by itself would take them in."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, pixels=np.zeros((1 << 29,), np.uint8))
    data = buffer.getvalue()
    assert len(data) < 2 << 20
    folder = write(tmp_path / "small", {**contents(), "goldens/arrays.npz": data})
    assert "unpacks to more than the" in limited("Bundle.open(path).goldens()", folder)
    assert limited("np.load(path / 'goldens/arrays.npz')['pixels']", folder) == "MemoryError"


def test_arrays_that_promise_more_than_they_hold() -> None:
    """An array whose header promises terabytes is refused by its length, before anything is allocated."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    data = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + b"\0" * 64
    with pytest.raises(ValueError, match="an array of float64"):
        archive.parse_array(data)


@pytest.mark.parametrize("name", ["net.onnx", "goldens/arrays.npz", MANIFEST])
def test_files_that_grew(tmp_path: Path, name: str) -> None:
    """A file that is a hundred gigabytes on the disk, a hole for the most part, is refused by its size."""
    folder = write(tmp_path / "small")
    os.truncate(folder / name, 100 << 30)
    assert "Error" in limited("bundle = Bundle.open(path); bundle.verify()", folder)


def test_an_artifact_that_grows_after_opening(tmp_path: Path) -> None:
    """What is read of an artifact is what was recorded of it and one byte, whatever the file has become."""
    folder = write(tmp_path / "small")
    code = (
        "bundle = Bundle.open(path); a = bundle.artifact(); os.truncate(path / 'net.onnx', 100 << 30); a.read_bytes()"
    )
    assert limited(code, folder).startswith("DamagedError")


def test_files_that_are_recorded_too_large(tmp_path: Path) -> None:
    """A file that the manifest itself records with a hundred gigabytes is refused when the bundle is opened."""
    folder = write(tmp_path / "small")
    document = json.loads((folder / MANIFEST).read_text())
    document["files"]["net.onnx"]["size"] = 100 << 30
    (folder / MANIFEST).write_text(json.dumps(document))
    os.truncate(folder / "net.onnx", 100 << 30)
    with pytest.raises(BundleError, match=r"net\.onnx is over 2 GB"):
        Bundle.open(folder)


def test_many_files_too_many_are_one_short_line(tmp_path: Path) -> None:
    """Thousands of files that the manifest does not know are said in one line that a person can read."""
    folder = write(tmp_path / "small")
    for number in range(2000):
        (folder / f"extra-{number:04d}").touch()
    with pytest.raises(DamagedError, match=r"extra-0000, .* and 1995 more") as caught:
        Bundle.open(folder).verify()
    assert len(str(caught.value)) < 400


def test_garbage_is_no_crash(tmp_path: Path) -> None:
    """An artifact of random bytes, recorded as it is, is one of edgecnn's errors in every backend that reads ONNX."""
    rng = np.random.default_rng(1)
    for number in range(5):
        folder = bundle_of(tmp_path / str(number), rng.bytes(1000) + b"location")
        artifact = Bundle.open(folder).artifact()
        for backend in ("onnxruntime", "reference"):
            with pytest.raises(EdgecnnError):
                open_session(BackendRef(backend=backend), artifact)
    path = tmp_path / "cut.onnx"
    path.write_bytes(in_initializer(external("../secret")).SerializeToString()[:-3])
    with pytest.raises((BackendError, EscapeError)):
        Artifact(name="cut", format="onnx", path=path).read_bytes()


def test_pack_writes_what_a_bundle_is(tmp_path: Path) -> None:
    """The zips of these tests are good ones but for what was planted in them."""
    Bundle.open(pack(tmp_path / "x.zip", entries())).verify()
