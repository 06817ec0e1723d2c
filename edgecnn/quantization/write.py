"""Writing a quantized model: the file with its account inside, and the report beside it."""

from __future__ import annotations

from pathlib import Path

import onnx

from edgecnn.errors import VerdictError
from edgecnn.files import write_atomic
from edgecnn.quantization.run import Report
from edgecnn.spec import to_json

KEY = "edgecnn.quantization"


def report_folder(out: Path) -> Path:
    """Give the folder of the report and of the climb, beside the file."""
    return out.with_name(f"{out.stem}.quantize")


def write_report(out: Path, report: Report, forced: bool) -> None:
    """Write `report.json`, the manifest of a single file: what was measured, what was not, and what was overruled."""
    folder = report_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(
        folder / "report.json", to_json({"forced": list(report.gate.refusals) if forced else [], "report": report})
    )


def write_model(out: Path, model: onnx.ModelProto, report: Report, force: bool) -> None:
    """Write the quantized file if its gate let it pass, or was overruled.

    The file's own notes hold the target, the verdicts, and what was overruled, for whoever meets it alone.

    Raises:
        VerdictError: it was refused; the message gives the numbers.
    """
    refusals = report.gate.refusals
    if refusals and not force:
        raise VerdictError(f"{out}: refused, nothing is written: {'; '.join(refusals)} (--force writes it)")
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    kept = [entry for entry in copy.metadata_props if entry.key != KEY]
    del copy.metadata_props[:]
    copy.metadata_props.extend(kept)
    note = {
        "edgecnn": report.edgecnn,
        "target": report.target,
        "precision": report.precision,
        "source_sha256": report.source_sha256,
        "checks": {check.what: check.verdict.value for check in report.gate.checks},
        "forced": list(refusals),
    }
    copy.metadata_props.append(onnx.StringStringEntryProto(key=KEY, value=to_json(note, 0).decode().strip()))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, copy.SerializeToString())
