"""A search: N more trials of a study, then its table, its picture and what is kept of the front."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from edgecnn.data import Dataset
from edgecnn.errors import DataError, EdgecnnError, TrainingError, UsageError
from edgecnn.files import write_atomic
from edgecnn.search.result import Row, SearchReport, Together, pareto_front, row_of
from edgecnn.search.space import Space, default_sizes, train_command
from edgecnn.search.study import (
    DATABASE,
    PICTURE,
    REPORT,
    TRIALS,
    agree,
    claim_folder,
    locked,
    open_study,
    shown_storage,
)
from edgecnn.search.together import measure_together, open_files
from edgecnn.search.trial import Images, Plan, run_trial
from edgecnn.spec import to_json

if TYPE_CHECKING:
    from optuna import Study

SHORTER = 4  # trials train for a quarter of the usual epochs, and at least as many as this
_REFUSED_EACH, _REFUSED = 20, 100  # refusals that are borne for each trial asked for, and altogether


def search(
    plan: Plan,
    out: Path,
    trials: int,
    *,
    epochs: int | None = None,
    sizes: tuple[int, ...] | None = None,
    storage: str | None = None,
    name: str | None = None,
    keep_all: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> SearchReport:
    """Add trials to the study in `out`, begin it if need be, and write study.json and pareto.png there.

    Trials over a limit of MACs or parameters are refused, not trained, and not counted. `epochs` None is a quarter
    of what `edgecnn train` would take, and replaces `plan.epochs`. An interrupted search writes what it has.

    Raises:
        UsageError: nothing is within the limits, the target has no int8, the storage cannot be used, or `out` holds something else.
        DataError: the data cannot be opened.
        TrainingError: none of all trials ended well.
    """
    from edgecnn.training.recipe import Recipe
    from edgecnn.training.run import check_device

    if plan.target == "cuda":
        raise UsageError("--target cuda: has no int8 to search by; use another, such as any")
    if trials < 1:
        raise UsageError(f"--trials {trials}: at least 1")
    check_device(plan.device)
    images = Images(plan.source, plan.options)
    dataset = images.at(plan.options.size)
    _tell(dataset, plan, say)
    space = _space(dataset, sizes, plan)
    start = space.start(plan.limits)
    usual = Recipe().resolve(len(dataset.train)).epochs or 1
    plan = msgspec.structs.replace(plan, epochs=epochs or max(min(SHORTER, usual), math.ceil(usual / SHORTER)))
    claim_folder(out)
    study = open_study(out, storage, name or (out.resolve().name if storage else "search"), plan.options.seed)
    report = SearchReport(
        data=plan.source, split=dataset.split, study_name=study.study_name,
        storage=shown_storage(storage) if storage else str(out / DATABASE), epochs=plan.epochs, usual_epochs=usual,
        image_sizes=space.sizes, seed=plan.options.seed, device=plan.device, val_images=len(dataset.val),
        limits=plan.limits,
    )  # fmt: skip
    with locked(out):
        agree(study, _about(report, dataset, plan), report.storage)
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(msgspec.to_builtins(start), skip_if_exists=True)
    say(f"{plan.source}: {dataset.split}; the search looks at train and val only")
    say(f"{plan.epochs} epochs a trial (edgecnn train would take {usual}); image sizes {', '.join(map(str, space.sizes))}")  # fmt: skip
    try:
        _add_trials(study, trials, plan, space, images, out, keep_all, say)
    except BaseException:
        _finish(study, report, plan, out, keep_all)
        raise
    report = _finish(study, report, plan, out, keep_all, *_front_together(study, plan, out, keep_all, say))
    if not any(row.state == "complete" for row in report.rows):
        failed = [row.reason for row in report.rows if row.state == "failed"]
        raise TrainingError(f"{out}: no trial ended well; the first: {failed[0] if failed else report.rows[0].reason}")
    return report


def _tell(dataset: Dataset, plan: Plan, say: Callable[[str], None]) -> None:
    for line in dataset.skipped:
        say(f"skipped: {line}")
    for line in dataset.warnings:
        say(f"WARNING: {line}")
    if dataset.warnings and plan.options.strict:
        raise DataError(f"{plan.source}: {dataset.warnings[0]} (--strict)")


def _space(dataset: Dataset, sizes: tuple[int, ...] | None, plan: Plan) -> Space:
    usual = dataset.preprocess.height
    searched = sizes or ((usual,) if plan.options.size else default_sizes(usual))
    return Space(searched, usual if usual in searched else max(searched), dataset.preprocess, len(dataset.labels))


def _about(report: SearchReport, dataset: Dataset, plan: Plan) -> dict[str, Any]:
    """Gather what all trials of a study must share; machines may hold the same data in different places."""
    names = ("epochs", "image_sizes", "seed", "val_images")
    shared = {name.replace("_", " "): getattr(report, name) for name in names}
    found: dict[str, Any] = msgspec.to_builtins(
        {"data or split": dataset.val.sha256(), **shared, "labels": dataset.labels, "target": plan.target}
    )
    found["image sizes"] = list(report.image_sizes)  # as it comes back from the storage
    found["labels"] = list(dataset.labels)
    return found


def _add_trials(
    study: Study,
    trials: int,
    plan: Plan,
    space: Space,
    images: Images,
    out: Path,
    keep_all: bool,
    say: Callable[[str], None],
) -> None:
    """Run trials one after the other; one that fails is said and recorded, and the study goes on."""
    latest: list[int] = []

    def objective(trial: Any) -> tuple[float, float]:
        latest.append(trial.number)
        return run_trial(trial, plan, space, images, out, say)

    done = refused = 0
    while done < trials:
        study.optimize(objective, n_trials=1, catch=(Exception,))
        row = row_of(study.get_trials(deepcopy=False)[latest[-1]], plan.limits)
        say(_outcome(row))
        if row.state == "refused":
            refused += 1
            if refused >= _REFUSED_EACH * trials + _REFUSED:
                say(f"{refused} trials were over the limits; stopping after {done} of {trials}")
                return
            continue
        done += 1
        with locked(out):
            _sweep(out, _rows(study, plan, out), keep_all)


def _outcome(row: Row) -> str:
    if row.int8 is None or row.state != "complete":
        return f"trial {row.number}: {row.state}: {row.reason}"
    trust = f" (latency not to be trusted: {'; '.join(row.int8.doubts)})" if row.int8.doubts else ""
    over = f", over the limit of {' and '.join(row.passed)}" if row.passed else ""
    return (
        f"trial {row.number}: validation {row.val_accuracy or 0:.2%}, int8 {row.int8.accuracy:.2%} in "
        f"{row.int8.latency_us:.1f} us{over}{trust}"
    )


def _rows(study: Study, plan: Plan, out: Path) -> tuple[Row, ...]:
    """Read all finished trials and mark the front of those within the limits."""
    rows = [row_of(trial, plan.limits) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    good = [
        (place, row.int8) for place, row in enumerate(rows) if row.state == "complete" and row.int8 and not row.passed
    ]
    front = pareto_front([int8.accuracy for _, int8 in good], [int8.latency_us for _, int8 in good])
    for (place, _), on_front in zip(good, front, strict=True):
        if on_front:
            rows[place] = _on_front(rows[place], plan, out)
    return tuple(rows)


def _on_front(row: Row, plan: Plan, out: Path) -> Row:
    if row.settings is None:
        return row
    run, kept = f"runs/{out.resolve().name}-{row.number:03d}", out / TRIALS / f"{row.number:03d}"
    command = train_command(plan.source, run, row.settings, plan.epochs, plan.options, plan.device)
    folder = f"{TRIALS}/{kept.name}" if kept.is_dir() else None  # another machine may have it
    return msgspec.structs.replace(row, front=True, command=command, folder=folder)


def _sweep(out: Path, rows: Iterable[Row], keep_all: bool) -> None:
    """Remove what finished trials left that are not on the front; those under way are not among the rows."""
    for row in rows:
        if not row.front and not keep_all:
            shutil.rmtree(out / TRIALS / f"{row.number:03d}", ignore_errors=True)


def _front_together(
    study: Study, plan: Plan, out: Path, keep_all: bool, say: Callable[[str], None]
) -> tuple[dict[int, Together], tuple[str, ...]]:
    """Measure what is here of the front, all at one time; give latencies by trial and what to be warned of."""
    with ExitStack() as stack:
        with locked(out):  # until they are loaded nobody may sweep them away
            rows = _rows(study, plan, out)
            _sweep(out, rows, keep_all)
            files = {row.number: file for row in rows if row.folder for file in (out / row.folder).glob("*.onnx")}
            try:
                sessions = stack.enter_context(open_files(files))
            except EdgecnnError as error:
                return {}, (f"the front could not be measured together: {error}",)
        say(f"measuring the front together: {len(sessions)} files, in turns")
        found, doubts = measure_together(sessions, plan.latency_seconds)
    if not doubts:
        return found, ()
    return found, (f"the front was measured together on an unsteady machine: {doubts[0]}",)


def _finish(
    study: Study, report: SearchReport, plan: Plan, out: Path, keep_all: bool,
    together: Mapping[int, Together] = MappingProxyType({}), warned: tuple[str, ...] = (),
) -> SearchReport:  # fmt: skip
    """Write the table and the picture of the whole study, whoever ran its trials."""
    from edgecnn.report.search import plot_front

    with locked(out):
        rows = _rows(study, plan, out)
        _sweep(out, rows, keep_all)
        rows = tuple(msgspec.structs.replace(row, together=together.get(row.number) if row.front else None) for row in rows)  # fmt: skip
        report = msgspec.structs.replace(report, rows=rows, warnings=(*_warnings(rows), *warned))
        write_atomic(out / REPORT, to_json(report))
        write_atomic(out / PICTURE, plot_front(report))
    return report


def _warnings(rows: Iterable[Row]) -> tuple[str, ...]:
    measured = [row.int8 for row in rows if row.int8 and row.state == "complete"]
    found = []
    cpus = sorted({one.cpu for one in measured})
    if len(cpus) > 1:
        found.append(f"latencies were measured on different CPUs ({', '.join(cpus)}) and do not compare")
    doubted = [one for one in measured if one.doubts]
    if doubted:
        reason = doubted[0].doubts[0]
        found.append(f"{len(doubted)} of {len(measured)} latencies (~) were measured on an unsteady machine: {reason}")
    return tuple(found)
