"""Compare backends: the same computation, judged against float64; the same decisions, judged on labelled images."""

from edgecnn.parity.compare import ParityReport, compare, default_refs
from edgecnn.parity.verdict import Verdict

__all__ = ["ParityReport", "Verdict", "compare", "default_refs"]
