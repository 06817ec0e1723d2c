"""A ladder of remedies, climbed only as far as the accuracy budget asks, one verified rung after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx

from edgecnn.errors import QuantizationError, UsageError
from edgecnn.metrics import Accuracy
from edgecnn.parity import Verdict
from edgecnn.parity.decisions import Decisions
from edgecnn.parity.intervals import drop_interval
from edgecnn.quantization.evaluation import Evaluation
from edgecnn.quantization.graph import layers_of
from edgecnn.quantization.placement import Search, search_placement
from edgecnn.quantization.race import Speed, race
from edgecnn.quantization.rungs import (
    IN_FLOAT,
    Attempt,
    Remedy,
    Workshop,
    float_layers,
    quantization_aware,
    remedies,
    small_weights,
)  # fmt: skip
from edgecnn.quantization.slim import file_size
from edgecnn.quantization.state import State
from edgecnn.quantization.yardstick import open_model
from edgecnn.spec import Frozen

SPEED_SECONDS = 1.0
FIRST, QAT = "min-max", "QAT"
ON_DISK = ", int8 on disk"  # ends the name of the rung whose float layers are stored small


class Rung(Frozen, frozen=True):
    """One remedy and what the model made with it was measured to do; `note` says why a rung made none."""

    name: str
    floats: tuple[str, ...] = ()
    sqnr_db: float | None = None
    bytes: int | None = None
    speed: Speed | None = None
    decisions: Decisions | None = None
    seconds: float = 0.0
    note: str | None = None

    @property
    def accuracy(self) -> Accuracy | None:
        """The accuracy with its interval."""
        return None if self.decisions is None else self.decisions.candidate_accuracy


@dataclass(frozen=True)
class Climb:
    """All rungs, the number of the best, its attempt and its model, and how layers were placed."""

    rungs: tuple[Rung, ...]
    best: int
    attempt: Attempt
    model: onnx.ModelProto
    search: Search | None


@dataclass
class Ladder:
    """The climb in progress.

    `place` False keeps every layer in int8; `small` lets the weights of those in float be int8 on disk. Each rung's model is judged on `evaluation` and, if `timed`, raced against
    the float model.
    """

    source: onnx.ModelProto
    workshop: Workshop
    evaluation: Evaluation
    place: bool = True
    timed: bool = True
    state: State | None = None
    say: Callable[[str], None] = lambda text: None
    small: bool = True

    def climb(self, stop_after: str | None = None) -> Climb:
        """Climb until a rung's accuracy is shown to be within the budget, or there are no more rungs.

        The best rung is the first that passes; without one, the one whose loss is bounded lowest. A rung that was
        climbed before, as the state says, is taken from there. `stop_after` names a rung to stop after in any case.

        Raises:
            UsageError: there is no rung to stop after.
            QuantizationError: not even the first rung could be made.
        """
        self._check(stop_after)
        rungs: list[Rung] = []
        attempts: list[Attempt] = []
        search: Search | None = None
        best = 0
        for name, attempt, found in self._attempts(attempts, rungs):
            search = found or search
            rung, done = self._measured(name, attempt, rungs)
            rungs.append(rung)
            attempts.append(done)
            best = self._best(rungs)
            if self._is_enough(rung) or name == stop_after:
                break
        if self.small:
            best = self._smaller(best, rungs, attempts)
        model = attempts[best].build(self.workshop.recipe)
        return Climb(rungs=tuple(rungs), best=best, attempt=attempts[best], model=model, search=search)

    def _smaller(self, best: int, rungs: list[Rung], attempts: list[Attempt]) -> int:
        """Store the best rung's float layers small, and take that if the verdict stays."""
        name = rungs[best].name + ON_DISK
        attempt = self._kept(name) or small_weights(self.workshop, attempts[best])
        if attempt is None:
            return best
        rung, done = self._measured(name, attempt, rungs)
        rungs.append(rung)
        attempts.append(done)
        judged, before = rung.decisions, rungs[best].decisions
        same = judged is not None and before is not None and judged.verdict is before.verdict
        return len(rungs) - 1 if same else best

    def _check(self, stop_after: str | None) -> None:
        names = [FIRST, *(remedy.name for remedy in remedies()), QAT]
        layers = [f"{layer.name}{IN_FLOAT}" for layer in layers_of(self.source)]
        if stop_after is not None and stop_after not in (*names, *layers):
            raise UsageError(f"no rung is called {stop_after!r} to stop after; there are {', '.join(names)}")

    def _attempts(
        self, attempts: list[Attempt], rungs: list[Rung]
    ) -> Iterator[tuple[str, Attempt | str, Search | None]]:
        """Make the rungs' attempts one by one; the lists are what has been climbed so far."""
        workshop, source = self.workshop, self.source
        first = self._kept(FIRST)
        search = None if self.state is None else self.state.search
        if first is None:
            first = Attempt(source, workshop.ranges(source, "min-max"))
            if self.place:
                search = search_placement(
                    source, first.ranges, workshop.recipe, workshop.yardstick, self.timed, self.say
                )
                first = Attempt(source, first.ranges, search.chosen.floats)
                if self.state is not None:
                    self.state.add_search(search)
        yield FIRST, first, search
        for remedy in remedies():
            kept = self._kept(remedy.name)
            yield remedy.name, kept or self._made(remedy, attempts[self._best(rungs)]), None
        if self.place:
            base = attempts[self._best(rungs)]
            for name, kept in self._kept_floats():
                base = kept
                yield name, kept, None
            for name, attempt in float_layers(workshop, base):
                yield name, attempt, None
        base = attempts[self._best(rungs)]
        yield QAT, self._kept(QAT) or quantization_aware(workshop, base, self.say), None

    def _kept(self, name: str) -> Attempt | None:
        return None if self.state is None else self.state.attempt(name)

    def _kept_floats(self) -> Iterator[tuple[str, Attempt]]:
        """Give the rungs of layers in float that were climbed before, up to one that was damaged."""
        for name in () if self.state is None else self.state.names:
            if name.endswith(IN_FLOAT):
                kept = self._kept(name)
                if kept is None:
                    return
                yield name, kept

    def _made(self, remedy: Remedy, base: Attempt) -> Attempt | str:
        """Let a remedy work; one that fails is a rung without a model, not the end of the climb."""
        try:
            return remedy.make(self.workshop, base)
        except QuantizationError as error:
            return str(error)

    def _measured(self, name: str, attempt: Attempt | str, rungs: list[Rung]) -> tuple[Rung, Attempt]:
        """Judge one attempt, or take its rung from the state; a remedy that does not apply keeps the base's attempt."""
        if isinstance(attempt, str):
            self.say(f"{name}: {attempt}")
            return Rung(name=name, note=attempt), Attempt(self.source, {})
        known = None if self.state is None else self.state.rung(name, Rung)
        if known is not None:
            self.say(f"{name}: taken from an earlier run")
            return known, attempt
        began = time.perf_counter()
        try:
            built = attempt.build(self.workshop.recipe)
            decisions = self.evaluation.judge(built, 1 + sum(rung.decisions is not None for rung in rungs))
        except QuantizationError as error:
            if not rungs:
                raise
            return Rung(name=name, note=str(error)), attempt
        speed = self.speed(built) if self.timed else None
        rung = Rung(
            name=name, floats=attempt.floats, sqnr_db=self.workshop.yardstick.sqnr_db(built),
            bytes=file_size(built), speed=speed, decisions=decisions, seconds=time.perf_counter() - began,
        )  # fmt: skip
        self.say(f"{name}: {decisions.candidate_accuracy.value:.2%}, {decisions.verdict.value}: {decisions.reason}")
        if self.state is not None:
            self.state.add(name, rung, attempt)
        return rung, attempt

    def speed(self, built: onnx.ModelProto, seconds: float = SPEED_SECONDS) -> Speed:
        """Race a quantized model against the float one at batch 1, one thread."""
        with open_model(built) as quantized, open_model(self.source) as floating:
            sessions = {"float": floating, "quantized": quantized}
            return race(sessions, "float", self.workshop.yardstick.one(), seconds)["quantized"]

    def _is_enough(self, rung: Rung) -> bool:
        """Stop at PASS, and where no remedy could show more: nothing is lost, and still too few images to prove it."""
        if rung.decisions is None:
            return False
        nothing_lost = rung.decisions.verdict is Verdict.INCONCLUSIVE and rung.decisions.lost == 0
        return rung.decisions.verdict is Verdict.PASS or nothing_lost

    @staticmethod
    def _best(rungs: list[Rung]) -> int:
        """Give the first that passes, else the one with the lowest bound on what it loses, then with the least error."""
        ranked = [(index, rung) for index, rung in enumerate(rungs) if rung.decisions is not None]
        for index, rung in ranked:
            if rung.decisions is not None and rung.decisions.verdict is Verdict.PASS:
                return index
        return min(ranked, key=lambda one: (_bound(one[1].decisions), -(one[1].sqnr_db or 0)))[0]


def _bound(decisions: Decisions | None) -> float:
    """Bound the loss with one confidence for all rungs: their own grows with the number of looks."""
    return 1.0 if decisions is None else drop_interval(decisions.lost, decisions.gained, decisions.n)[1]
