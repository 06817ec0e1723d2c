"""Whether a measurement is to be trusted, judged by what the machine did meanwhile."""

from __future__ import annotations

from collections.abc import Iterable

from edgecnn.bench.latency import Latency
from edgecnn.host import Host, Load
from edgecnn.spec import Frozen

LARGEST_SPREAD = 0.10
LARGEST_BUSY = 0.25  # of all cores
SMALLEST_N = 1000
LARGEST_STOLEN = 100  # ticks of 10 ms that the hypervisor gave to others


class Trust(Frozen, frozen=True):
    """The verdict, and every reason against."""

    trusted: bool
    reasons: tuple[str, ...]


def judge_trust(host: Host, before: Load, after: Load, latencies: Iterable[Latency], busy_cores: float = 0.0) -> Trust:
    """Look for other load, throttling, stolen time, a power-saving governor, unsteady rounds and too few calls."""
    rows = list(latencies)
    spread = max((row.round_spread for row in rows), default=0.0)
    fewest = min((row.n for row in rows), default=0)
    checks = (
        (busy_cores > LARGEST_BUSY * host.cores, f"other work kept {busy_cores:.1f} of {host.cores} cores busy just before the start"),
        (after.throttled_periods > before.throttled_periods, "the cgroup's CPU quota was hit and the process throttled"),
        (after.stolen_ticks - before.stolen_ticks > LARGEST_STOLEN, f"the hypervisor took {(after.stolen_ticks - before.stolen_ticks) / 100:.1f} s of CPU time away"),
        (host.governor in ("powersave", "ondemand", "conservative"), f"the CPU governor is {host.governor}: the clock follows the load"),
        (spread > LARGEST_SPREAD, f"the rounds' medians spread by {spread:.0%} (interquartile), over {LARGEST_SPREAD:.0%}"),
        (fewest < SMALLEST_N, f"only {fewest} timed calls, a p99 needs {SMALLEST_N}: use a longer --seconds"),
    )  # fmt: skip
    reasons = tuple(reason for failed, reason in checks if failed)
    return Trust(trusted=not reasons, reasons=reasons)
