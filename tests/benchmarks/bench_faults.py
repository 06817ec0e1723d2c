"""What parity catches, and what it does not cry over: every fault of tests/fault/faults.py, and clean pairs, as tables in Markdown.

Nets are tiny and made here: the digits', and others on tinted noise by seed and width. PAIRS is how many clean pairs.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # pytest does that for the tests

from common import print_machine
from fault.bundles import colour_bundle, digits_bundle
from fault.faults import ALLOWED, FAULTS, IN_INT8, IN_THE_MODEL, Fault, examine, failures, full_range, plant
from fault.where import localized
from steady import steady_races

from edgecnn.bundle import Bundle
from edgecnn.data import LabelledImages
from edgecnn.data.of_bundle import find_test_images
from edgecnn.errors import EdgecnnError
from edgecnn.parity import compare
from edgecnn.spec import BackendRef

PAIRS = int(os.environ.get("PAIRS", "36"))
WIDTHS = ((8,), (8, 16), (6, 10), (12,), (4, 8))
IN_BLOCKS = {fault.name for fault in (*IN_THE_MODEL, *IN_INT8)}


def bundles(folder: Path) -> dict[str, Path]:
    """Make the three bundles that faults are planted into."""
    with steady_races():
        made = {"digits": digits_bundle(folder / "digits"), "colour": colour_bundle(folder / "colour")}
    full_range(made["digits"], folder / "full")
    return {**made, "full range": folder / "full"}


def row(fault: Fault, clean: Mapping[str, Path], folder: Path, data: LabelledImages) -> tuple[str, bool]:
    """Plant one fault and say which questions caught it, by which figure, and in which block it was found."""
    copy = Path(shutil.copytree(clean[fault.bundle], folder / "planted"))
    try:
        plant(fault, copy)
        found = failures(examine(fault, copy, data))
        figure = next((one.figure or one.reason for one in found), "")
        asked = ", ".join(one.question for one in found) or "not caught"
        caught = set(fault.caught) <= {one.question for one in found} and bool(found) == bool(fault.caught)
        return f"| {fault.name} | {asked} | {short(figure)} | {place(fault, clean[fault.bundle], copy)} |", caught
    finally:
        shutil.rmtree(copy)


def place(fault: Fault, clean: Path, planted: Path) -> str:
    """Say where localization finds a fault that lies in a block, or before the first."""
    if not (fault.block or fault.blame == "input" or fault.name in IN_BLOCKS):
        return "—"
    first = localized(fault, clean, planted).first
    return f"`{first.name}` ({first.blame})" if first is not None else "not found"


def short(text: str, length: int = 90) -> str:
    """Cut a reason so that it fits a cell."""
    flat = text.replace("|", "/")
    return flat if len(flat) <= length else f"{flat[: length - 1]}…"


def nets(folder: Path, digits: Path) -> Iterator[tuple[str, Path]]:
    """Make one tiny net after another, each of another seed and shape."""
    yield "digits", digits
    for seed, widths in enumerate(WIDTHS):
        with steady_races():
            made = colour_bundle(folder / f"net{seed}", seed, widths, ("onnx", "onnx-int8"), epochs=4)
        yield f"tints, seed {seed}, channels {'-'.join(map(str, widths))}", made


def clean_pairs(folder: Path, digits: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Compare clean nets with every runtime that is installed, and give what failed, which is a false alarm."""
    backends = ["onnxruntime", "reference", *(["openvino"] if find_spec("openvino") is not None else [])]
    for name, bundle in nets(folder, digits):
        for artifact, backend in product(("fp32", "int8"), backends):
            ref = BackendRef(backend=backend, artifact=artifact)
            found = failures(compare(Bundle.open(bundle), None, [ref]))
            first = (
                localized(Fault("", (), "", artifact=artifact), bundle, bundle).first
                if backend == "onnxruntime"
                else None
            )
            alarms = [f"{one.question}: {one.reason}" for one in found]
            yield name, str(ref), alarms + ([f"localized to {first.name}: {first.why}"] if first is not None else [])


def main() -> None:
    """Print the two tables, and a sentence under each."""
    print_machine()
    with tempfile.TemporaryDirectory(prefix="edgecnn-") as temporary:
        folder, start = Path(temporary), time.monotonic()
        clean = bundles(folder)
        data, note = find_test_images(Bundle.open(clean["digits"]).manifest, None)
        if data is None:
            raise SystemExit(str(note))
        print("\n| fault | caught by | figure | localized to |\n|---|---|---|---|")
        rows = [row(fault, clean, folder, data) for fault in (*FAULTS.values(), *ALLOWED.values())]
        print("\n".join(line for line, _ in rows))
        caught, passed = (sum(right for _, right in part) for part in (rows[: len(FAULTS)], rows[len(FAULTS) :]))
        print(
            f"\nCaught by the question meant to: {caught} of {len(FAULTS)} faults. Let pass: {passed} of {len(ALLOWED)} others."
        )
        print("\n| clean net | candidate | false alarms |\n|---|---|---|")
        count = wrong = 0
        for name, ref, alarms in clean_pairs(folder, clean["digits"]):
            print(f"| {name} | {ref} | {short('; '.join(alarms), 200) or 'none'} |")
            count, wrong = count + 1, wrong + bool(alarms)
            if count >= PAIRS:
                break
        print(f"\n{wrong} false alarms in {count} clean pairs. All in {time.monotonic() - start:.0f} s.")


if __name__ == "__main__":
    try:
        main()
    except EdgecnnError as error:
        raise SystemExit(str(error)) from error
