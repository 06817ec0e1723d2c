"""From sides that have run to a recording: what was fed, what was answered, by whom and where."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import numpy as np

from edgecnn import __version__, images
from edgecnn.backends.base import Array
from edgecnn.bundle import Bundle, Goldens
from edgecnn.errors import EdgecnnError
from edgecnn.host import Host
from edgecnn.parity.decisions import LISTED
from edgecnn.parity.planning import FLOAT64, GOLDENS
from edgecnn.parity.recording import TORCH_FLOAT32, DecodingRecord, Recording, RecordingHead, SideArrays
from edgecnn.parity.samples import Samples
from edgecnn.parity.side import Side
from edgecnn.parity.subject import Subject
from edgecnn.parity.truth import Answers
from edgecnn.spec import Tolerance


def assemble(
    subject: Subject,
    sides: Sequence[Side],
    named: Side | None,
    samples: Samples,
    goldens: Goldens | None,
    truth: Answers | None,
    why: str,
    tolerance: Tolerance,
    here: Host,
) -> Recording:
    """Put together what all sides answered; `named` is the reference, `why` says why there is no truth."""
    arrays = {side.ref: side.arrays for side in sides}
    answers = [found for side in sides if (found := side.arrays.answers.get(subject.answer)) is not None]
    size = truth.float64.shape[1] if truth is not None else answers[0].shape[1] if answers else 0
    of_samples = truth is not None and (not truth.on_goldens or samples.record.kind == GOLDENS)
    places = truth.places.tolist() if truth is not None and of_samples else []
    golden = goldens.logits_float64 if goldens is not None else None
    if goldens is None and truth is not None:
        rows = next((len(side.arrays.goldens) for side in sides if side.arrays.goldens is not None), 0)
        golden = truth.float64[:rows] if rows else None
    head = RecordingHead(
        subject=subject.name,
        subject_sha256=subject.sha256,
        answer=subject.answer,
        classes=subject.classes(size),
        tolerance=tolerance,
        reference=named.ref if named is not None else GOLDENS if subject.bundle else FLOAT64,
        sides=tuple(side.record() for side in sides),
        samples=samples.record,
        truth=truth.origin if truth is not None else None,
        truth_samples=tuple(places),
        decoding=_decoding(subject.bundle, goldens) if subject.bundle and goldens else None,
        host=here,
        edgecnn=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        unit=truth.unit if truth is not None else TORCH_FLOAT32,
        names_classes=_names_classes(subject, size),
        untrue=why,
    )
    return Recording(
        head=head,
        sides=arrays,
        float64=truth.float64.astype(np.float64) if truth is not None else None,
        float32=truth.float32 if truth is not None else None,
        golden_float64=golden,
        pictures=_pictures(head, arrays, samples),
    )


def _names_classes(subject: Subject, size: int) -> bool:
    """Say whether the answer is one row of scores: (N, C), or (N, C, 1, 1)."""
    shape = next(spec.shape for spec in subject.outputs if spec.name == subject.answer)
    return size > 1 and (len(shape) < 3 or all(side == 1 for side in shape[2:]))


def _pictures(head: RecordingHead, arrays: Mapping[str, SideArrays], samples: Samples) -> dict[int, Array]:
    """Take the pictures of the first answers of each side that differ from the reference's."""
    reference = arrays.get(head.reference, SideArrays()).answers.get(head.answer)
    wanted: set[int] = set()
    for side in arrays.values():
        answer = side.answers.get(head.answer)
        if reference is None or answer is None or answer.shape != reference.shape:
            continue
        wanted.update(np.flatnonzero(answer.argmax(axis=1) != reference.argmax(axis=1))[:LISTED].tolist())
    try:
        return samples.pictures(sorted(wanted))
    except EdgecnnError:  # a file that went away; a report without its thumbnail is still one
        return {}


def _decoding(bundle: Bundle, goldens: Goldens) -> DecodingRecord:
    preprocess = bundle.manifest.preprocess
    decoded = np.stack(
        [images.decode(data, preprocess, name) for name, data in zip(goldens.names, goldens.encoded, strict=True)]
    )
    off = np.abs(decoded.astype(np.int16) - goldens.pixels).reshape(len(decoded), -1).max(axis=1)
    return DecodingRecord(off=tuple(off.tolist()))
