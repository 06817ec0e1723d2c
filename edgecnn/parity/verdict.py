"""The words in which a check answers."""

from __future__ import annotations

from enum import Enum


class Verdict(str, Enum):
    """PASS needs evidence; INCONCLUSIVE is too little of it; NOT_MEASURED is none, and never counts as PASS."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_MEASURED = "NOT MEASURED"
