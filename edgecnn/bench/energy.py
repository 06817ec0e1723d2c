"""Energy by RAPL, where Linux lets it be read: of the whole processor package, whoever used it.

Counters in /sys/class/powercap (Documentation/power/powercap/powercap.rst) count microjoules and begin at 0 again after
`max_energy_range_uj`, which at 100 W takes three quarters of an hour: whoever measures longer reads in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecnn.device.heat import SYSTEM, text_of
from edgecnn.spec import Frozen


class Energy(Frozen, frozen=True):
    """Joules over `seconds`, all of `domains` together; None with the reason where they cannot be read."""

    joules: float | None
    watts: float | None
    joules_per_image: float | None
    domains: tuple[str, ...]
    reason: str | None = None


@dataclass
class _Domain:
    name: str
    counter: Path
    range_uj: int
    last: int


class EnergyMeter:
    """Adds up what the counters say from when it is made; `problem` says why it cannot."""

    def __init__(self, system: Path = SYSTEM) -> None:
        self.problem: str | None = None
        self._microjoules = 0
        self._domains = self._find(system)

    def read(self) -> float | None:
        """Give the joules so far, None where they cannot be read."""
        if self.problem is not None:
            return None
        for domain in self._domains:
            now = self._count(domain.counter)
            if now is None:
                return None
            self._microjoules += now - domain.last if now >= domain.last else now + domain.range_uj - domain.last
            domain.last = now
        return self._microjoules / 1e6

    def total(self, seconds: float, images: int) -> Energy:
        """Say what `seconds`, in which `images` were answered, have taken."""
        joules = self.read()
        if joules is None:
            return Energy(joules=None, watts=None, joules_per_image=None, domains=(), reason=self.problem)
        return Energy(
            joules=joules,
            watts=joules / seconds,
            joules_per_image=joules / images if images else None,
            domains=tuple(domain.name for domain in self._domains),
        )

    def _find(self, system: Path) -> list[_Domain]:
        """Take the packages, which hold cores and caches; the platform (psys) would count them twice."""
        base, found = system / "class/powercap", list[_Domain]()
        for zone in sorted(base.glob("*")):
            name = text_of(zone / "name")
            if name is None or not name.startswith("package") or not (zone / "energy_uj").exists():
                continue
            reach, count = text_of(zone / "max_energy_range_uj") or "", self._count(zone / "energy_uj")
            if count is None:
                return []
            if not reach.isdigit():
                self.problem = f"{zone / 'max_energy_range_uj'} does not say where the counter begins again"
                return []
            if all(one.name != name for one in found):  # the same package by two drivers (intel-rapl, intel-rapl-mmio)
                found.append(_Domain(name, zone / "energy_uj", int(reach), count))
        if not found:
            self.problem = f"no package counts its energy in {base} (no RAPL, or a virtual machine)"
        return found

    def _count(self, path: Path) -> int | None:
        try:
            return int(path.read_text())
        except OSError as error:
            hint = "; Linux lets root alone read it" if isinstance(error, PermissionError) else ""
            self.problem = f"{path}: {error.strerror or error}{hint}"
        except ValueError:
            self.problem = f"{path} holds no number"
        return None
