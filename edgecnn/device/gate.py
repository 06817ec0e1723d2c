"""Parity as a condition: the goldens, through a session as it is to run, judged as `edgecnn parity` judges them."""

from __future__ import annotations

import dataclasses

import numpy as np

from edgecnn.backends.base import CheckedSession, Tensors
from edgecnn.bundle import Bundle
from edgecnn.errors import EdgecnnError
from edgecnn.parity.compare import bundle_samples
from edgecnn.parity.judge import judge
from edgecnn.parity.record import record
from edgecnn.parity.recording import Recording, SideArrays
from edgecnn.parity.running import join
from edgecnn.parity.subject import Subject
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import BackendRef, Frozen


class Passed(Frozen, frozen=True):
    """Whether answers may be used, and the reason."""

    verdict: Verdict
    reason: str


class Gate:
    """Judges answers to a bundle's goldens. Of each artifact and device all questions are asked once, as parity does it."""

    def __init__(self, bundle: Bundle) -> None:
        self._subject = Subject.of_bundle(bundle)
        self._samples = bundle_samples(bundle, None)
        self._pixels = bundle.goldens().pixels
        self._recordings: dict[str, Recording] = {}
        self._known: dict[tuple[str, bytes], Passed] = {}

    def judge(self, ref: BackendRef, session: CheckedSession, batch: int) -> Passed:
        """Run the goldens in batches through a session that was opened for `ref` with any options, and judge the answers."""
        try:
            answers = self._answers(session, batch)
        except EdgecnnError as error:
            return Passed(verdict=Verdict.FAIL, reason=str(error))
        logits = np.ascontiguousarray(answers[self._subject.answer])
        key = str(ref), b"".join(np.ascontiguousarray(answers[name]).tobytes() for name in sorted(answers))
        if key not in self._known:
            self._known[key] = self._judge(ref, answers, logits)
        return self._known[key]

    def _answers(self, session: CheckedSession, batch: int) -> Tensors:
        """Answer every golden; where they do not fill the last batch the first ones are in it once more."""
        n = len(self._pixels)
        filled = np.resize(self._pixels, (-(-n // batch) * batch, *self._pixels.shape[1:]))
        name = session.inputs[0].name
        parts = [session.run({name: filled[at : at + batch]}) for at in range(0, len(filled), batch)]
        return {name: array[:n] for name, array in join(parts).items()}

    def _judge(self, ref: BackendRef, answers: Tensors, logits: np.ndarray) -> Passed:
        name = str(ref)
        if name not in self._recordings:
            self._recordings[name] = record(self._subject, None, [ref], self._samples)
        plain = self._recordings[name]
        side = plain.sides.get(name, SideArrays())
        arrays = SideArrays(answers=answers, on_truth=logits, goldens=logits, recorded=side.recorded, again=side.again)
        (cell,) = judge(dataclasses.replace(plain, sides={**plain.sides, name: arrays})).cells
        if cell.computation.verdict is not Verdict.PASS:
            return Passed(verdict=cell.computation.verdict, reason=cell.computation.reason)
        shaky = next((one for one in cell.steadiness if one.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)), None)
        if shaky is not None:
            return Passed(verdict=shaky.verdict, reason=shaky.reason)
        return Passed(verdict=Verdict.PASS, reason=cell.computation.reason)
