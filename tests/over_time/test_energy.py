"""Energy by RAPL, on /sys trees that are planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from over_time.machine import zone

from edgecnn.bench.energy import EnergyMeter


def test_energy_adds_up_packages_and_nothing_twice(tmp_path: Path) -> None:
    """Both packages count, cores inside them and the platform around them do not, nor a package's second driver."""
    first, second = zone(tmp_path, 0, "package-0", 100), zone(tmp_path, 1, "package-1", 200)
    inside, around = zone(tmp_path, 2, "core", 50), zone(tmp_path, 3, "psys", 900)
    again = zone(tmp_path, 4, "package-0", 100)
    meter = EnergyMeter(tmp_path)
    for path, count in ((first, 500_100), (second, 700_200), (inside, 999_999), (around, 999_999), (again, 500_100)):
        path.write_text(f"{count}\n")
    found = meter.total(seconds=2.0, images=100)
    assert found.joules == pytest.approx(1.2)
    assert found.watts == pytest.approx(0.6)
    assert found.joules_per_image == pytest.approx(0.012)
    assert found.domains == ("package-0", "package-1")


def test_energy_goes_on_where_the_counter_begins_again(tmp_path: Path) -> None:
    """A counter that wraps, twice between first and last reading, has counted everything that was read in between."""
    counter = zone(tmp_path, 0, "package-0", 900_000)
    meter = EnergyMeter(tmp_path)
    used = 0
    for now, spent in ((100_000, 200_000), (950_000, 850_000), (50_000, 100_000)):
        counter.write_text(f"{now}\n")
        meter.read()
        used += spent
    assert meter.read() == pytest.approx(used / 1e6)


@pytest.mark.parametrize(("count", "reach"), [("much", 10), (5, "far"), ("", 10)])
def test_counters_that_make_no_sense_are_not_readable(count: object, reach: object, tmp_path: Path) -> None:
    """A counter without a number, or one that does not say where it begins again, gives no energy and a reason."""
    zone(tmp_path, 0, "package-0", count, reach)
    found = EnergyMeter(tmp_path).total(1.0, 1)
    assert found.joules is None
    assert str(tmp_path) in str(found.reason)


def test_a_counter_for_root_alone_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Linux keeps the counter to root the reason says so."""
    counter = zone(tmp_path, 0, "package-0", 5)
    real = Path.read_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> str:
        if path == counter:
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert "root alone" in str(EnergyMeter(tmp_path).total(1.0, 1).reason)
