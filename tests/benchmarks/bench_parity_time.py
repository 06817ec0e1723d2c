"""What a parity check costs: all of it on 10,000 images, against the bare inferences of the same three sides.

The sides are torch, which is the reference, and ONNX Runtime in float and in int8. The bare sides keep their sessions
open and run the same batches of the same pixels; parity loads its own, compares everything, evaluates 256 images in
float64, runs a few dozen otherwise (again, one by one, with other threads) and decodes the goldens.
RUNS and BUNDLES name folders of runs and of bundles that are there already; ROUNDS says how often each is timed.
"""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack

from bench_quantization import NETS
from common import print_machine
from fashion import bundle_of, bundles_folder

from edgecnn.backends.base import CheckedSession, open_session
from edgecnn.bundle import Bundle
from edgecnn.data.dataset import LabelledImages
from edgecnn.parity import compare
from edgecnn.parity.running import BATCH, run_all
from edgecnn.predict import artifact_for
from edgecnn.spec import BackendRef

ROUNDS = int(os.environ.get("ROUNDS", "5"))
SIDES = ("torch", "onnxruntime:fp32", "onnxruntime:int8")
LIMIT = 1.3


def main() -> None:
    """Print a row a net."""
    print_machine()
    wanted = os.environ.get("MODELS_WANTED", "resnet8,edge_s").split(",")
    rows = []
    with bundles_folder() as folder:
        for name in (name for name in wanted if name in NETS):
            found = bundle_of(name, folder)
            if found is None:
                print(f"\n{name}: skipped, the data are not there; set DATA")
                continue
            rows.append(row(name, *found))
    print(f"\nseconds for 10,000 images in batches of {BATCH}, medians of {ROUNDS} rounds, turn and turn about")
    print(f"| net | {' | '.join(SIDES)} | sum | parity | parity / sum, at most {LIMIT} wanted |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def row(name: str, bundle: Bundle, images: LabelledImages) -> str:
    """Time all sides of one net and write its row; the spread is that of the rounds' ratios."""
    refs = [BackendRef.parse(side) for side in SIDES]
    times: dict[str, list[float]] = {name: [] for name in (*SIDES, "parity")}
    with ExitStack() as stack:
        sessions = {str(ref): stack.enter_context(open_session(ref, artifact_for(bundle, ref))) for ref in refs}
        for number in range(ROUNDS + 1):
            once = {side: timed_run(sessions[side], images) for side in SIDES}
            once["parity"] = timed_parity(bundle, refs, images)
            if number:  # the first round warms up
                for side, seconds in once.items():
                    times[side].append(seconds)
    sums = [sum(times[side][at] for side in SIDES) for at in range(ROUNDS)]
    ratios = [whole / bare for whole, bare in zip(times["parity"], sums, strict=True)]
    bare = " | ".join(f"{statistics.median(times[side]):.2f}" for side in SIDES)
    return (
        f"| {name} | {bare} | {statistics.median(sums):.2f} | {statistics.median(times['parity']):.2f} "
        f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
    )


def timed_run(session: CheckedSession, images: LabelledImages) -> float:
    """Run all images and give the seconds."""
    start = time.perf_counter()
    run_all(session, images)
    return time.perf_counter() - start


def timed_parity(bundle: Bundle, refs: list[BackendRef], images: LabelledImages) -> float:
    """Check parity and give the seconds; a check that did not look at all images would be no measurement."""
    start = time.perf_counter()
    report = compare(bundle, refs[0], refs[1:], images)
    seconds = time.perf_counter() - start
    if [cell.decisions.n for cell in report.cells if cell.decisions] != [len(images)] * (len(refs) - 1):
        raise SystemExit(f"{bundle.root}: not every candidate was judged on all images")
    return seconds


if __name__ == "__main__":
    main()
