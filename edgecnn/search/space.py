"""What is searched over, what a choice costs before any training, and the `edgecnn train` line that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import msgspec

from edgecnn.data import DataOptions
from edgecnn.errors import UsageError
from edgecnn.layers import trace
from edgecnn.report.text import thousands
from edgecnn.spec import Frozen, Preprocess

if TYPE_CHECKING:
    from optuna import Trial

WIDTHS = tuple(step / 4 for step in range(1, 9))
DEPTHS = (1, 2, 3)
AUGMENTS = ("none", "light", "strong")
LOWEST_LR, HIGHEST_LR, USUAL_LR = 0.001, 0.02, 0.004
_SIZE_STEP, _SMALLEST_SIZE = 4, 8  # pixels a side


class Settings(Frozen, frozen=True):
    """One point of the space, in the words of `edgecnn train`; `lr` has three digits, as it is printed."""

    lr: float
    width: float
    depth: int
    image_size: int
    augment: str


class Cost(Frozen, frozen=True):
    """Trained parameters, and multiply-accumulates for one image."""

    parameters: int
    macs: int


class Limits(Frozen, frozen=True):
    """What a network may cost; None is no limit. `max_latency_us` is of the int8 file, batch 1, one thread."""

    max_macs: int | None = None
    max_params: int | None = None
    max_latency_us: float | None = None

    def excess(self, cost: Cost, latency_us: float | None = None) -> dict[str, float]:
        """Give for each limit the share by which it is passed; zero or below is within."""
        pairs = (("MACs", cost.macs, self.max_macs), ("parameters", cost.parameters, self.max_params), ("latency", latency_us, self.max_latency_us))  # fmt: skip
        return {name: value / limit - 1 for name, value, limit in pairs if limit is not None and value is not None}

    def passed(self, cost: Cost, latency_us: float | None = None) -> tuple[str, ...]:
        """Name the limits that are passed."""
        return tuple(name for name, share in self.excess(cost, latency_us).items() if share > 0)


@dataclass(frozen=True)
class Space:
    """The data as the networks see it: `sizes` are the sides searched over, `size` the usual one."""

    sizes: tuple[int, ...]
    size: int
    preprocess: Preprocess
    classes: int

    def suggest(self, trial: Trial) -> Settings:
        """Let Optuna choose a point."""
        return settings_of(
            {
                "lr": trial.suggest_float("lr", LOWEST_LR, HIGHEST_LR, log=True),
                "width": trial.suggest_float("width", WIDTHS[0], WIDTHS[-1], step=WIDTHS[1] - WIDTHS[0]),
                "depth": trial.suggest_int("depth", DEPTHS[0], DEPTHS[-1]),
                "image_size": trial.suggest_categorical("image_size", self.sizes),
                "augment": trial.suggest_categorical("augment", AUGMENTS),
            }
        )

    def seen_at(self, side: int) -> Preprocess:
        """Describe the images at another resolution."""
        return msgspec.structs.replace(self.preprocess, height=side, width=side)

    def cost(self, settings: Settings) -> Cost:
        """Count parameters and MACs from the list of layers; nothing is built or trained.

        Raises:
            UsageError: the images are too small for the network.
        """
        from edgecnn.nets import NetChoice, choose_net

        side = settings.image_size
        choice = NetChoice(net="edge", width=settings.width, depth=settings.depth)
        config = choose_net(choice, self.seen_at(side), self.classes)
        rows = trace(config.layers, (self.preprocess.channels, side, side), self.classes)
        return Cost(parameters=sum(row.parameters for row in rows), macs=sum(row.macs for row in rows))

    def architectures(self) -> Iterator[tuple[Settings, Cost]]:
        """Go through every network of the space, with the usual learning rate and augmentation."""
        for width, depth, side in product(WIDTHS, DEPTHS, self.sizes):
            settings = Settings(lr=USUAL_LR, width=width, depth=depth, image_size=side, augment="light")
            yield settings, self.cost(settings)

    def start(self, limits: Limits) -> Settings:
        """Choose what is tried first: the usual network, or the largest one within the limits.

        Raises:
            UsageError: every network of the space passes a limit.
        """
        everything = list(self.architectures())
        within = [(settings, cost) for settings, cost in everything if not limits.passed(cost)]
        if not within:
            raise UsageError(_nothing_fits(limits, [cost for _, cost in everything]))
        usual = Settings(lr=USUAL_LR, width=1.0, depth=1, image_size=self.size, augment="light")
        return max(within, key=lambda pair: (pair[0] == usual, pair[1].macs))[0]


def settings_of(params: dict[str, float | int | str]) -> Settings:
    """Read a trial's parameters; the learning rate is rounded to what a command line shows."""
    return msgspec.convert({**params, "lr": float(f"{params['lr']:.3g}")}, Settings)


def default_sizes(side: int) -> tuple[int, ...]:
    """List half, three quarters and the whole of the usual side, as far as that leaves something to see."""
    smaller = {round(side * share / _SIZE_STEP) * _SIZE_STEP for share in (0.5, 0.75)}
    return (*sorted(one for one in smaller if _SMALLEST_SIZE <= one < side), side)


def train_command(source: str, out: str, settings: Settings, epochs: int, options: DataOptions, device: str) -> str:
    """Write the `edgecnn train` line that trains these settings in the very same way."""
    words: list[object] = ["edgecnn", "train", source, "-o", out, "--width", settings.width, "--depth", settings.depth]
    words += ["--image-size", settings.image_size, "--lr", settings.lr, "--augment", settings.augment]
    words += ["--epochs", epochs, "--seed", options.seed]
    asked = (
        ("--channels", options.channels), ("--fit", options.fit if options.fit != "stretch" else None),
        ("--val", options.val), ("--test", options.test), ("--test-from", options.test_from),
        ("--group-from", options.group_from),
        ("--device", device if device != "cpu" else None),
    )  # fmt: skip
    words += [word for name, value in asked if value is not None for word in (name, value)]
    words += ["--strict"] * options.strict
    words += [] if options.stream is None else ["--stream" if options.stream else "--no-stream"]
    return shlex.join(str(word) for word in words)


def _nothing_fits(limits: Limits, costs: Sequence[Cost]) -> str:
    def least(values: Iterable[int]) -> str:
        return thousands(min(values))

    asked = [f"--max-macs {limits.max_macs}"] * (limits.max_macs is not None)
    asked += [f"--max-params {limits.max_params}"] * (limits.max_params is not None)
    return (
        f"{' '.join(asked)}: no network of the search is within; the least are {least(cost.macs for cost in costs)} "
        f"MACs and {least(cost.parameters for cost in costs)} parameters"
    )
