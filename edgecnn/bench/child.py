"""A fresh process that loads one artifact, answers once, and prints its stamps and peak memory as JSON."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Run as `python -m edgecnn.bench.child BUNDLE BACKEND THREADS`; stamps are CLOCK_MONOTONIC nanoseconds."""
    started = time.monotonic_ns()
    import numpy as np

    from edgecnn.backends.base import SessionOptions, open_session
    from edgecnn.bundle import Bundle
    from edgecnn.predict import artifact_for
    from edgecnn.spec import BackendRef

    bundle, ref = Bundle.open(Path(arguments[0])), BackendRef.parse(arguments[1])
    preprocess = bundle.manifest.preprocess
    image = np.full((1, *preprocess.shape), preprocess.zero_point, dtype=np.uint8)
    imported = time.monotonic_ns()
    with open_session(ref, artifact_for(bundle, ref), SessionOptions(threads=int(arguments[2]))) as session:
        loaded = time.monotonic_ns()
        session.run({session.inputs[0].name: image})
        answered = time.monotonic_ns()
        status = Path("/proc/self/status").read_text()
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.M)
    stamps = {"started": started, "imported": imported, "loaded": loaded, "answered": answered}
    print(json.dumps({**stamps, "peak_kb": int(peak.group(1)) if peak else 0}))


if __name__ == "__main__":
    main(sys.argv[1:])
