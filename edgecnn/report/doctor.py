"""What `doctor` found, as tables and a list of what to do."""

from __future__ import annotations

from edgecnn.device.probe import Diagnosis
from edgecnn.report.text import table

_INT8 = {
    "avx_vnni": "VNNI: int8 of the full weight range, exact and fast",
    "avx512_vnni": "VNNI: int8 of the full weight range, exact and fast",
    "i8mm": "matrix product of int8, the fastest",
    "asimddp": "dot product of int8, exact and fast",
    "asimd": "int8 by 16-bit products: exact, and little faster than fp32",
    "avx2": "no VNNI: int8 of the full weight range saturates, so weights have 7 bits",
    "sse4_1": "no VNNI: int8 of the full weight range saturates, so weights have 7 bits",
}


def doctor_text(found: Diagnosis) -> str:
    """Write the machine, the backends and the exporters as tables, then what to do about each."""
    backends = [
        [backend.name, " ".join(backend.usable) or "not usable", backend.distribution] for backend in found.backends
    ]
    exporters = [
        [one.name, "ready" if one.problem is None else "not usable", one.distribution] for one in found.exporters
    ]
    parts = [
        table(_machine(found)),
        table(backends, ["backend", "use it as", "from"]),
        table(exporters, ["exporter", "state", "from"]),
    ]
    problems = [*found.advice, *(f"{one.name}: {one.problem}" for one in found.exporters if one.problem)]
    return "\n\n".join(parts) + "".join(f"\n- {line}" for line in problems)


def _machine(found: Diagnosis) -> list[list[str]]:
    machine, heat, clock = found.host, found.heat, found.clock
    quota = f"{machine.cgroup_cpus:g}" if machine.cgroup_cpus is not None else "no limit"
    int8 = next((text for feature, text in _INT8.items() if feature in machine.features), "nothing is known of it")
    frequency = f"{heat.mhz:,.0f} of {heat.max_mhz:,.0f} MHz" if heat.mhz and heat.max_mhz else "rate not readable"
    warmth = f"{heat.celsius:.0f} °C ({heat.hottest})" if heat.celsius is not None else "temperature not readable"
    slowed = {None: "throttling not readable", 0: "never throttled"}.get(heat.throttle_count, "has been throttled")
    synchronized = {None: "not known whether synchronized", True: "synchronized", False: "not synchronized"}
    return [
        ["CPU", machine.cpu],
        ["features", " ".join(machine.features) or "none that int8 depends on"],
        ["int8", int8],
        ["target", found.target],
        [
            "threads",
            f"{machine.usable_threads} usable of {machine.cores} cores (affinity: {found.affinity}, cgroup: {quota})",
        ],
        ["governor", machine.governor or "unknown"],
        ["heat", f"{warmth}, {frequency}, {', '.join(heat.throttled) or slowed}"],
        ["load", f"{found.load.load_average:.2f}"],
        ["memory", f"{found.memory_free_mb:,} MB left to a process"],
        ["disk", f"{found.disk_free_mb:,} MB free here"],
        ["clock", f"{clock.utc}, {synchronized[clock.synchronized]}, counted by {clock.source or 'unknown'}"],
        ["python", f"{machine.python} ({found.executable})"],
        ["packages", ", ".join(f"{name} {version}" for name, version in machine.packages.items())],
        ["providers", ", ".join(found.providers) or "none: ONNX Runtime is not usable"],
    ]
