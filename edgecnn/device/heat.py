"""Heat and what it does to the clock rate, as far as Linux shows it: temperatures, frequencies, counts of throttling."""

from __future__ import annotations

from pathlib import Path

from edgecnn.spec import Frozen

SYSTEM = Path("/sys")
# What the Raspberry Pi's firmware has to say (documentation of `vcgencmd get_throttled`): bits of now, and 16 higher of
# ever since it was switched on.
_FIRMWARE = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_FIRMWARE_FILE = "devices/platform/soc/soc:firmware/get_throttled"


class Heat(Frozen, frozen=True):
    """The state at one moment; what cannot be read is None or empty.

    `hottest` is the warmest thermal zone and `celsius` its temperature; `mhz` and `max_mhz` are of the first CPU;
    `throttle_count` counts how often the cores slowed down for heat since the machine was started; `throttled` says in
    words what has slowed the CPU down.
    """

    hottest: str | None
    celsius: float | None
    mhz: float | None
    max_mhz: float | None
    throttle_count: int | None
    throttled: tuple[str, ...]


def read_heat(system: Path = SYSTEM) -> Heat:
    """Read the state under `system`, which is /sys but in tests."""
    zone, celsius = max(_zones(system), key=lambda pair: pair[1], default=(None, None))
    frequency = system / "devices/system/cpu/cpu0/cpufreq"
    count = _throttle_count(system)
    told = [f"{count} times for heat since the start"] if count else []
    return Heat(
        hottest=zone,
        celsius=celsius,
        mhz=_scaled(frequency / "scaling_cur_freq", 1000),
        max_mhz=_scaled(frequency / "cpuinfo_max_freq", 1000),
        throttle_count=count,
        throttled=(*told, *_firmware(system)),
    )


def _zones(system: Path) -> list[tuple[str, float]]:
    found = []
    for zone in sorted((system / "class/thermal").glob("thermal_zone*")):
        celsius = _scaled(zone / "temp", 1000)
        if celsius is not None and -50 < celsius < 200:  # sensors that are not there report the impossible
            found.append((text_of(zone / "type") or zone.name, celsius))
    return found


def _throttle_count(system: Path) -> int | None:
    """Add up what x86 counts for each core; threads of one core show the same count, so each core is taken once."""
    counts: dict[str, int] = {}
    for folder in (system / "devices/system/cpu").glob("cpu[0-9]*"):
        count = text_of(folder / "thermal_throttle/core_throttle_count")
        if count is not None and count.isdigit():
            core = f"{text_of(folder / 'topology/physical_package_id')}:{text_of(folder / 'topology/core_id') or folder.name}"
            counts[core] = max(counts.get(core, 0), int(count))
    return sum(counts.values()) if counts else None


def _firmware(system: Path) -> list[str]:
    """Read the Raspberry Pi's flags."""
    text = text_of(system / _FIRMWARE_FILE)
    try:
        bits = int(text or "0", 16)
    except ValueError:
        return []
    now = [f"{name} now" for bit, name in _FIRMWARE.items() if bits >> bit & 1]
    ever = [f"{name} before" for bit, name in _FIRMWARE.items() if bits >> (bit + 16) & 1 and not bits >> bit & 1]
    return now + ever


def _scaled(path: Path, divisor: float) -> float | None:
    try:
        return int(text_of(path) or "") / divisor
    except ValueError:
        return None


def text_of(path: Path) -> str | None:
    """Read what the system says in a small file; None where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
