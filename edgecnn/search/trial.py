"""One trial: choose, refuse what costs too much, train, give up what falls behind, export to int8, and measure.

Optuna prunes studies of one objective only; with two, `Trial.report` and `should_prune` raise. So the rule is our
own, over accuracies by epoch that the study keeps: a trial is given up where its best accuracy so far is below the
median of what finished trials that are no deeper and cost no more MACs had by the same epoch. A plain median over all
trials would prune the small fast nets, which are one end of the front, for not being large; and MACs alone would prune
shallow wide nets, which can be faster than deep narrow ones of fewer MACs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgecnn import host
from edgecnn.backends.base import CheckedSession, SessionOptions, open_session
from edgecnn.bench.latency import measure_latency
from edgecnn.bench.trust import judge_trust
from edgecnn.data import DataOptions, Dataset, open_data
from edgecnn.errors import DataError
from edgecnn.exporter import Exported
from edgecnn.files import folder_atomic
from edgecnn.parity.compare import run_all
from edgecnn.runs import CHECKPOINT
from edgecnn.search.export import export_int8
from edgecnn.search.result import Measured
from edgecnn.search.space import Cost, Limits, Settings, Space
from edgecnn.search.study import TRIALS
from edgecnn.spec import Artifact, BackendRef, Frozen, Target

if TYPE_CHECKING:
    from optuna import Trial

    from edgecnn.training.loop import Epoch

PEERS = 4  # finished trials, no deeper and at no more MACs, before one is given up for being behind them
WARM_UP = 0.3  # share of the epochs in which nothing is given up: the rate still rises and says little
_ARTIFACT = "int8"


class Plan(Frozen, frozen=True):
    """What all trials of one search have in common."""

    source: str
    options: DataOptions
    epochs: int
    device: str = "cpu"
    target: Target = "any"
    limits: Limits = Limits()
    prune: bool = True
    latency_seconds: float = 1.0


@dataclass
class Images:
    """The data at each resolution, opened once, with the test images put away: the search cannot look at them."""

    source: str
    options: DataOptions
    opened: dict[int | None, Dataset] = field(default_factory=dict)

    def at(self, size: int | None) -> Dataset:
        """Open the data at this resolution.

        Raises:
            DataError: it cannot be opened, or is split differently at another resolution.
        """
        if size not in self.opened:
            options = msgspec.structs.replace(self.options, size=size)
            dataset = open_data(self.source, options)
            dataset = dataclasses.replace(dataset, test=dataset.val.subset(np.arange(0)))
            for other in self.opened.values():
                if [item.name for item in other.val.items] != [item.name for item in dataset.val.items]:
                    raise DataError(f"{self.source}: is split differently at --image-size {size}, so that trials could not be compared")  # fmt: skip
            self.opened[size] = self.opened[dataset.preprocess.height] = dataset
        return self.opened[size]


def run_trial(
    trial: Trial, plan: Plan, space: Space, images: Images, folder: Path, say: Callable[[str], None]
) -> tuple[float, float]:
    """Return accuracy of the int8 file on the validation images, and its p50 latency in microseconds.

    What is known on the way is kept in the trial's user attributes; weights and int8 file in `folder`/trials/NNN.

    Raises:
        TrialPruned: it costs too much and was not trained, or fell behind and was given up.
        EdgecnnError: training, export or the session failed.
    """
    try:
        return _run(trial, plan, space, images, folder, say)
    except BaseException as error:
        words = " ".join(str(error).split())[:300]
        trial.set_user_attr("reason", words or ("interrupted" if isinstance(error, KeyboardInterrupt) else repr(error)))
        raise


def _run(
    trial: Trial, plan: Plan, space: Space, images: Images, folder: Path, say: Callable[[str], None]
) -> tuple[float, float]:
    from optuna import TrialPruned

    settings = space.suggest(trial)
    cost = space.cost(settings)
    trial.set_user_attr("cost", msgspec.to_builtins(cost))
    for name, share in plan.limits.excess(cost).items():
        trial.set_constraint(name, share)
    if passed := plan.limits.passed(cost):
        raise TrialPruned(f"over the limit of {' and '.join(passed)}, not trained")
    say(f"trial {trial.number}: {describe(settings, cost)}")
    dataset = images.at(settings.image_size)
    with folder_atomic(folder / TRIALS / f"{trial.number:03d}") as work:
        train_trial(work, settings, plan, dataset, _watch(trial, settings, cost, plan))
        exported = export_int8(work, dataset, plan.target, plan.options.seed)
        int8 = measure_trial(exported, plan, dataset)
        for name, share in plan.limits.excess(cost, int8.latency_us).items():
            if name == "latency":
                trial.set_constraint(name, share)
        trial.set_user_attr("int8", msgspec.to_builtins(int8))
    return int8.accuracy, int8.latency_us


def describe(settings: Settings, cost: Cost) -> str:
    """Say in one line what is tried."""
    return (
        f"lr {settings.lr:g}, width {settings.width:g}, depth {settings.depth}, {settings.image_size} pixels, "
        f"augment {settings.augment}; {cost.parameters:,} parameters, {cost.macs:,} MACs"
    )


def is_behind(curve: Sequence[float], peers: Sequence[Sequence[float]], epochs: int) -> bool:
    """Say whether accuracies by epoch are to be given up, measured by those of finished trials.

    Never in the warm-up, never after the last epoch, and never before there are enough peers.
    """
    reached = len(curve)
    known = [max(peer[:reached]) for peer in peers if len(peer) >= reached]
    if reached >= epochs or reached <= max(1, round(WARM_UP * epochs)) or len(known) < PEERS:
        return False
    return max(curve) < float(np.median(known))


def _watch(trial: Trial, settings: Settings, cost: Cost, plan: Plan) -> Callable[[Epoch], None]:
    """Make what keeps a trial's accuracies in the study, where other processes see them, and gives it up."""
    from optuna import TrialPruned
    from optuna.trial import TrialState

    curve: list[float] = []

    def on_epoch(epoch: Epoch) -> None:
        curve.append(epoch.val_accuracy)
        trial.set_user_attr("curve", curve)
        if not plan.prune:
            return
        done = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        peers = [
            other.user_attrs["curve"]
            for other in done
            if other.user_attrs["cost"]["macs"] <= cost.macs and other.params["depth"] <= settings.depth
        ]
        if is_behind(curve, peers, plan.epochs):
            raise TrialPruned(f"behind its peers after epoch {len(curve)} of {plan.epochs}")

    return on_epoch


def train_trial(
    work: Path, settings: Settings, plan: Plan, dataset: Dataset, on_epoch: Callable[[Epoch], None]
) -> None:
    """Train as `edgecnn train` does, step by step the same, without its look at the test images.

    Raises:
        TrainingError: the loss is no longer a number.
    """
    import torch

    from edgecnn.nets import NetChoice, build_net, choose_net
    from edgecnn.training.augment import parse_augment
    from edgecnn.training.checkpoint import Header, save_checkpoint
    from edgecnn.training.loop import fit
    from edgecnn.training.recipe import Recipe, is_mirrored
    from edgecnn.training.run import normalised

    dataset = normalised(dataset)
    torch.manual_seed(plan.options.seed)
    augment = parse_augment(settings.augment, is_mirrored(dataset))
    recipe = Recipe(epochs=plan.epochs, lr=settings.lr, augment=augment, seed=plan.options.seed)
    choice = NetChoice(net="edge", width=settings.width, depth=settings.depth)
    model = choose_net(choice, dataset.preprocess, len(dataset.labels))
    net = build_net(model, dataset.preprocess, len(dataset.labels))
    trained = fit(net, dataset, recipe, plan.device, lambda epoch, _net: on_epoch(epoch))
    header = Header(model=model, preprocess=dataset.preprocess, labels=dataset.labels)
    save_checkpoint(work / CHECKPOINT, trained.net, header)


def measure_trial(exported: Exported, plan: Plan, dataset: Dataset) -> Measured:
    """Run the int8 file itself: accuracy on all validation images, latency of one at a time on one thread.

    Raises:
        BackendError: it cannot be loaded or run.
    """
    artifact = Artifact(
        name=_ARTIFACT, format=exported.format, path=exported.path, precision=exported.precision, target=exported.target
    )
    with open_session(BackendRef(backend="onnxruntime"), artifact, SessionOptions(threads=1)) as session:
        answers = run_all(session, dataset.val)["logits"].argmax(axis=1)
        accuracy = float(np.mean(answers == dataset.val.labels))
        return _timed(session, dataset.val.take(np.arange(1)), plan.latency_seconds, accuracy)


def _timed(session: CheckedSession, image: Any, seconds: float, accuracy: float) -> Measured:
    machine, busy, before = host.fingerprint(), host.busy_cores(), host.load()
    latency = measure_latency({_ARTIFACT: session}, {session.inputs[0].name: image}, seconds)[_ARTIFACT]
    trust = judge_trust(machine, before, host.load(), [latency], busy)
    return Measured(
        accuracy=accuracy,
        latency_us=latency.p50_us,
        spread=latency.round_spread,
        calls=latency.n,
        cpu=machine.cpu,
        doubts=trust.reasons,
    )
