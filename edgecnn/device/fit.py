"""What a bundle was made for against what this machine is: runtime, CPU, and the numbers of an int8 artifact."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgecnn.backends.onnxruntime import FULL_RANGE_TARGETS
from edgecnn.host import Host
from edgecnn.parity.verdict import Verdict
from edgecnn.protobuf import largest_int8
from edgecnn.spec import Frozen

Relation = Literal["same", "newer", "older", "other", "unknown"]
SEVEN_BITS = 64  # the largest magnitude of a weight in reduced range
_RUNTIME = {
    "same": "it computes with the kernels that the bundle was checked with",
    "newer": "it reads what older ones wrote, and may compute otherwise in the last bits: the goldens decide",
    "older": "it may lack operators or kernels: what does not load is refused, and of the rest the goldens decide",
    "other": "another build: the goldens decide",
    "unknown": "the goldens alone decide",
}
_FAMILIES = {"x86": ("x86_64", "amd64", "i386", "i686"), "Arm": ("aarch64", "arm64", "armv7l", "armv8l")}


class Comparison(Frozen, frozen=True):
    """One thing that answers depend on, here and where the bundle was exported, and what the difference means."""

    what: str
    here: str
    there: str
    relation: Relation
    means: str


@dataclass(frozen=True)
class Cpu:
    """What decides how int8 is computed: the export target that a CPU is, and its features by Linux' names."""

    target: str
    features: tuple[str, ...]


class Saturation(Frozen, frozen=True):
    """Whether sums of int8 products can overflow 16 bits on a CPU, and why; `largest` is the largest int8 value in the file."""

    verdict: Verdict
    reason: str
    largest: int | None = None


def compare_hosts(there: dict[str, Any], here: Host) -> tuple[Comparison, ...]:
    """Compare the machine that exported a bundle, as its manifest states it, with this one."""
    return _runtime(there, here), _cpu(there, here)


def relate(here: str | None, there: str | None) -> Relation:
    """Say how a version here relates to the one there, by their first three numbers."""
    if not here or not there:
        return "unknown"
    if here == there:
        return "same"
    ours, theirs = (tuple(map(int, re.findall(r"\d+", version)[:3])) for version in (here, there))
    return "newer" if ours > theirs else "older" if ours < theirs else "other"


def emulated_host(arch: Path = Path("/proc/sys/kernel/arch"), machine: str | None = None) -> str | None:
    """Say that this very process is emulated, as qemu does for containers of another architecture; None where it is not.

    The kernel knows its own architecture (since Linux 6.1), and an emulator tells the process another one.
    """
    try:
        kernel, ours = arch.read_text().strip(), machine or platform.machine()
    except OSError:
        return None
    families = {_family(kernel), _family(ours)}
    if len(families) == 2 and None not in families:
        return f"this is an emulated {ours} on a {kernel} kernel, whose times mean nothing"
    return None


def target_note(target: str, cpu: Cpu) -> str | None:
    """Say what it means that an artifact was made for another CPU than it runs on; None where it was made for this one."""
    if target in ("any", cpu.target):
        return None
    if target in ("cuda", "tensorrt"):
        return f"made for {target}, so that on a CPU only its answers are looked at"
    if (target, cpu.target) == ("x86-64", "x86-64-vnni"):
        return "made for x86-64 without VNNI: right here too; one made for x86-64-vnni would keep eight bits of every weight"
    return f"made for {target}, and this is {cpu.target}: its placement was chosen by times that were not taken here"


def saturation(model: bytes, precision: str, target: str, cpu: Cpu, repaired: bool) -> Saturation:
    """Judge whether int8 saturates on a CPU, by the weights in the file and by what multiplies them.

    MLAS multiplies by `vpmaddubsw` where there is AVX2 and no VNNI: uint8 times int8, two products summed in 16 bits, which
    weights of all eight bits overflow, and those of seven bits do not. VNNI and Arm sum in 32 bits, and so does SSE4.1.

    Args:
        model: the ONNX file.
        precision: the manifest's word.
        target: what the artifact was made for.
        cpu: what runs it.
        repaired: whether the backend asks ONNX Runtime for the slower exact kernels (`session.x64quantprecision`) where
            an artifact for VNNI meets a CPU without.
    """
    if precision != "int8":
        return Saturation(verdict=Verdict.NOT_MEASURED, reason="not int8")
    try:
        largest = largest_int8(model)
    except ValueError as error:
        return Saturation(verdict=Verdict.INCONCLUSIVE, reason=f"its weights cannot be read ({error})")
    if cpu.target in ("x86-64-vnni", "arm64"):
        reason = f"{cpu.target} sums products in 32 bits"
    elif cpu.target != "x86-64":
        return Saturation(
            verdict=Verdict.INCONCLUSIVE, reason=f"how {cpu.target} sums products is not known", largest=largest
        )
    elif not {"avx2", "avx512f"} & set(cpu.features):
        reason = "this x86-64 has no AVX2, and its kernels sum products in 32 bits"
    elif largest is not None and largest <= SEVEN_BITS:
        reason = f"its weights keep to seven bits (the largest is {largest}), so that two products fit into 16 bits"
    elif repaired and target in FULL_RANGE_TARGETS:
        reason = (
            f"its weights take all eight bits (the largest is {largest}) and this CPU has no VNNI: ONNX Runtime is asked for "
            "the exact kernels (session.x64quantprecision), which are slower; one exported for x86-64 would be faster"
        )
    else:
        told = (
            "no int8 weights were found to look at"
            if largest is None
            else f"its weights take all eight bits (the largest is {largest})"
        )
        reason = (
            f"{told} and this CPU has AVX2 without VNNI: sums of two products may overflow 16 bits, which a few goldens need "
            "not show; use one exported for x86-64 or any"
        )
        return Saturation(verdict=Verdict.INCONCLUSIVE, reason=reason, largest=largest)
    return Saturation(verdict=Verdict.PASS, reason=f"no saturation: {reason}", largest=largest)


def _runtime(there: dict[str, Any], here: Host) -> Comparison:
    stated = _dict(there.get("packages"))
    ours, theirs = (
        next((packages[name] for name in ("onnxruntime", "onnxruntime-gpu") if name in packages), None)
        for packages in (here.packages, stated)
    )
    relation = relate(ours, theirs)
    return Comparison(
        what="ONNX Runtime",
        here=ours or "not installed",
        there=str(theirs or "unknown"),
        relation=relation,
        means=_RUNTIME[relation],
    )


def _cpu(there: dict[str, Any], here: Host) -> Comparison:
    name, features, machine = there.get("cpu"), there.get("features"), there.get("machine")
    if not isinstance(name, str) or not isinstance(features, (list, tuple)):
        return Comparison(what="CPU", here=here.cpu, there="unknown", relation="unknown", means=_RUNTIME["unknown"])
    ours, theirs = set(here.features), set(map(str, features))
    if (here.cpu, ours) == (name, theirs):
        return Comparison(
            what="CPU", here=here.cpu, there=name, relation="same", means="int8 has to answer as it did at export"
        )
    if _family(here.machine) != _family(str(machine)):
        means = f"{here.machine} instead of {machine}: every kernel is another, and the goldens decide"
    else:
        lacks, has = sorted(theirs - ours), sorted(ours - theirs)
        parts = [f"lacks {', '.join(lacks)}"] * bool(lacks) + [f"has {', '.join(has)} besides"] * bool(has)
        means = f"{' and '.join(parts) or 'the same features that matter to int8'}: the goldens decide"
    return Comparison(what="CPU", here=here.cpu, there=name, relation="other", means=means)


def _family(machine: str) -> str | None:
    return next((family for family, names in _FAMILIES.items() if machine.lower() in names), None)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
