"""Compare backends: the same computation, judged against float64; the same decisions, judged on labelled images."""

from edgecnn.parity.compare import compare, default_refs
from edgecnn.parity.judge import ParityReport, judge
from edgecnn.parity.record import record
from edgecnn.parity.verdict import Verdict

__all__ = ["ParityReport", "Verdict", "compare", "default_refs", "judge", "record"]
