"""What a bundle was made for against a machine: versions, CPUs, emulators, and whether int8 saturates there."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecnn import host
from edgecnn.device import fit
from edgecnn.device.decoders import compare_decoders, decoders
from edgecnn.device.fit import Cpu, compare_hosts, emulated_host, relate, saturation, target_note
from edgecnn.host import Host
from edgecnn.parity.verdict import Verdict

VNNI, AVX2 = Cpu("x86-64-vnni", ("avx2", "avx512_vnni")), Cpu("x86-64", ("sse4_1", "avx2"))
AVX512, SSE, ARM = Cpu("x86-64", ("avx512f",)), Cpu("x86-64", ("sse4_1",)), Cpu("arm64", ("asimd",))


def machine(**changes: Any) -> Host:
    import msgspec

    return msgspec.structs.replace(host.fingerprint(), **changes)


@pytest.mark.parametrize(
    ("here", "there", "relation"),
    [
        ("1.32.0", "1.32.0", "same"),
        ("1.32.0", "1.9.1", "newer"),
        ("1.23.2", "1.32.0", "older"),
        ("1.32.0", "1.32.0+cuda", "other"),
        (None, "1.32.0", "unknown"),
        ("1.32.0", None, "unknown"),
    ],
)
def test_versions_are_numbers(here: str | None, there: str | None, relation: str) -> None:
    """Versions are compared number by number, a build of the same one is another, and what is not known is unknown."""
    assert relate(here, there) == relation


def test_the_gpu_wheel_is_the_same_runtime() -> None:
    """ONNX Runtime is found under the name of either wheel, on both machines."""
    here = machine(packages={"onnxruntime-gpu": "1.31.0"})
    runtime, _ = compare_hosts({"packages": {"onnxruntime": "1.32.0"}}, here)
    assert (runtime.here, runtime.there, runtime.relation) == ("1.31.0", "1.32.0", "older")
    assert "may lack operators" in runtime.means


@pytest.mark.parametrize(
    ("there", "relation", "means"),
    [
        (
            {"cpu": "X", "features": ["avx2", "avx512_vnni"], "machine": "x86_64"},
            "other",
            "lacks avx512_vnni: the goldens",
        ),
        ({"cpu": "X", "features": [], "machine": "x86_64"}, "other", "has avx2 besides: the goldens"),
        ({"cpu": "X", "features": ["avx2"], "machine": "x86_64"}, "other", "the same features that matter"),
        ({"cpu": "Mine", "features": ["avx2"], "machine": "x86_64"}, "same", "answer as it did"),
        ({"cpu": "X", "features": ["asimd"], "machine": "aarch64"}, "other", "x86_64 instead of aarch64: every kernel"),
        ({}, "unknown", "goldens alone"),
        ({"cpu": 3, "features": "all"}, "unknown", "goldens alone"),
    ],
)
def test_cpus(there: dict[str, Any], relation: str, means: str) -> None:
    """What this CPU lacks and has besides is named, another architecture as such, and a manifest of nonsense is unknown."""
    _, cpu = compare_hosts(there, machine(cpu="Mine", features=("avx2",), machine="x86_64"))
    assert cpu.relation == relation
    assert means in cpu.means


def test_decoders_are_named() -> None:
    """Pillow's own version comes from its package, and a library that the manifest says nothing of is unknown there."""
    from importlib import metadata

    here = decoders()
    assert here["Pillow"] == metadata.version("pillow")
    found = {one.what: one for one in compare_decoders({"packages": {"pillow": "9.0.0"}}, here)}
    assert (found["Pillow"].relation, found["Pillow"].there) == ("newer", "9.0.0")
    assert found["libjpeg-turbo"].relation == "unknown"
    stated = {"packages": {"pillow": here["Pillow"]}, "decoders": {"libjpeg-turbo": "99.0.0"}}
    found = {one.what: one for one in compare_decoders(stated, here)}
    assert (found["Pillow"].relation, found["libjpeg-turbo"].relation) == ("same", "older")
    assert compare_decoders({"packages": 1, "decoders": "x"}, here)


@pytest.mark.parametrize(
    ("kernel", "ours", "emulated"),
    [
        ("x86_64", "aarch64", True),
        ("aarch64", "x86_64", True),
        ("x86_64", "x86_64", False),
        ("aarch64", "armv7l", False),
        ("x86_64", "i686", False),
        ("riscv64", "riscv64", False),
    ],
)
def test_an_emulated_process_is_known(tmp_path: Path, kernel: str, ours: str, emulated: bool) -> None:
    """A process of another family of CPUs than its kernel's is emulated; a smaller one of the same family is not."""
    (tmp_path / "arch").write_text(f"{kernel}\n")
    found = emulated_host(tmp_path / "arch", ours)
    assert (found is not None) == emulated
    assert found is None or (kernel in found and ours in found)


def test_this_process_is_not_emulated(tmp_path: Path) -> None:
    """A kernel that does not say what it is leaves it open, and this machine's own says that it is real."""
    assert emulated_host(tmp_path / "nothing") is None
    assert emulated_host() is None or "emulated" in platform.platform()


def model(*values: int) -> bytes:
    """Make a model with these int8 weights, and floats that are larger."""
    weights = numpy_helper.from_array(np.array(values, np.int8), "w")
    floats = numpy_helper.from_array(np.full(2, 1000, np.float32), "f")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y], [weights, floats])
    data: bytes = helper.make_model(graph).SerializeToString()
    assert onnx.ModelProto.FromString(data).graph.initializer
    return data


def test_seven_bits_are_what_fits() -> None:
    """The bound on weights is arithmetic: two products of a byte and such a weight fit 16 bits, and of a larger one do not."""
    assert 2 * 255 * fit.SEVEN_BITS <= np.iinfo(np.int16).max < 2 * 255 * (fit.SEVEN_BITS + 1)


@pytest.mark.parametrize(
    ("cpu", "largest", "target", "repaired", "verdict", "said"),
    [
        (VNNI, 127, "x86-64-vnni", True, "PASS", "32 bits"),
        (ARM, 127, "arm64", True, "PASS", "32 bits"),
        (SSE, 127, "any", False, "PASS", "no AVX2"),
        (AVX2, 64, "any", False, "PASS", "seven bits (the largest is 64)"),
        (AVX2, 65, "any", False, "INCONCLUSIVE", "all eight bits (the largest is 65)"),
        (AVX512, 127, "any", True, "INCONCLUSIVE", "may overflow 16 bits"),
        (AVX2, 127, "x86-64-vnni", True, "PASS", "session.x64quantprecision"),
        (AVX2, 127, "x86-64-vnni", False, "INCONCLUSIVE", "may overflow 16 bits"),
        (AVX2, 0, "any", False, "INCONCLUSIVE", "no int8 weights were found"),
        (Cpu("any", ()), 64, "any", True, "INCONCLUSIVE", "not known"),
    ],
)
def test_saturation_by_weights_and_cpu(
    cpu: Cpu, largest: int, target: str, repaired: bool, verdict: str, said: str
) -> None:
    """Only weights of all eight bits on AVX2 without VNNI, where nobody asks for the exact kernels, are a risk."""
    found = saturation(model(-largest, 3 if largest else 0), "int8", target, cpu, repaired)
    assert found.verdict is Verdict(verdict), found.reason
    assert said in found.reason


def test_saturation_is_a_matter_of_int8() -> None:
    """Float is not judged, and what is no model is in doubt."""
    assert saturation(model(127), "fp32", "any", AVX2, True).verdict is Verdict.NOT_MEASURED
    assert saturation(b"\xff" * 9, "int8", "any", AVX2, True).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("target", "cpu", "said"),
    [
        ("any", AVX2, None),
        ("arm64", ARM, None),
        ("x86-64", VNNI, "would keep eight bits"),
        ("x86-64-vnni", AVX2, "made for x86-64-vnni, and this is x86-64"),
        ("arm64", VNNI, "made for arm64, and this is x86-64-vnni"),
        ("cuda", VNNI, "only its answers"),
    ],
)
def test_what_another_target_means(target: str, cpu: Cpu, said: str | None) -> None:
    """An artifact for any CPU or for this one needs no word; every other target gets one."""
    found = target_note(target, cpu)
    assert found is None if said is None else said in str(found)
