"""From what a person asks for, a family's name, a TOML file or a function, to a network's configuration."""

from __future__ import annotations

from pathlib import Path

from edgecnn.errors import UsageError
from edgecnn.layers import Layer, ModelConfig, TooLargeError, UnfitError, trace
from edgecnn.nets.compact import compact_layers, default_widths
from edgecnn.nets.depthwise import depthwise_layers
from edgecnn.nets.edge import Size, edge_layers
from edgecnn.nets.lenet import lenet_layers
from edgecnn.nets.resnet8 import resnet8_layers
from edgecnn.nets.toml import read_layers
from edgecnn.spec import Frozen, Preprocess

_WIDEST = 65536  # filters, as edgecnn.layers reads them back
FAMILIES = ("edge", "lenet", "resnet8", "depthwise", "compact")
# Which of the choices below each family follows; the others do not apply and are refused.
_FOLLOWS = {
    "edge": {"size", "width", "depth", "dropout"},
    "lenet": {"dropout"},
    "resnet8": {"width"},
    "depthwise": {"width"},
    "compact": {"widths", "depth", "dropout"},
}


class NetChoice(Frozen, frozen=True):
    """A network as asked for; what is None is the family's own habit.

    `width` multiplies the filters, `depth` counts convolutions a stage, `widths` lists compact's filters.
    """

    net: str = "edge"
    size: Size | None = None
    width: float | None = None
    depth: int | None = None
    widths: tuple[int, ...] | None = None
    dropout: float | None = None


def choose_net(choice: NetChoice, preprocess: Preprocess, classes: int) -> ModelConfig:
    """Resolve the choice for images of this size, and see that every layer fits.

    Raises:
        UsageError: no such net, a choice that does not apply to it, or images too small for it.
    """
    asked = {name for name in ("size", "width", "depth", "widths", "dropout") if getattr(choice, name) is not None}
    foreign = sorted(asked - _FOLLOWS.get(choice.net, set()))
    known = choice.net in FAMILIES
    if foreign and (known or choice.net.endswith(".toml") or ":" in choice.net):
        raise UsageError(f"--{foreign[0]} does not apply to --net {choice.net}")
    image = (preprocess.channels, preprocess.height, preprocess.width)
    if known:
        return _fitting(choice, preprocess, image, classes)
    if choice.net.endswith(".toml"):
        return ModelConfig(net=Path(choice.net).stem, layers=read_layers(Path(choice.net), image, classes))
    if ":" in choice.net:
        return ModelConfig(net=choice.net, function=choice.net)
    raise UsageError(
        f"--net {choice.net}: there are {', '.join(FAMILIES)}; or give a .toml file of layers, or package.module:function"
    )


def _fitting(choice: NetChoice, preprocess: Preprocess, image: tuple[int, int, int], classes: int) -> ModelConfig:
    layers = _layers(choice, min(preprocess.height, preprocess.width))
    try:
        trace(layers, image, classes)
    except TooLargeError as error:
        raise UsageError(f"--net {choice.net}: in its layer {error.path[0] + 1}: {error}") from None
    except UnfitError as error:
        size = f"{preprocess.width}x{preprocess.height}"
        raise UsageError(
            f"images of {size} are too small for --net {choice.net}: its layer {error.path[0] + 1}, {error}; "
            "use a larger --image-size or another net"
        ) from None
    return ModelConfig(net=choice.net if choice.size is None else f"{choice.net}-{choice.size}", layers=layers)


def _layers(choice: NetChoice, side: int) -> tuple[Layer, ...]:
    if choice.net == "edge":
        return edge_layers(side, choice.size or "s", choice.width or 1.0, choice.depth, choice.dropout or 0.0)
    if choice.net == "lenet":
        return lenet_layers() if choice.dropout is None else lenet_layers(choice.dropout)
    if choice.net == "resnet8":
        return resnet8_layers(choice.width or 1.0)
    if choice.net == "depthwise":
        return depthwise_layers(side, choice.width or 0.25)
    widths = choice.widths or default_widths(side)
    if not all(1 <= filters <= _WIDEST for filters in widths):
        raise UsageError(f"--widths {','.join(map(str, widths))}: every width lies from 1 to {_WIDEST}")
    return compact_layers(widths, choice.depth or 2, 0.1 if choice.dropout is None else choice.dropout)
